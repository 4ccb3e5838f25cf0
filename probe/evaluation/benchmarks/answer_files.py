"""Answers beside their questions: scores of those that were given, and the official answer files.

An official scorer joins answers to questions by position, or refuses a file that lacks some. So one
rule holds for all exports: every official row, in the order of the official file, with an empty
text where there is no answer (a row that could not be read included).

    answers = Answers(rows, predictions, score)    # rows: Benchmark.official_rows, or samples
    answers.percent()                                # over the samples that have an answer
    [{"questionId": row["question_id"], "prediction": text} for row, text in answers.official]

LLaVA's answer file, one JSON object a line:

    {"question_id": "20602803", "prompt": "Is the ground blue or brown?\\nAnswer the ...",
     "text": "Brown", "answer_id": "20602803", "model_id": "tiny-llava", "metadata": {}}
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.rows import SkippedRow
from probe.data.sample import Sample

Rows = Sequence[Sample | SkippedRow]
Predictions = Mapping[str, str]  # sample id -> generated text


class Answers:
    """The rows of a benchmark with the texts that answer them.

    A sample without a prediction (its run failed, or it was not asked) is counted apart and enters
    no mean, except in `missing_as_wrong`.
    """

    def __init__(self, rows: Rows, predictions: Predictions, score: Callable[[str, Sample], float]):
        self.rows = rows
        self.predictions = predictions
        self.samples = [row for row in rows if isinstance(row, Sample)]
        answered = [sample for sample in self.samples if sample.id in predictions]
        self.pairs = [(sample, predictions[sample.id]) for sample in answered]
        self.scores = [score(text, sample) for sample, text in self.pairs]

    def percent(self, keep: Callable[[Sample], bool] = lambda sample: True) -> float:
        """The mean score in percent of the answered samples that are kept."""
        scored = zip(self.pairs, self.scores, strict=True)
        return percent(score for (sample, _), score in scored if keep(sample))

    def by(self, prefix: str, group: str = "kind") -> dict[str, float]:
        """`percent` for each value of `meta[group]`, named `prefix/value`, in order."""
        values = sorted({str(sample.meta[group]) for sample in self.samples} - {""})
        return {
            f"{prefix}/{v}": self.percent(lambda s, v=v: str(s.meta[group]) == v) for v in values
        }

    def missing_as_wrong(self, keep: Callable[[Sample], bool] = lambda sample: True) -> float:
        """The mean in percent where every row without an answer counts as wrong: what the official
        scripts print of an incomplete file. Rows that could not be read count where all are kept.
        """
        kept = [sample for sample in self.samples if keep(sample)]
        keeps_all = len(kept) == len(self.samples)
        total = len(self.rows) if keeps_all else len(kept)
        points = 0.0
        for (sample, _), score in zip(self.pairs, self.scores, strict=True):
            if keep(sample):
                points += score
        return float(100 * points / total) if total else float("nan")

    def count(self, holds: Callable[[str, Sample], bool]) -> float:
        """How many answers there are of which something holds."""
        return float(sum(holds(text, sample) for sample, text in self.pairs))

    def counts(self) -> dict[str, float]:
        """How many questions there were, and how many of them have no answer."""
        unanswered = len(self.samples) - len(self.pairs)
        skipped = len(self.rows) - len(self.samples)
        numbers = {"questions": float(len(self.samples)), "unanswered": float(unanswered)}
        return numbers | ({"unreadable_rows": float(skipped)} if skipped else {})

    @property
    def official(self) -> Iterator[tuple[Mapping[str, Any], str]]:
        """The fields of each official row with the text that answers it, "" where nothing does."""
        return official_answers(self.rows, self.predictions)


def official_answers(
    rows: Rows, predictions: Predictions
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The fields of each official row with the text that answers it, "" where nothing does.

    Fields are those of `meta`, and `answer_id`, `prompt`, `choices`, `answer`.
    """
    for row in rows:
        if isinstance(row, Sample):
            fields = {"answer_id": row.id, "prompt": row.question, "choices": row.choices}
            yield {**row.meta, **fields, "answer": row.answer}, predictions.get(row.id, "")
        else:
            key = str(row.official.get("question_id", row.row))
            unknown = {"answer_id": key, "prompt": "", "choices": (), "answer": None}
            yield {**unknown, **row.official}, ""


def missing_answers(rows: Rows, predictions: Predictions) -> str:
    """One line on the official rows that an export leaves empty; "" where none is.

    >>> missing_answers([Sample("1", None, "?"), Sample("2", None, "?")], {"1": "yes"})
    '1 of 2 official rows has no answer and is exported as empty text'
    """
    answered = sum(isinstance(row, Sample) and row.id in predictions for row in rows)
    missing = len(rows) - answered
    if not missing:
        return ""
    has, is_ = ("has", "is") if missing == 1 else ("have", "are")
    return (
        f"{missing} of {len(rows)} official rows {has} no answer and {is_} exported as empty text"
    )


def percent(scores: Iterable[float]) -> float:
    """The mean in percent; scores that are NaN (no answer is known) are left out, and of nothing it
    is NaN.

    >>> percent([1, 0, float("nan")]), percent([])
    (50.0, nan)
    """
    values = np.asarray(list(scores), dtype=float)
    values = values[~np.isnan(values)]
    return float(100 * values.mean()) if len(values) else float("nan")


def weighted_percent(
    values: Float[np.ndarray, "sample case"], times: Int[np.ndarray, " sample"]
) -> np.ndarray:
    """The mean of each case in percent when each sample counts `times` times; NaN is left out.

    >>> weighted_percent(np.array([[1.0], [0.0], [np.nan]]), np.array([3, 1, 5]))
    array([75.])
    """
    counts = times @ ~np.isnan(values)
    sums = 100.0 * (times @ np.nan_to_num(values))
    nothing = np.full(counts.shape, np.nan)
    return np.divide(sums, counts, out=nothing, where=counts > 0)


def llava_line(row: Mapping[str, Any], text: str, model: str = "probe") -> dict[str, Any]:
    """One line of LLaVA's answer file."""
    names = {"question_id": row["question_id"], "prompt": row["prompt"], "text": text}
    return names | {"answer_id": row["answer_id"], "model_id": model, "metadata": {}}


def write_llava(rows: Rows, predictions: Predictions, path: str | Path) -> Path:
    """LLaVA's answer file (JSON lines), which its scripts and the official scorers read."""
    return write_lines((llava_line(*pair) for pair in official_answers(rows, predictions)), path)


def write_lines(rows: Iterable[Any], path: str | Path) -> Path:
    """JSON lines, in ASCII as the official scripts write them: some characters end a line for some
    readers.
    """
    return write_text("".join(json.dumps(row) + "\n" for row in rows), path)


def write_json(value: Any, path: str | Path) -> Path:
    """One JSON value."""
    return write_text(json.dumps(value), path)


def write_text(text: str, path: str | Path) -> Path:
    """UTF-8 text, with "?" for half characters, in a folder that is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="replace")
    return path
