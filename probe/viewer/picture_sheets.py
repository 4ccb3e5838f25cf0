"""Small pictures of many images, 64 on a sheet: few files, each loaded when it is seen.

names = write_sheets([Path("a.jpg"), Path("b.jpg")], folder)    # ["pictures-000.jpg"]
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from probe.data.image import ImageSource, open_image
from probe.errors import ProbeError

SIDE = 160  # pixels of a picture's cell
ACROSS = 8  # cells in a row of a sheet, and rows


def write_sheets(
    images: Sequence[ImageSource], folder: Path, step: Callable[[int], None] = lambda count: None
) -> list[str]:
    """Writes JPEG files and returns their names. The picture number i is on sheet i // 64, there in
    raster order, in the middle of its cell; one that can't be read stays black.

    step: told of each image that is done.
    """
    names = []
    size = ACROSS * ACROSS
    for first in range(0, len(images), size):
        sheet = Image.new("RGB", (ACROSS * SIDE, ACROSS * SIDE))
        for place, image in enumerate(images[first : first + size]):
            row, column = divmod(place, ACROSS)
            _draw(sheet, image, column * SIDE, row * SIDE)
            step(1)
        names.append(f"pictures-{len(names):03}.jpg")
        sheet.save(folder / names[-1], "JPEG", quality=82)
    return names


def _draw(sheet: Image.Image, image: ImageSource, left: int, top: int) -> None:
    try:
        small = open_image(image)
    except ProbeError:
        return
    small = ImageOps.contain(small, (SIDE, SIDE))
    sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
