"""Images and videos as users pass them, and how they are opened: upright by default, RGB, 8 bits.

Only raster formats are read, so that no file is interpreted as a program, and only up to
`MAX_PIXELS`.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from probe.data.clip import Clip
from probe.data.lazy_frames import LONG_VIDEO, ArrayFrames
from probe.errors import ProbeError, at_least, shown

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # of one image, 256 MiB in RGB: Pillow warns about larger ones
EXIF = ("upright", "ignore")  # turned as the orientation in the file says, or as it is stored


@dataclass(frozen=True)
class Video:
    """A video instead of an image, for a model that takes them: a file, a folder of frames, or
    frames (PIL images, or an array (frame, height, width, 3) of 8 bits).

    fps: of a file, how many frames are taken of each second, 1 by default and at most all; of given
    frames and of a folder, how many there are a second, 1 by default, and all are taken. start,
    end: the seconds from and up to which frames are taken. max_frames: of a file, at most this
    number, evenly chosen. Raises ProbeError for other values. `open_video` reads it.

    >>> str(Video("clip.mp4", fps=2, end=30))
    'clip.mp4, 2 fps, up to 30 s'
    """

    source: str | Path | Sequence[Image.Image] | np.ndarray
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | Path):
            object.__setattr__(self, "source", _frames(self.source))  # one that can be compared
        if self.fps is not None and not _is_number(self.fps, above=0):
            raise ProbeError("Video", expected="fps above 0", got=shown(self.fps))
        if self.max_frames is not None:
            at_least("Video", "max_frames", self.max_frames, 1)
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not _is_number(value, above=-1e-9):
                raise ProbeError(
                    "Video", expected=f"{name} in seconds, 0 or more", got=shown(value)
                )
        if self.end is not None and self.end <= (self.start or 0):
            raise ProbeError("Video", expected="an end after its start", got=f"{self.end:g} s")

    @property
    def path(self) -> Path | None:
        """Its file or folder, None where frames were given."""
        return Path(self.source) if isinstance(self.source, str | Path) else None

    @property
    def frames(self) -> Sequence[Image.Image]:
        """The frames that were given, none where it is a path."""
        return () if isinstance(self.source, str | Path | np.ndarray) else self.source

    def __str__(self) -> str:
        parts = ["frames" if self.path is None else str(self.path)]
        if self.fps is not None:
            parts.append(f"{self.fps:g} fps")
        if self.start is not None:
            parts.append(f"from {self.start:g} s")
        if self.end is not None:
            parts.append(f"up to {self.end:g} s")
        if self.max_frames is not None:
            parts.append(f"at most {self.max_frames}")
        return ", ".join(parts)


def _is_number(value: Any, above: float) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and bool(np.isfinite(value)) and bool(value > above)


def _frames(source: Any) -> Sequence[Image.Image]:
    """Frames as images. Raises ProbeError for what is none."""
    expected = "a path, PIL images, or an array (frame, height, width, 3) of 8 bits"
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or source.shape[-1] != 3 or source.dtype != np.uint8:
            got = f"an array of shape {source.shape} and {source.dtype}"
            raise ProbeError("Video", expected=expected, got=got)
        return ArrayFrames(source) if len(source) > LONG_VIDEO else tuple(ArrayFrames(source))
    if isinstance(source, Image.Image) or not isinstance(source, Iterable):
        raise ProbeError("Video", expected=expected, got=f"a {type(source).__name__}")
    frames = tuple(source)
    for frame in frames:
        if not isinstance(frame, Image.Image):
            raise ProbeError("Video", expected=expected, got=f"a {type(frame).__name__} among them")
    return frames


ImageSource = str | Path | Image.Image | Video | Clip


def as_images(image: ImageSource | Sequence[ImageSource] | None) -> tuple[ImageSource, ...]:
    """One image, several or none, as a tuple.

    >>> as_images("cat.jpg"), as_images(["cat.jpg", "dog.jpg"]), as_images(None)
    (('cat.jpg',), ('cat.jpg', 'dog.jpg'), ())
    """
    if image is None:
        return ()
    if isinstance(image, list | tuple):
        return tuple(image)
    return (image,)  # type: ignore[return-value]


def open_image(image: ImageSource, exif: str = "upright") -> Image.Image:
    """The image as it should be seen: upright, RGB, transparency over white, the first frame of an
    animation.

    `exif`: "upright" turns it as its EXIF orientation says; "ignore" leaves it as it is stored, as
    LLaVA's own scripts do. The result carries no orientation any more.

    Raises ProbeError for a file that is missing, truncated, not an image of one of `FORMATS`, or
    with more than `MAX_PIXELS`, and for anything that is neither a path nor a PIL image.
    """
    if isinstance(image, Image.Image):
        width, height = image.size
        return _as_rgb(image, f"a {width}x{height} {image.mode} image", exif)
    if not isinstance(image, str | Path):
        raise ProbeError("image", expected="a path or a PIL image", got=f"a {type(image).__name__}")
    path = _image_file(image)
    name = repr(str(path))
    try:
        opened = open_raster(path)
    except UnidentifiedImageError:
        raise ProbeError(
            "image",
            expected="an image file",
            got=f"{name}, whose content is not an image",
            fix="pass a JPEG, PNG, WebP, GIF, BMP or TIFF",
        ) from None
    except Image.DecompressionBombError as bomb:
        raise ProbeError("image", got=f"{name}: {bomb}", fix="pass a smaller image") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ProbeError(
            "image", expected="a readable image file", got=f"{name}: {error}"
        ) from error
    with opened:
        return _as_rgb(opened, name, exif)


def open_raster(path: str | Path) -> Image.Image:
    """`Image.open` for the formats in `FORMATS`: only the header is read.

    Raises the errors of Pillow, of them `Image.DecompressionBombError` above `MAX_PIXELS`.
    """
    with warnings.catch_warnings():  # a bound that is an error needs no warning
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path, formats=FORMATS)
    if excess := _excess_pixels(image):
        image.close()
        raise Image.DecompressionBombError(excess)
    return image


def _excess_pixels(image: Image.Image) -> str:
    width, height = image.size
    if width * height <= MAX_PIXELS:
        return ""
    return f"{width} x {height} pixels, more than the {MAX_PIXELS:,} of probe.data.image.MAX_PIXELS"


def _image_file(source: str | Path) -> Path:
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return path
        reason = "a folder" if path.is_dir() else "no such file"
    except (OSError, RuntimeError, ValueError) as error:  # too long, an unknown user's ~, a NUL
        path = Path(source)
        reason = str(error).split(":")[0]
    raise ProbeError("image", expected="an image file", got=f"{str(path)[:200]!r} ({reason})")


def _as_rgb(image: Image.Image, name: str, exif: str) -> Image.Image:
    if excess := _excess_pixels(image):
        raise ProbeError("image", got=f"{name}: {excess}", fix="pass a smaller image")
    try:
        image.load()
        if exif == "upright":
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error ...
        raise ProbeError("image", expected="a complete image", got=f"{name}: {error}") from error
    if 0 in image.size:
        raise ProbeError("image", expected="an image with at least one pixel", got=name)
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise ProbeError("image", expected="finite pixels", got=f"NaN or infinity in {name}")
    if image.mode.startswith(("I", "F")):
        return _from_deep_gray(image).convert("RGB")
    if image.has_transparency_data:
        # convert("RGB") would show the colours of transparent pixels, mostly black
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.convert("RGB") if image.mode != "RGB" else image.copy()
    rgb.info.clear()  # an orientation would be applied where the image is opened again
    return rgb


def _from_deep_gray(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey as 8-bit; Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image, dtype=np.float64)
    top = 255.0 if values.max() <= 255 else max(65535.0, float(values.max()))
    return Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
