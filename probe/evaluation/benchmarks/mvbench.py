"""MVBench: multiple choice about short videos, 20 tasks of 200 questions.

`json/<task>.json`, videos in `video/<source>/`; one entry of `json/object_interaction.json`:

    {"video": "TJZ0P.mp4", "question": "Which object was tidied up by the person?",
     "candidates": ["The broom.", "The cabinet.", "The blanket.", "The table."],
     "answer": "The cabinet.", "start": 5.3, "end": 12.7}

Rule: three of them (`video_choices.py`, prompt and frames too); the headline is the mean over tasks
of LLaVA-Mini's printed score. Its script takes the whole video and leaves `start` and `end` alone,
as is done here; they are in `meta`. Videos that were cut to them (the release that lmms-eval reads)
are found too.

Source: llavamini/eval/video/mvbench_mc.py; Ask-Anything, video_chat2/mvbench.ipynb.
"""

from probe.evaluation.benchmarks.video_choices import Task, VideoChoices

STAR = ("star/Charades_v1_480", "star/Charades_segment")
CLEVRER = ("clevrer/video_validation",)
PERCEPTION = ("perception/videos",)
FOLDERS = {  # task, as its file is named: folders of its videos, in one release or another
    "action_sequence": STAR,
    "action_prediction": STAR,
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "unexpected_action": ("FunQA_test/test",),
    "object_existence": CLEVRER,
    "object_interaction": STAR,
    "object_shuffle": PERCEPTION,
    "moving_direction": CLEVRER,
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "scene_transition": ("scene_qa/video",),
    "action_count": PERCEPTION,
    "moving_count": CLEVRER,
    "moving_attribute": CLEVRER,
    "state_change": PERCEPTION,
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "character_order": PERCEPTION,
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
    "counterfactual_inference": CLEVRER,
}
MVBENCH = VideoChoices("mvbench", {task: Task(task, folders) for task, folders in FOLDERS.items()})
