"""Deletion and insertion: how fast does ablating the regions with the highest scores remove the
answer, and restoring them bring it back?

    scores = {"attention": lift, "ablation": dataset["attribution"]}
    curves = deletion_curves(subject, image, question, scores)
    curves["logprob"].sel(score="attention", direction="deletion")          # (fraction)

Deletion ablates the highest scores first, insertion starts with all regions ablated and restores
the highest first. A score that ranks what the answer needs has a small area under deletion and a
large one under insertion. A random order is the floor. With `baseline="hidden"` or "rows" vision
tokens are ablated, with "mean" or "blur" pixels.

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
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import finite_states
from probe.hooks.model_state import active_interventions
from probe.measures.attribution.baselines import Baseline, Perturbation
from probe.measures.attribution.features import Features
from probe.measures.attribution.methods import LogProb
from probe.measures.attribution.perturbed_model import PerturbedModel
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


@only_this_thread()
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
    """Log-probability of the answer with a fraction of the regions ablated (or restored), in the
    order of each score.

    scores: {name: a number for each region}; of attributions that have words too, the regions are
    used. "random" is added: the mean over `orders` shuffles. points: fractions between 0 and 1.
    Returns a dataset: logprob (score, direction, fraction). Raises ProbeError for scores of another
    length, and what `attribute` refuses.
    """
    answer = TargetResponse.of(subject, image, question, response)
    features = Features.of(subject, answer.inputs, over, words=False)
    count = len(features)
    perturbation = Perturbation.of(subject, answer, features, baseline)
    shared = SharedPrefix.of(subject, answer, perturbation)
    f = PerturbedModel(subject, answer, perturbation) if isinstance(shared, str) else shared
    ranked = {name: [_order(name, values, count)] for name, values in scores.items()}
    rng = np.random.default_rng(seed)
    ranked[RANDOM] = [rng.permutation(count) for _ in range(orders)]
    counts = np.unique(np.linspace(0, count, points + 1).round().astype(int))
    with finite_states("deletion_curves", subject.model, ["llm"]):
        logprob = np.stack([_curves(f, orders, counts, batch) for orders in ranked.values()])
    attrs = provenance(
        subject,
        kind="deletion curves",
        baseline=perturbation.name,
        seed=seed,
        over=over if isinstance(over, str) else "mask",
        response=answer.inputs.response[0],
        intervention=active_interventions(subject.model),
    )
    coords = {"score": list(ranked), "direction": DIRECTIONS, "fraction": counts / count}
    return dataset("deletion_curves", {"logprob": logprob}, SCHEMA, coords, attrs)


def _order(name: str, values: Any, regions: int) -> np.ndarray:
    """Regions from the highest score down."""
    array = np.asarray(values, dtype=float).ravel()
    if len(array) < regions:
        expected = f"a score for each of {regions} regions"
        raise ProbeError("deletion_curves", expected=expected, got=f"{len(array)} in {name!r}")
    scores = np.nan_to_num(array[:regions], nan=-np.inf)
    return np.argsort(-scores, kind="stable")


def _curves(
    f: LogProb, orders: Sequence[np.ndarray], counts: np.ndarray, batch: int
) -> Float[np.ndarray, "direction point"]:
    """(deletion, insertion) with `counts` regions ablated or restored: mean over orders."""
    z_of_orders = []
    for order in orders:
        rank = np.argsort(order)
        deletion = rank >= counts[:, None]  # (point, region): 1 where the region is left
        z_of_orders += [deletion, ~deletion]
    z = torch.from_numpy(np.concatenate(z_of_orders)).float()
    logprob = torch.cat([f(part).sum(-1) for part in z.split(batch)]).numpy()
    return logprob.reshape(len(orders), len(DIRECTIONS), len(counts)).mean(0)
