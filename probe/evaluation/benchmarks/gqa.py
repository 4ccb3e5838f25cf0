"""GQA: compositional questions about scenes (test-dev balanced: 12,578 questions about 398 images).

`testdev_balanced_questions.json`, images in `images/`; one entry:

    {"20602803": {"question": "Is the ground blue or brown?", "imageId": "n168412", "answer": "brown",
      "fullAnswer": "The ground is brown.", "isBalanced": true, "types": {"structural": "choose",
      "semantic": "attr", "detailed": "chooseAttr"}, "groups": {...}, "semantic": [...], "entailed": [],
      "equivalent": [...]}}

Rule: LLaVA's scripts/convert_gqa_for_eval.py strips full stops at the end and lower-cases; GQA's
eval.py compares with `==`. No article, number or punctuation rule. Questions that are not balanced
are not asked.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_object
from probe.data.rows import Benchmark, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.evaluation.benchmarks.answer_files import answered, counted, percent, write_json
from probe.evaluation.benchmarks.prompts import SINGLE_WORD

HEADLINE = "accuracy"
SPLITS = ("testdev_balanced", "val_balanced")


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `<split>_questions.json` and finds each question's image. Raises ProbeError on an
    unreadable file.
    """
    data, reading = DataFolder("gqa", folder), RowReader("gqa", split)
    file = data.find(f"{split}_questions.json", f"questions1.2/{split}_questions.json")
    questions, repeated = json_object("gqa", file)
    reading.repeated(file, repeated)
    for key, row in questions.items():
        with reading.row(file, key):
            if entry(row, "isBalanced", bool):
                reading.add(_sample(data, key, row))
    return reading.finish([file])


def _sample(data: DataFolder, key: str, row: Any) -> Sample:
    image, types = identifier(row, "imageId"), entry(row, "types", dict)
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


def summarise(samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, float]:
    """Accuracy in percent: all, open and binary questions, and by structural and semantic type."""
    pairs = answered(samples, predictions)
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, text in pairs:
        structural = sample.meta["structural"]
        for group in (
            "accuracy",
            "open" if structural == "query" else "binary",
            f"structural/{structural}",
            f"semantic/{sample.meta['kind']}",
        ):
            groups[group].append(score(text, sample))
    numbers = {name: percent(groups[name]) for name in ("accuracy", "open", "binary")}
    return (
        numbers | {name: percent(groups[name]) for name in sorted(groups)} | counted(samples, pairs)
    )


def export(samples: Sequence[Sample], predictions: Mapping[str, str], folder: str | Path) -> Path:
    """Writes `testdev_balanced_predictions.json` for GQA's eval.py, which needs an answer to every
    question.
    """
    rows = [
        {"questionId": sample.meta["question_id"], "prediction": submitted(text)}
        for sample, text in answered(samples, predictions)
    ]
    return write_json(rows, Path(folder) / "testdev_balanced_predictions.json")
