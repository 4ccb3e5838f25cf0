"""TokenPacker's high resolution: an image as tiles of the tower's size and a thumbnail, with words
between them.

    tile , tile <newline> tile , tile <newline> thumbnail <newline>

The image, normalised, is resized (bilinear, no antialias) to fit the grid of tiles, pasted into its
top left corner and cut row by row; what it leaves free is 0, the mean grey. The thumbnail of more
than one tile is made of that canvas, its free part included, but with the aspect ratio of the
image: the free part is squeezed into it, as in the authors' code.

Source: arXiv 2407.02392; CircleRadon/TokenPacker at 771a16e.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from probe.models.rivals.processing import RivalProcessor

SIDE = 336  # pixels of a tile
ASPECT_WEIGHT, ASPECT_SCALE, ASPECT_EPS = 0.1, 1.4, 1e-5  # of `tiles`


class TokenPackerProcessor(RivalProcessor):
    """As `RivalProcessor`, of images in tiles (`image_aspect_ratio: "slice"`).

    tokens_per_image: of a tile. max_tiles: of an image, without its thumbnail.
    separator_ids: the words after a tile within a row, and after a row.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        tokens_per_image: int = 144,
        max_tiles: int = 9,
        separator_ids: Sequence[int] = (29892, 0),
        aspect: str = "slice",  # there is no other
        image_token: str = "<image>",
        image_token_id: int | None = None,
        chat_template: str | None = None,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            tokens_per_image=tokens_per_image,
            aspect="slice",
            image_token=image_token,
            image_token_id=image_token_id,
            chat_template=chat_template,
        )
        self.max_tiles = max_tiles
        self.separator_ids = tuple(separator_ids)

    def encoded(self, image: Image.Image) -> tuple[Float[Tensor, "tile 3 side side"], list[int]]:
        """The tiles and the thumbnail of an image, and the ids that stand for it."""
        rows, columns = tiles(image.height, image.width, self.max_tiles)
        return self.cut(image, rows, columns), self.tile_ids(rows, columns)

    def cut(self, image: Image.Image, rows: int, columns: int) -> Float[Tensor, "tile 3 side side"]:
        """The tiles row by row, and the thumbnail where there are several."""
        side = self.image_processor.crop_size["height"]
        size = (image.height, image.width)
        options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        whole = self.image_processor([image.convert("RGB")], **options)["pixel_values"]
        canvas = _fitted(whole, size, (rows * side, columns * side))
        parts: list[Tensor] = []
        for row in canvas.split(side, 2):
            parts += row.split(side, 3)
        if len(parts) > 1:
            thumbnail = _fitted(canvas, size, (side, side))
            parts.append(thumbnail)
        return torch.cat(parts)

    def tile_ids(self, rows: int, columns: int) -> list[int]:
        """The ids that stand for an image of rows x columns tiles."""
        tile = [self.image_token_id] * self.tokens_per_image
        between, newline = self.separator_ids
        row = tile + ([between, *tile] * (columns - 1)) + [newline]
        thumbnail = [*tile, newline] if rows * columns > 1 else []
        return row * rows + thumbnail


def separator_ids(tokenizer: Any) -> tuple[int, int]:
    """The ids of the pieces "," and "\\n". LLaMA's vocabulary has no such second piece: it is the
    unknown word then, as in the authors' code.
    """
    unknown = tokenizer.unk_token_id or 0
    comma, newline = tokenizer.convert_tokens_to_ids([",", "\n"])
    return comma, unknown if newline is None else newline


def _fitted(
    pixels: Float[Tensor, "1 3 height width"], size: tuple[int, int], box: tuple[int, int]
) -> Float[Tensor, "1 3 box_height box_width"]:
    """Pixels resized by what makes an image of this size (height, width) fit the box, in its top
    left corner.
    """
    box_height, box_width = box
    ratio_of_height = box_height / size[0]
    ratio_of_width = box_width / size[1]
    ratio = min(ratio_of_height, ratio_of_width)
    # The side that decides fills the box, whatever its rounded size would be.
    height = box_height
    width = box_width
    if ratio_of_height > ratio_of_width:
        height = min(box_height, round(size[0] * ratio))
    if ratio_of_width >= ratio_of_height:
        width = min(box_width, round(size[1] * ratio))
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear")
    return torch.nn.functional.pad(resized, (0, box_width - width, 0, box_height - height))


def tiles(height: int, width: int, max_tiles: int = 9) -> tuple[int, int]:
    """The rows and columns of tiles that an image of `height` x `width` pixels is cut into.

    The score of a grid is the share of its area that the image fills when it is made to fit, plus a
    tenth of the overlap (IoU) with the image enlarged 1.4 times. The first of equal scores wins.

    >>> tiles(336, 336), tiles(336, 1000), tiles(1200, 800)
    ((1, 1), (1, 3), (3, 2))
    """
    return max(_grids(max_tiles), key=lambda grid: _score(grid, height, width))


def _grids(max_tiles: int) -> list[tuple[int, int]]:
    """Every grid of at most `max_tiles` tiles, where a single row or column has at most 9.

    >>> [len(_grids(count)) for count in (9, 16, 25)]
    [23, 36, 55]
    """
    sides = range(1, max_tiles + 1)
    return [
        (rows, columns)
        for rows in sides
        for columns in sides
        if rows * columns <= max_tiles and (min(rows, columns) > 1 or max(rows, columns) <= 9)
    ]


def _score(grid: tuple[int, int], height: int, width: int) -> float:
    box_height = SIDE * grid[0]
    box_width = SIDE * grid[1]
    ratio = min(box_height / height, box_width / width)
    area = box_height * box_width
    filled = round(height * ratio) * round(width * ratio) / area
    tall = height * ASPECT_SCALE
    wide = width * ASPECT_SCALE
    overlap = min(box_height, tall) * min(box_width, wide)
    union = area + tall * wide - overlap
    return filled + ASPECT_WEIGHT * overlap / (union + ASPECT_EPS)
