"""Which sequences an encoder reads, and what each position of them is.

    [cls | patches]                     a view of an image: CLIP, SigLIP
    [cls, registers | patches]          tokens of the encoder's own (RADIO)
    [patches | filling]                 images of unequal size in one batch (LFM2-VL, Gemma 4)
    [cls | patches | filling] x tiles   all tiles of an image (Mllama)
    [image | image | ...]               one behind the other, each for itself (Pixtral, Qwen-VL), or
                                        window by window (Qwen2.5-VL)

Nothing of it is said by a config; it is asked of the model. How many sequences there are of how
many keys, its first attention calls say. Which positions are patches, noise in the place of pixels
says: the others stay as they were. Filling that no query may see is padding; filling that queries
do see (Mllama's) is of type "other", as registers are.

    found = encoder_sequences(inputs, first_calls(model, inputs, stack), first_input(...))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from probe.data.patch_grid import PatchGrid
from probe.data.token_types import PADDING
from probe.measures.attention.sequence_rows import assign_rows, one_per_image, view_counts
from probe.subject.inputs import Inputs

CLS, VISION, OTHER = range(3)
ENCODER_TYPES = ("cls", "vision", "other")


@dataclass(frozen=True)
class EncoderSequences:
    """Of a batch: the rows of each sample (a view or an image), the row of each sequence in the
    order in which they run, the length of each row, the type of each of its positions (an index
    into `ENCODER_TYPES`, or PADDING), and where the patches of each sample lie, in that order.
    """

    rows: list[list[int]]
    call_order: list[int]
    lengths: list[int]
    ids: Int[np.ndarray, "row key"]
    grids: list[PatchGrid]


@dataclass(frozen=True)
class CallPositions:
    """What is known of the positions that the first layer's calls hold, one call after the other.

    `keys`: of each sequence of a call; `is_hidden`: no query may see it; `is_patch`: it depends on
    the pixels, None where that was not asked; `order`: the number of the patch that stands at each
    position, where patches alone do.
    """

    keys: list[int]
    is_hidden: Bool[np.ndarray, " position"]
    is_patch: Bool[np.ndarray, " position"] | None = None
    order: Int[np.ndarray, " patch"] | None = None

    @property
    def count(self) -> int:
        return len(self.is_hidden)


def encoder_sequences(
    inputs: Inputs, positions: CallPositions, cls: int
) -> EncoderSequences | None:
    """None where calls and patches do not fit in any of the ways above. `cls`: class tokens."""
    by_view, by_image = view_counts(inputs), one_per_image(inputs)
    for sequences in (by_view, by_image):
        rows, call_order = assign_rows(inputs, sequences)
        patches = _patches(inputs, by_image=sequences is by_image)
        if not call_order or len(patches) != sum(map(len, rows)):
            continue
        running = [patches[row] for row in call_order]
        one_each = len(positions.keys) == len(running)
        if _all_alike(patches, positions.keys, cls):
            ids = [np.repeat([CLS, VISION], [cls, count]) for count in patches]
        elif one_each and all(k >= n for k, n in zip(positions.keys, running, strict=True)):
            ids = _typed(positions, call_order, running, cls)
        elif sum(running) == positions.count:
            ids = [np.full(count, VISION) for count in patches]
        else:
            continue
        grids = _grids(inputs, rows, call_order, patches, positions.order)
        if ids is not None and grids is not None:
            lengths = [len(each) for each in ids]
            padded = np.full((len(ids), max(lengths)), PADDING)
            for row, each in enumerate(ids):
                padded[row, : len(each)] = each
            return EncoderSequences(rows, call_order, lengths, padded, grids)
    return None


def fits_without_asking(inputs: Inputs, keys: Sequence[int], cls: int) -> bool:
    """Whether sequences of so many keys are those of class tokens and patches alone, one a view, or
    of patches that stand one behind the other.
    """
    _, call_order = assign_rows(inputs, view_counts(inputs))
    patches = _patches(inputs, by_image=False)
    running = [patches[row] for row in call_order]
    each_its_own = [count + cls for count in running] == list(keys)
    return each_its_own or _all_alike(patches, keys, cls) or sum(running) == sum(keys)


def _all_alike(patches: Sequence[int], keys: Sequence[int], cls: int) -> bool:
    """Whether every sequence is a view of one size. There may be fewer of them than views: rows
    that share an image have it once.
    """
    lengths = {count + cls for count in patches}
    return len(lengths) == 1 and lengths == set(keys)


def _patches(inputs: Inputs, by_image: bool) -> list[int]:
    """How many patches each row has, rows being views or whole images, in the encoder's order (a
    whole image may come behind its tiles).
    """
    counts: list[int] = []
    for grid in inputs.encoder_grid:
        tiles = [0] * len(grid) if by_image else grid.tile.tolist()
        places = list(zip(grid.image.tolist(), tiles, strict=True))
        counts += [places.count(place) for place in dict.fromkeys(places)]
    return counts


def _typed(
    positions: CallPositions, call_order: Sequence[int], running: Sequence[int], cls: int
) -> list[Int[np.ndarray, " position"]] | None:
    """The type of each position of each row, where every row has a sequence of its own; None where
    frames that share a row differ, or fewer positions are patches than there should be.
    """
    found: dict[int, np.ndarray] = {}
    start = 0
    for row, keys, patches in zip(call_order, positions.keys, running, strict=True):
        span = slice(start, start + keys)
        start += keys
        if positions.is_patch is None:
            is_patch = np.arange(keys) >= keys - patches
        else:
            is_patch = positions.is_patch[span] & ~positions.is_hidden[span]
        found_patches = int(is_patch.sum())
        surplus = found_patches - patches  # of tiles of filling, which come last
        if not patches or surplus < 0 or surplus % (found_patches // _tiles(is_patch)):
            return None
        ids = np.full(keys, OTHER)
        places = np.flatnonzero(is_patch)[:patches]
        ids[[place for place in _class_tokens(is_patch, cls) if place < places[-1]]] = CLS
        ids[places] = VISION
        ids[positions.is_hidden[span]] = PADDING
        if row in found and not np.array_equal(found[row], ids):
            return None
        found[row] = ids
    return [found[row] for row in sorted(found)]


def _tiles(is_patch: Bool[np.ndarray, " position"]) -> int:
    """Of how many parts with the same positions of patches a sequence is made: tiles."""
    begins = int((np.diff(is_patch.astype(int), prepend=0) == 1).sum())
    if not begins or len(is_patch) % begins:
        return 1
    of_parts = is_patch.reshape(begins, -1)
    return begins if (of_parts == of_parts[0]).all() else 1


def _class_tokens(is_patch: Bool[np.ndarray, " position"], cls: int) -> list[int]:
    """The positions of class tokens: the first ones of a sequence, or of each of its tiles."""
    starts = range(0, len(is_patch), len(is_patch) // _tiles(is_patch))
    return [start + i for start in starts for i in range(cls) if not is_patch[start + i]]


def _grids(
    inputs: Inputs,
    rows: Sequence[Sequence[int]],
    call_order: Sequence[int],
    patches: Sequence[int],
    order: Int[np.ndarray, " patch"] | None,
) -> list[PatchGrid] | None:
    """Where the patches of each sample lie in the encoder's order; None where it mixes patches of
    several rows.
    """
    if order is None:
        return list(inputs.encoder_grid)
    taken: dict[int, np.ndarray] = {}  # of each row: its patches in the encoder's order
    ends = np.cumsum([patches[row] for row in call_order], dtype=int)
    for row, end in zip(call_order, ends, strict=True):
        own = order[end - patches[row] : end] - (end - patches[row])
        if not np.array_equal(np.sort(own), np.arange(patches[row])):
            return None
        taken.setdefault(row, own)
    grids = []
    for grid, of_sample in zip(inputs.encoder_grid, rows, strict=True):
        starts = np.cumsum([0, *(patches[row] for row in of_sample)])
        index = [start + taken[row] for start, row in zip(starts, of_sample, strict=False)]
        grids.append(grid.at(np.concatenate(index)) if index else grid)
    return grids
