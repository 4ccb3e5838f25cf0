"""VizWiz: what blind people asked about images they took (validation: 4,319; papers report
test-dev).

`val.json`, images in `val/`; one entry:

    {"image": "VizWiz_val_00000000.jpg", "question": "What is this, and what color is it?",
     "answers": [{"answer": "unanswerable", "answer_confidence": "yes"}, ... ten in all],
     "answer_type": "unanswerable", "answerable": 0}

Rule: the soft score (`vqa_score`). The test split has no answers: it is exported for the server
(LLaVA's scripts/convert_vizwiz_for_submission.py: normalised answers).
"""

from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_list
from probe.data.rows import Benchmark, RowReader, entry, question_text
from probe.data.sample import Sample
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    write_json,
)
from probe.evaluation.benchmarks.prompts import SINGLE_WORD, UNANSWERABLE
from probe.evaluation.benchmarks.textvqa import ten_answers
from probe.evaluation.benchmarks.vqa_accuracy import normalise, score_of_people

HEADLINE = "accuracy"
FILES = "val.json, val/"
SPLITS = ("val", "test", "train")


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `<split>.json`. Raises ProbeError."""
    data = DataFolder("vizwiz", folder)
    reader = RowReader("vizwiz", split)
    file = data.find(f"{split}.json", f"Annotations/{split}.json")
    for number, row in enumerate(json_list("vizwiz", file), 1):
        with reader.row(file, number) as official:
            official.update(question_id=question_text(row, "image"))
            reader.add(_sample(data, row, split))
    return reader.finish([file])


def _sample(data: DataFolder, row: Any, split: str) -> Sample:
    image = question_text(row, "image")
    answers = None if split == "test" else ten_answers(entry(row, "answers", list))
    kind = ""
    if answers is not None:
        kind = "answerable" if entry(row, "answerable", int) else "unanswerable"
    meta = {"question_id": image, "unit": image, "image": image, "kind": kind}
    return Sample(
        image,
        data.image(f"{split}/{image}"),
        question_text(row) + UNANSWERABLE + SINGLE_WORD,
        answer=answers,
        meta=meta,
    )


def score(prediction: str, sample: Sample) -> float:
    """Agreement with the ten people, 0 to 1; NaN in the test split."""
    return score_of_people(prediction, sample)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Mean soft score in percent: all, answerable and unanswerable questions."""
    answers = Answers(rows, predictions, score)
    kinds = ("answerable", "unanswerable")
    by_kind = {kind: answers.percent(lambda s, k=kind: s.meta["kind"] == k) for kind in kinds}
    return {"accuracy": answers.percent(), **by_kind, **answers.counts()}


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `vizwiz.json` for the server, which refuses a file that lacks a question."""
    submission = [
        {"image": row["question_id"], "answer": normalise(text)}
        for row, text in official_answers(rows, predictions)
    ]
    return write_json(submission, Path(folder) / "vizwiz.json")
