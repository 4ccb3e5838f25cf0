"""Vision tokens leave between two layers of the LLM, the best ranked stay: what FastV, PyramidDrop
and SparseVLM share.

A row of the batch is ranked by its own prompt, never by padding or by words of a response. All its
vision tokens, of one image or several, are ranked together; equal scores: the first position wins.
What has left is out of all layers behind, in decoding too: shorter sequence, less compute, smaller
cache. The rows of the output keep their places; those of tokens that left are as they were when
they did.

    with FastV(layer=2, keep=0.5).attached(model) as stages:
        model.generate(**inputs)
    stages[0].kept                        # (batch, position): the vision tokens that stayed

Scores come from a few rows of q·k of one layer, in float32, beside the model's own kernel (sdpa,
flash, eager).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, bias
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.model_state import registered_reducer
from probe.hooks.partial_cache import check_partial, windows
from probe.hooks.sequence_tracker import SequenceTracker, TrackedSequence
from probe.hooks.token_removal import LayerInput, Removal, removed
from probe.interventions.layer_target import LayerTarget

Mask = Bool[Tensor, "batch position"]
Counts = Mapping[
    int, Callable[[int], int]
]  # before which layers tokens leave, and how many of so many stay


@dataclass(frozen=True)
class Stage:
    """What was left before one layer when the last prompt ran."""

    layer: int
    kept: Mask  # the vision tokens that stayed
    scores: Float[Tensor, "batch position"]  # what they were ranked by; NaN for what was not
    left: Mask  # those, and the places of tokens that others were merged into


class LLMReducer(Removal, ABC):
    """One reducer at work in one model."""

    def __init__(self, target: LayerTarget, counts: Counts, vision: Mask | None = None):
        limits = windows(target.called, target.model, range(min(counts), len(target.stack.layers)))

        def check(sequence: TrackedSequence, cache: Any) -> None:
            if sequence.vision.any():
                check_partial(target.called, limits, sequence.length, cache, "")

        first = target.stack.layers[0]
        super().__init__(
            SequenceTracker(
                target.called,
                target.model,
                first,
                check=check,
                whole_prompt=True,
                vision=_mask(target, vision),
            )
        )
        self.target, self.counts = target, counts
        self.stages: list[Stage] = []

    @abstractmethod
    def scores(self, entrance: LayerInput, now: TrackedSequence) -> Float[Tensor, "batch position"]:
        """What the vision tokens that are there before a layer are ranked by; the higher the
        better.
        """

    def absent(self, layer: int) -> Mask | None:
        return self.sequences.running().memo.get("gone")

    def before(self, entrance: LayerInput) -> None:
        now = self.sequences.running()
        if entrance.index not in self.counts or not now.vision.any():
            return
        if "gone" not in now.memo:
            self.stages.clear()
        there = now.vision & ~now.memo.get("gone", torch.zeros_like(now.vision))
        scores = self.scores(entrance, now).to(there.device)
        counts = [self.counts[entrance.index](n) for n in now.vision.sum(1).tolist()]
        kept = best(scores, there, torch.tensor(counts, device=there.device))
        left = self.recycled(entrance, now, there, kept, scores)
        now.memo["gone"] = now.vision & ~left
        self.stages.append(Stage(entrance.index, kept, scores.masked_fill(~there, torch.nan), left))

    def recycled(
        self, entrance: LayerInput, now: TrackedSequence, there: Mask, kept: Mask, scores: Tensor
    ) -> Mask:
        """What stays when those that were not kept have been made use of."""
        return kept

    @contextmanager
    def at_work(self, reducer: object) -> Iterator[list[Stage]]:
        target = self.target
        with (
            registered_reducer(target.model, repr(reducer), text_guided=True),
            self.sequences.followed(),
            removed(target.model, target.stack, self),
        ):
            yield self.stages


class PreviousLayerReducer(LLMReducer):
    """Ranks by what some of the prompt's tokens attend to in the layer before."""

    @abstractmethod
    def rated(
        self, call: AttentionCall | AttentionWeights, row: int, now: TrackedSequence
    ) -> Float[Tensor, " position"]:
        """What every position of a row is worth by that layer's attention."""

    def scores(self, entrance: LayerInput, now: TrackedSequence) -> Float[Tensor, "batch position"]:
        return now.memo.pop("scores")

    @contextmanager
    def at_work(self, reducer: object) -> Iterator[list[Stage]]:
        names = list(self.target.stack.attention)
        watched = {
            names[layer - 1]: self.target.stack.attention[names[layer - 1]] for layer in self.counts
        }
        # innermost: it sees what interventions make of the call
        route = routed(watched, self._around, innermost=True, weights=self._look, required=False)
        with super().at_work(reducer) as stages, route:
            yield stages

    def _around(self, call: AttentionCall, kernel: Kernel) -> Output:
        output = kernel(call)
        self._look(call)
        return output

    def _look(self, call: AttentionCall | AttentionWeights) -> None:
        now = self.sequences.running()
        if now.past == 0 and now.vision.any():
            now.memo["scores"] = torch.stack(
                [self.rated(call, row, now) for row in range(len(now.vision))]
            )


def best(
    scores: Float[Tensor, "batch position"], among: Mask, count: Int[Tensor, " batch"]
) -> Mask:
    """The `count` positions of each row with the highest scores; the first ones where scores are
    equal.

    >>> best(torch.tensor([[3., 9., 1., 3., 2.]]), torch.tensor([[True, False, True, True, True]]), torch.tensor([2]))
    tensor([[ True, False, False,  True, False]])
    """
    order = scores.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return among & (place < count[:, None])


@torch.no_grad()
def attention_of(
    call: AttentionCall | AttentionWeights, row: int, position: Int[Tensor, " query"]
) -> Float[Tensor, "head query key"]:
    """The attention that the queries at these positions of a prompt give, in float32."""
    if isinstance(call, AttentionWeights):
        return call.weights[row][:, position.to(call.weights.device)].float()
    query, key = call.query[row], call.key[row]
    position = position.to(query.device)
    with torch.autocast(query.device.type, enabled=False):
        queries = (
            query[:, position].float().reshape(key.shape[0], -1, query.shape[-1])
        )  # heads that share a key
        scores = torch.matmul(queries * call.scaling, key.float().mT).view(
            len(query), len(position), -1
        )
        return torch.softmax(scores + bias(call, row, position, call.key_count), -1)


def fractions(called: str, layers: tuple[Any, ...], keeps: tuple[Any, ...]) -> None:
    """Raises ProbeError where a method can't reduce with these: before which layers, and what share
    then stays.
    """
    if not layers or len(layers) != len(keeps):
        raise ProbeError(
            called,
            expected="as many layers as fractions, at least one",
            got=f"{len(layers)} and {len(keeps)}",
        )
    whole = all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers)
    if not whole or min(layers) < 1 or list(layers) != sorted(set(layers)):
        raise ProbeError(
            called,
            expected="layers from 1 on, ascending: it ranks by what runs before them",
            got=", ".join(map(repr, layers)),
        )
    for keep in keeps:
        if not isinstance(keep, int | float) or isinstance(keep, bool) or not 0 <= keep <= 1:
            raise ProbeError(
                called, expected="a fraction of vision tokens to keep, 0 to 1", got=repr(keep)
            )


def _mask(target: LayerTarget, vision: Any) -> Mask | None:
    if vision is None:
        return None
    if (
        not torch.is_tensor(vision)
        or vision.ndim != 2
        or vision.dtype != torch.bool
        or not len(vision)
    ):
        got = (
            f"{vision.dtype} of {tuple(vision.shape)}"
            if torch.is_tensor(vision)
            else type(vision).__name__
        )
        raise ProbeError(
            target.called, expected="vision as a bool tensor of (batch, token)", got=got
        )
    return vision
