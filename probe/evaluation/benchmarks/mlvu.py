"""MLVU (dev): 2,175 multiple choice questions about long videos (3 minutes to 9 hours), 7 tasks.

`json/<number>_<task>.json`, videos in `video/<number>_<task>/`; one entry of `json/4_count.json`:

    {"video": "count_126.mp4", "duration": 590.0,
     "question": "Throughout this video, what is the total count of occurrences of ...?",
     "candidates": ["2", "1", "3", "4"], "answer": "2", "question_type": "count"}

Rule: as MVBench (`video_choices.py`; at most 1000 frames). The headline is M-Avg, the mean over the
seven tasks. The two open tasks (8_sub_scene, 9_summary) are not in LLaVA-Mini's script, nor here.
In the official files two needle questions have an answer that is not among the candidates and are
never right, and some list a candidate twice: the last one counts. Rows are told apart by their
number, for a few are there twice.

Source: llavamini/eval/video/mlvu_mc.py; JUNJIE99/MLVU, data/.
"""

from probe.evaluation.benchmarks.video_choices import Task, VideoChoices

FILES = {  # as LLaVA-Mini names them: the file, and the folder of videos
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
MLVU = VideoChoices(
    "mlvu", {task: Task(file, (file, task)) for task, file in FILES.items()}, LABEL="M-Avg (%)"
)
