"""Which frames of a file are taken: those in the middle of equal segments, one segment a frame.

    taken_frames(Video("clip.mp4", fps=2), stamps, rate=30.0, total=300)     # indices, rate

Segments are of frames, as LLaVA-Mini's authors count them, where a file has one rate, and of time
where its frames stand for unequal times.

Source of the index rule: the authors' `llavamini/eval/video`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from probe.data.image import Video
from probe.errors import ProbeError


def taken_frames(
    video: Video, stamps: Sequence[float], rate: float, total: int
) -> tuple[list[int], float]:
    """The frames that are taken, and the frames a second. `stamps`: the time in seconds that the
    file states for each of `total` frames; `rate`: what it states for all.

    Raises ProbeError where there is no frame between start and end.
    """
    if len(stamps) == total and not is_even(np.array(stamps), rate):
        mean_rate = (total - 1) / (stamps[-1] - stamps[0])
        return _at_times(video, np.array(stamps)), mean_rate
    return _at_rate(video, rate, total), rate


def middle_frames(first: int, last: int, count: int) -> list[int]:
    """The middle frames of `count` equal segments of the frames from `first` to `last`.

    >>> middle_frames(0, 30, 1), middle_frames(0, 99, 3)
    ([15], [16, 49, 82])
    """
    length = (last - first) / count
    edges = np.round(length * np.arange(count + 1)).astype(int)  # half to even, as the authors do
    return (first + (edges[:-1] + edges[1:]) // 2).tolist()


def is_even(seconds: Float[np.ndarray, " frame"], rate: float) -> bool:
    """Whether frames follow each other at one rate, as far as a file's clock tells.

    >>> is_even(np.array([0, 0.033, 0.067, 0.1]), 30), is_even(np.array([0, 0.1, 2.0]), 10)
    (True, False)
    """
    return bool((np.abs(np.diff(seconds) * rate - 1) < 0.5).all())


def _at_rate(video: Video, rate: float, total: int) -> list[int]:
    """The frames that are taken of a video of one rate."""
    first, last = _range(video, rate, total)
    count = _count(video, (last - first + 1) / rate)
    if video.fps is not None and count > last - first:
        return list(range(first, last + 1))
    return middle_frames(first, last, count)


def _at_times(video: Video, stamps: Float[np.ndarray, " frame"]) -> list[int]:
    """The frames that are taken of a video whose frames stand for unequal times: those on show in
    the middle of equal spans of time, each once.
    """
    seconds = stamps - stamps[0]
    length = float(seconds[-1] + np.diff(seconds).mean())
    start, end = video.start or 0.0, min(length, np.inf if video.end is None else video.end)
    inside = np.flatnonzero((seconds >= start) & (seconds < end))
    if start >= end:
        raise _no_frame(video, length)
    count = _count(video, end - start)
    if video.fps is not None and count >= len(inside) > 0:
        return inside.tolist()
    middles = start + (np.arange(count) + 0.5) * (end - start) / count
    on_show = np.searchsorted(seconds, middles, side="right") - 1
    return sorted(set(on_show.tolist()))


def _count(video: Video, seconds: float) -> int:
    """How many frames are taken of so many seconds."""
    count = max(1, int(seconds * (video.fps or 1) + 1e-9))
    return count if video.max_frames is None else min(count, video.max_frames)


def _range(video: Video, rate: float, total: int) -> tuple[int, int]:
    """The first and the last frame between start and end. Raises ProbeError where there is none."""
    first = round((video.start or 0) * rate)
    last = total - 1 if video.end is None else min(total - 1, round(video.end * rate) - 1)
    if first > last:
        raise _no_frame(video, total / rate)
    return first, last


def _no_frame(video: Video, seconds: float) -> ProbeError:
    got = f"none in {video} of {seconds:.1f} s"
    return ProbeError("video", expected="at least one frame", got=got)
