"""How many tokens a method may leave in one model, from a share of its vision tokens: what the
factories in `METHODS` take.

    label, method = METHODS["visionzip"]
    with method(TokenBudget.of(subject.model, 0.25))(subject): ...
    budgets_of_papers(subject.model)     # LLaVA-1.5: 192, 128, 64 tokens; LLaVA-NeXT: 640, 320, 160
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.model_structure import stacks
from probe.reducers.patch_selection import Budget

OF_ONE_VIEW, OF_TILES = (1 / 3, 2 / 9, 1 / 9), (2 / 9, 1 / 9, 1 / 18)  # shares that papers report
SMALL_GRID = 144  # patches below which those shares are too few tokens to tell methods apart
OF_SMALL_GRID = (4 / 9, 1 / 4, 1 / 9)
VIEWS = 5  # of an image in tiles, as papers count: 2 x 2 tiles and the whole


@dataclass(frozen=True)
class TokenBudget:
    """`share`: the fraction of vision tokens that is left; `patches`: of one view, None where
    images have views of their own size; `depth`: the number of LLM layers; `views`: of an image
    whose tokens are counted together, 1 where each view is counted by itself.
    """

    share: float
    patches: int | None
    depth: int
    views: int = 1

    @classmethod
    def of(cls, model: PreTrainedModel, share: float, views: int = 1) -> "TokenBudget":
        return cls(share, _patches(model), len(stacks(model)["llm"].layers), views)

    @property
    def tokens(self) -> int:
        """Tokens that are left of what is counted together, at least 2 of a view.

        >>> TokenBudget(share=0.11, patches=576, depth=32).tokens
        63
        >>> TokenBudget(share=2 / 9, patches=576, depth=32, views=5).tokens
        640
        """
        return max(2 * self.views, round(self.share * self.of_view * self.views))

    @property
    def share_of_centres(self) -> float:
        """Of a view's patches, where each view is left one further token."""
        return (self.tokens / self.views - 1) / self.of_view

    @property
    def of_view(self) -> int:
        """The patches of one view. Raises ProbeError where images have their own."""
        if self.patches is None:
            raise ProbeError(
                "reduced",
                expected="a model that shows images in views of one size",
                got="one that reads each image at its own resolution",
                fix="use a method inside the LLM: fastv, pyramiddrop, sparsevlm",
            )
        return self.patches

    @property
    def counted(self) -> Budget:
        """What `tokens` are tokens of."""
        return "view" if self.views == 1 else "image"


def budgets_of_papers(model: PreTrainedModel) -> list[TokenBudget]:
    """The budgets that recent papers compare at: 192, 128 and 64 tokens of a view of 576; 640, 320
    and 160 of an image of five such views. A small grid has 4/9, 1/4 and 1/9 of its patches.
    """
    patches = TokenBudget.of(model, 1.0).of_view
    tiles = getattr(model.config, "image_grid_pinpoints", None)
    shares = OF_TILES if tiles else OF_ONE_VIEW
    shares = OF_SMALL_GRID if patches < SMALL_GRID else shares
    return [TokenBudget.of(model, share, VIEWS if tiles else 1) for share in shares]


def _patches(model: PreTrainedModel) -> int | None:
    vision: Any = getattr(model.config, "vision_config", None)
    edges = [getattr(vision, name, None) for name in ("image_size", "patch_size")]
    image, patch = (edge[0] if isinstance(edge, list | tuple) else edge for edge in edges)
    return (image // patch) ** 2 if image and patch else None
