"""What a run says of its answers: which are right, which name things that are not there, and how
sure the model was.

    answers = answers_of(record, confidence="sum")
    answers.logprob                          # (sample): what any predictor has to beat
    outcomes_of(answers, ["correct"])        # which samples each outcome is about, and its event

| outcome | about | event | baseline: AUROC of |
|---|---|---|---|
| `correct` | all scored answers | the score is ½ or more | log p(answer) |
| `hallucination` | questions whose gold answer is "no" (POPE) | not answered no | -log p(answer) |
| `confident` | all answers | log p(answer) above the median | none |

`confidence`: log p(answer) is the sum over the answer's tokens (their closing included), their
mean, or that of the first one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from probe.errors import ProbeError, one_of
from probe.records.sample_images import images
from probe.records.schema import as_text

OUTCOMES = ("correct", "hallucination", "confident")
CONFIDENCES = ("sum", "mean", "first")
RIGHT = 0.5  # a lower score is a wrong answer
FEWEST = 10  # samples with the event, and without it: with fewer, an AUROC says nothing
_RUN = "a run of `probe attention --benchmark NAME`"


@dataclass(frozen=True)
class Answers:
    """Of each sample: the score, NaN where only a judge can tell; log p(answer); the gold answer;
    a number for its images.
    """

    score: Float[np.ndarray, " sample"]
    logprob: Float[np.ndarray, " sample"]
    gold: np.ndarray
    images: Int[np.ndarray, " sample"]


@dataclass(frozen=True)
class Outcome:
    """`about`: the samples that it is about; `event`: those of them where it happened.
    `baseline_sign`: whether the event is expected where log p(answer) is high (1) or low (-1); 0:
    it has no baseline.
    """

    name: str
    about: Bool[np.ndarray, " sample"]
    event: Bool[np.ndarray, " sample"]
    baseline_sign: int

    @property
    def counts(self) -> tuple[int, int]:
        """Samples with the event, and without it."""
        with_event = int((self.about & self.event).sum())
        return with_event, int(self.about.sum()) - with_event

    def too_few(self) -> str:
        """Why there is nothing to tell apart; "" where there is."""
        with_event, without = self.counts
        if min(with_event, without) >= FEWEST:
            return ""
        names = {"correct": ("right", "wrong"), "hallucination": ("hallucinated", "answered no")}
        yes, no = names.get(self.name, ("with the event", "without it"))
        return f"{with_event} {yes}, {without} {no}"


def answers_of(record: xr.DataTree, confidence: str = "sum") -> Answers:
    """Raises ProbeError for a record that does not say how right and how sure its answers are."""
    one_of("reliability", "a confidence of", confidence, CONFIDENCES)
    root = record.to_dataset()
    if "correct" not in root:
        raise _without("answers that no benchmark scored, or made before runs kept the scores")
    if "response_logprob" not in root:
        raise _without("one made before runs kept the answers' log-probability")
    token_logprob = root["response_logprob"].transpose("sample", "answer").values.astype(float)
    has_tokens = (root["response_ids"].transpose("sample", "answer").values >= 0).any(1)
    made_before = int((has_tokens & np.isnan(token_logprob).all(1)).sum())
    if made_before:
        count = f"{made_before} of {len(token_logprob)} samples"
        raise _without(f"{count} made before runs kept the answers' log-probability")
    gold = as_text(root["gold"].values) if "gold" in root else np.full(len(token_logprob), "")
    return Answers(
        score=root["correct"].values.astype(float),
        logprob=_confidence(token_logprob, confidence),
        gold=np.char.lower(np.char.strip(gold)),
        images=images(record),
    )


def _without(got: str) -> ProbeError:
    expected = f"{_RUN} with the score and log-probability of each answer"
    return ProbeError("reliability", expected=expected, got=got, fix="run it again in a new folder")


def _confidence(
    token_logprob: Float[np.ndarray, "sample answer"], confidence: str
) -> Float[np.ndarray, " sample"]:
    """log p(answer), NaN for an answer without tokens."""
    known = ~np.isnan(token_logprob)
    counts = known.sum(1)
    if confidence == "first":
        return np.where(counts > 0, token_logprob[:, 0], np.nan)
    sums = np.where(known, token_logprob, 0.0).sum(1)
    divisor = counts if confidence == "mean" else np.ones_like(counts)
    return np.divide(sums, divisor, out=np.full(len(sums), np.nan), where=counts > 0)


def outcomes_of(answers: Answers, asked: Sequence[str] | None) -> tuple[list[Outcome], str]:
    """The outcomes, and which were left out and why. By default all of which there is enough.

    Raises ProbeError for one that was asked for (`correct` is in any case) and has fewer than
    `FEWEST` samples on a side.
    """
    for name in asked or ():
        one_of("reliability", "outcomes of", name, OUTCOMES)
    found = []
    left_out = []
    for name in asked or OUTCOMES:
        outcome = _outcome(name, answers)
        reason = outcome.too_few()
        if reason and (asked or name == "correct"):
            expected = f"at least {FEWEST} answers of each kind for {name!r}"
            fix = "measure more questions, or harder ones"
            raise ProbeError("reliability", expected=expected, got=reason, fix=fix)
        if reason:
            left_out.append(f"{name}: {reason}")
        else:
            found.append(outcome)
    return found, "; ".join(left_out)


def _outcome(name: str, answers: Answers) -> Outcome:
    is_known = ~np.isnan(answers.logprob)
    scored = is_known & ~np.isnan(answers.score)
    right = answers.score >= RIGHT
    if name == "hallucination":
        return Outcome(name, scored & (answers.gold == "no"), ~right, -1)
    if name == "confident":
        middle: Any = np.median(answers.logprob[is_known]) if is_known.any() else np.nan
        return Outcome(name, is_known, answers.logprob > middle, 0)
    return Outcome(name, scored, right, 1)
