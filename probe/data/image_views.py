"""The parts of an image that a processor makes views of: crop, pad, tiles. Geometry only, no model.

Rectangles are left, top, right, bottom, as fractions of the image (outside [0, 1] for padding).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

Size = tuple[int, int]  # width, height in pixels, as PIL has it
WHOLE = np.array([0.0, 0.0, 1.0, 1.0])  # left, top, right, bottom


def aspect_of(processor: Any) -> str:
    """What a processor (or its image processor alone) does with an image that is not square:
    "crop", "pad", "squash", "anyres", or "slice" (tiles of its own and a thumbnail)."""
    image_processor = getattr(processor, "image_processor", processor)
    if getattr(image_processor, "image_grid_pinpoints", None):
        return "anyres"
    if (own := getattr(processor, "aspect", None)) in ("pad", "slice"):
        return str(own)
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        return "pad"
    if _edges(image_processor)[0] is None:
        return "squash"
    return "crop" if getattr(image_processor, "do_center_crop", False) else "squash"


def padded_to_square(image: Image.Image, image_processor: Any) -> Image.Image:
    """The image in the middle of a square of the processor's mean colour, as LLaVA-1.5 was
    trained.
    """
    side = max(image.size)
    colour = tuple(int(value * 255) for value in image_processor.image_mean)
    square = Image.new("RGB", (side, side), colour)  # type: ignore[arg-type]
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def views(image_processor: Any, size: Size, aspect: str) -> Float[np.ndarray, "tile edge=4"]:
    """The rectangles of an image that an image processor makes views of."""
    if aspect == "anyres":
        return np.stack([WHOLE, *_tiles(image_processor, size)])
    if aspect != "pad":
        return _processed(image_processor, size)[None]
    side = max(size)
    return within(square_around(size), _processed(image_processor, (side, side)))[None]


def sub_image_views(
    processor: Any, size: Size, aspect: str, ratio: int
) -> tuple[Float[np.ndarray, "view edge=4"], Float[np.ndarray, "view edge=4"]]:
    """The views of ratio x ratio sub-images (what they do not divide is cut off) and of the whole
    image; and what each view can show: a sub-image that is padded shows nothing of its neighbours.
    """
    processor_aspect = aspect_of(processor)
    if aspect == "pad" and processor_aspect != "pad":  # padded before it is divided
        side = max(size)
        square = square_around(size)
        shown, limits = sub_image_views(processor, (side, side), processor_aspect, ratio)
        return within(square, shown), within(square, limits)
    width = size[0] // ratio
    height = size[1] // ratio
    corners = [(col * width, row * height) for row in range(ratio) for col in range(ratio)]
    pixels = np.array([[x, y, x + width, y + height] for x, y in corners])
    tiles = pixels / [*size, *size]
    image_processor = processor.image_processor
    view_of_tile = views(image_processor, (width, height), aspect)[0]
    whole = views(image_processor, size, aspect)
    shown = [within(tiles, view_of_tile), whole]
    limits = [tiles, np.array([[-np.inf, -np.inf, np.inf, np.inf]])]
    return np.concatenate(shown), np.concatenate(limits)


def pixels_on_the_way(image_processor: Any, size: Size, aspect: str) -> int:
    """Pixels of the largest image that is made between an image and its views."""
    shortest, _ = _edges(image_processor)
    if aspect == "pad":
        return max(size) ** 2
    return shortest**2 * max(size) // min(size) if aspect == "crop" and shortest else 0


def best_resolution(size: tuple[int, int], resolutions: Sequence[Sequence[int]]) -> tuple[int, int]:
    """LLaVA-NeXT's choice among canvas resolutions for an image; all are (height, width) in pixels.

    The canvas that shows most pixels of the image wins, and of equal ones the smallest.
    Source: `select_best_resolution` of transformers.
    """
    image_height, image_width = size

    def fitness(resolution: Sequence[int]) -> tuple[int, int]:
        height, width = resolution
        scale = min(width / image_width, height / image_height)
        shown = min(
            int(image_width * scale) * int(image_height * scale), image_height * image_width
        )
        return shown, shown - height * width

    height, width = max(resolutions, key=fitness)
    return height, width


def square_around(size: Size) -> np.ndarray:
    """The square around an image that is padded."""
    width, height = size
    side = max(size)
    left = (side - width) // 2
    top = (side - height) // 2
    pixels = np.array([-left, -top, side - left, side - top])
    return pixels / [width, height, width, height]


def _processed(image_processor: Any, size: Size) -> np.ndarray:
    """The part of an image that is left after resizing and cropping."""
    if not getattr(image_processor, "do_center_crop", False):
        return WHOLE
    width, height = size
    shortest, (fixed_height, fixed_width) = _edges(image_processor)
    if image_processor.do_resize and shortest is None:
        width = fixed_width
        height = fixed_height
    elif image_processor.do_resize:
        shorter = min(size)
        width, height = (
            shortest if edge == shorter else int(shortest * edge / shorter) for edge in size
        )
    crop_width = image_processor.crop_size["width"]
    crop_height = image_processor.crop_size["height"]
    left = (width - crop_width) // 2
    top = (height - crop_height) // 2
    edges = np.array([left, top, left + crop_width, top + crop_height])
    return edges / [width, height, width, height]


def _edges(image_processor: Any) -> tuple[Any, tuple[Any, Any]]:
    """The shortest edge that an image is resized to, or else (height, width)."""
    size = dict(getattr(image_processor, "size", None) or {})
    return size.get("shortest_edge"), (size.get("height"), size.get("width"))


def _tiles(image_processor: Any, size: Size) -> list[np.ndarray]:
    """LLaVA-NeXT: resized to fit the best canvas, padded evenly, cut into tiles row by row."""
    width, height = size
    pinpoints = image_processor.image_grid_pinpoints
    canvas_height, canvas_width = best_resolution((height, width), pinpoints)
    if canvas_width / width < canvas_height / height:
        inner_width = canvas_width
        inner_height = min(math.ceil(height * (canvas_width / width)), canvas_height)
    else:
        inner_width = min(math.ceil(width * (canvas_height / height)), canvas_width)
        inner_height = canvas_height
    left = (canvas_width - inner_width) // 2
    top = (canvas_height - inner_height) // 2
    crop_height = dict(image_processor.crop_size or {}).get("height")
    shortest, (fixed_height, _) = _edges(image_processor)
    tile = int(crop_height or shortest or fixed_height or canvas_height)
    corners = [
        (x - left, y - top)
        for y in range(0, canvas_height, tile)
        for x in range(0, canvas_width, tile)
    ]
    inner = [inner_width, inner_height, inner_width, inner_height]
    return [np.array([x, y, x + tile, y + tile]) / inner for x, y in corners]


def within(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """A rectangle given in fractions of another one, in that one's own units."""
    corner = outer[..., :2]
    extent = outer[..., 2:] - outer[..., :2]
    top_left = corner + inner[..., :2] * extent
    bottom_right = corner + inner[..., 2:] * extent
    return np.concatenate([top_left, bottom_right], axis=-1)


def bounding_box(boxes: Float[np.ndarray, "box edge=4"]) -> Float[np.ndarray, "edge=4"]:
    """The smallest rectangle around these: left, top, right, bottom.

    >>> bounding_box(np.array([[0.0, 0.5, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]])).tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    top_left = boxes[:, :2].min(axis=0)
    bottom_right = boxes[:, 2:].max(axis=0)
    return np.concatenate([top_left, bottom_right])
