"""In which order samples are taken, whose image is whose donor, and what a sweep will cost."""

from collections.abc import Sequence

from probe.data.image import ImageSource
from probe.data.sample import Sample
from probe.data.sample_groups import images_of
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
    ordered: list[Sample] = []
    donors: dict[str, tuple[ImageSource, ...] | None] = {}
    for key, group in groups.items():
        ordered += group
        ring = [other for other in groups if len(other) == len(key)]
        following = ring[(ring.index(key) + 1) % len(ring)]
        donor = None if following == key else groups[following][0].images
        for sample in group:
            donors[sample.id] = donor
    return ordered, donors


def estimate(
    samples: Sequence[Sample],
    cases: int,
    layers: int,
    rows: int,
    length: int,
    shared: int,
    new: int,
    token_bytes: float,
    check: SharingCheck,
    alone: int = 0,
) -> str:
    """Rows, time and memory of a sweep in a line; an upper bound, as answers end.

    Args:
        rows: row-layers of one sample's cases.
        length, shared, new: tokens of a prompt, of its prefix, and of the longest answer.
        token_bytes: keys and values of one token.
        alone: cases that share nothing, as those that drop a part of vision.
    """
    images = len({images_of(sample) for sample in samples})
    all_rows = cases * layers * len(samples)
    if check.reason:
        computed_rows = all_rows
        prompt_tokens = all_rows * length
        note = f" (each case alone: {check.reason})"
    else:
        rows_alone = len(samples) * alone * layers
        computed_rows = len(samples) * rows + rows_alone
        sharing_rows = computed_rows - rows_alone
        prompt_tokens = images * layers * shared + sharing_rows * (length - shared)
        prompt_tokens += rows_alone * length
        note = f" ({alone} cases alone: they drop a part of vision)" if alone else ""
    forwards = (prompt_tokens + all_rows * new) / (length * layers)
    seconds = forwards * check.seconds
    cached_tokens = PREFIXES * shared + cases * (length - shared + new)
    megabytes = token_bytes * cached_tokens / 2**20
    return (
        f"drop_sweep: {len(samples)} samples, {images} images, {cases} cases: "
        f"{computed_rows} row-layers of {all_rows}{note}; "
        f"at most {seconds:.0f} s and {megabytes:.0f} MB of keys and values"
    )
