"""Video-ChatGPT's benchmark: open questions about videos, five scores of a judge, 0 to 5 each.

`generic_qa.json` (correctness, detail and context share it), `temporal_qa.json`,
`consistency_qa.json`, videos in `Test_Videos/`; one entry of the first, and one of the last:

    {"video_name": "v_k_ZXmr8pmrs", "Q": "What is happening in the video?", "A": "A man ..."}
    {"video_name": "v_k_ZXmr8pmrs", "Q1": "What is he doing?", "Q2": "What does he do?", "A": ...}

Rule: the mean of the judge's marks (`video_judge.py`), printed as it is and not in percent. Nothing
is added to the questions. The judge's id of a row is `<video_name>_<k>`, k counting the rows of
that video from 0. A row whose video is missing is left out of the exported file.

LLaVA-Mini's eval_benchmark_5_consistency.py gives the judge Q1 twice, Video-ChatGPT's gives Q1 and
Q2: its consistency is not that of other papers. The exported file holds both questions.

Source: Video-ChatGPT, quantitative_evaluation/; llavamini/eval/video/eval_benchmark_*.py.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, json_list
from probe.data.image import Video
from probe.data.rows import Benchmark, RowReader, identifier, question_text
from probe.data.sample import Sample
from probe.errors import one_of
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    weighted_percent,
    write_lines,
)
from probe.evaluation.benchmarks.video_judge import BEST, Verdict, mean_mark, verdicts
from probe.evaluation.benchmarks.video_qa import video_path

HEADLINE = "score"
LABEL = "judge's score (0 to 5)"
TOP = BEST
FILES = "generic_qa.json, temporal_qa.json, consistency_qa.json, Test_Videos/"
SPLITS = ("generic", "temporal", "consistency")
SCORES = {  # of five: the split whose answers the judge reads
    "correctness": "generic",
    "detail": "generic",
    "context": "generic",
    "temporal": "temporal",
    "consistency": "consistency",
}
SECOND = "/2"  # ends the id of the second question of a pair


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads the questions of one file; of a pair of "consistency" each is a sample. Raises
    ProbeError.
    """
    one_of("video_chatgpt", "a split among", split, SPLITS)
    data = DataFolder("video_chatgpt", folder)
    reader = RowReader("video_chatgpt", split)
    file = data.find(f"{split}_qa.json", f"Benchmarking_QA/{split}_qa.json")
    asked: Counter[str] = Counter()
    for number, row in enumerate(json_list("video_chatgpt", file), 1):
        with reader.row(file, number) as official:
            name = identifier(row, "video_name")
            key = f"{name}_{asked[name]}"
            asked[name] += 1
            official.update(question_id=key)
            for sample in _samples(data, row, key, split):
                reader.add(sample)
    return reader.finish([file])


def _samples(data: DataFolder, row: Any, key: str, split: str) -> list[Sample]:
    names = ("Q1", "Q2") if split == "consistency" else ("Q",)
    questions = [question_text(row, name) for name in names]
    video = Video(video_path(data, row["video_name"]))
    answer = question_text(row, "A")
    fields = {name: row[name] for name in ("video_name", *names, "A")}
    meta = {"question_id": key, "unit": key, "image": row["video_name"], "kind": split}
    meta["row"] = fields
    ids = (key, key + SECOND)
    return [
        Sample(own, video, question, (), answer, meta)
        for own, question in zip(ids, questions, strict=False)
    ]


def score(prediction: str, sample: Sample) -> float:
    """NaN: only a judge can score an open answer. See `judged`."""
    return float("nan")


def judged(file: str | Path) -> dict[str, float]:
    """The judge's mark of each row, as a fraction of 5, by the row's id."""
    found = verdicts("video_chatgpt.judged", file)
    return {key: verdict.mark / BEST for key, verdict in found.items()}


def summarise(
    rows: Rows, predictions: Predictions, scores: Mapping[str, Verdict] | None = None
) -> dict[str, float]:
    """The mean mark, 0 to 5; NaN without the judge's `scores` (`video_judge.verdicts`)."""
    answers = Answers(rows, predictions, score)
    scores = scores or {}
    answered = {sample.meta["unit"] for sample, _ in answers.pairs}
    known = [scores[unit] for unit in answered if unit in scores]
    unscored = float(len(answered) - len(known))
    return {"score": mean_mark(known), **answers.counts(), "unscored": unscored}


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, " sample"],
) -> Float[np.ndarray, " case"]:
    """`HEADLINE` of each case when each sample counts `times` times."""
    return weighted_percent(correct, times) / 100 * BEST


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `video_chatgpt_<split>.jsonl` for the judge: each row with `pred`, or `pred1` and
    `pred2`, and its `id`.
    """
    lines = []
    firsts = [row for row in rows if isinstance(row, Sample) and not row.id.endswith(SECOND)]
    for sample in firsts:
        answer = predictions.get(sample.id, "")
        if sample.meta["kind"] == "consistency":
            of_row = {"pred1": answer, "pred2": predictions.get(sample.id + SECOND, "")}
        else:
            of_row = {"pred": answer}
        lines.append({"id": sample.id, **sample.meta["row"], **of_row})
    split = firsts[0].meta["kind"] if firsts else SPLITS[0]
    return write_lines(lines, Path(folder) / f"video_chatgpt_{split}.jsonl")
