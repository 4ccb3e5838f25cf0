"""In which order samples are taken, whose image is whose donor, and what it will cost."""

from collections.abc import Sequence
from pathlib import Path

from probe.data.image import ImageSource, Video, open_image
from probe.data.sample import Sample
from probe.records.provenance import content_hash
from probe.subject.prefix_cache import PREFIXES
from probe.subject.prefix_check import SharingCheck


def schedule(
    samples: Sequence[Sample],
) -> tuple[list[Sample], dict[str, tuple[ImageSource, ...] | None]]:
    """Samples in an order in which every image comes once, and the donor of each: the next one's
    images.

    A donor has as many images as the sample; None where there is no other.
    """
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(images_of(sample), []).append(sample)
    donors: dict[str, tuple[ImageSource, ...] | None] = {}
    for key, group in groups.items():
        ring = [other for other in groups if len(other) == len(key)]
        following = ring[(ring.index(key) + 1) % len(ring)]
        donors |= dict.fromkeys(
            (s.id for s in group), None if following == key else groups[following][0].images
        )
    return [sample for group in groups.values() for sample in group], donors


def images_of(sample: Sample) -> tuple[str, ...]:
    """What tells a sample's images from others: paths, or hashes of those in memory."""
    return tuple(map(_identity, sample.images))


def _identity(image: ImageSource) -> str:
    if isinstance(image, str | Path):
        return str(image)
    if isinstance(image, Video):
        return (
            "+".join(map(_identity, image.source))
            if isinstance(image.source, tuple)
            else str(image.source)
        )
    return content_hash([open_image(image).tobytes(), str(image.size)])


def estimate(
    samples: Sequence[Sample],
    cases: int,
    layers: int,
    rows: int,
    length: int,
    shared: int,
    new: int,
    token_bytes: float,
    judged: SharingCheck,
) -> str:
    """Rows, time and memory of a sweep in a line; an upper bound, as answers end.

    Args:
        rows: row-layers of one sample's cases.
        length, shared, new: tokens of a prompt, of its prefix, and of the longest answer.
        token_bytes: keys and values of one token.
    """
    pictures, every = len({images_of(sample) for sample in samples}), cases * layers * len(samples)
    together = pictures * layers * shared + len(samples) * rows * (length - shared)
    computed = every if judged.reason else len(samples) * rows
    forwards = ((every * length if judged.reason else together) + every * new) / (length * layers)
    memory = token_bytes * (PREFIXES * shared + cases * (length - shared + new))
    how = f" (each case alone: {judged.reason})" if judged.reason else ""
    return (
        f"drop_sweep: {len(samples)} samples, {pictures} images, {cases} cases: {computed} row-layers of {every}{how}"
        f"; at most {forwards * judged.seconds:.0f} s and {memory / 2**20:.0f} MB of keys and values"
    )
