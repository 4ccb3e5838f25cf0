"""Small pictures of many images, 64 on a sheet: few files, each loaded when it is seen.

names = write_sheets([Path("a.jpg"), Path("b.jpg")], folder)    # ["pictures-000.jpg"]
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps

from probe.data.clip import Clip
from probe.data.image import ImageSource, Video, open_image
from probe.data.video import open_video
from probe.errors import ProbeError

SIDE = 160  # pixels of a picture's cell
ACROSS = 8  # cells in a row of a sheet, and rows


def write_sheets(
    images: Sequence[ImageSource], folder: Path, step: Callable[[int], None] = lambda count: None
) -> list[str]:
    """Writes JPEG files and returns their names. The picture number i is on sheet i // 64, there in
    raster order, in the middle of its cell; of a video a frame in the middle. One that can't be
    read stays black.

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
        small = _picture_of(image)
    except ProbeError:
        return
    small = ImageOps.contain(small, (SIDE, SIDE))
    sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))


def _picture_of(image: ImageSource) -> Image.Image:
    """An image, or a frame in the middle of a video."""
    if isinstance(image, Video):
        is_file = image.path is not None and image.path.is_file()
        image = open_video(replace(image, max_frames=1) if is_file else image)
    if isinstance(image, Clip):
        return image.frames[len(image.frames) // 2]
    return open_image(image)
