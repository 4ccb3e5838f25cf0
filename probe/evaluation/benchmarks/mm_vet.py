"""MM-Vet: 218 open questions that each need several abilities at once, scored by a language model.

`mm-vet.json`, images in `images/`; one entry:

    {"v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5",
      "imagesource": "...", "capability": ["ocr", "math"]}, ...}

The judge (MM-Vet's notebook) reads our export, {"v1_0": "x = -1 or x = -5", ...}, and writes one or
more scores of 0 to 1 for each question, which `judged` reads:

    {"v1_0": {"model": ["gpt-4"], "content": ["1.0"], "score": [1.0]}, ...}

Rule: the mean over questions of the mean over the judge's runs, in percent; for an ability, over
the questions that need it, alone or with others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probe.data.files import DataFolder, json_object, unrepeated_object
from probe.data.rows import Benchmark, RowError, RowReader, entry, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, shown
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    percent,
    write_json,
)

HEADLINE = "total"
LABEL = "judge's score (%)"
FILES = "mm-vet.json, images/"
SPLITS = ("all",)
ABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `mm-vet.json`. Nothing is appended to the questions. Raises ProbeError."""
    data = DataFolder("mm_vet", folder)
    reader = RowReader("mm_vet", split)
    file = data.find("mm-vet.json")
    questions, repeated = json_object("mm_vet", file)
    reader.repeated(file, repeated)
    for key, row in questions.items():
        with reader.row(file, key) as official:
            official.update(question_id=key)
            reader.add(_sample(data, key, row))
    return reader.finish([file])


def _sample(data: DataFolder, key: str, row: Any) -> Sample:
    image = entry(row, "imagename")
    abilities = tuple(map(str, entry(row, "capability", list)))
    kinds = {"kind": "+".join(abilities), "abilities": abilities}
    meta = {"question_id": key, "unit": key, "image": image, **kinds}
    path = data.image(f"images/{image}")
    return Sample(key, path, question_text(row), answer=question_text(row, "answer"), meta=meta)


def score(prediction: str, sample: Sample) -> float:
    """NaN: only a judge can score an open answer. See `judged`."""
    return float("nan")


def judged(file: str | Path) -> dict[str, float]:
    """The judge's score of each question, averaged over its runs. Raises ProbeError naming the
    question.
    """
    rows = unrepeated_object("mm_vet.judged", Path(file))
    found = {}
    for key, row in rows.items():
        try:
            found[key] = _mean_score(entry(row, "score", list))
        except RowError as bad:
            raise ProbeError(
                "mm_vet.judged", expected=f"{bad.expected} for {key!r}", got=bad.got
            ) from None
    return found


def _mean_score(given: list) -> float:
    if not given or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in given):
        raise RowError("'score': numbers from 0 to 1", shown(given))
    return float(np.mean(given))


def summarise(
    rows: Rows, predictions: Predictions, scores: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The total and each ability in percent; NaN without the judge's `scores`."""
    answers = Answers(rows, predictions, score)
    scores = scores or {}
    scored = [
        (sample.meta["abilities"], scores[sample.id])
        for sample, _ in answers.pairs
        if sample.id in scores
    ]
    numbers = {"total": percent(points for _, points in scored)}
    for ability in ABILITIES:
        numbers[ability] = percent(points for needed, points in scored if ability in needed)
    unscored = len(answers.pairs) - len(scored)
    return numbers | answers.counts() | {"unscored": float(unscored)}


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `mm_vet.json` for the judge."""
    answers = {row["question_id"]: text for row, text in official_answers(rows, predictions)}
    return write_json(answers, Path(folder) / "mm_vet.json")
