"""Which parts of an image a processor cuts it into: crop, pad, tiles. Geometry only, no model."""

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
    "crop", "pad", "squash" or "anyres"."""
    image_processor = getattr(processor, "image_processor", processor)
    if getattr(image_processor, "image_grid_pinpoints", None):
        return "anyres"
    if getattr(processor, "aspect", None) == "pad":
        return "pad"
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        return "pad"
    if _edges(image_processor)[0] is None:
        return "squash"
    return "crop" if image_processor.do_center_crop else "squash"


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
    """The rectangles of the image that an image processor makes of it."""
    if aspect == "anyres":
        return np.stack([WHOLE, *_tiles(image_processor, size)])
    if aspect != "pad":
        return _processed(image_processor, size)[None]
    return _within(_square(size), _processed(image_processor, (max(size), max(size))))[None]


def _square(size: Size) -> np.ndarray:
    """The square around an image that is padded."""
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    return np.array([-left / width, -top / height, (side - left) / width, (side - top) / height])


def _sub_images(
    processor: Any, size: Size, aspect: str, ratio: int
) -> tuple[np.ndarray, np.ndarray]:
    """The views of ratio x ratio sub-images, what they do not divide cut off, and of the whole
    image. And what each can show: a sub-image that is padded shows nothing of its neighbours."""
    if aspect == "pad" and aspect_of(processor) != "pad":  # padded by ourselves, before it is split
        found = _sub_images(processor, (max(size), max(size)), aspect_of(processor), ratio)
        return _within(_square(size), found[0]), _within(_square(size), found[1])
    width, height = size[0] // ratio, size[1] // ratio
    corners = [(col * width, row * height) for row in range(ratio) for col in range(ratio)]
    tiles = np.array([[x, y, x + width, y + height] for x, y in corners]) / [*size, *size]
    fitted = _within(tiles, views(processor.image_processor, (width, height), aspect)[0])
    everything = np.array([[-np.inf, -np.inf, np.inf, np.inf]])
    shown = np.concatenate([fitted, views(processor.image_processor, size, aspect)])
    return shown, np.concatenate([tiles, everything])


def pixels_on_the_way(image_processor: Any, size: Size, aspect: str) -> int:
    """Pixels of the largest image that is made on the way from an image to its views."""
    shortest, _ = _edges(image_processor)
    if aspect == "pad":
        return max(size) ** 2
    return shortest**2 * max(size) // min(size) if aspect == "crop" and shortest else 0


def _processed(image_processor: Any, size: Size) -> np.ndarray:
    """The part of an image that is left after resizing and cropping."""
    width, height = size
    shortest, _ = _edges(image_processor)
    if image_processor.do_resize and shortest is not None:
        width, height = (
            shortest if edge == min(size) else int(shortest * edge / min(size)) for edge in size
        )
    elif image_processor.do_resize:
        _, (height, width) = _edges(image_processor)
    if not image_processor.do_center_crop:
        return WHOLE
    crop = image_processor.crop_size
    left, top = (width - crop["width"]) // 2, (height - crop["height"]) // 2
    return np.array(
        [
            left / width,
            top / height,
            (left + crop["width"]) / width,
            (top + crop["height"]) / height,
        ]
    )


def _edges(image_processor: Any) -> tuple[int | None, tuple[int | None, int | None]]:
    size = dict(image_processor.size)
    return size.get("shortest_edge"), (size.get("height"), size.get("width"))


def _tiles(image_processor: Any, size: Size) -> list[np.ndarray]:
    """LLaVA-NeXT: resized to fit the best resolution, padded evenly, cut into tiles row by row."""
    width, height = size
    rows, columns = best_resolution((height, width), image_processor.image_grid_pinpoints)
    if columns / width < rows / height:
        inner = (columns, min(math.ceil(height * (columns / width)), rows))
    else:
        inner = (min(math.ceil(width * (rows / height)), columns), rows)
    left, top = (columns - inner[0]) // 2, (rows - inner[1]) // 2
    tile = int(
        dict(image_processor.crop_size or {}).get("height") or _edges(image_processor)[0] or rows
    )
    corners = [(x - left, y - top) for y in range(0, rows, tile) for x in range(0, columns, tile)]
    return [np.array([x, y, x + tile, y + tile]) / np.array([*inner, *inner]) for x, y in corners]


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


def _within(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """A rectangle given in fractions of another one, in the other one's own units."""
    corner, extent = outer[..., :2], outer[..., 2:] - outer[..., :2]
    return np.concatenate(
        [corner + inner[..., :2] * extent, corner + inner[..., 2:] * extent], axis=-1
    )
