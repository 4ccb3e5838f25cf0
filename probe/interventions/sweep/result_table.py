"""The result of a sweep as a labelled dataset: what each case answered, and how far it is from the
untouched model.

table = tabulate(sample, names, outcome, ...)      # dims (sample=1, case)
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from probe.data.sample import Sample
from probe.hooks.model_state import layer_ranges
from probe.interventions.sweep.layer_sets import ANOTHER_IMAGE, UNTOUCHED
from probe.records.schema import Variable, dataset

Score = Callable[[str, Sample], float]

_CASE = "sample case"
SCHEMA = {
    "answer": Variable(_CASE, "text", "generated answer", dtype="object"),
    "correct": Variable(_CASE, "1", "score of the answer, NaN where no gold answer is known"),
    "gold_logprob": Variable(_CASE, "nat", "log-probability of the gold answer's tokens"),
    "kl": Variable(
        _CASE, "nat", "KL divergence of the next-token distribution from the untouched model's"
    ),
    "total_variation": Variable(
        _CASE, "1", "total variation between the next-token distribution and the untouched model's"
    ),
    "first_token_changed": Variable(
        _CASE, "1", "the most likely first token is another one than the untouched model's"
    ),
    "donor_answer_given": Variable(_CASE, "1", "the answer is the one given about the other image"),
    "dropped": Variable("case layer", "1", "layers that the case names", dtype="bool"),
    "layers": Variable(
        "case", "text", "layers that the case names, counted from 0", dtype="object"
    ),
    "layer_start": Variable(
        "case",
        "1",
        "first of these layers, counted from 0; -1 for a set with gaps or none",
        dtype="int64",
    ),
    "layer_stop": Variable(
        "case",
        "1",
        "layer after the last one, counted from 0; -1 for a set with gaps or none",
        dtype="int64",
    ),
    "part": Variable(
        "case", "text", "which vision tokens the case drops; all where empty", dtype="object"
    ),
    "row_layers": Variable(
        "sample", "1", "rows times layers computed for all cases", dtype="int64"
    ),
    "image_prefixes": Variable("sample", "1", "image prefixes computed", dtype="int64"),
}


def normalised(text: str) -> str:
    """An answer as it is compared: one case, no final full stop, no doubled spaces.

    >>> normalised(" A red  Square. ")
    'a red square'
    """
    return re.sub(r"\s+", " ", text).strip().rstrip(".").rstrip().casefold()


def exact_match(answer: str, sample: Sample) -> float:
    """1 if the answer is one of the sample's after `normalised`, NaN if the sample has none."""
    gold = golden(sample)
    return float(normalised(answer) in map(normalised, gold)) if gold else float("nan")


def golden(sample: Sample) -> list[str]:
    """The sample's answers, the most frequent one first."""
    answers = [sample.answer] if isinstance(sample.answer, str) else list(sample.answer or ())
    return [answer for answer, _ in Counter(answers).most_common()]


def gold_answer(sample: Sample) -> str:
    """The answer that sweeps ask for: the most frequent one, "" where there is none.

    >>> gold_answer(Sample("1", None, "Where?", answer=("left", "right", "right")))
    'right'
    """
    return next(iter(golden(sample)), "")


def distances(logits: Float[Tensor, "case vocabulary"]) -> dict[str, np.ndarray]:
    """How far each next-token distribution is from the first one: KL(first ‖ case), total
    variation, other argmax.
    """
    logprob = torch.log_softmax(logits.double(), -1)
    first = logprob[:1]
    probability = logprob.exp()
    kl = (first.exp() * (first - logprob)).sum(-1).clamp_min(0)
    changed = logits.argmax(-1) != logits[:1].argmax(-1)
    variation = (probability - probability[:1]).abs().sum(-1) / 2
    return {
        "kl": kl.float().cpu().numpy(),
        "total_variation": variation.float().cpu().numpy(),
        "first_token_changed": changed.cpu().numpy().astype(np.float32),
    }


def begins_with(logits: Float[Tensor, "case token vocabulary"], gold: Tensor) -> np.ndarray:
    """By case: 1 where greedy decoding begins with the gold answer."""
    is_gold = logits.argmax(-1) == gold.to(logits.device)
    return is_gold.all(-1).float().cpu().numpy()


def gold_logprob(logits: Float[Tensor, "case token vocabulary"], gold: Tensor) -> np.ndarray:
    """Σ log p(token | those before it), by case; NaN without a gold answer."""
    if not len(gold):
        return np.full(len(logits), np.nan, dtype=np.float32)
    logprob = torch.log_softmax(logits.float(), -1)
    step = torch.arange(len(gold), device=logits.device)
    of_gold = logprob[:, step, gold.to(logits.device)]
    return of_gold.sum(-1).cpu().numpy()


def tabulate(
    sample: Sample,
    cases: Mapping[str, frozenset[int]],
    layers: int,
    present: Sequence[str],
    logits: Tensor,
    answers: Sequence[str],
    gold: Tensor,
    score: Score,
    swaps: bool,
    counts: Mapping[str, int],
    parts: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """One sample's results, dims (sample=1, case). Cases that are not `present` (no other image,
    nothing shown of a part) are NaN and "". `parts`: which part of vision, by case.
    """
    assert present[0] == UNTOUCHED
    numbers: dict[str, np.ndarray] = {
        "correct": np.array([score(answer, sample) for answer in answers], dtype=np.float32),
        "gold_logprob": gold_logprob(logits, gold),
        **distances(logits[:, 0]),
    }
    if swaps:
        donor_answer = normalised(answers[present.index(ANOTHER_IMAGE)])
        given = [normalised(answer) == donor_answer for answer in answers]
        numbers["donor_answer_given"] = np.array(given, dtype=np.float32)
    row_of_case = [present.index(name) if name in present else -1 for name in cases]
    arrays: dict[str, Any] = {
        name: [[values[row] if row >= 0 else np.nan for row in row_of_case]]
        for name, values in numbers.items()
    }
    arrays["answer"] = [[answers[row] if row >= 0 else "" for row in row_of_case]]
    arrays["dropped"] = [[layer in chosen for layer in range(layers)] for chosen in cases.values()]
    arrays |= {name: [count] for name, count in counts.items()}
    coords = {"sample": [sample.id], "case": list(cases), **_layer_coordinates(cases.values())}
    if parts:
        coords["part"] = [parts.get(name, "") for name in cases]
    return dataset("drop_sweep", arrays, SCHEMA, coords | {"layer": range(layers)})


def _layer_coordinates(layer_sets: Iterable[frozenset[int]]) -> dict[str, Any]:
    """The layers of each case as text, and as a half-open range where they are one."""
    texts, bounds = [], []
    for layers in layer_sets:
        texts.append(layer_ranges(sorted(layers)) if layers else "")
        start = min(layers, default=-1)
        stop = max(layers, default=-2) + 1
        bounds.append((start, stop) if len(layers) == stop - start else (-1, -1))
    starts, stops = zip(*bounds, strict=True)
    return {"layers": texts, "layer_start": starts, "layer_stop": stops}
