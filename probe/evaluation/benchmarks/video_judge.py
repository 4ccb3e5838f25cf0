"""A judge's words on open answers about videos, and the numbers that Video-ChatGPT's protocol makes
of them.

    {"v_1_0": [{"pred": "yes", "score": 4}, {"q": ..., "a": ..., "pred": ...}], ...}
    {"dog_0": [{"score": 3}, {...}], ...}                         of the five generative scores

    accuracy    yes / (yes + no), where yes is a "pred" that contains "yes" in lower case, no one
                that contains "no"; others, and entries whose score is not a number, are left out
    score       the sum of int(score) over the number of entries: 4.8 counts 4, other text 0

Source: Video-ChatGPT, quantitative_evaluation/.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.data.files import unrepeated_object
from probe.errors import ProbeError, shown

BEST = 5  # of a judge's marks, from 0


@dataclass(frozen=True)
class Verdict:
    """The judge's verdict on one answer."""

    is_right: bool | None  # None: neither yes nor no
    mark: int  # 0 to 5


def verdicts(called: str, file: str | Path) -> dict[str, Verdict]:
    """The judge's word on each id. Raises ProbeError for a file that holds something else."""
    rows = unrepeated_object(called, Path(file))
    for key, row in rows.items():
        if not (isinstance(row, list) and row and isinstance(row[0], Mapping)):
            raise ProbeError(
                called,
                expected=f"a list that begins with the judge's object for {key!r}",
                got=shown(row),
            )
    return {key: _verdict(row[0]) for key, row in rows.items()}


def _verdict(reply: Mapping[str, Any]) -> Verdict:
    try:
        mark = int(reply["score"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return Verdict(None, 0)
    word = str(reply.get("pred", "")).lower()
    is_right = True if "yes" in word else False if "no" in word else None
    return Verdict(is_right, mark)


def accuracy(found: Iterable[Verdict]) -> float:
    """Percent of "yes" among yes and no; NaN without any.

    >>> accuracy([Verdict(True, 5), Verdict(False, 1), Verdict(None, 3)])
    50.0
    """
    decided = [verdict.is_right for verdict in found if verdict.is_right is not None]
    return 100 * float(np.mean(decided)) if decided else float("nan")


def mean_mark(found: Iterable[Verdict]) -> float:
    """The mean score, 0 to 5; NaN without any."""
    marks = [verdict.mark for verdict in found]
    return float(np.mean(marks)) if marks else float("nan")
