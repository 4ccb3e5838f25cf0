"""LLaVA-Bench in the wild: 60 open questions about 24 images, scored by a language model.

`questions.jsonl`, images in `images/`; one line:

    {"question_id": 0, "image": "001.jpg", "category": "conv", "text": "What is the name of this sight?"}

The judge (LLaVA's llava/eval/eval_gpt_review_bench.py) reads our exported answers beside GPT-4's
and gives both a score of 1 to 10; `judged` reads what it writes, one line a question:

    {"question_id": 0, "category": "llava_bench_conv", "content": "7 9\\n...", "tuple": [7.0, 9.0]}

Rule: llava/eval/summarize_gpt_review.py, 100 x mean score of the model / mean score of GPT-4. We
leave out reviews in which the judge gave no scores (-1), which the original averages in.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, json_line, lines
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, shown
from probe.evaluation.benchmarks.answer_files import (
    answered,
    counted,
    weighted_percent,
    write_llava,
)

HEADLINE, LABEL = "relative", "score relative to GPT-4's (%)"
SPLITS = ("all",)
CATEGORIES = ("conv", "detail", "complex")
Scores = Mapping[str, tuple[float, float]]  # question id -> GPT-4's score and the model's


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `questions.jsonl`. Nothing is appended to the questions. Raises ProbeError."""
    data, reading = DataFolder("llava_w", folder), RowReader("llava_w", split)
    file = data.find("questions.jsonl")
    for number, line in lines("llava_w", file):
        with reading.row(file, number):
            reading.add(_sample(data, json_line(line)))
    return reading.finish([file])


def _sample(data: DataFolder, row: Any) -> Sample:
    key, image, kind = identifier(row, "question_id"), entry(row, "image"), entry(row, "category")
    meta = {"question_id": row["question_id"], "unit": key, "image": image, "kind": kind}
    return Sample(key, data.image(f"images/{image}", image), question_text(row, "text"), meta=meta)


def score(prediction: str, sample: Sample) -> float:
    """NaN: only a judge can score an open answer. See `judged`."""
    return float("nan")


def judged(file: str | Path) -> dict[str, tuple[float, float]]:
    """The judge's scores by question id. Raises ProbeError naming the line that is not a review."""
    found = {}
    for number, line in lines("llava_w.judged", Path(file)):
        try:
            row = json_line(line)
            found[identifier(row, "question_id")] = _two_scores(entry(row, "tuple", list))
        except RowError as bad:
            raise ProbeError(
                "llava_w.judged",
                expected=f"{bad.expected} in line {number} of {Path(file).name}",
                got=bad.got,
            ) from None
    return found


def _two_scores(given: list) -> tuple[float, float]:
    if len(given) != 2 or not all(isinstance(value, int | float) for value in given):
        raise RowError("'tuple': the scores of GPT-4 and of the model", shown(given))
    return float(given[0]), float(given[1])


def summarise(
    samples: Sequence[Sample], predictions: Mapping[str, str], scores: Scores | None = None
) -> dict[str, float]:
    """The relative score in percent, all and by category; NaN without the judge's `scores`."""
    pairs = answered(samples, predictions)
    scored = [
        (s.meta["kind"], scores[s.id])
        for s, _ in pairs
        if scores and s.id in scores and min(scores[s.id]) >= 0
    ]
    numbers = {"relative": _relative([both for _, both in scored])}
    for category in CATEGORIES:
        numbers[category] = _relative([both for kind, both in scored if kind == category])
    return numbers | counted(samples, pairs) | {"unscored": float(len(pairs) - len(scored))}


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, "sample"],
) -> Float[np.ndarray, "case"]:
    """`HEADLINE` of each case when each sample counts so often; `about` has GPT-4's scores as
    "reference".
    """
    known = ~np.isnan(correct)
    gpt4 = weighted_percent(np.where(known, about["reference"], np.nan), times)
    return 100 * weighted_percent(correct, times) / gpt4


def _relative(scored: Sequence[tuple[float, float]]) -> float:
    if not scored:
        return float("nan")
    gpt4, model = np.mean(scored, axis=0)
    return float(100 * model / gpt4)


def export(samples: Sequence[Sample], predictions: Mapping[str, str], folder: str | Path) -> Path:
    """Writes `llava_w.jsonl`, the second --answer-list of the judge."""
    return write_llava(samples, predictions, Path(folder) / "llava_w.jsonl")
