"""Base class of reducers inside the LLM: between two layers the best-ranked vision tokens stay, the
others leave.

A row of the batch is ranked by its own prompt, never by padding or by tokens of a response. All its
vision tokens, of one image or several, are ranked together; where scores are equal the first
position wins. Tokens that left are absent from all later layers, in decoding too: shorter sequence,
less compute, smaller cache. The model's output keeps its rows; those of absent tokens hold the
hidden states with which they left.

A method is one file with one frozen dataclass, and one line in `METHODS` (`__init__.py`):

    @dataclass(frozen=True)
    class LargestNorm(LLMReducer):
        layer: int
        keep: float

        def schedule(self, depth):
            return {self.layer: lambda tokens: round(self.keep * tokens)}

        def scores(self, layer_input, prompt):
            return layer_input.whole().float().norm(dim=-1)

    with LargestNorm(layer=2, keep=0.5)(subject) as stages:
        subject.answer(image, question)
    stages[0].kept                        # (batch, position): the vision tokens that stayed

`PreviousLayerReducer` is the base of methods that rank by the attention of the layer before.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import model_block
from probe.hooks.layer_input import LayerInput
from probe.hooks.model_state import registered_reducer
from probe.hooks.partial_cache import check_partial, limits
from probe.hooks.removal import Removal
from probe.hooks.sequence_tracker import SequenceTracker
from probe.hooks.token_removal import removed
from probe.hooks.tracked_sequence import TrackedSequence
from probe.interventions.layer_target import LayerTarget, warn_unchanged
from probe.reducers.context import Reducer
from probe.reducers.reduction import ReductionStage

PositionMask = Bool[Tensor, "batch position"]
Scores = Float[Tensor, "batch position"]
RowScores = Float[Tensor, " position"]
ObservedAttention = AttentionCall | AttentionWeights
# The layers before which tokens leave -> from a prompt's number of vision tokens to those that stay
Schedule = Mapping[int, Callable[[int], int]]


class LLMReducer(Reducer, ABC):
    """A method that chooses vision tokens inside the LLM. Subclasses are frozen dataclasses that
    implement `schedule` and `scores`, and override the rest where they need to.

    `prompt` is the sequence that runs: `prompt.vision` (batch, position) marks its vision tokens,
    `prompt.end` (batch) is the position of its last token, and `prompt.memo` is a dict that lives
    as long as the prompt and its decoding.
    """

    @property
    def closes_gaps(self) -> bool:
        """Whether positions are renumbered without gaps after tokens left."""
        return False

    @abstractmethod
    def schedule(self, depth: int) -> Schedule:
        """Before which layers (from 1) of a stack of `depth` layers tokens leave, and how many of
        a prompt's vision tokens then stay. Raises ProbeError for a stack that does not fit.
        """

    @abstractmethod
    def scores(self, layer_input: LayerInput, prompt: TrackedSequence) -> Scores:
        """What the vision tokens before a layer of the schedule are ranked by, higher is better.
        Positions without a vision token are ignored.
        """

    def begin(self, layer_input: LayerInput, prompt: TrackedSequence) -> None:
        """Called at layer 0 of each prompt that has vision tokens, with their embeddings."""

    def recycled(
        self,
        layer_input: LayerInput,
        prompt: TrackedSequence,
        kept: PositionMask,
        leaving: PositionMask,
        scores: Scores,
    ) -> PositionMask:
        """The positions among `leaving` that stay present, holding merged tokens (to be set by
        `layer_input.change`). `prompt.memo["order"]` (batch, position) may say in which order
        tokens run, if not in that of their positions.
        """
        return torch.zeros_like(leaving)

    def observing(self, running: "RunningReducer") -> AbstractContextManager[None]:
        """Entered with the block, by methods that observe attention calls."""
        return nullcontext()

    @model_block
    def attached(
        self, model: Any, vision: Bool[Tensor, "batch token"] | None = None
    ) -> Iterator[list[ReductionStage]]:
        """What `reduced` enters. `vision`: which tokens of the prompt are vision tokens, for a
        model without an image token. Yields the stages of the last prompt.
        """
        called = type(self).__name__
        depth = len(LayerTarget.of(called, model, ()).stack.layers)
        schedule = self.schedule(depth)
        target = LayerTarget.of(called, model, schedule)
        running = RunningReducer(self, target, schedule, vision)
        with (
            registered_reducer(target.model, repr(self), text_guided=True),
            running.sequences.followed(),
            removed(target.model, target.stack, running),
            self.observing(running),
        ):
            yield running.stages
        if running.sequences.prompts and not running.sequences.had_vision:
            warn_unchanged(called)


class PreviousLayerReducer(LLMReducer):
    """A method that ranks by what tokens of the prompt attend to in the layer before."""

    @abstractmethod
    def rated(self, call: ObservedAttention, row: int, prompt: TrackedSequence) -> RowScores:
        """The score of each position of one row of the batch, by that layer's attention
        (`attention_rows`).
        """

    def scores(self, layer_input: LayerInput, prompt: TrackedSequence) -> Scores:
        if "scores" not in prompt.memo:
            raise ProbeError(
                type(self).__name__,
                expected="attention calls that it can observe",
                got=f"none in layer {layer_input.index - 1} (from 0), although it ran",
                fix="use the model as it was before it was compiled or wrapped",
            )
        return prompt.memo.pop("scores")

    @model_block
    def observing(self, running: "RunningReducer") -> Iterator[None]:
        before = {layer - 1 for layer in running.schedule}
        modules = running.target.stack.attention_of(before)
        if len(modules) < len(before):
            raise ProbeError(
                running.target.called,
                expected="layers with softmax attention before those that drop tokens",
                got=f"layers {sorted(before)} (from 0), some without",
            )

        def observe(call: ObservedAttention) -> None:
            prompt = running.sequences.running()
            if prompt.past == 0 and prompt.vision.any():
                rows = [self.rated(call, row, prompt) for row in range(len(prompt.vision))]
                prompt.memo["scores"] = torch.stack(rows)

        def around(call: AttentionCall, kernel: Kernel) -> Output:
            output = kernel(call)
            observe(call)
            return output

        # innermost: interventions have changed the call by then
        with routed(modules, around, innermost=True, weights=observe, required=False):
            yield


class RunningReducer(Removal):
    """One reducer in one model while a block lasts."""

    def __init__(
        self,
        reducer: LLMReducer,
        target: LayerTarget,
        schedule: Schedule,
        vision: Bool[Tensor, "batch token"] | None = None,
    ):
        first = min(schedule)
        depth = len(target.stack.layers)
        attention = target.stack.attention_by_layer(range(first, depth))
        of_layers = limits(target.called, target.model, attention, anew=reducer.closes_gaps)

        def check(sequence: TrackedSequence, cache: Any) -> None:
            if sequence.vision.any():
                check_partial(target.called, of_layers, sequence.length, cache, "")

        tracker = SequenceTracker(
            target.called,
            target.model,
            target.stack.layers[0],
            check=check,
            whole_prompt=True,
            vision=_vision_mask(target.called, vision),
        )
        super().__init__(tracker)
        self.closes_gaps = reducer.closes_gaps
        self.reducer = reducer
        self.target = target
        self.schedule = schedule
        self.stages: list[ReductionStage] = []

    def removed_positions(self, layer: int) -> PositionMask | None:
        return self.sequences.running().memo.get("absent")

    def order(self) -> Int[Tensor, "batch position"] | None:
        return self.sequences.running().memo.get("order")

    def before(self, layer_input: LayerInput) -> None:
        prompt = self.sequences.running()
        if not prompt.vision.any():
            return
        if layer_input.index == 0:
            self.reducer.begin(layer_input, prompt)
        if layer_input.index not in self.schedule:
            return
        absent = prompt.memo.get("absent")
        if absent is None:
            self.stages.clear()
        present = prompt.vision if absent is None else prompt.vision & ~absent
        count_of = self.schedule[layer_input.index]
        counts = [count_of(tokens) for tokens in prompt.vision.sum(1).tolist()]
        scores = self.reducer.scores(layer_input, prompt).to(present.device)
        kept = best(scores, present, torch.tensor(counts, device=present.device))
        left = kept | self.reducer.recycled(layer_input, prompt, kept, present & ~kept, scores)
        prompt.memo["absent"] = prompt.vision & ~left
        ranked = scores.masked_fill(~present, torch.nan)
        self.stages.append(ReductionStage(layer_input.index, kept, ranked, left))


def best(scores: Scores, among: PositionMask, count: Int[Tensor, " batch"]) -> PositionMask:
    """The `count` positions of each row with the highest scores; the first ones where scores are
    equal.

    >>> among = torch.tensor([[True, False, True, True, True]])
    >>> best(torch.tensor([[3.0, 9.0, 1.0, 3.0, 2.0]]), among, torch.tensor([2]))
    tensor([[ True, False, False,  True, False]])
    """
    order = scores.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)  # of each position: the inverse of the permutation
    return among & (rank < count[:, None])


def check_stages(called: str, layers: tuple[Any, ...], keeps: tuple[Any, ...]) -> None:
    """Raises ProbeError where `layers` are not ascending from 1, or `keeps` are not one fraction of
    vision tokens for each.
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
            expected="layers from 1 on, ascending: the layer before ranks the tokens",
            got=", ".join(map(repr, layers)),
        )
    for keep in keeps:
        if not isinstance(keep, int | float) or isinstance(keep, bool) or not 0 <= keep <= 1:
            raise ProbeError(
                called, expected="a fraction of vision tokens to keep, 0 to 1", got=repr(keep)
            )


def _vision_mask(called: str, vision: Any) -> Bool[Tensor, "batch token"] | None:
    if vision is None:
        return None
    is_tensor = torch.is_tensor(vision)
    if is_tensor and vision.ndim == 2 and vision.dtype == torch.bool and len(vision):
        return vision
    got = f"{vision.dtype} of {tuple(vision.shape)}" if is_tensor else type(vision).__name__
    raise ProbeError(called, expected="vision as a bool tensor of (batch, token)", got=got)
