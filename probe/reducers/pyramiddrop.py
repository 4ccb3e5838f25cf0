"""PyramidDrop: vision tokens leave in stages; before each, the next layer's own queries and keys
rank what is left.

    score of token j = mean over heads of a_ij, i the last token of the prompt, in the attention that layer `layers[s]`
                       would make of the tokens that are still there

The int(keeps[s] * n) best of the prompt's n vision tokens stay, and the positions of all tokens are
numbered anew without gaps (FastV keeps them). With 32 layers the authors use layers 8, 16, 24 and
fractions 0.5, 0.25, 0.125.

    with probe.reduced(subject, PyramidDrop(layers=(8, 16, 24), keeps=(0.5, 0.25, 0.125))): ...

Unlike the authors' code it has no trouble with grouped queries, padding on either side, eager
attention and several images in a prompt, which share one budget.

Source: arXiv 2410.17247; Cooperx521/PyramidDrop at 6444f30.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.sequence_tracker import TrackedSequence as Prompt
from probe.hooks.token_removal import LayerInput
from probe.interventions.layer_target import LayerTarget
from probe.reducers.llm_reducer import LLMReducer, Stage, attention_of, fractions


@dataclass(frozen=True)
class PyramidDrop:
    """`layers`: before which vision tokens leave, ascending from 1; `keeps`: what fraction of all
    is left then.

    Raises ProbeError for fractions that grow, and layers and fractions that don't go together.
    """

    layers: Sequence[int] = (8, 16, 24)
    keeps: Sequence[float] = (0.5, 0.25, 0.125)

    def __post_init__(self):
        fractions("PyramidDrop", tuple(self.layers), tuple(self.keeps))
        if list(self.keeps) != sorted(self.keeps, reverse=True):
            raise ProbeError(
                "PyramidDrop", expected="fractions that do not grow", got=str(tuple(self.keeps))
            )

    @contextmanager
    def attached(
        self, model: Any, vision: Bool[Tensor, "batch token"] | None = None
    ) -> Iterator[list[Stage]]:
        """At work in a model while the block lasts. `vision`: which tokens of the prompt are vision
        tokens, for a model without an image token. Yields what was left before each stage when the
        last prompt ran.
        """
        target = LayerTarget.of("PyramidDrop", model, self.layers)
        counts = {
            layer: lambda n, keep=keep: int(n * keep)
            for layer, keep in zip(self.layers, self.keeps, strict=True)
        }
        with _ByNextLayer(target, counts, vision).at_work(self) as stages:
            yield stages


class _ByNextLayer(LLMReducer):
    closes_gaps = True

    def scores(self, entrance: LayerInput, now: Prompt) -> Float[Tensor, "batch position"]:
        assert now.end is not None  # sequences of tokens have one
        call = entrance.attention_call()
        return torch.stack(
            [attention_of(call, row, at).mean(0)[0] for row, at in enumerate(now.end[:, None])]
        )
