"""Answers: which samples have one, and LLaVA's answer file.

{"question_id": "20602803", "prompt": "Is the ground blue or brown?\\nAnswer the ...", "text":
"Brown",
 "answer_id": "20602803", "model_id": "tiny-llava", "metadata": {}}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.sample import Sample


def answered(samples: Iterable[Sample], predictions: Mapping[str, str]) -> list[tuple[Sample, str]]:
    """The samples that have a prediction. A failed sample has none: it is counted apart, not as
    wrong.
    """
    return [(sample, predictions[sample.id]) for sample in samples if sample.id in predictions]


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
    values: Float[np.ndarray, "sample case"], times: Int[np.ndarray, "sample"]
) -> np.ndarray:
    """The mean of each case in percent when each sample counts so often; NaN is left out.

    >>> weighted_percent(np.array([[1.0], [0.0], [np.nan]]), np.array([3, 1, 5]))
    array([75.])
    """
    counts = times @ ~np.isnan(values)
    return np.divide(
        100.0 * (times @ np.nan_to_num(values)),
        counts,
        out=np.full(counts.shape, np.nan),
        where=counts > 0,
    )


def counted(samples: Sequence[Sample], pairs: Sequence[tuple[Sample, str]]) -> dict[str, float]:
    """How many questions there were, and how many of them have no answer."""
    return {"questions": float(len(samples)), "unanswered": float(len(samples) - len(pairs))}


def write_llava(
    samples: Iterable[Sample],
    predictions: Mapping[str, str],
    path: str | Path,
    model: str = "probe",
) -> Path:
    """LLaVA's answer file (JSON lines), which its scripts and the official scorers behind them
    read.
    """
    rows = (
        {
            "question_id": sample.meta["question_id"],
            "prompt": sample.question,
            "text": text,
            "answer_id": sample.id,
            "model_id": model,
            "metadata": {},
        }
        for sample, text in answered(samples, predictions)
    )
    return write_lines(rows, path)


def write_lines(rows: Iterable[Any], path: str | Path) -> Path:
    """JSON lines."""
    return _write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), path)


def write_json(value: Any, path: str | Path) -> Path:
    """One JSON value."""
    return _write(json.dumps(value, ensure_ascii=False), path)


def _write(text: str, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
