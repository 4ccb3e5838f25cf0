"""FastV: before one layer of the LLM, keep the vision tokens that the prompt's last token attends
to most.

    score of token j = mean over heads of a_ij in layer `layer` - 1, i the last token of the prompt

All layers before `layer` (from 0) see everything; this one and all behind it see the round(keep *
n) best of n vision tokens, at their original positions. So with `layer` = 2 and `keep` = 0.5 two
layers run on all, the rest on half.

    with probe.reduced(subject, FastV(layer=2, keep=0.5)): ...

Where the authors' code does nothing or something else without a word, this does what is meant or
says no: every row of a batch is ranked by itself, padding stays masked, and a `layer` before which
or behind which nothing runs is refused.

Source: arXiv 2403.06764; pkunlp-icler/FastV at d165972.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.sequence_tracker import TrackedSequence
from probe.interventions.layer_target import LayerTarget
from probe.reducers.llm_reducer import PreviousLayerReducer, Stage, attention_of, fractions


@dataclass(frozen=True)
class FastV:
    """`layer`: the first that runs without the others, 1 to the last one; `keep`: the fraction of
    vision tokens left.

    Raises ProbeError for another fraction or layer.
    """

    layer: int
    keep: float

    def __post_init__(self):
        fractions("FastV", (self.layer,), (self.keep,))

    @contextmanager
    def attached(
        self, model: Any, vision: Bool[Tensor, "batch token"] | None = None
    ) -> Iterator[list[Stage]]:
        """At work in a model while the block lasts. `vision`: which tokens of the prompt are vision
        tokens, for a model without an image token. Yields what was left when the last prompt
        ran.
        """
        target = LayerTarget.of("FastV", model, self.layer)
        with _ByLastToken(target, {self.layer: lambda n: round(n * self.keep)}, vision).at_work(
            self
        ) as stages:
            yield stages


class _ByLastToken(PreviousLayerReducer):
    def rated(
        self, call: AttentionCall | AttentionWeights, row: int, now: TrackedSequence
    ) -> Float[Tensor, " position"]:
        assert now.end is not None  # sequences of tokens have one
        return attention_of(call, row, now.end[row : row + 1]).mean(0)[0]
