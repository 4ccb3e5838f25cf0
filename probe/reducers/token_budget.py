"""How many tokens a method may leave in one model, from a share of its vision tokens: what the
factories in `METHODS` take.

    label, method = METHODS["visionzip"]
    with method(TokenBudget.of(subject.model, 0.25))(subject): ...
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

from probe.hooks.model_structure import stacks
from probe.subject.token_grid import patches_per_side


@dataclass(frozen=True)
class TokenBudget:
    """`share`: the fraction of vision tokens that is left; `patches`: of one view; `depth`: the
    number of LLM layers.
    """

    share: float
    patches: int
    depth: int

    @classmethod
    def of(cls, model: PreTrainedModel, share: float) -> "TokenBudget":
        return cls(share, patches_per_side(model) ** 2, len(stacks(model)["llm"].layers))

    @property
    def tokens(self) -> int:
        """Tokens that are left of one view, at least 2.

        >>> TokenBudget(share=0.11, patches=576, depth=32).tokens
        63
        """
        return max(2, round(self.share * self.patches))
