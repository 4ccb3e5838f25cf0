"""What is counted in each stack: which sequences run through it, and what their tokens are.

    vision       every view of every image:   [cls | patches]
    compressor   every image:                 C x C queries over its patches
    prefusion    every image:                 [patches | compressed | words]
    llm          the sequence of `input_ids`

Images and views have rows of their own in the statistic, and are taken together when a sample's
numbers are read. Frames of a video share a row, so that memory does not grow with their number: its
heat maps are means over frames.

In pre-fusion, words are what they are in the LLM, but there is no response: what answers is hidden
from it, and what an earlier turn answered is part of the prompt, an instruction. Hidden words (a
response, id 0) are no keys and no queries. Rows that the model never computes (vision as queries in
its last layer) have a count of 0.

    counted = countings(subject, inputs, ["llm", "vision"])
    with tap(stacks(model)["llm"].attention, counted["llm"].statistic):
        model(**inputs)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from probe.data.patch_grid import PatchGrid
from probe.data.token_types import FINE
from probe.hooks.model_structure import cls_tokens, output_projection
from probe.measures.attention.statistic import AttentionStatistic
from probe.models.llava_mini.placeholder_layout import COMPRESSED, VISION
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject
from probe.subject.token_grid import joined, sub_images

ENCODER_TYPES = ("cls", "vision")
COMPRESSION_TYPES = ("compressed", "vision")


@dataclass(frozen=True)
class Mapped:
    """The queries of one sample whose attention is kept one by one."""

    positions: list[int]
    words: list[str]


@dataclass(frozen=True)
class StackStatistic:
    """The statistic of one stack over a batch, and what of it belongs to each sample."""

    statistic: AttentionStatistic
    rows: list[list[int]]  # of the statistic, for each sample
    grids: list[PatchGrid]  # where the vision keys of each sample lie
    query_types: tuple[str, ...]
    key_types: tuple[str, ...]
    mapped: list[Mapped] | None = None


@dataclass(frozen=True)
class MeasureOptions:
    """What is counted only on request: the options of `AttentionStatistic`, and which queries of
    the LLM.
    """

    rows: str = "all"
    maps: bool | str = False
    contribution: bool = False
    received_head: bool = False

    @property
    def options(self) -> dict[str, Any]:
        project = output_projection if self.contribution else None
        return {
            "received_head": self.received_head,
            "contribution": project,
            "map_heads": self.maps == "heads",
        }


NOTHING_MORE = MeasureOptions()


def countings(
    subject: Subject, inputs: Inputs, stacks: Iterable[str], wanted: MeasureOptions = NOTHING_MORE
) -> dict[str, StackStatistic]:
    """What to count of a batch in these stacks. A stack that no sample of the batch runs through
    has no rows.
    """
    of_stack = {"vision": _encoder, "compressor": _compressor, "prefusion": _prefusion, "llm": _llm}
    return {stack: of_stack[stack](subject, inputs, wanted) for stack in stacks}


def predicting(inputs: Inputs, row: int = 0) -> list[int]:
    """Positions of the queries whose outputs are the words of the response, from the prompt's last
    token on.
    """
    role = inputs.types.role[row]
    last = int(np.flatnonzero(role == FINE.index("last"))[-1])
    return [
        last,
        *(i for i in range(last + 1, len(role)) if role[i] >= 0 and inputs.types.is_query[row, i]),
    ]


def _llm(subject: Subject, inputs: Inputs, wanted: MeasureOptions) -> StackStatistic:
    types = inputs.types
    asked = types.is_query & ~types.vision if wanted.rows == "text" else types.is_query
    samples, mapped = range(len(types.ids)), None
    if wanted.maps:
        starts = (types.role >= 0).argmax(axis=1).tolist()
        positions = [predicting(inputs, row) for row in samples]
        mapped = [
            Mapped(
                [at - starts[row] for at in positions[row]],
                [inputs.tokens[row][at] for at in positions[row]],
            )
            for row in samples
        ]
    statistic = AttentionStatistic(
        types.names,
        types.ids,
        np.where(asked, types.ids, -1),
        types.vision,
        map_positions=positions if wanted.maps else (),
        **wanted.options,
    )
    return StackStatistic(
        statistic, [[row] for row in samples], inputs.grid, types.names, types.names, mapped
    )


def _encoder(subject: Subject, inputs: Inputs, wanted: MeasureOptions) -> StackStatistic:
    """Every patch of every view is a vision key; what the encoder puts before them is `cls`."""
    rows, order = _rows(inputs, [_views(grid) for grid in inputs.encoder_grid])
    count = sum(map(len, rows))
    patches = sum(map(len, inputs.encoder_grid)) // max(1, count)
    ids = np.tile(np.repeat([0, 1], [cls_tokens(subject.model), patches]), (count, 1))
    statistic = AttentionStatistic(ENCODER_TYPES, ids, ids, ids == 1, order=order, **wanted.options)
    return StackStatistic(statistic, rows, inputs.encoder_grid, ENCODER_TYPES, ENCODER_TYPES)


def _compressor(subject: Subject, inputs: Inputs, wanted: MeasureOptions) -> StackStatistic:
    """Queries that are no keys, over the joined sub-images. The map of each query is kept: it is
    one token's view.
    """
    views = [_views(grid) for grid in inputs.encoder_grid]
    rows, order = _rows(inputs, [[1] * len(each) for each in views])
    grids = [sub_images(joined(grid)) for grid in inputs.encoder_grid]
    count = sum(map(len, rows))
    patches = sum(map(len, grids)) // max(1, count)
    tokens = subject.model.config.tokens_per_frame(
        views=max(map(max, filter(None, views)), default=1)
    )
    ids = np.full((count, patches), COMPRESSION_TYPES.index("vision"))
    query_ids = np.full((count, max(patches, tokens)), -1)
    query_ids[:, query_ids.shape[1] - tokens :] = COMPRESSION_TYPES.index("compressed")
    positions = [list(range(patches - tokens, patches))] * count
    statistic = AttentionStatistic(
        COMPRESSION_TYPES,
        ids,
        query_ids,
        ids == 1,
        order=order,
        map_positions=positions,
        **wanted.options,
    )
    names = [f"compressed {token + 1}" for token in range(tokens)]
    mapped = [Mapped(list(range(tokens)), names) if mine else Mapped([], []) for mine in rows]
    return StackStatistic(statistic, rows, grids, ("compressed",), ("vision",), mapped)


def _prefusion(subject: Subject, inputs: Inputs, wanted: MeasureOptions) -> StackStatistic:
    """The patches of an image, its compressed tokens and the words of its row."""
    model: Any = subject.model.base_model
    views = [_views(grid) for grid in inputs.encoder_grid]
    rows, order = _rows(inputs, [[1] * len(each) for each in views])
    names = (*(name for name in inputs.types.names if name != "response"), "compressed")
    input_ids = inputs["input_ids"]
    count = max(map(max, filter(None, views)), default=1)
    positions = (
        model.prefusion_positions(input_ids, count, inputs.get("attention_mask")).cpu().numpy()
    )
    visible = (input_ids > 0).cpu().numpy()
    if "fuse_mask" in inputs:
        visible &= inputs["fuse_mask"].bool().cpu().numpy()
    ids = _prefusion_types(inputs, names, positions, visible)
    owners = [sample for sample, mine in enumerate(rows) for _ in mine]
    statistic = AttentionStatistic(
        names, ids[owners], ids[owners], positions[owners] == VISION, order=order, **wanted.options
    )
    return StackStatistic(
        statistic, rows, [joined(grid) for grid in inputs.encoder_grid], names, names
    )


def _prefusion_types(
    inputs: Inputs,
    names: Sequence[str],
    positions: Int[np.ndarray, "sample position"],
    visible: Bool[np.ndarray, "sample token"],
) -> Int[np.ndarray, "sample position"]:
    renamed = np.array(
        [names.index(name if name in names else "instruction") for name in inputs.types.names]
        + [-1]
    )
    of_word = np.where(
        visible, renamed[inputs.types.ids], -1
    )  # padding is -1, which the last entry serves
    ids = np.where(positions >= 0, np.take_along_axis(of_word, positions.clip(0), axis=1), -1)
    ids[positions == VISION] = names.index("vision")
    ids[positions == COMPRESSED] = names.index("compressed")
    return ids


def _views(grid: PatchGrid) -> list[int]:
    """The number of views of each image of a sample."""
    return [len(np.unique(grid.tile[grid.image == image])) for image in np.unique(grid.image)]


def _rows(inputs: Inputs, each: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """Rows of a statistic for each sample, so many for `each` of its images; and the order in which
    calls go through them."""
    rows, order, at = [], [], 0
    for counts, frames in zip(each, inputs.frames, strict=True):
        rows.append([])
        for count, frame_count in zip(counts, frames, strict=True):
            of_image = list(range(at, at + count))
            rows[-1] += of_image
            order += of_image * frame_count
            at += count
    return rows, order
