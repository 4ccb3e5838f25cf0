"""Images and videos as the views that the vision tower reads.

    split_views(image, 1)   [image]
    split_views(image, 2)   [four sub-images row by row, image]      HD

Pixels that N does not divide are cut off at the right and the bottom.

Source: `split_image`, `expand2square` and the video reading of the authors' `llavamini/mm_utils.py`
and `eval/`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps

RASTER_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # nothing else is interpreted
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def split_views(
    image: Image.Image, ratio: int, pad: tuple[int, ...] | None = None, pad_first: bool = False
) -> list[Image.Image]:
    """The ratio x ratio sub-images and, last, the whole image; a ratio of 1 is the image alone.

    pad: the colour that pads each view to a square; None leaves views for the image processor to
    crop. The authors pad each view at inference, but the whole image before splitting in training
    (`pad_first`).
    """
    if pad is not None and pad_first:
        image = _square(image, pad)
    width = image.width // ratio
    height = image.height // ratio
    if not (width and height):
        raise ValueError(
            f"LLaVA-Mini: expected an image of at least {ratio} x {ratio} pixels, got {image.size}"
        )
    corners = [(col * width, row * height) for row in range(ratio) for col in range(ratio)]
    tiles = (
        [image.crop((left, top, left + width, top + height)) for left, top in corners]
        if ratio > 1
        else []
    )
    return [view if pad is None else _square(view, pad) for view in [*tiles, image]]


def _square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square. `probe.data.image_views.padded_to_square` does the same
    for other models' processors; this package imports nothing of `probe`.
    """
    side = max(image.size)
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def squashed(frame: Image.Image, side: int) -> Image.Image:
    """A video frame resized to side x side by nearest neighbour, ignoring its aspect ratio."""
    pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(pixels, size=(side, side), mode="nearest")
    return Image.fromarray(small[0].permute(1, 2, 0).byte().numpy())


def frame_indices(total: int, count: int) -> list[int]:
    """The middle frames of `count` equal segments of a video of `total` frames.

    >>> frame_indices(40, 5)
    [4, 12, 19, 27, 35]
    """
    if total < 1 or count < 1:
        raise ValueError(f"LLaVA-Mini: expected a video of at least one frame, got {total} frames")
    length = (total - 1) / count
    ends = [np.round(length * i) for i in range(count + 1)]
    return [int((start + end) // 2) for start, end in pairwise(ends)]


def video_frames(
    video: str
    | Path
    | Sequence[Image.Image]
    | Iterable[Image.Image]
    | UInt8[np.ndarray, "frame height width 3"],
    *,
    upright: bool = True,
) -> Iterator[Image.Image]:
    """The frames of a video one by one, from a file (1 frame per second), a folder of frames, or
    frames.

    All images of a folder are frames, in the order of the numbers in their names, turned `upright`
    as their EXIF data say. Raises ValueError
    for a file or folder without frames, and for one that cannot be read.
    """
    if isinstance(video, str | Path):
        path = Path(video).expanduser()
        if not path.exists():
            raise ValueError(
                f"LLaVA-Mini: expected a video file or a folder of frames, got no {str(video)!r}"
            )
        yield from _folder(path, upright) if path.is_dir() else _file(path)
        return
    for frame in video:
        yield (
            frame if isinstance(frame, Image.Image) else Image.fromarray(np.asarray(frame))
        ).convert("RGB")


def _folder(path: Path, upright: bool) -> Iterator[Image.Image]:
    files = [
        file
        for file in path.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise ValueError(
            f"LLaVA-Mini: expected frames (.jpg, .png ...) in the folder {str(path)!r}, got none"
        )
    for file in sorted(files, key=_numbered):
        try:
            with Image.open(file, formats=RASTER_FORMATS) as image:
                frame = (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"LLaVA-Mini: expected an image as a frame, got {str(file)!r} ({error})"
            ) from error
        yield frame


def _numbered(file: Path) -> list[tuple[int, str]]:
    """A sort key that puts 2.png before 10.png."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"([0-9]+)", file.name)
    ]


def _file(path: Path) -> Iterator[Image.Image]:
    """About one frame per second. Decoded twice where the file does not store its frame count."""
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"LLaVA-Mini: expected PyAV to read the video {str(path)!r}, got none; "
            "pip install av, or pass frames"
        ) from None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 1)
            total = stream.frames
            total = total or sum(1 for _ in container.decode(video=0))
        wanted = Counter(frame_indices(total, max(1, int(total // rate))))
        last = max(wanted)
        with av.open(str(path)) as container:
            for i, frame in zip(range(last + 1), container.decode(video=0), strict=False):
                yield from repeat(frame.to_image(), wanted[i]) if wanted[i] else ()
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(
            f"LLaVA-Mini: expected a video file, got {str(path)!r} ({error})"
        ) from error
