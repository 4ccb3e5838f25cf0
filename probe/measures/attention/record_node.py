"""From a statistic to the variables of a record: one sample's part of each stack, and what belongs
to the sample.

    node(counting, stack, sample=0)      # {"mass": array, ...}, with a leading sample axis: a node of the record
    root(sample, inputs)                 # texts, tokens and small images

A sample's images, and their tiles, are rows of their own in a statistic; here they are taken
together.
"""

from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from probe.data.sample import Sample
from probe.hooks.model_structure import LayerStack
from probe.measures.attention.stack_queries import StackStatistic
from probe.records import EDGES
from probe.subject.inputs import Inputs

IMAGE_SIDE = 672  # pixels: what a record keeps of an image
MOST_IMAGES = 16  # of them, for a video has thousands of frames
BY_LAYER = (
    "query_count",
    "share_count",
)  # have an axis of layers only where layers differ: windows, rows not computed
# Which axes of a table are types; the others have both, last.
QUERY_AXIS = {"received": -2, "received_head": -2, "share_count": -1}


def node(counting: StackStatistic, stack: LayerStack, sample: int) -> dict[str, np.ndarray]:
    """One sample's variables of one stack."""
    statistic, rows, grid = counting.statistic, counting.rows[sample], counting.grids[sample]
    if rows:
        tables = [statistic.table(name, rows) for name in stack.attention]
    else:  # a sample without images among others that have some
        tables = [_nothing(counting, module) for module in stack.attention.values()]
    found = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    queries = np.diagonal(found["query_count"], axis1=1, axis2=2)  # every query sees itself
    for name in BY_LAYER:
        values = _with_those_gone(found[name], queries) if stack.name == "llm" else found[name]
        found[name] = values[0] if (values == values[0]).all() else values
    found = {name: _chosen(name, values, counting)[None] for name, values in found.items()}
    # Images and tiles run through the encoder one at a time: the keys that one of their queries can
    # see.
    counts = [
        (statistic.ids[rows] == statistic.names.index(name)).sum() for name in counting.key_types
    ]
    found["key_count"] = np.array([counts]) // max(1, len(rows))
    found["query_type"] = np.array(counting.query_types, dtype=object)
    found["key_type"] = np.array(counting.key_types, dtype=object)
    for name in ("image", "tile", "row", "col", "box"):
        found[f"key_{name}"] = getattr(grid, name)[None]
    if counting.mapped is not None:
        found["map_position"] = np.array([counting.mapped[sample].positions])
        found["map_token"] = np.array([counting.mapped[sample].words], dtype=object)
    return found | {"edge": np.array(EDGES, dtype=object)}


def _with_those_gone(
    counts: np.ndarray, queries: Shaped[np.ndarray, "layer query_type"]
) -> np.ndarray:
    """Counts (layer, query_type, ...) of layers without some queries as if they were there: what an
    intervention or a reducer takes away is still visible."""
    fullest = queries.argmax(0)
    whole = np.stack([counts[layer, kind] for kind, layer in enumerate(fullest)])
    gone = queries < queries.max(0)
    return np.where(gone.reshape(*gone.shape, *[1] * (counts.ndim - 2)), whole, counts)


def _chosen(name: str, values: np.ndarray, counting: StackStatistic) -> np.ndarray:
    """The types of queries and keys that the stack has."""
    names = counting.statistic.names
    queries, keys = (
        [names.index(name) for name in types]
        for types in (counting.query_types, counting.key_types)
    )
    if name == "maps":
        return values
    if name in QUERY_AXIS:
        return values.take(queries, QUERY_AXIS[name])
    return values.take(queries, -2).take(keys, -1)


def _nothing(counting: StackStatistic, module: Any) -> dict[str, np.ndarray]:
    """The table of a stack that a sample does not pass through."""
    statistic, types = counting.statistic, len(counting.statistic.names)
    heads = getattr(module, "num_heads", None) or module.config.num_attention_heads
    pair = {
        "": (heads, types, types),
        "entropy": (types, types),
        "query_count": (types, types),
        "entropy_count": (types, types),
        "share_count": (types,),
        "received": (types, 0),
        "received_head": (heads, types, 0),
        "maps": (heads, 0, 0) if statistic.map_heads else (0, 0),
    }
    names = [
        "mass",
        "share",
        "lift",
        "entropy",
        "head_entropy",
        "received",
        *(n for n in pair if n.endswith("_count")),
    ]
    names += ["head_entropy_count", *(["maps"] if counting.mapped is not None else [])]
    names += [name for name in ("contribution", "received_head") if getattr(statistic, name)]
    return {
        name: np.full(
            pair.get(name, pair[""]), 0 if name.endswith("_count") else np.nan, np.float32
        )
        for name in names
    }


def root(sample: Sample, inputs: Inputs) -> dict[str, Any]:
    """What belongs to the sample: texts, tokens and small images, with a leading sample axis."""
    types, real = inputs.types, inputs.types.role[0] >= 0
    answer = inputs["input_ids"][0].cpu().numpy()[real][types.prompt_length[0] :]
    root = {
        "sample": np.array([sample.id], dtype=object),
        "question": np.array([_words(sample.question)], dtype=object),
        "prompt": np.array([inputs.prompt[0]], dtype=object),
        "response": np.array([inputs.response[0]], dtype=object),
        "response_ids": answer[None].astype(np.int32),
        "tokens": np.array(
            [[token for token, is_real in zip(inputs.tokens[0], real, strict=True) if is_real]],
            object,
        ),
        "token_type": np.array([[types.names[i] for i in types.ids[0][real]]], dtype=object),
    }
    images = [_small(image) for image in inputs.images[0][:MOST_IMAGES]]
    if images:
        height, width = (max(p.shape[axis] for p in images) for axis in (0, 1))
        root["images"] = np.stack(
            [np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0))) for p in images]
        )[None]
        root["image_size"] = np.array([[p.shape[:2] for p in images]])
    return root


def _words(question: Any) -> str:
    """A question as one string; a conversation as its texts, a line a message."""
    if isinstance(question, str):
        return question
    lines = []
    for message in question:
        content = message["content"]
        text = (
            content
            if isinstance(content, str)
            else " ".join(item.get("text", "<image>") for item in content)
        )
        lines.append(f"{message['role']}: {text}")
    return "\n".join(lines)


def _small(image: Image.Image) -> np.ndarray:
    image = image.copy()
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return np.asarray(image, dtype=np.uint8)
