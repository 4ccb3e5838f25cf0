"""FastV: before one layer of the LLM, keep the vision tokens that the prompt's last token attends
to most.

    score of token j = mean over heads of a_ij in layer `layer` - 1, i the last token of the prompt

Layers before `layer` (counted from 0) see all tokens; this one and all later ones see the
round(keep * n) best of n vision tokens, at their original positions. With `layer` = 2 and
`keep` = 0.5 two layers run on all vision tokens, the rest on half of them.

    with probe.reduced(subject, FastV(layer=2, keep=0.5)): ...

Unlike the reference code, unsupported settings raise ProbeError instead of being ignored (a `layer`
with no layer before it or none after); each row of a batch is ranked by itself; padding stays
masked.

Source: arXiv 2403.06764; pkunlp-icler/FastV at d165972.
"""

from dataclasses import dataclass

from probe.hooks.attention_call import attention_rows
from probe.hooks.tracked_sequence import TrackedSequence
from probe.reducers.llm_reducer import (
    ObservedAttention,
    PreviousLayerReducer,
    RowScores,
    Schedule,
    check_stages,
)


@dataclass(frozen=True)
class FastV(PreviousLayerReducer):
    """`layer`: the first one that runs on fewer tokens, 1 to the last; `keep`: the fraction of
    vision tokens that stay.

    Raises ProbeError for another fraction or layer.
    """

    layer: int
    keep: float

    def __post_init__(self):
        check_stages("FastV", (self.layer,), (self.keep,))

    def schedule(self, depth: int) -> Schedule:
        return {self.layer: lambda tokens: round(tokens * self.keep)}

    def rated(self, call: ObservedAttention, row: int, prompt: TrackedSequence) -> RowScores:
        return attention_rows(call, row, prompt.end[row : row + 1]).mean(0)[0]
