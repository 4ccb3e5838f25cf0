"""The frames of a video, and the time of each: from a file (through PyAV), a folder, or as given.

    clip = open_video(Video("clip.mp4", fps=2, start=10, end=20))
    clip.frames, clip.times              # 20 images, and their seconds in the file

Of a file the frames in the middle of equal segments are taken, one segment a frame: with 1 frame a
second, of a whole file, those that LLaVA-Mini takes. Its times are those that the file states;
where they are uneven (a variable rate), segments are of time, and not of frames.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from probe.data.clip import Clip
from probe.data.frame_choice import taken_frames
from probe.data.image import Video, open_image
from probe.data.image_views import Size
from probe.data.lazy_frames import LONG_VIDEO, LazyFrames
from probe.errors import ProbeError

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def open_video(video: Video, exif: str = "upright") -> Clip:
    """The frames of a video with their times.

    `exif`: as in `open_image`, for a folder of frames. Raises ProbeError for a file that is
    missing, is no video or has no frame between start and end, for frames of different sizes, and
    where PyAV is not installed.
    """
    if video.path is None:
        clip = _all_of(video, video.frames, exif)
    else:
        path = video.path.expanduser()
        if not path.exists():
            raise ProbeError(
                "video", expected="a video file or a folder of frames", got=f"no {str(path)!r}"
            )
        clip = _of_folder(video, path, exif) if path.is_dir() else _of_file(video, path)
    if not clip.frames:
        raise ProbeError("video", expected="at least one frame", got=f"none in {video}")
    if not isinstance(clip.frames, DecodedFrames):  # whose sizes are known
        _check_sizes({frame.size for frame in clip.frames})
    return clip


def _check_sizes(sizes: set[Size]) -> None:
    if len(sizes) > 1:
        (width, height), (other_width, other_height), *_ = sorted(sizes)
        raise ProbeError(
            "video",
            expected="frames of one size",
            got=f"{width} x {height} and {other_width} x {other_height} pixels",
        )


def is_video_file(path: Any) -> bool:
    """Whether a path ends like a video.

    >>> is_video_file("clip.MP4"), is_video_file("cat.jpg")
    (True, False)
    """
    return isinstance(path, str | Path) and Path(path).suffix.lower() in SUFFIXES


def _all_of(video: Video, frames: Sequence[Path | Image.Image], exif: str) -> Clip:
    """Frames that are all there is of a video: those from start up to end."""
    rate, end = float(video.fps or 1), np.inf if video.end is None else video.end
    kept = [index for index in range(len(frames)) if (video.start or 0) <= index / rate < end]
    chosen = OpenedFrames(frames, tuple(kept), exif)
    images = chosen if len(kept) > LONG_VIDEO else tuple(chosen)
    return Clip(images, np.array(kept) / rate, tuple(kept), rate, max(1, len(frames)))


def _of_folder(video: Video, path: Path, exif: str) -> Clip:
    """All images of a folder in the order of the numbers in their names."""
    files = [
        file
        for file in path.iterdir()
        if file.suffix.lower() in FRAME_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise ProbeError(
            "video", expected=f"frames (.jpg, .png ...) in the folder {str(path)!r}", got="none"
        )
    return _all_of(video, sorted(files, key=_numbered), exif)


def _numbered(file: Path) -> list[tuple[int, str]]:
    """A sort key that puts 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _of_file(video: Video, path: Path) -> Clip:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ProbeError(
            "video",
            expected="PyAV, to read a video file",
            got="none",
            fix='pip install "probe-llava[video]", or pass Video(frames)',
        ) from None
    try:
        return _decoded(av, video, path)
    except (av.FFmpegError, IndexError, OSError) as error:
        got = f"{str(path)!r} ({getattr(error, 'strerror', None) or error})"
        raise ProbeError("video", expected="a video file", got=got) from None


def _require_picture(container: Any, path: Path) -> None:
    if not container.streams.video:
        raise ProbeError(
            "video", expected="a video file", got=f"{str(path)!r}, a sound without one"
        )


def upright(frame: Any) -> Image.Image:
    """A decoded frame as it should be seen: a phone states by how much its picture is to be turned.
    PyAV before 14 does not say it.
    """
    return frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True)


def _decoded(av: Any, video: Video, path: Path) -> Clip:
    """Decodes a file twice where it does not state its number of frames."""
    with av.open(str(path)) as container:
        _require_picture(container, path)
        stream = container.streams.video[0]
        rate, total = stream.average_rate or Fraction(1), stream.frames
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        stamps = sorted(float(packet.pts * packet.time_base) for packet in packets)
    if not total:
        with av.open(str(path)) as container:
            total = sum(1 for _ in container.decode(video=0))
    wanted, rate = taken_frames(video, stamps, float(rate), total)
    times: dict[int, float] = {}
    opened: dict[int, Image.Image] = {}
    sizes: set[Size] = set()
    is_long = len(wanted) > LONG_VIDEO
    with av.open(str(path)) as container:
        for index, frame in _chosen(container.decode(video=0), wanted):
            times[index] = index / rate if frame.time is None else float(frame.time)
            sizes.add((frame.width, frame.height))
            if not is_long:
                opened[index] = upright(frame)
    _check_sizes(sizes)
    kept = [index for index in wanted if index in times]  # a file may end before it says
    images = DecodedFrames(path, tuple(kept)) if is_long else tuple(opened[i] for i in kept)
    seconds_of_each = np.array([times[index] for index in kept])
    return Clip(images, seconds_of_each, tuple(kept), rate, total)


def _chosen(frames: Iterator[Any], indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Frames of these indices, in ascending order."""
    wanted = set(indices)
    last = max(wanted, default=-1)
    for index, frame in zip(range(last + 1), frames, strict=False):
        if index in wanted:
            yield index, frame


@dataclass(frozen=True)
class OpenedFrames(LazyFrames):
    """Given frames, or those of a folder: those of the indices. exif: as in `open_image`."""

    sources: Sequence[Path | Image.Image]
    indices: tuple[int, ...]
    exif: str

    def __len__(self) -> int:
        return len(self.indices)

    def frame(self, number: int) -> Image.Image:
        return open_image(self.sources[self.indices[number]], self.exif)


@dataclass(frozen=True)
class DecodedFrames(LazyFrames):
    """Frames of a file: those of the indices, in ascending order."""

    path: Path
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Image.Image]:
        """All frames, by decoding the file once."""
        return self._decoded(self.indices)

    def frame(self, number: int) -> Image.Image:
        return self.at([number])[0]

    def at(self, numbers: Iterable[int]) -> tuple[Image.Image, ...]:
        indices = [self.indices[number] for number in numbers]
        by_index = dict(zip(sorted(set(indices)), self._decoded(sorted(set(indices))), strict=True))
        return tuple(by_index[index] for index in indices)

    def _decoded(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        import av  # pyright: ignore[reportMissingImports]

        times = Counter(indices)  # a video that is shorter than it should be repeats some
        with av.open(str(self.path)) as container:
            for index, frame in _chosen(container.decode(video=0), indices):
                yield from [upright(frame)] * times[index]
