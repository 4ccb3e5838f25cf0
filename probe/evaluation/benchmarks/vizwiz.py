"""VizWiz: what blind people asked about images they took (validation: 4,319; papers report
test-dev).

`val.json`, images in `val/`; one entry:

    {"image": "VizWiz_val_00000000.jpg", "question": "What is this, and what color is it?", "answers":
     [{"answer": "unanswerable", "answer_confidence": "yes"}, ... ten in all], "answer_type": "unanswerable",
     "answerable": 0}

Rule: the soft score (`vqa_score`). The test split has no answers: it is exported for the server
(LLaVA's scripts/convert_vizwiz_for_submission.py: normalised answers).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_list
from probe.data.rows import Benchmark, RowReader, entry, question_text
from probe.data.sample import Sample
from probe.evaluation.benchmarks.answer_files import answered, counted, percent, write_json
from probe.evaluation.benchmarks.prompts import SINGLE_WORD, UNANSWERABLE
from probe.evaluation.benchmarks.textvqa import ten_answers
from probe.evaluation.benchmarks.vqa_accuracy import normalise, soft_score

HEADLINE = "accuracy"
SPLITS = ("val", "test", "train")


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `<split>.json`. Raises ProbeError."""
    data, reading = DataFolder("vizwiz", folder), RowReader("vizwiz", split)
    file = data.find(f"{split}.json", f"Annotations/{split}.json")
    for number, row in enumerate(json_list("vizwiz", file), 1):
        with reading.row(file, number):
            reading.add(_sample(data, row, split))
    return reading.finish([file])


def _sample(data: DataFolder, row: Any, split: str) -> Sample:
    image = question_text(row, "image")
    answers = None if split == "test" else ten_answers(entry(row, "answers", list))
    kind = (
        "" if answers is None else "answerable" if entry(row, "answerable", int) else "unanswerable"
    )
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
    return (
        soft_score(prediction, sample.answer) if isinstance(sample.answer, tuple) else float("nan")
    )


def summarise(samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, float]:
    """Mean soft score in percent: all, answerable and unanswerable questions."""
    pairs = answered(samples, predictions)
    numbers = {"accuracy": percent(score(text, sample) for sample, text in pairs)}
    for kind in ("answerable", "unanswerable"):
        numbers[kind] = percent(
            score(text, sample) for sample, text in pairs if sample.meta["kind"] == kind
        )
    return numbers | counted(samples, pairs)


def export(samples: Sequence[Sample], predictions: Mapping[str, str], folder: str | Path) -> Path:
    """Writes `vizwiz.json` for the server."""
    rows = [
        {"image": sample.meta["image"], "answer": normalise(text)}
        for sample, text in answered(samples, predictions)
    ]
    return write_json(rows, Path(folder) / "vizwiz.json")
