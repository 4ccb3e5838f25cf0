"""LLaVA-Bench in the wild: 60 open questions about 24 images, scored by a language model.

`questions.jsonl`, images in `images/`; one line:

    {"question_id": 0, "image": "001.jpg", "category": "conv", "text": "What is this sight?"}

The judge (LLaVA's llava/eval/eval_gpt_review_bench.py) reads our exported answers beside GPT-4's
and gives both a score of 1 to 10; `judged` reads what it writes, one line a question:

    {"question_id": 0, "category": "llava_bench_conv", "content": "7 9\\n...", "tuple": [7.0, 9.0]}

Rule: llava/eval/summarize_gpt_review.py, 100 x mean score of the model / mean score of GPT-4, both
rounded to three decimals first. We leave out reviews in which the judge gave no scores (-1), which
the original averages in. The review script reads questions, answers and GPT-4's answers in
parallel, by position, so every question is exported.
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
    Answers,
    Predictions,
    Rows,
    weighted_percent,
    write_llava,
)

HEADLINE = "relative"
LABEL = "score relative to GPT-4's (%)"
FILES = "questions.jsonl, images/"
SPLITS = ("all",)
DECIMALS = 3  # to which summarize_gpt_review.py rounds the two means
CATEGORIES = ("conv", "detail", "complex")
Scores = Mapping[str, tuple[float, float]]  # question id -> GPT-4's score and the model's


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `questions.jsonl`. Nothing is appended to the questions. Raises ProbeError."""
    data = DataFolder("llava_w", folder)
    reader = RowReader("llava_w", split)
    file = data.find("questions.jsonl")
    for number, line in lines("llava_w", file):
        with reader.row(file, number) as official:
            official.update(question_id=number - 1)
            row = json_line(line)
            identifier(row, "question_id")
            official.update(question_id=row["question_id"], prompt=str(row.get("text", "")))
            reader.add(_sample(data, row))
    return reader.finish([file])


def _sample(data: DataFolder, row: Any) -> Sample:
    key = identifier(row, "question_id")
    image = entry(row, "image")
    kind = entry(row, "category")
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
    rows: Rows, predictions: Predictions, scores: Scores | None = None
) -> dict[str, float]:
    """The relative score in percent, all and by category; NaN without the judge's `scores`."""
    answers = Answers(rows, predictions, score)
    scores = scores or {}
    judged_pairs = [
        (sample.meta["kind"], scores[sample.id])
        for sample, _ in answers.pairs
        if min(scores.get(sample.id, (-1,))) >= 0
    ]
    numbers = {"relative": _relative([pair for _, pair in judged_pairs])}
    for category in CATEGORIES:
        numbers[category] = _relative([pair for kind, pair in judged_pairs if kind == category])
    unscored = len(answers.pairs) - len(judged_pairs)
    return numbers | answers.counts() | {"unscored": float(unscored)}


def _relative(pairs: Sequence[tuple[float, float]]) -> float:
    if not pairs:
        return float("nan")
    gpt4, model = np.mean(pairs, axis=0).round(DECIMALS)
    return float(100 * model / gpt4)


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, " sample"],
) -> Float[np.ndarray, " case"]:
    """`HEADLINE` of each case when each sample counts `times` times; `about` has GPT-4's scores as
    "reference". Both are fractions of the best mark, 10.
    """
    scored = ~np.isnan(correct)
    gpt4 = weighted_percent(np.where(scored, about["reference"], np.nan), times)
    model = weighted_percent(correct, times)
    return 100 * (model / 10).round(DECIMALS) / (gpt4 / 10).round(DECIMALS)


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `llava_w.jsonl`, the second --answer-list of the judge."""
    return write_llava(rows, predictions, Path(folder) / "llava_w.jsonl")
