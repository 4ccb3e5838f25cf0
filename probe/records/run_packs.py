"""The work of a run in packs: groups of samples that share their images, as many as are measured
together.

    for pack in packs(samples, batch=16):
        pack.samples, pack.groups
    shard_of(samples, 16, "3/64")               # those of every 64th pack, from the fourth on

Packs follow from the list of samples alone, not from what is done or by whom, so that what is
padded together is the same in every way of running.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from probe.data.sample import Sample
from probe.data.sample_groups import group_keys, groups
from probe.errors import ProbeError
from probe.records.provenance import content_hash


@dataclass(frozen=True)
class Group:
    """Samples that share their images, under a name that depends on the images only."""

    name: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Pack:
    """Groups that are measured together."""

    groups: tuple[Group, ...]

    @property
    def samples(self) -> list[Sample]:
        return [sample for group in self.groups for sample in group.samples]

    def split(self) -> "list[Pack]":
        """A pack for each group."""
        return [Pack((group,)) for group in self.groups]


def packs(samples: Sequence[Sample], batch: int = 1) -> list[Pack]:
    """Groups one after the other, in each pack up to `batch` samples or one group that is larger.

    >>> asked = [Sample(str(n), f"{n // 2}.jpg", "?") for n in range(8)]
    >>> [[sample.id for sample in pack.samples] for pack in packs(asked, batch=4)]
    [['0', '1', '2', '3'], ['4', '5', '6', '7']]
    """
    keys = group_keys(samples)
    filled: list[list[Group]] = []
    space = 0
    for rows in groups(samples):
        name = content_hash("\n".join(keys[rows[0]]), length=20)
        group = Group(name, tuple(samples[row] for row in rows))
        if len(rows) > space or not filled:
            filled.append([])
            space = batch
        filled[-1].append(group)
        space -= len(rows)
    return [Pack(tuple(members)) for members in filled]


def packs_of_shard(all_packs: Sequence[Pack], shard: str | None) -> list[Pack]:
    """Those of shard "i/n", counted from 0; all of them for None. Raises ProbeError for anything
    else than two whole numbers with 0 <= i < n.
    """
    if shard is None:
        return list(all_packs)
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        expected = "i/n with i from 0 to n - 1, such as 0/64"
        raise ProbeError("--shard", expected=expected, got=repr(shard))
    return list(all_packs[int(number) :: int(count)])


def shard_of(samples: Sequence[Sample], batch: int, shard: str | None) -> list[Sample]:
    """The samples in the packs of a shard, see `packs_of_shard`."""
    if shard is None:
        return list(samples)
    return [
        sample for pack in packs_of_shard(packs(samples, batch), shard) for sample in pack.samples
    ]
