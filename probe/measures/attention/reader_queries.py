"""What is counted where something reads the image outside of encoder and LLM.

    compressor   one sequence a view of an image:   learned queries over [cls | patches], or over
                 [patches | the queries themselves] (a perceiver); or one a region of a view: its
                 query over its patches (TokenPacker). Of a Q-Former its cross-attention alone: its
                 queries' attention among themselves reads no patch
    cross        one sequence a sample:             `input_ids` over the [cls | patches] of all
                 views of all its images

How many keys there are is asked of the model (`encoder_layout.first_calls`). Where they are not
those of class tokens and patches, they are vision keys of no known place.

Words that see no image (those before it) are no queries, also where a model reads it for them
against its own mask (`findings/words_before_the_image_read_it.sh`): drops cut that too. A word
gives all its attention to the image, so `mass` says nothing here: entropy, `received` and
`contribution` (times the block's gate) do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from probe.data.patch_grid import PatchGrid
from probe.data.token_types import PADDING
from probe.hooks.model_structure import cls_tokens, stacks
from probe.measures.attention.encoder_layout import CallShape, first_calls
from probe.measures.attention.sequence_rows import assign_rows, one_per_image, view_counts
from probe.measures.attention.stack_statistic import MapQueries, MeasureOptions, StackStatistic
from probe.measures.attention.statistic import AttentionStatistic
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

CLS, VISION, COMPRESSED = "cls", "vision", "compressed"


def learned_compressor(subject: Subject, inputs: Inputs, options: MeasureOptions) -> StackStatistic:
    """Learned queries over the patches of a view. The map of each query is kept: it shows what its
    token is made of.
    """
    stack = stacks(subject.model)["compressor"]
    calls = first_calls(subject.model, inputs, stack)
    call = calls[0] if calls else CallShape(0, 0, 0, np.zeros((0, 0), bool))
    regions = _regions_read(subject, call)
    rows, order = _compressor_rows(inputs, sum(each.rows for each in calls), len(regions) or 1)
    count = sum(map(len, rows))
    patches = sum(map(len, inputs.encoder_grid)) // max(1, count)  # of one view
    before, own = _around_patches(call, patches, cls_tokens(subject.model))
    names = (CLS, VISION, COMPRESSED)
    is_known = before + patches + own == call.keys
    sizes = [before, call.keys - before - own, own]
    types = range(len(names))
    ids = np.tile(np.repeat(types, sizes), (count, 1))
    width = max(call.keys, call.queries)  # queries line up with the keys at the end
    query_ids = np.full((count, width), PADDING)
    query_ids[:, width - call.queries :] = names.index(COMPRESSED)
    positions = list(range(call.keys - call.queries, call.keys))
    statistic = AttentionStatistic(
        names,
        ids,
        query_ids,
        ids == names.index(VISION),
        order=order,
        map_positions=[positions] * count,
        **options.of_stack(stack),
    )
    tokens = [f"{COMPRESSED} {token + 1}" for token in range(call.queries)]
    every_token = MapQueries(list(range(call.queries)), tokens)
    grids = [
        _by_region(grid, regions) if is_known else _nowhere(len(sample_rows) * sizes[1])
        for grid, sample_rows in zip(inputs.encoder_grid, rows, strict=True)
    ]
    maps = [every_token if sample_rows else MapQueries([], []) for sample_rows in rows]
    keys = tuple(name for name, size in zip(names, sizes, strict=True) if size)
    return StackStatistic(statistic, rows, grids, (COMPRESSED,), keys or (VISION,), maps)


def _regions_read(subject: Subject, call: CallShape) -> list[tuple[int, int, int, int]]:
    """The patches (top, left, bottom, right) that each query reads, where a model says that every
    query reads a region of its own and makes a call of each; else none.
    """
    of_config = getattr(subject.model.config, "token_regions", None)
    regions = [] if of_config is None else of_config(subject.processor.tokens_per_image)
    areas = {0 if r is None else (r[2] - r[0]) * (r[3] - r[1]) for r in regions}
    return regions if areas == {call.keys} and call.queries == 1 else []


def _by_region(grid: PatchGrid, regions: Sequence[tuple[int, int, int, int]]) -> PatchGrid:
    """Patches in the order in which the regions of each view have them."""
    if not regions or not len(grid):
        return grid
    side = max(region[2] for region in regions)
    numbers = np.arange(side * side).reshape(side, side)
    parts = [numbers[top:bottom, left:right].ravel() for top, left, bottom, right in regions]
    of_view = np.concatenate(parts)
    starts = np.arange(0, len(grid), side * side)
    return grid.at((starts[:, None] + of_view).ravel())


def _compressor_rows(
    inputs: Inputs, sequences: int, of_view: int
) -> tuple[list[list[int]], list[int]]:
    """The rows of each sample: `of_view` a view, or one an image, whichever the model runs; else an
    even share of its sequences.
    """
    by_view = [[of_view * count for count in counts] for counts in view_counts(inputs)]
    for counts in (by_view, one_per_image(inputs)):
        rows, order = assign_rows(inputs, counts)
        if len(order) == sequences:
            return rows, order
    of_sample = sequences // max(1, len(inputs.prompt))
    starts = range(0, of_sample * len(inputs.prompt), max(1, of_sample))
    return [list(range(start, start + of_sample)) for start in starts], list(range(sequences))


def _around_patches(call: CallShape, patches: int, cls: int) -> tuple[int, int]:
    """How many keys stand before the patches (class tokens), and how many of the queries are keys
    after them.
    """
    for before in (0, cls):
        for own in (0, call.queries):
            if before + patches + own == call.keys:
                return before, own
    return 0, 0


def _nowhere(keys: int) -> PatchGrid:
    """Keys of which no place is known."""
    none = np.full(keys, -1)
    return PatchGrid(np.zeros(keys, int), none, none, none, np.full((keys, 4), np.nan))


def cross_statistic(
    subject: Subject,
    inputs: Inputs,
    options: MeasureOptions,
    query_ids: Int[np.ndarray, "sample token"],
) -> StackStatistic:
    """Words over the images of their sample. `query_ids`: the LLM's (`llm_query_ids`)."""
    stack = stacks(subject.model)["cross"]
    calls = first_calls(subject.model, inputs, stack)
    keys = calls[0].keys if calls else 0
    words = tuple(name for name in inputs.types.names if name != VISION)
    names = (*words, CLS, VISION)
    ids, grids = _keys_of_images(inputs, keys, cls_tokens(subject.model))
    ids = np.where(ids == PADDING, PADDING, ids + len(words))
    new_index = np.array([names.index(name) for name in inputs.types.names])
    is_query = (query_ids != PADDING) & _sees_image(inputs)
    of_words = np.where(is_query, new_index[query_ids], PADDING)
    width = max(keys, of_words.shape[1])  # queries line up with the keys at the end
    of_words = np.pad(of_words, ((0, 0), (width - of_words.shape[1], 0)), constant_values=PADDING)
    statistic = AttentionStatistic(
        names, ids, of_words, ids == names.index(VISION), **options.of_stack(stack)
    )
    key_types = tuple(name for name in (CLS, VISION) if (ids == names.index(name)).any())
    rows = [[row] for row in range(len(ids))]
    return StackStatistic(statistic, rows, grids, words, key_types or (VISION,))


def _keys_of_images(
    inputs: Inputs, keys: int, cls: int
) -> tuple[Int[np.ndarray, "sample key"], list[PatchGrid]]:
    """0 for class tokens, 1 for vision keys, PADDING for those of a batch's filling; and where the
    vision keys of each sample lie. A sample has room for as many views as its pixels have.
    """
    pixels: Any = next(value for name, value in inputs.items() if name.startswith("pixel_values"))
    tiles = pixels.shape[2] if pixels.ndim == 6 else 1
    room = pixels.shape[1] * tiles if pixels.ndim > 4 else 1
    of_view = keys // room  # keys
    ids = np.full((len(inputs.prompt), keys), PADDING)
    grids = []
    for row, counts in enumerate(view_counts(inputs)):
        grid = inputs.encoder_grid[row]
        is_known = len(grid) > 0 and (cls + len(grid) // sum(counts)) * room == keys
        starts = [
            (image * tiles + view) * of_view
            for image, count in enumerate(counts)
            for view in range(count)
        ]
        for start in starts if is_known else ():
            ids[row, start : start + cls] = 0
            ids[row, start + cls : start + of_view] = 1
        if not is_known:
            ids[row] = 1
        grids.append(grid if is_known else _nowhere(keys))
    return ids, grids


def _sees_image(inputs: Inputs) -> Bool[np.ndarray, "sample token"]:
    """Which words see an image: those that a mask of tokens over images lets see any."""
    shape = inputs["input_ids"].shape
    for value in inputs.values():
        if torch.is_tensor(value) and value.ndim > 2 and value.shape[:2] == shape:
            return value.flatten(2).any(-1).cpu().numpy()
    return np.ones(tuple(shape), bool)
