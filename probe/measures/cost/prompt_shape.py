"""What a cost is of: one image or video and a number of words, divided as a model's config says.

A view is a square that the encoder gets. A larger image is cut into N x N views and added as a
whole, as in LLaVA-Mini's HD (LLaVA-1.5 the same way), or into tiles of the best resolution where
the config lists some (LLaVA-NeXT).
"""

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.image_processing_utils import select_best_resolution

from probe.errors import ProbeError, at_least, shown

Resolution = int | tuple[int, int]  # pixels of a side, or height and width
Tokens = int | Sequence[int]  # in all, or in each LLM layer


class OtherPixelsProbeError(ProbeError):
    """Raised for a model whose config does not say what it makes of an image: its processor does
    (`own_prompt.py`).
    """

    def __init__(self, got: str):
        super().__init__(
            "cost",
            expected="a model that makes vision tokens of square views alone, to count by its "
            "config",
            got=got,
            fix="pass a subject (probe.load): its processor says what an image becomes",
        )


@dataclass(frozen=True)
class PromptShape:
    """One image in `views`, or a video of `frames` that have `views` each, and `text_tokens` words.
    Height and width in pixels; `frames` is None for an image.
    """

    height: int
    width: int
    views: int
    frames: int | None
    text_tokens: int

    def pixels(
        self, side: int, config: Any, fuses: bool, video: bool, make: Callable[..., Any]
    ) -> dict[str, Any]:
        """The model's inputs other than token ids. `make` makes a tensor of a shape.

        fuses: the model takes the views of an image as an axis, as LLaVA-Mini does. video: it takes
        videos, not only images.
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
    """The resolutions that an image is cut into tiles of, None for a model without tiles."""
    return getattr(config, "image_grid_pinpoints", None)


def square_size(encoder: Any, name: str) -> int | None:
    """A size in pixels of an encoder's config, given as a side or as equal sides; None for others.

    >>> from types import SimpleNamespace
    >>> square_size(SimpleNamespace(image_size=[448, 448]), "image_size")
    448
    """
    given = getattr(encoder, name, None)
    sides = set(given) if isinstance(given, list | tuple) else {given}
    (side,) = sides if len(sides) == 1 else (None,)
    return side if isinstance(side, int) else None


def side_of(config: Any) -> int:
    """Pixels of a side of a view."""
    side = square_size(config.vision_config, "image_size")
    assert side is not None  # `described` has refused others
    return side


def patches_of(config: Any) -> int:
    """Patches of a view."""
    patch = square_size(config.vision_config, "patch_size")
    assert patch is not None
    return (side_of(config) // patch) ** 2


def prompt_of(
    config: Any,
    vision_tokens: int | None,
    text_tokens: int,
    resolution: Resolution | None,
    frames: int | None,
) -> PromptShape:
    """A prompt by resolution and frames. The default resolution is one view, or two tiles by two in
    models with tiles; and where more vision tokens are asked for than a view has patches, as many
    views as that takes.

    Raises ProbeError for invalid sizes.
    """
    at_least("cost", "text_tokens", text_tokens, 0)
    if frames is not None:
        at_least("cost", "frames", frames, 1)
    side = side_of(config)
    has_tiles = bool(tiles(config))
    by_default = resolution is None and frames is None
    if resolution is None:
        resolution = 2 * side if has_tiles else side
    height, width = height_and_width(resolution)
    untiled = frames is not None and has_tiles and _reads_videos(config)
    views = 1 if untiled else _views(config, side, height, width)
    compresses = hasattr(config, "compressor_size")
    if by_default and vision_tokens is not None and not has_tiles and not compresses:
        views = max(views, math.ceil(vision_tokens / patches_of(config)))
    return PromptShape(height, width, views, frames, text_tokens)


def _reads_videos(config: Any) -> bool:
    """Whether the model takes videos as such, whose frames get no tiles; else frames are images."""
    return any(hasattr(config, name) for name in ("video_token_id", "video_token_index"))


def height_and_width(resolution: Any) -> tuple[int, int]:
    """Both sides in pixels. Raises ProbeError for anything but one or two numbers."""
    sides = (resolution, resolution)
    if isinstance(resolution, tuple | list):
        sides = tuple(resolution)
    if len(sides) != 2 or not all(_is_count(side, 1) for side in sides):
        expected = "a resolution in pixels, or (height, width)"
        raise ProbeError("cost", expected=expected, got=shown(resolution))
    height, width = sides
    return int(height), int(width)


def _views(config: Any, side: int, height: int, width: int) -> int:
    if pinpoints := tiles(config):
        best_height, best_width = select_best_resolution((height, width), pinpoints)
        return (best_height // side) * (best_width // side) + 1
    along = math.ceil(max(height, width) / side)
    return 1 if along == 1 else along**2 + 1


ANY_NUMBER = "num_visual_tokens"  # the field of a config whose model makes any number of tokens


def _with_queries(config: Any, a_frame: float) -> Any:
    """The config that makes `a_frame` tokens of an image. Raises ProbeError for more than it has
    queries.
    """
    most = config.most_visual_tokens
    if not (a_frame.is_integer() and 1 <= a_frame <= most):
        expected = f"vision_tokens of 1 to {most}, its queries, an image"
        raise ProbeError("cost", expected=expected, got=f"{a_frame:g}")
    changed = copy.deepcopy(config)
    setattr(changed, ANY_NUMBER, int(a_frame))
    return changed


def sets_tokens(config: Any) -> bool:
    """Whether the config says how many vision tokens an image gets (LLaVA-Mini's C x C a frame)."""
    return getattr(config, "compression", "none") != "none" or hasattr(config, ANY_NUMBER)


def per_layer(vision_tokens: Any, layers: int) -> list[int] | None:
    """Vision tokens of each of `layers` layers. Raises ProbeError unless it is one number or one
    for each.
    """
    if vision_tokens is None:
        return None
    many = isinstance(vision_tokens, list | tuple | range | np.ndarray)
    tokens: list[Any] = list(vision_tokens) if many else [vision_tokens] * layers
    if len(tokens) != layers or not all(_is_count(number, 0) for number in tokens):
        expected = f"vision_tokens of 0 or more: one number, or one for each of {layers} LLM layers"
        raise ProbeError("cost", expected=expected, got=shown(vision_tokens))
    return [int(number) for number in tokens]


def _is_count(number: Any, least: int) -> bool:
    try:
        return operator.index(number) >= least
    except TypeError:
        return False


def with_tokens(config: Any, vision_tokens: int | None, frames: int | None) -> Any:
    """The config that makes this number of vision tokens, where a config says it (LLaVA-Mini's C x
    C a frame); else the config itself.

    Raises ProbeError for a number that is not a square.
    """
    if vision_tokens is None or not sets_tokens(config):
        return config
    a_frame = vision_tokens / (frames or 1)
    if hasattr(config, ANY_NUMBER):
        return _with_queries(config, a_frame)
    size = math.isqrt(int(a_frame))
    if size**2 != a_frame:
        expected = f"vision_tokens that are C x C for each of {frames or 1} frames"
        fix = "try 1, 4, 16, 64 ... a frame"
        raise ProbeError("cost", expected=expected, got=str(vision_tokens), fix=fix)
    if size == config.compressor_size:
        return config
    changed = copy.deepcopy(config)
    changed.compressor_size = size
    return changed
