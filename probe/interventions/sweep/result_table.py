"""The result of a sweep as a labelled dataset: what each case said, and how far it is from the
untouched model.

table = tabulate(sample, names, outcome, ...)      # dims (sample=1, case)
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from probe.data.sample import Sample
from probe.hooks.model_state import layer_ranges
from probe.interventions.sweep.layer_sets import ANOTHER_IMAGE, UNTOUCHED

Score = Callable[[str, Sample], float]

UNITS = {
    "answer": ("generated answer", ""),
    "correct": ("score of the answer, NaN where no gold answer is known", "1"),
    "gold_logprob": ("log-probability of the gold answer's tokens", "nat"),
    "kl": ("KL divergence of the next-token distribution from the untouched model's", "nat"),
    "total_variation": (
        "total variation between the next-token distribution and the untouched model's",
        "1",
    ),
    "first_token_changed": (
        "the most likely first token is another one than the untouched model's",
        "1",
    ),
    "donor_answer_given": ("the answer is the one given about the other image", "1"),
    "dropped": ("layers that the case names", "1"),
    "layers": ("layers that the case names, counted from 0", ""),
    "layer_start": ("first of these layers, counted from 0; -1 for a set with gaps or none", "1"),
    "layer_stop": ("layer after the last one, counted from 0; -1 for a set with gaps or none", "1"),
    "row_layers": ("rows times layers computed for all cases", "1"),
    "image_prefixes": ("image prefixes computed", "1"),
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


def distances(logits: Float[Tensor, "case vocabulary"]) -> dict[str, np.ndarray]:
    """How far each next-token distribution is from the first one: KL(first ‖ case), total
    variation, other argmax.
    """
    logprob = torch.log_softmax(logits.double(), -1)
    first, probability = logprob[:1], logprob.exp()
    kl = (first.exp() * (first - logprob)).sum(-1).clamp_min(0)
    changed = logits.argmax(-1) != logits[:1].argmax(-1)
    variation = (probability - probability[:1]).abs().sum(-1) / 2
    return {
        "kl": kl.float().cpu().numpy(),
        "total_variation": variation.float().cpu().numpy(),
        "first_token_changed": changed.cpu().numpy().astype(np.float32),
    }


def gold_logprob(logits: Float[Tensor, "case token vocabulary"], gold: Tensor) -> np.ndarray:
    """Σ log p(token | those before it), by case; NaN without a gold answer."""
    if not len(gold):
        return np.full(len(logits), np.nan, dtype=np.float32)
    logprob = torch.log_softmax(logits.float(), -1)
    said = torch.arange(len(gold), device=logits.device), gold.to(logits.device)
    return logprob[:, *said].sum(-1).cpu().numpy()


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
) -> xr.Dataset:
    """One sample's results, dims (sample=1, case). Cases that are not `present` (no other image)
    are NaN and "".
    """
    values: dict[str, np.ndarray] = {
        "correct": np.array([score(answer, sample) for answer in answers], dtype=np.float32),
        "gold_logprob": gold_logprob(logits, gold),
        **distances(logits[:, 0]),
    }
    if swaps:
        theirs = normalised(answers[present.index(ANOTHER_IMAGE)])
        values["donor_answer_given"] = np.array(
            [normalised(a) == theirs for a in answers], dtype=np.float32
        )
    places = [present.index(name) if name in present else -1 for name in cases]
    row = {
        name: (
            ("sample", "case"),
            np.array([[v[i] if i >= 0 else np.nan for i in places]], dtype=np.float32),
        )
        for name, v in values.items()
    }
    texts = np.array([[answers[i] if i >= 0 else "" for i in places]], dtype=object)
    dropped = np.array([[layer in chosen for layer in range(layers)] for chosen in cases.values()])
    dataset = xr.Dataset(
        {"answer": (("sample", "case"), texts), **row, "dropped": (("case", "layer"), dropped)}
        | {
            name: (("sample",), np.array([count], dtype=np.int64)) for name, count in counts.items()
        },
        coords={
            "sample": np.array([sample.id], dtype=object),
            "case": np.array(list(cases), dtype=object),
            **_layer_coordinates(cases.values()),
            "layer": np.arange(layers),
        },
    )
    for name, (long_name, unit) in UNITS.items():
        if name in dataset.variables:
            dataset[name].attrs = {"long_name": long_name, "units": unit}
    assert present[0] == UNTOUCHED
    return dataset


def _layer_coordinates(layer_sets: Iterable[frozenset[int]]) -> dict[str, tuple[str, np.ndarray]]:
    """The layers of each case as text, and as a half-open range where they are one."""
    texts, bounds = [], []
    for layers in layer_sets:
        texts.append(layer_ranges(sorted(layers)) if layers else "")
        start, stop = min(layers, default=-1), max(layers, default=-2) + 1
        bounds.append((start, stop) if len(layers) == stop - start else (-1, -1))
    starts, stops = np.array(bounds, dtype=np.int64).T
    return {
        "layers": ("case", np.array(texts, dtype=object)),
        "layer_start": ("case", starts),
        "layer_stop": ("case", stops),
    }
