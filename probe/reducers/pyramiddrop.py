"""PyramidDrop: vision tokens leave in stages; before each, the next layer's own queries and keys
rank the remaining ones.

    score of token j = mean over heads of a_ij, i the last token of the prompt, in the attention
    that
                       layer `layers[s]` would compute over the tokens that are still present

The int(keeps[s] * n) best of the prompt's n vision tokens stay, and the positions of all tokens are
renumbered without gaps (FastV keeps them). With 32 layers the authors use layers 8, 16, 24 (counted
from 0) and fractions 0.5, 0.25, 0.125.

    with probe.reduced(subject, PyramidDrop(layers=(8, 16, 24), keeps=(0.5, 0.25, 0.125))): ...

Also supports grouped-query attention, left or right padding, eager attention and several images
(one budget).

Source: arXiv 2410.17247; Cooperx521/PyramidDrop at 6444f30.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from probe.errors import ProbeError
from probe.hooks.attention_call import attention_rows
from probe.hooks.layer_input import LayerInput
from probe.hooks.tracked_sequence import TrackedSequence
from probe.reducers.llm_reducer import LLMReducer, Schedule, Scores, check_stages


@dataclass(frozen=True)
class PyramidDrop(LLMReducer):
    """`layers`: the layers before which vision tokens leave, ascending from 1; `keeps`: the
    fraction of all vision tokens that stays at each.

    Raises ProbeError for fractions that grow, and for other layers or fractions.
    """

    layers: Sequence[int] = (8, 16, 24)
    keeps: Sequence[float] = (0.5, 0.25, 0.125)

    def __post_init__(self):
        check_stages("PyramidDrop", tuple(self.layers), tuple(self.keeps))
        if list(self.keeps) != sorted(self.keeps, reverse=True):
            raise ProbeError(
                "PyramidDrop", expected="fractions that do not grow", got=str(tuple(self.keeps))
            )

    @classmethod
    def at(cls, share: float, depth: int) -> "PyramidDrop":
        """Stages a quarter of `depth` layers apart, each with the same fraction of the one before;
        at the second, `share` is left.

        >>> PyramidDrop.at(0.25, depth=32)
        PyramidDrop(layers=(8, 16, 24), keeps=(0.5, 0.25, 0.125))
        """
        layers = tuple(dict.fromkeys(max(1, depth * stage // 4) for stage in (1, 2, 3)))
        stages = range(1, len(layers) + 1)
        keeps = tuple(round(share ** (stage / 2), 6) for stage in stages)
        return cls(layers, keeps)

    @property
    def closes_gaps(self) -> bool:
        return True

    def schedule(self, depth: int) -> Schedule:
        return {
            layer: lambda tokens, keep=keep: int(tokens * keep)
            for layer, keep in zip(self.layers, self.keeps, strict=True)
        }

    def scores(self, layer_input: LayerInput, prompt: TrackedSequence) -> Scores:
        call = layer_input.attention_call()
        last = enumerate(prompt.end[:, None])
        return torch.stack([attention_rows(call, row, end).mean(0)[0] for row, end in last])
