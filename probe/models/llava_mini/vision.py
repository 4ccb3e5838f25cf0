"""From pixels to the input of pre-fusion: patches of every view, joined, compressed, projected.

An image is one view, or N x N sub-images (row by row) and the whole image LAST. The patches of the
sub-images are joined to one large grid, and only that grid is compressed; pre-fusion also reads the
whole image.

Source: `encode_images_mini` of the authors' `llavamini_arch.py`; arXiv 2501.03895, sections 4.2 and
4.3.
"""

import math
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, cat, nn
from transformers import AutoModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from probe.models.llava_mini.compressor import LlavaMiniCompressor
from probe.models.llava_mini.configuration import LlavaMiniConfig


class LlavaMiniVision:
    """The part of the model that reads pixels. A mixin: its modules are those of the model."""

    config: LlavaMiniConfig
    get_input_embeddings: Any

    def build_vision(self, config) -> None:
        clip = config.vision_config
        size = config.compressor_size
        self.vision_tower = AutoModel.from_config(clip)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.compressor = None
        if config.compression == "query" and size:
            in_llm = config.fusion == "in_llm"
            dim = config.text_config.hidden_size if in_llm else clip.hidden_size
            self.compressor = LlavaMiniCompressor(clip, dim, size, config.compressor_num_heads)

    def look(
        self, pixel_values: Float[Tensor, "frame view 3 height width"]
    ) -> tuple[Float[Tensor, "frame patch dim"], Float[Tensor, "frame token dim"]]:
        """The vision rows of each frame for pre-fusion, and its compressed tokens, projected to the
        LLM's width.
        """
        patches = self.patches(pixel_values)
        grid = join_tiles(patches)
        vision = self.multi_modal_projector(with_whole(grid, patches))
        if self.config.compression == "none":
            return vision, vision
        if not self.config.compressor_size:
            # Not projected, because kernels of quantised layers crash on an empty input.
            return vision, vision[:, :0]
        return vision, self.multi_modal_projector(self.compress(grid))

    def patches(
        self, pixel_values: Float[Tensor, "frame view 3 height width"]
    ) -> Float[Tensor, "frame view patch dim"]:
        """The patches of every view after the encoder layer `vision_feature_layer`, without CLS."""
        views = rearrange(pixel_values, "frame view ... -> (frame view) ...")
        output = self.vision_tower(views.to(self.vision_tower.dtype), output_hidden_states=True)
        hidden = output.hidden_states[self.config.vision_feature_layer]
        features = hidden[:, 1:].to(self.get_input_embeddings().weight.dtype)
        return rearrange(features, "(frame view) ... -> frame view ...", view=pixel_values.shape[1])

    def compress(
        self, grid: Float[Tensor, "frame patch width"]
    ) -> Float[Tensor, "frame token width"]:
        """A square grid of patches -> C x C tokens."""
        size = self.config.compressor_size
        if not size or self.config.compression == "none":
            return grid[:, : grid.shape[1] * bool(size)]
        if self.config.compression == "query":
            return self.compressor(grid)  # pyright: ignore[reportOptionalCall]
        image = rearrange(
            grid, "frame (row col) width -> frame width row col", row=math.isqrt(grid.shape[1])
        )
        return rearrange(
            nn.functional.adaptive_avg_pool2d(image, size),
            "frame width row col -> frame (row col) width",
        )


def join_tiles(patches: Float[Tensor, "frame view patch dim"]) -> Float[Tensor, "frame grid dim"]:
    """The patches of all sub-images as one grid, row by row; those of a single view unchanged."""
    views = patches.shape[1]
    if views == 1:
        return patches[:, 0]
    side = math.isqrt(views - 1)
    if side * side != views - 1:
        raise ValueError(
            "LLaVA-Mini: expected 1 view, or N x N sub-images and the whole image (5, 10, 17 ...), "
            f"got {views} views"
        )
    inner = math.isqrt(patches.shape[2])
    return rearrange(
        patches[:, :-1],
        "frame (N M) (row col) dim -> frame (N row M col) dim",
        N=side,
        row=inner,
        col=inner,
    )


def with_whole(
    grid: Float[Tensor, "frame grid dim"], patches: Float[Tensor, "frame view patch dim"]
) -> Float[Tensor, "frame row dim"]:
    """The joined sub-images, followed by the whole image."""
    return cat([grid, patches[:, -1]], dim=1) if patches.shape[1] > 1 else grid
