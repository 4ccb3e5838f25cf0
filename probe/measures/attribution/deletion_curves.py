"""Deletion and insertion: does the order that a score gives take the answer away, or bring it back,
fastest?

    curves = deletion_curves(subject, image, question, {"attention": lift, "ablation": found["attribution"]})
    curves["logprob"].sel(score="attention", direction="deletion")          # (fraction of the features)

Deletion takes away the highest scores first, insertion starts from nothing and gives the highest
first. The area under deletion is small, and that under insertion large, where a score knows what
the answer needs. A random order is the floor. With `baseline="hidden"` or "rows" vision tokens are
taken away, with "mean" or "blur" pixels.

Source: arXiv 1806.07421 (RISE), which introduced the two; here of log-probabilities.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from probe.data.image import ImageSource
from probe.errors import ProbeError
from probe.hooks.model_state import active_interventions
from probe.measures.attribution.baselines import Baseline, Perturbation
from probe.measures.attribution.features import Features
from probe.measures.attribution.perturbed_model import Perturbed
from probe.measures.attribution.regions import Over
from probe.measures.attribution.shared_prefix import SharedPrefix
from probe.records.provenance import provenance
from probe.records.schema import Variable, dataset
from probe.subject.inputs import Ids, Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

RANDOM = "random"
SCHEMA = {"logprob": Variable("score direction fraction", "nat", "log-probability of the answer")}
DIRECTIONS = ("deletion", "insertion")


@torch.no_grad()
def deletion_curves(
    subject: Subject,
    image: ImageSource | Sequence[ImageSource] | Inputs,
    question: Any,
    scores: Mapping[str, Any],
    response: str | Ids | None = None,
    over: Over = "patches",
    baseline: Baseline = "hidden",
    *,
    points: int = 10,
    orders: int = 5,
    batch: int = 8,
    seed: int = 0,
) -> xr.Dataset:
    """Log-probability of the answer with a fraction of the regions taken away (or given), in the
    order of each score.

    scores: {name: a number for each region}; attributions with words too are cut to their regions.
    "random" is added: the mean over `orders` shuffles. points: fractions between 0 and 1. Returns a
    dataset: logprob (score, direction, fraction). Raises ProbeError for scores of another length.
    """
    answer = TargetResponse.of(subject, image, question, response)
    features = Features.of(subject, answer.inputs, over, words=False)
    removal = Perturbation.of(subject, answer, features, baseline)
    shared = SharedPrefix.of(subject, answer, removal)
    f = Perturbed(subject, answer, removal) if isinstance(shared, str) else shared
    rng = np.random.default_rng(seed)
    ranked = {name: [_order(name, values, len(features))] for name, values in scores.items()}
    ranked[RANDOM] = [rng.permutation(len(features)) for _ in range(orders)]
    counts = np.unique(np.linspace(0, len(features), points + 1).round().astype(int))
    found = np.stack([_both(f, orders, counts, batch) for orders in ranked.values()])
    attrs = provenance(
        subject,
        kind="deletion curves",
        baseline=removal.name,
        seed=seed,
        over=over if isinstance(over, str) else "mask",
        response=answer.inputs.response[0],
        intervention=active_interventions(subject.model),
    )
    coords = {"score": list(ranked), "direction": DIRECTIONS, "fraction": counts / len(features)}
    return dataset("deletion_curves", {"logprob": found}, SCHEMA, coords, attrs)


def _order(name: str, values: Any, regions: int) -> np.ndarray:
    """Regions from the highest score down."""
    array = np.asarray(values, dtype=float).ravel()
    if len(array) < regions:
        expected = f"a score for each of {regions} regions"
        raise ProbeError("deletion_curves", expected=expected, got=f"{len(array)} in {name!r}")
    return np.argsort(-np.nan_to_num(array[:regions], nan=-np.inf), kind="stable")


def _both(
    f: Any, orders: Sequence[np.ndarray], counts: np.ndarray, batch: int
) -> Float[np.ndarray, "direction point"]:
    """(deletion, insertion): mean over orders."""
    rows = []
    for order in orders:
        rank = np.argsort(order)
        deleted = np.stack([rank >= count for count in counts])
        rows += [deleted, ~deleted]
    z = torch.from_numpy(np.concatenate(rows)).float()
    logprob = torch.cat([f(z[i : i + batch]).sum(-1) for i in range(0, len(z), batch)]).numpy()
    return logprob.reshape(len(orders), len(DIRECTIONS), len(counts)).mean(0)
