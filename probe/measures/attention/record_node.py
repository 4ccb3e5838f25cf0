"""From a statistic to the variables of a record: one sample's part of each stack, and what belongs
to the sample itself.

    node(stack_statistic, stack, sample=0)    # {"mass": array, ...}: a node of the record
    root(sample, inputs)                      # texts, tokens and small images

All arrays have a leading axis of one sample. A sample's images and their tiles are rows of their
own in a statistic; here they are pooled.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import nn

from probe.data.lazy_frames import frames_at
from probe.data.sample import Sample
from probe.data.token_types import PADDING
from probe.hooks.model_structure import LayerStack
from probe.measures.attention.stack_statistic import StackStatistic
from probe.measures.attention.type_sums import REMOVED, SINK
from probe.records import EDGES
from probe.records.thumbnails import thumbnails
from probe.subject.inputs import Inputs

MAX_IMAGES = 16  # kept of a sample, evenly chosen: a video has thousands of frames
# The axis of query types in variables that have no axis of key types; all others end in both.
QUERY_AXIS = {"received": -2, "received_head": -2, "share_count": -1, "learned_sink": -1}


def node(
    stack_statistic: StackStatistic, stack: LayerStack, sample: int
) -> dict[str, Shaped[np.ndarray, "sample=1 *axes"] | np.ndarray]:
    """One sample's variables of one stack, named and shaped as in `probe.records.schema.STACK`."""
    values = _layers(stack_statistic, stack, sample)
    # Counts have an axis of layers only where layers differ (windows, queries not computed).
    for name, removed in REMOVED.items():
        counts = _in_all_layers(values[name] + values.pop(removed, 0.0), stack)
        same_in_all = (counts == counts[0]).all()
        values[name] = counts[0] if same_in_all else counts
    variables = {
        name: _select_types(name, array, stack_statistic)[None] for name, array in values.items()
    }
    variables["key_count"] = _key_count(stack_statistic, sample)[None]
    grid = stack_statistic.grids[sample]
    variables |= {name: array[None] for name, array in grid.variables("key").items()}
    if stack_statistic.map_queries is not None:
        queries_of_maps = stack_statistic.map_queries[sample]
        variables["map_position"] = np.array([queries_of_maps.positions])
        variables["map_token"] = np.array([queries_of_maps.tokens], dtype=object)
    labels = {
        "query_type": stack_statistic.query_types,
        "key_type": stack_statistic.key_types,
        "edge": EDGES,
    }
    numbers = {} if stack.numbers is None else {"layer": np.array(stack.numbers)}
    texts = {name: np.array(texts, dtype=object) for name, texts in labels.items()}
    return variables | numbers | texts


def without_attention(measured: Mapping[str, LayerStack]) -> dict[str, str]:
    """The attr that names the layers (from 0) whose numbers are NaN, since they have no softmax
    attention of this kind, and what they have instead: {"without_attention": "llm 0, 2:
    linear_attn"}. Empty where there are none.
    """
    parts = []
    for stack in measured.values():
        instead = stack.in_place_of_attention()
        for kind in dict.fromkeys(instead.values()):
            numbers = ", ".join(str(layer) for layer, name in instead.items() if name == kind)
            parts.append(f"{stack.name} {numbers}: {kind}")
    return {"without_attention": "; ".join(parts)} if parts else {}


def _layers(
    stack_statistic: StackStatistic, stack: LayerStack, sample: int
) -> dict[str, Float[np.ndarray, "layer *axes"]]:
    """The sample's table of each layer, stacked."""
    rows = stack_statistic.rows[sample]
    if rows:
        found = {name: stack_statistic.statistic.table(name, rows) for name in stack.attention}
    else:  # a sample without images in a batch of which other samples have some
        empty = partial(_empty_table, stack_statistic)
        found = {name: empty(module) for name, module in stack.attention.items()}
    without = _without_attention(next(iter(found.values())))
    tables = [without if name is None else found[name] for name in stack.modules]
    _complete_sinks(tables)
    _complete_removed(tables)
    return {name: _stacked(name, [table[name] for table in tables]) for name in tables[0]}


def _complete_sinks(tables: Sequence[dict[str, np.ndarray]]) -> None:
    """Where some layers have a learned sink it takes nothing in the others: 0, and NaN for types
    that have no query there.
    """
    if not any(SINK in table for table in tables):
        return
    for table in tables:
        if SINK not in table:
            spent = np.nansum(table["mass"], -1)  # (head, query_type)
            table[SINK] = np.where(np.isnan(table["mass"]).all(-1), np.nan, 0 * spent)


def _complete_removed(tables: Sequence[dict[str, np.ndarray]]) -> None:
    """Where some layers ran without queries the others have lost none."""
    for name, removed in REMOVED.items():
        if any(removed in table for table in tables):
            for table in tables:
                table.setdefault(removed, np.zeros_like(table[name]))


def _stacked(name: str, arrays: list[np.ndarray]) -> Float[np.ndarray, "layer *axes"]:
    """Layers as one array. One with fewer heads than others has no query in the missing ones: NaN,
    and counts of 0.
    """
    heads = max(len(array) for array in arrays)
    if all(len(array) == heads for array in arrays):
        return np.stack(arrays)
    nothing = 0.0 if name.endswith("_count") else np.nan
    full = np.full((len(arrays), heads, *arrays[0].shape[1:]), nothing, dtype=np.float32)
    for layer, array in enumerate(arrays):
        full[layer, : len(array)] = array
    return full


def _without_attention(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The table of a layer without attention: nothing is counted, so everything is NaN."""
    return {
        name: np.zeros_like(values) if name.endswith("_count") else np.full_like(values, np.nan)
        for name, values in table.items()
    }


def _in_all_layers(
    counts: Float[np.ndarray, "layer query_type *axes"], stack: LayerStack
) -> Float[np.ndarray, "layer query_type *axes"]:
    """The counts with those of the LLM's layers without attention as in its first one that has it:
    the same tokens run through all of them.
    """
    if stack.name != "llm":
        return counts
    has_attention = np.array([name is not None for name in stack.modules])
    of_first = counts[has_attention.argmax()]
    has_attention = has_attention.reshape(-1, *[1] * (counts.ndim - 1))
    return np.where(has_attention, counts, of_first)


def _select_types(name: str, values: np.ndarray, stack_statistic: StackStatistic) -> np.ndarray:
    """The types that queries and keys of this stack can have, in the stack's order."""
    if name == "maps":
        return values
    names = stack_statistic.statistic.names
    queries = [names.index(query_type) for query_type in stack_statistic.query_types]
    keys = [names.index(key_type) for key_type in stack_statistic.key_types]
    if name in QUERY_AXIS:
        return values.take(queries, QUERY_AXIS[name])
    return values.take(queries, -2).take(keys, -1)


def _key_count(stack_statistic: StackStatistic, sample: int) -> Shaped[np.ndarray, "key_type"]:
    """Keys of each type that one query could see. Images and tiles run through an encoder one at a
    time, so of several the mean.
    """
    statistic, rows = stack_statistic.statistic, stack_statistic.rows[sample]
    ids = statistic.ids[rows]
    counts = [(ids == statistic.names.index(name)).sum() for name in stack_statistic.key_types]
    return np.array(counts) // max(1, len(rows))


def _empty_table(stack_statistic: StackStatistic, module: nn.Module) -> dict[str, np.ndarray]:
    """The table of a stack that a sample does not pass through: counts of 0 and NaN."""
    statistic = stack_statistic.statistic
    config: Any = getattr(module, "config", None)
    heads: Any = getattr(module, "num_heads", None) or config.num_attention_heads
    types = len(statistic.names)
    by_head, by_type = (heads, types, types), (types, types)
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("mass", "share", "lift"), by_head),
        **dict.fromkeys(("head_entropy", "head_entropy_ratio", "head_entropy_count"), by_head),
        **dict.fromkeys(("entropy", "entropy_ratio", "entropy_count", "query_count"), by_type),
        "share_count": (types,),
        "received": (types, 0),
    }
    if statistic.contribution is not None:
        shapes["contribution"] = by_head
    if statistic.received_head:
        shapes["received_head"] = (heads, types, 0)
    if stack_statistic.map_queries is not None:
        shapes["maps"] = (heads, 0, 0) if statistic.map_heads else (0, 0)
    return {
        name: np.full(shape, 0 if name.endswith("_count") else np.nan, np.float32)
        for name, shape in shapes.items()
    }


def root(sample: Sample, inputs: Inputs, logprob: Float[np.ndarray, "_"] | None) -> dict[str, Any]:
    """What belongs to the sample: texts, tokens and small images, as in
    `probe.records.schema.ROOT`. `inputs`: of one row; `logprob`: of its response's tokens.
    """
    types, is_real = inputs.types, inputs.types.role[0] != PADDING
    ids = inputs["input_ids"][0].cpu().numpy()[is_real]
    tokens = np.array(inputs.tokens[0], dtype=object)[is_real]
    type_names = np.array(types.names, dtype=object)[types.ids[0][is_real]]
    variables: dict[str, Any] = {
        "sample": np.array([sample.id], dtype=object),
        "question": np.array([_question_text(sample.question)], dtype=object),
        "prompt": np.array([inputs.prompt[0]], dtype=object),
        "response": np.array([inputs.response[0]], dtype=object),
        "response_ids": ids[None, types.prompt_length[0] :].astype(np.int32),
        "tokens": tokens[None],
        "token_type": type_names[None],
    }
    if logprob is not None:
        variables["response_logprob"] = logprob[None]
    pictures = inputs.images[0]
    kept = np.arange(len(pictures))
    if len(pictures) > MAX_IMAGES:
        kept = np.linspace(0, len(pictures) - 1, MAX_IMAGES).round().astype(int)
        variables["image_number"] = kept[None]
    images = thumbnails(frames_at(pictures, kept.tolist()))
    return variables | {name: array[None] for name, array in images.items()}


def merged_patches(inputs: Inputs) -> dict[str, Shaped[np.ndarray, "sample=1 *axes"]]:
    """Of one row that a reducer of the encoder's output has shortened: where the encoder's patches
    lie, and the LLM's vision token that each went into. {} without such a reducer.
    """
    token = inputs.merged_into[0]
    if not len(token):
        return {}
    places = inputs.encoder_grid[0].variables("patch")
    return {name: array[None] for name, array in ({"patch_token": token} | places).items()}


def _question_text(question: Any) -> str:
    """A question as one string; a conversation with one line a message."""
    if isinstance(question, str):
        return question
    lines = []
    for message in question:
        content = message["content"]
        if not isinstance(content, str):
            content = " ".join(item.get("text", "<image>") for item in content)
        lines.append(f"{message['role']}: {content}")
    return "\n".join(lines)
