"""Samples that share their images: what is computed once for all of them, and done by one worker.

    for rows in groups(samples):                # [[0, 2], [1]]: positions, groups by first sample
        images = samples[rows[0]].images        # the same for all samples of the group

Files are told apart by their paths and images in memory by what they show, so that grouping a
hundred thousand samples opens no file. A sample without images, and one whose image in memory can't
be read, is a group of its own.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import ExifTags, Image

from probe.data.clip import Clip
from probe.data.image import ImageSource, Video, open_image
from probe.data.lazy_frames import LazyFrames
from probe.data.sample import Sample


def groups(samples: Sequence[Sample]) -> list[list[int]]:
    """Positions of the samples, those with equal images together, in order of their first sample.

    >>> asked = [Sample(name, image, "?") for name, image in (("1", "a.jpg"), ("2", "b.jpg"),
    ...                                                       ("3", "a.jpg"), ("4", None))]
    >>> groups(asked)
    [[0, 2], [1], [3]]
    """
    positions: dict[tuple[str, ...], list[int]] = {}
    for position, key in enumerate(group_keys(samples)):
        positions.setdefault(key, []).append(position)
    return list(positions.values())


def group_keys(samples: Sequence[Sample]) -> list[tuple[str, ...]]:
    """The group of each sample, whichever others are asked for. The pixels of an image in memory
    that several samples hold are read once.
    """
    read: dict[int, str] = {}  # the samples keep the images alive
    return [images_of(sample, read) or ("without images", sample.id) for sample in samples]


def images_of(sample: Sample, read: dict[int, str] | None = None) -> tuple[str, ...]:
    """What tells a sample's images from others: paths, or hashes of those in memory; () without
    images. `read`: hashes of images in memory, by identity, which is added to.
    """
    try:
        return tuple(_identity(image, {} if read is None else read) for image in sample.images)
    except (OSError, ValueError, SyntaxError, TypeError):  # measuring it will name what is wrong
        return (f"unreadable: {sample.id}",)


def image_name(sample: Sample) -> str:
    """What results call a sample's images: the benchmark's name of them, or their identity."""
    return str(sample.meta.get("image") or "+".join(images_of(sample)))


def _identity(image: ImageSource, read: dict[int, str]) -> str:
    if isinstance(image, str | Path):
        return str(image)
    if isinstance(image, Video | Clip):
        text = str(image) if isinstance(image, Video) else f"frames at {image.times.tolist()} s"
        # frames that are opened one by one are not known by their id: it is another's later
        known = None if isinstance(image.frames, LazyFrames) else read
        frames = (_identity(frame, {} if known is None else known) for frame in image.frames)
        return "+".join([text, *frames])
    if not isinstance(image, Image.Image):
        raise TypeError(f"a {type(image).__name__} is not an image")
    if id(image) not in read:
        stored = open_image(image, exif="ignore")
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        shape = f"{stored.size} {orientation}".encode()
        read[id(image)] = hashlib.sha256(shape + stored.tobytes()).hexdigest()
    return read[id(image)]
