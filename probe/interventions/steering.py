"""Add a direction to the activations of some layers: steering.

    towards = direction(subject, positives, negatives, site="residual", layer=12)
    with steer(subject.model, towards, layers=12, scale=4.0) as report:
        subject.answer("street.jpg", "Is there a dog?")

The direction is a difference of means: the mean activation of the prompt's last token (or of its
vision or text tokens) over the positives, less that over the negatives. Scale 1 adds that
difference once.

Source: difference of means as in Rimsky et al. 2024 (arXiv 2312.06681), Marks and Tegmark 2024
(arXiv 2310.06824).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import isfinite
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.data.sample import Sample
from probe.errors import ProbeError, not_empty, one_of, shown
from probe.hooks.block_threads import model_block
from probe.hooks.layer_sites import SITES, add_site_hook, recorded, site_module
from probe.hooks.tracked_sequence import ForwardTracker, TrackedSequence
from probe.interventions.edit_report import EditReport
from probe.interventions.layer_target import PREFUSION, Layers, LayerTarget
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

READ_AT = ("last", "vision", "text")
STEERED = ("all", "vision", "text")


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector of a site's width (float32, on the CPU) and where it was read: the site, the layer
    (from 0) and its stack, the positions, and the number of positives and negatives.
    """

    vector: Float[Tensor, " width"]
    site: str
    layer: int
    positions: str = "last"
    positives: int = 0
    negatives: int = 0
    stack: str = "llm"

    @property
    def norm(self) -> float:
        return float(self.vector.norm())


def direction(
    subject: Subject,
    positives: Sequence[Sample | Inputs],
    negatives: Sequence[Sample | Inputs],
    site: str = "residual",
    layer: int = 0,
    *,
    positions: str = "last",
    stack: str = "llm",
) -> Direction:
    """Mean activation over the positives less that over the negatives, in float32.

    Args:
        positives, negatives: samples, or inputs of `subject.encode`; each sample counts once.
        site: "residual", "attention", "mlp" or "head" (all heads side by side).
        layer: counted from 0.
        positions: "last" (the prompt's last token), or the mean over its "vision" or "text" tokens.
        stack: "llm", or "cross": what blocks with cross-attention to the image make (Mllama,
            Idefics), by the LLM's layers that they belong to.

    Raises ProbeError for no positives or negatives, an unknown site or position, a layer outside,
    and a sample that has no such position.
    """
    target = _target("direction", subject, layer, stack)
    one_of("direction", "a site of", site, SITES)
    one_of("direction", "positions of", positions, READ_AT)
    target.refuse_vision(positions, "'last' or 'text'")
    not_empty("direction", "positive", positives)
    not_empty("direction", "negative", negatives)
    means = []
    for group in (positives, negatives):
        read = [_mean_of(target, _inputs(subject, each), site, positions) for each in group]
        means.append(torch.stack(read).mean(0))
    (chosen,) = target.layers
    vector = means[0] - means[1]
    return Direction(vector, site, chosen, positions, len(positives), len(negatives), stack)


def _target(called: str, model: Any, layers: Layers, stack: str) -> LayerTarget:
    if stack == PREFUSION:
        raise ProbeError(called, expected="stack='llm' or 'cross'", got=repr(stack))
    return LayerTarget.of(called, model, layers, stack, reads_across="in both")


def _inputs(subject: Subject, given: Sample | Inputs) -> Inputs:
    if not isinstance(given, Sample):
        return given
    images: Any = list(given.image) if isinstance(given.image, tuple) else given.image
    return subject.encode(images, given.question)


def _mean_of(target: LayerTarget, inputs: Inputs, site: str, positions: str) -> Tensor:
    """The mean activation of one sample's chosen positions: (width)."""
    (layer,) = target.layers
    values = recorded(target.model, "direction", target.stack, (layer,), site, inputs)[layer]
    chosen = _chosen(inputs, positions)
    if not chosen.any():
        expected = f"samples with {positions} tokens"
        raise ProbeError("direction", expected=expected, got="one without")
    return values[0][chosen.to(values[0].device)].float().mean(0).cpu()


def _chosen(inputs: Inputs, positions: str) -> Bool[Tensor, "row position"]:
    types = inputs.types
    if positions == "vision":
        return torch.from_numpy(types.vision)
    fine = types.as_types("fine")
    if positions == "last":
        return torch.from_numpy(fine.mask("last"))
    return torch.from_numpy(~types.vision & (types.ids >= 0) & ~types.mask("response"))


@model_block
def steer(
    model: Any,
    direction: Direction | Tensor,
    layers: Layers | None = None,
    scale: float | Real = 1.0,
    *,
    site: str | None = None,
    positions: str = "all",
    stack: str | None = None,
) -> Iterator[EditReport]:
    """Adds `scale` times the direction at these layers of a model or Subject while the block lasts,
    and gives a report of what was changed.

    Args:
        direction: of `direction`, or a vector of the site's width.
        layers: counted from 0; by default the direction's own.
        site: by default the direction's own, "residual" for a bare vector.
        positions: "all" (generated tokens too), "vision", or "text" (all others, generated ones
            too); padding is steered with text, and nothing reads it.
        stack: as in `direction`; by default the direction's own, "llm" for a bare vector.

    Raises ProbeError before anything runs for a layer outside, an unknown site or position, a
    vector that is no vector of numbers and a compiled model; in the forward for another width; on
    exit where no call of one of the layers was reached.
    """
    given = direction if isinstance(direction, Direction) else None
    vector = _vector(direction)
    if not isinstance(scale, Real) or not isfinite(scale):  # a number of numpy's is one too
        raise ProbeError("steer", expected="a finite number as scale", got=repr(scale))
    if layers is None:
        if given is None:
            raise ProbeError("steer", expected="layers, for a bare vector", got="none")
        layers = given.layer
    site = site or (given.site if given is not None else "residual")
    one_of("steer", "a site of", site, SITES)
    one_of("steer", "positions of", positions, STEERED)
    stack = stack or (given.stack if given is not None else "llm")
    target = _target("steer", model, layers, stack)
    target.refuse_vision(positions, "'all' or 'text'")
    for layer in target.layers:
        site_module("steer", target.stack, layer, site)
    report = EditReport.of("steer", target.layers)
    in_words = f"site={site}, scale={scale:g}, positions={positions}"
    with target.listed("steer", in_words), ExitStack() as undo:
        if target.layers:
            sequences = target.sequences()
            undo.enter_context(sequences.followed())
            for layer in target.layers:
                edit = partial(_steered, layer, vector * float(scale), positions, sequences, report)
                add_site_hook(undo, "steer", target.stack, layer, site, edit)
        yield report
    report.require_calls(target.to_reach)


def _vector(direction: Any) -> Float[Tensor, " width"]:
    """The vector of a direction. Raises ProbeError for what is no vector of finite numbers."""
    expected = "a direction (width) of finite numbers"
    try:
        given = direction.vector if isinstance(direction, Direction) else direction
        vector = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise ProbeError("steer", expected=expected, got=shown(direction)) from None
    if vector.ndim != 1 or not vector.isfinite().all():
        raise ProbeError("steer", expected=expected, got=f"shape {tuple(vector.shape)}")
    return vector


def _steered(
    layer: int,
    added: Tensor,
    positions: str,
    sequences: ForwardTracker,
    report: EditReport,
    hidden: Tensor,
) -> Tensor:
    now: TrackedSequence = sequences.running()
    if hidden.shape[-1] != len(added):
        expected = f"a direction of {hidden.shape[-1]} numbers"
        raise ProbeError("steer", expected=expected, got=str(len(added)))
    changed = hidden + added.to(hidden)
    if positions != "all":
        chosen = now.of_queries(now.named([positions])).to(hidden.device)
        if chosen.shape[1] != hidden.shape[1]:
            raise ProbeError(
                "steer",
                expected="all positions",
                got=f"{hidden.shape[1]} of {chosen.shape[1]} in this layer",
                fix="use positions='all', or leave the block that removes tokens",
            )
        changed = torch.where(chosen[..., None], changed, hidden)
    report.note(layer, hidden, changed)
    return changed
