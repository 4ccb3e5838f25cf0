"""What is counted in each stack: which sequences run through it, and the type of each position.

    vision         one sequence a view of an image:   [cls | patches], and other ways
                                                      (`encoder_sequences.py`)
    vision_video   one sequence a frame:              the same, in an encoder of its own
    compressor     one sequence an image:             C x C queries over the image's patches
    prefusion      one sequence an image:             [patches | compressed | words]
    llm            one sequence a sample:             `input_ids`

Q-Formers, perceivers and cross-attention: `reader_queries.py`.

Images and views are rows of their own in a statistic; a sample's rows are pooled when its numbers
are read. The frames of a video share their rows, so that memory does not grow with their number:
their heat maps are means over frames.

Pre-fusion uses the LLM's token types, without "response": response tokens are masked there, and
earlier answers are part of the prompt, hence instruction. Masked words (a response, id 0) count
neither as keys nor as queries. Queries that the model never computes (vision in pre-fusion's last
layer) have a count of 0.

    statistics = stack_statistics(subject, inputs, ["llm", "vision"])
    with tap(stacks(model)["llm"].attention, statistics["llm"].statistic):
        model(**inputs)
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from probe.data.token_types import FINE, PADDING, TokenTypes
from probe.errors import ProbeError
from probe.hooks.model_structure import stacks
from probe.measures.attention.encoder_layout import layout_of
from probe.measures.attention.encoder_sequences import ENCODER_TYPES, OTHER, VISION
from probe.measures.attention.packed_encoder import PackedStatistic
from probe.measures.attention.reader_queries import cross_statistic, learned_compressor
from probe.measures.attention.sequence_rows import (
    assign_rows,
    most_views,
    one_per_image,
)
from probe.measures.attention.stack_statistic import (
    DEFAULT_OPTIONS,
    MapQueries,
    MeasureOptions,
    StackStatistic,
)
from probe.measures.attention.statistic import AttentionStatistic
from probe.models.llava_mini.placeholder_layout import COMPRESSED_ROW, VISION_ROW
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject
from probe.subject.token_grid import joined, sub_images

COMPRESSOR_TYPES = ("compressed", "vision")


def stack_statistics(
    subject: Subject,
    inputs: Inputs,
    names: Iterable[str],
    options: MeasureOptions = DEFAULT_OPTIONS,
) -> dict[str, StackStatistic]:
    """An empty statistic for each of these stacks. A stack that no sample of the batch runs through
    has no rows.
    """
    makers = {
        "vision": partial(_encoder, "vision"),
        "vision_video": partial(_encoder, "vision_video"),
        "compressor": _compressor if compresses(subject.model) else learned_compressor,
        "prefusion": _prefusion,
        "cross": _cross,
        "llm": _llm,
    }
    return {name: makers[name](subject, inputs, options) for name in names}


def compresses(model: Any) -> bool:
    """Whether a model has LLaVA-Mini's compressor."""
    return hasattr(model.config, "tokens_per_frame")


def predicting(types: TokenTypes, row: int = 0) -> list[int]:
    """Positions of the queries whose outputs predict the response, from the prompt's last token
    on.
    """
    role = types.role[row]
    last = int(np.flatnonzero(role == FINE.index("last"))[-1])
    is_query = types.is_query[row] & (role != PADDING)
    later = np.flatnonzero(is_query[last + 1 :]) + last + 1
    return [last, *later.tolist()]


def llm_statistic(types: TokenTypes, options: MeasureOptions) -> AttentionStatistic:
    """An empty statistic of sequences of these types in the LLM."""
    rows = range(len(types.ids))
    return AttentionStatistic(
        types.names,
        types.ids,
        llm_query_ids(types, options),
        types.vision,
        map_positions=[predicting(types, row) for row in rows] if options.maps else [],
        **options.of_statistic,
    )


def llm_query_ids(types: TokenTypes, options: MeasureOptions) -> Int[np.ndarray, "row position"]:
    """The type that each position counts as when it is a query of the LLM, -1: not counted."""
    is_query = types.is_query & ~types.vision if options.rows == "text" else types.is_query
    return np.where(is_query, types.ids, PADDING)


def llm_stack(
    statistic: AttentionStatistic, inputs: Inputs, options: MeasureOptions
) -> StackStatistic:
    """The statistic of the LLM over these inputs, one row for each of theirs."""
    rows, map_queries = range(len(inputs.prompt)), None
    if options.maps:
        map_queries = [_map_queries(inputs, row) for row in rows]
    names = inputs.types.names
    return StackStatistic(
        statistic, [[row] for row in rows], inputs.grid, names, names, map_queries
    )


def _llm(subject: Subject, inputs: Inputs, options: MeasureOptions) -> StackStatistic:
    return llm_stack(llm_statistic(inputs.types, options), inputs, options)


def _map_queries(inputs: Inputs, row: int) -> MapQueries:
    positions = predicting(inputs.types, row)
    left_padding = int((inputs.types.role[row] != PADDING).argmax())
    tokens = [inputs.tokens[row][position] for position in positions]
    return MapQueries([position - left_padding for position in positions], tokens)


def _cross(subject: Subject, inputs: Inputs, options: MeasureOptions) -> StackStatistic:
    return cross_statistic(subject, inputs, options, llm_query_ids(inputs.types, options))


def _encoder(
    name: str, subject: Subject, inputs: Inputs, options: MeasureOptions
) -> StackStatistic:
    """Every patch of every view is a vision key; the encoder's own tokens before them are `cls`,
    all others (registers, filling) `other`.
    """
    model_stacks = stacks(subject.model)
    own_options = options.of_stack(model_stacks[name])
    other_tower_runs = "vision_video" in model_stacks and (name == "vision") == (
        "pixel_values_videos" in inputs
    )
    if other_tower_runs or not any(map(len, inputs.encoder_grid)):
        ids = np.zeros((0, 0), int)
        none = AttentionStatistic(ENCODER_TYPES[:2], ids, ids, ids == VISION, **own_options)
        rows: list[list[int]] = [[] for _ in inputs.encoder_grid]
        return StackStatistic(none, rows, inputs.encoder_grid, ENCODER_TYPES[:2], ENCODER_TYPES[:2])
    found = layout_of(subject, inputs, model_stacks[name])
    if isinstance(found, str):
        expected = "an encoder of which each position is known"
        raise ProbeError("measure", expected=expected, got=found, fix=f"leave {name!r} out")
    types = ENCODER_TYPES if (found.ids == OTHER).any() else ENCODER_TYPES[:OTHER]
    statistic = PackedStatistic(
        types,
        found.ids,
        found.ids,
        found.ids == VISION,
        lengths=found.lengths,
        order=found.call_order,
        **own_options,
    )
    return StackStatistic(statistic, found.rows, found.grids, types, types)


def _compressor(subject: Subject, inputs: Inputs, options: MeasureOptions) -> StackStatistic:
    """Learned queries, which are not keys, over the joined sub-images. The map of each query is
    kept: it shows what its compressed token is made of.
    """
    rows, call_order = assign_rows(inputs, one_per_image(inputs))
    grids = [sub_images(joined(grid)) for grid in inputs.encoder_grid]
    count = sum(map(len, rows))
    patches = sum(map(len, grids)) // max(1, count)  # of one image
    tokens = subject.model.config.tokens_per_frame(views=most_views(inputs))
    compressed, vision = range(len(COMPRESSOR_TYPES))
    ids = np.full((count, patches), vision)
    # A statistic lines queries up with the keys at the end (see `streaming.Keys`).
    query_ids = np.full((count, max(patches, tokens)), PADDING)
    query_ids[:, query_ids.shape[1] - tokens :] = compressed
    statistic = AttentionStatistic(
        COMPRESSOR_TYPES,
        ids,
        query_ids,
        ids == vision,
        order=call_order,
        map_positions=[list(range(patches - tokens, patches))] * count,
        **options.of_statistic,
    )
    every_token = MapQueries(
        list(range(tokens)), [f"compressed {token + 1}" for token in range(tokens)]
    )
    map_queries = [every_token if sample_rows else MapQueries([], []) for sample_rows in rows]
    return StackStatistic(
        statistic, rows, grids, COMPRESSOR_TYPES[:1], COMPRESSOR_TYPES[1:], map_queries
    )


def _prefusion(subject: Subject, inputs: Inputs, options: MeasureOptions) -> StackStatistic:
    """The patches of an image, its compressed tokens and the words of its sample."""
    model: Any = subject.model.base_model
    rows, call_order = assign_rows(inputs, one_per_image(inputs))
    input_ids = inputs["input_ids"]
    content = model.prefusion_positions(input_ids, most_views(inputs), inputs.get("attention_mask"))
    content = content.cpu().numpy()
    visible = (input_ids > 0).cpu().numpy()
    if "fuse_mask" in inputs:
        visible &= inputs["fuse_mask"].bool().cpu().numpy()
    names = (*(name for name in inputs.types.names if name != "response"), "compressed")
    ids = _prefusion_types(inputs, names, content, visible)
    sample_of_row = np.repeat(np.arange(len(rows)), [len(sample_rows) for sample_rows in rows])
    statistic = AttentionStatistic(
        names,
        ids[sample_of_row],
        ids[sample_of_row],
        content[sample_of_row] == VISION_ROW,
        order=call_order,
        **options.of_statistic,
    )
    grids = [joined(grid) for grid in inputs.encoder_grid]
    return StackStatistic(statistic, rows, grids, names, names)


def _prefusion_types(
    inputs: Inputs,
    names: Sequence[str],
    content: Int[np.ndarray, "sample position"],
    visible: Bool[np.ndarray, "sample token"],
) -> Int[np.ndarray, "sample position"]:
    """The type of each position of pre-fusion, an index into `names`.

    `content`: the word's position in `input_ids`, or VISION_ROW, COMPRESSED_ROW or another negative
    number for padding.
    """
    in_prefusion = [name if name in names else "instruction" for name in inputs.types.names]
    new_index = np.array([names.index(name) for name in in_prefusion])
    known = visible & (inputs.types.ids != PADDING)
    word_types = np.where(known, new_index[inputs.types.ids], PADDING)
    ids = np.take_along_axis(word_types, content.clip(min=0), axis=1)
    ids[content < 0] = PADDING
    ids[content == VISION_ROW] = names.index("vision")
    ids[content == COMPRESSED_ROW] = names.index("compressed")
    return ids
