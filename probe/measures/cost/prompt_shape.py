"""What a cost is of: one image or video and some words, as a model's config takes them apart.

A view is a square that the encoder sees. A larger image is cut into N x N views and shown whole
beside them, as LLaVA-Mini's HD (LLaVA-1.5 the same way), or into tiles of the best resolution where
the config lists some (LLaVA-NeXT).
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from transformers.image_processing_utils import select_best_resolution

from probe.errors import ProbeError

Resolution = int | tuple[int, int]  # pixels of a side, or height and width
Tokens = int | Sequence[int]  # in all, or in each LLM layer


@dataclass(frozen=True)
class PromptShape:
    """One image, or a video of `frames`, and `text_tokens` words."""

    height: int
    width: int
    views: int  # of the image, or of each frame
    frames: int | None  # None: an image
    text_tokens: int

    def pixels(
        self, side: int, config: Any, fuses: bool, video: bool, make: Callable[..., Any]
    ) -> dict[str, Any]:
        """What a model is given beside token ids. `make` makes a tensor of a shape.

        fuses: the model takes views of images apart, as LLaVA-Mini does. video: it takes videos,
        not only images.
        """
        view = (3, side, side)
        if self.frames is not None and video:
            views = (self.views,) if fuses else ()
            return {"pixel_values_videos": make(1, self.frames, *views, *view)}
        images = self.frames or 1
        if fuses:
            return {"pixel_values": make(images, self.views, *view)}
        if tiles(config):
            sizes = [(self.height, self.width)] * images
            return {"pixel_values": make(images, self.views, *view), "image_sizes": sizes}
        return {"pixel_values": make(images * self.views, *view)}


def tiles(config: Any) -> list | None:
    """The resolutions that an image is cut into tiles of, None for a model without them."""
    return getattr(config, "image_grid_pinpoints", None)


def side_of(config: Any) -> int:
    """Pixels of a side of a view."""
    return config.vision_config.image_size


def prompt_of(
    config: Any,
    vision_tokens: int | None,
    text_tokens: int,
    resolution: Resolution | None,
    frames: int | None,
) -> PromptShape:
    """A prompt by resolution and frames. Without a resolution a view, or two tiles by two where
    there are tiles; and where more vision tokens are wanted than a view has patches, as many views
    as it takes.

    Raises ProbeError for numbers that are no sizes.
    """
    for called, number, least in (("text_tokens", text_tokens, 0), ("frames", frames, 1)):
        if number is not None and not _is_count(number, least):
            raise ProbeError("cost", expected=f"{called} of {least} or more", got=repr(number))
    side = side_of(config)
    height, width = _height_and_width(
        resolution if resolution is not None else side * (2 if tiles(config) else 1)
    )
    views = 1 if frames is not None and tiles(config) else _views(config, side, height, width)
    uncut = (
        resolution is None
        and frames is None
        and not tiles(config)
        and not hasattr(config, "compressor_size")
    )
    if uncut and vision_tokens is not None:
        patches = (side // config.vision_config.patch_size) ** 2
        views = max(views, math.ceil(vision_tokens / patches))
    return PromptShape(height, width, views, frames, text_tokens)


def _height_and_width(resolution: Any) -> tuple[int, int]:
    sides = tuple(resolution) if isinstance(resolution, tuple | list) else (resolution, resolution)
    if len(sides) != 2 or not all(_is_count(side, 1) for side in sides):
        raise ProbeError(
            "cost", expected="a resolution in pixels, or (height, width)", got=repr(resolution)
        )
    return int(sides[0]), int(sides[1])


def _views(config: Any, side: int, height: int, width: int) -> int:
    if pinpoints := tiles(config):
        rows, columns = (
            edge // side for edge in select_best_resolution((height, width), pinpoints)
        )
        return rows * columns + 1
    along = math.ceil(max(height, width) / side)
    return 1 if along == 1 else along**2 + 1


def makes_to_order(config: Any) -> bool:
    """Whether the config says how many vision tokens come out (LLaVA-Mini's C x C a frame)."""
    return getattr(config, "compression", "none") != "none"


def per_layer(vision_tokens: Any, layers: int) -> list[int] | None:
    """Vision tokens of each of so many layers. Raises ProbeError for what is no number of them, nor
    one for each.
    """
    if vision_tokens is None:
        return None
    many = isinstance(vision_tokens, list | tuple | range | np.ndarray)
    tokens: list[Any] = list(vision_tokens) if many else [vision_tokens] * layers
    if len(tokens) != layers or not all(_is_count(number, 0) for number in tokens):
        expected = f"vision_tokens of 0 or more: one number, or one for each of {layers} LLM layers"
        raise ProbeError("cost", expected=expected, got=repr(vision_tokens)[:60])
    return [int(number) for number in tokens]


def _is_count(number: Any, least: int) -> bool:
    return isinstance(number, Integral) and int(number) >= least


def with_tokens(config: Any, vision_tokens: int | None, frames: int | None) -> Any:
    """The config that makes so many vision tokens, where a config says it (LLaVA-Mini's C x C a
    frame), else itself.

    Raises ProbeError for a number that no square gives.
    """
    if vision_tokens is None or not makes_to_order(config):
        return config
    a_frame = vision_tokens / (frames or 1)
    size = math.isqrt(int(a_frame))
    if size**2 != a_frame:
        expected = f"vision_tokens that are C x C for each of {frames or 1} frames"
        raise ProbeError(
            "cost", expected=expected, got=str(vision_tokens), fix="try 1, 4, 16, 64 ... a frame"
        )
    if size == config.compressor_size:
        return config
    changed = copy.deepcopy(config)
    changed.compressor_size = size
    return changed
