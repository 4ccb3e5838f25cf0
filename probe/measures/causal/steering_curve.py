"""The effect of a direction over its scale: what steering does to the right answers, and to all
else.

    curve = steering_curve(subject, samples, direction, scales=(-4, -2, 0, 2, 4))
    probe.plots.steering(curve)

Positions before the edited layers could be shared, but all positions are steered, so each scale is
one forward over prompt and gold answer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from probe.data.sample import Sample
from probe.data.sample_groups import image_name
from probe.errors import ProbeError, not_empty
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import require_finite
from probe.hooks.model_checks import require_observable, require_subject
from probe.interventions.layer_target import Layers, LayerTarget
from probe.interventions.steering import Direction, steer
from probe.interventions.sweep.result_table import begins_with, distances, gold_logprob
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.records.provenance import provenance
from probe.records.schema import Variable, dataset
from probe.subject.subject import Subject

SCALES = (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)
SCHEMA = {
    "steered_logprob": Variable("sample scale", "nat", "log-probability of the gold answer"),
    "correct": Variable("sample scale", "1", "greedy decoding begins with the gold answer"),
    "kl": Variable(
        "sample scale",
        "nat",
        "KL divergence of the next-token distribution from the untouched model's",
    ),
    "untouched_logprob": Variable("sample", "nat", "log-probability of the gold answer"),
    "untouched_correct": Variable("sample", "1", "greedy decoding begins with the gold answer"),
    "image": Variable("sample", "text", "the image that was asked about", dtype="object"),
}


@only_this_thread()
def steering_curve(
    subject: Subject,
    samples: Sequence[Sample] | Sample,
    direction: Any,
    layers: Layers | None = None,
    scales: Sequence[float] | Shaped[np.ndarray, " scale"] = SCALES,
    *,
    positions: str = "all",
    progress: bool = True,
) -> xr.Dataset:
    """The gold answers' log-probability and accuracy, and the divergence from the untouched model,
    at each scale: dims (sample, scale).

    Args:
        direction: of `probe.direction`.
        layers, positions: as in `steer`.
        scales: how many times the direction is added.

    Raises ProbeError as `steer` does, for a bare vector, and for samples without a gold answer.
    """
    called = "steering_curve"
    require_subject(called, subject)
    require_observable(called, subject.model)
    if not isinstance(direction, Direction):
        expected = "what probe.direction returned"
        fix = "wrap a vector: probe.interventions.Direction(vector, site, layer)"
        raise ProbeError(called, expected=expected, got=type(direction).__name__, fix=fix)
    samples = [samples] if isinstance(samples, Sample) else list(samples)
    not_empty(called, "sample", samples)
    not_empty(called, "scale", scales)
    given = direction.layer if layers is None else layers
    target = LayerTarget.of(called, subject, given, direction.stack, reads_across="in both")
    chosen = target.layers
    tables = []
    for sample in tqdm(samples, called, unit="sample", disable=not progress):
        prompts = SamplePrompts.of(subject, sample, None)
        if not len(prompts.gold):
            expected = "samples with a gold answer"
            raise ProbeError(called, expected=expected, got=f"{sample.id!r} without")
        logits = [_logits(subject, prompts)]
        for scale in scales:
            with steer(subject, direction, chosen, scale, positions=positions):
                logits.append(_logits(subject, prompts))
        found = torch.stack(logits)
        require_finite(called, subject.model, found, prompts.inputs)
        tables.append(_table(sample, found, prompts.gold, scales))
    table = xr.concat(tables, "sample")
    return table.assign_attrs(
        provenance(
            subject,
            kind=called,
            site=direction.site,
            read_layer=direction.layer,
            stack=direction.stack,
            layers=",".join(map(str, chosen)),
            positions=positions,
            norm=direction.norm,
        )
    )


@torch.no_grad()
def _logits(subject: Subject, prompts: SamplePrompts) -> Tensor:
    model: Any = subject.model
    inputs = prompts.with_gold(prompts.inputs)
    return model(**inputs, use_cache=False).logits[0, -len(prompts.gold) :]


def _table(sample: Sample, logits: Tensor, gold: Tensor, scales: Any) -> xr.Dataset:
    """One sample: the untouched model first, then each scale."""
    correct = begins_with(logits, gold)
    logprob, kl = gold_logprob(logits, gold), distances(logits[:, 0])["kl"]
    arrays = {
        "steered_logprob": logprob[None, 1:],
        "correct": correct[None, 1:],
        "kl": kl[None, 1:],
        "untouched_logprob": logprob[:1],
        "untouched_correct": correct[:1],
        "image": [image_name(sample)],
    }
    coords = {"sample": [sample.id], "scale": np.asarray(scales, dtype=float)}
    return dataset("steering_curve", arrays, SCHEMA, coords)
