"""What a LLaVA-Mini does between encoder and LLM, run on shapes: compression, and text that reads
the image.

    Prefused.run(model.base_model, views, words=40, rows="all")

Nothing is counted here: `metered`, around it, sees the layers run.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probe.models.llava_mini.vision import join_tiles, with_whole


def fuses(base: Any) -> bool:
    """Whether a model compresses its images and fuses text with them."""
    return hasattr(base, "prefusion")


@dataclass(frozen=True)
class Prefused:
    """What reaches the LLM, and what later questions reuse."""

    tokens: int  # vision tokens that the LLM gets
    inside: tuple[
        int, int
    ]  # its first layers that see all patches, and those patches ("in_llm"), else (0, 0)
    prefix: int  # numbers in the keys and values of the vision rows

    def layers(self, count: int) -> list[int]:
        """Vision tokens in each LLM layer. Placeholders of the compressed ones run through the
        first layers, too.
        """
        first, patches = self.inside
        return [patches + self.tokens] * first + [self.tokens] * (count - first)

    @classmethod
    def run(cls, base: Any, views: Tensor, words: int, rows: str) -> "Prefused":
        """`views`: (frame, view, 3, height, width). `rows`: see `count`."""
        if base.config.fusion == "in_llm":
            return cls._in_llm(base, views)
        vision, tokens = base.look(views)
        made = tokens.shape[0] * tokens.shape[1]
        along = base.tokens_along
        if not len(base.prefusion.layers) or not along + words:
            return cls(made, (0, 0), 0)
        text = torch.empty(len(vision), along + words, vision.shape[-1], device=vision.device)
        visible = torch.ones(text.shape[:2], dtype=torch.bool, device=vision.device)
        if rows == "all":
            base.prefusion(vision, text, visible)
        else:
            outputs = base.config.compression == "none" and base.config.fusion == "released"
            prefix, _ = base.prefusion.see(vision, outputs=outputs)
            base.prefusion.fuse(prefix, text, visible)
        return cls(made, (0, 0), vision.shape[0] * vision.shape[1] * _keys_and_values(base))

    @classmethod
    def _in_llm(cls, base: Any, views: Tensor) -> "Prefused":
        patches = base.patches(views)
        grid = join_tiles(patches)
        vision = base.multi_modal_projector(with_whole(grid, patches))
        if base.config.compression != "none":
            base.compress(vision[:, : grid.shape[1]])  # the rows as they are after the first layers
        made = len(views) * base.config.tokens_per_frame(views.shape[1])
        return cls(made, (base.config.num_prefusion_layers, vision.shape[0] * vision.shape[1]), 0)


def _keys_and_values(base: Any) -> int:
    """Numbers that all layers of pre-fusion keep of one row."""
    attentions = [layer.self_attn for layer in base.prefusion.layers]
    return sum(
        attention.k_proj.out_features + attention.v_proj.out_features for attention in attentions
    )
