"""GQA: compositional questions about scenes (test-dev balanced: 12,578 questions about 398 images).

`testdev_balanced_questions.json`, images in `images/`; one entry:

    {"20602803": {"question": "Is the ground blue or brown?", "imageId": "n168412",
      "answer": "brown", "fullAnswer": "The ground is brown.", "isBalanced": true,
      "types": {"structural": "choose", "semantic": "attr", "detailed": "chooseAttr"},
      "groups": {...}, "semantic": [...], "entailed": [], "equivalent": [...]}}

Rule: LLaVA's scripts/convert_gqa_for_eval.py strips full stops at the end and lower-cases; GQA's
eval.py compares with `==`. No article, number or punctuation rule. Questions that are not balanced
are not asked.
"""

from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_object
from probe.data.rows import Benchmark, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    write_json,
)
from probe.evaluation.benchmarks.prompts import SINGLE_WORD

HEADLINE = "accuracy"
FILES = "testdev_balanced_questions.json, images/"
SPLITS = ("testdev_balanced", "val_balanced")


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `<split>_questions.json` and finds each question's image. Raises ProbeError on an
    unreadable file.
    """
    data = DataFolder("gqa", folder)
    reader = RowReader("gqa", split)
    file = data.find(f"{split}_questions.json", f"questions1.2/{split}_questions.json")
    questions, repeated = json_object("gqa", file)
    reader.repeated(file, repeated)
    for key, row in questions.items():
        with reader.row(file, key) as official:
            if entry(row, "isBalanced", bool):
                official.update(question_id=key)
                reader.add(_sample(data, key, row))
    return reader.finish([file])


def _sample(data: DataFolder, key: str, row: Any) -> Sample:
    image = identifier(row, "imageId")
    types = entry(row, "types", dict)
    meta = {
        "question_id": key,
        "unit": key,
        "image": image,
        "kind": entry(types, "semantic"),
        "structural": entry(types, "structural"),
    }
    return Sample(
        key,
        data.image(f"images/{image}.jpg"),
        question_text(row) + SINGLE_WORD,
        answer=question_text(row, "answer"),
        meta=meta,
    )


def submitted(prediction: str) -> str:
    """The generated text as the official scorer gets it.

    >>> submitted(" Yes. ")
    'yes'
    """
    return prediction.strip().rstrip(".").lower()


def score(prediction: str, sample: Sample) -> float:
    """1 where the submitted text equals the answer."""
    return float(submitted(prediction) == sample.answer)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Accuracy in percent: all, open and binary questions, and by structural and semantic type.

    GQA's eval.py stops where an answer is missing; `accuracy_missing_as_wrong` counts it as wrong.
    """
    answers = Answers(rows, predictions, score)
    return {
        "accuracy": answers.percent(),
        "open": answers.percent(lambda sample: sample.meta["structural"] == "query"),
        "binary": answers.percent(lambda sample: sample.meta["structural"] != "query"),
        "accuracy_missing_as_wrong": answers.missing_as_wrong(),
        **answers.by("semantic"),
        **answers.by("structural", "structural"),
        **answers.counts(),
    }


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `testdev_balanced_predictions.json` for GQA's eval.py, which needs every question."""
    submission = [
        {"questionId": row["question_id"], "prediction": submitted(text)}
        for row, text in official_answers(rows, predictions)
    ]
    return write_json(submission, Path(folder) / "testdev_balanced_predictions.json")
