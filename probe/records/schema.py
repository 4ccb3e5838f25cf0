"""Every variable of a record: dims, units, meaning, range and dtype. The contract, as two literal
tables.

How each number is defined: `probe/measures/attention/statistic.py`. Axes of unequal length
(`position`, `image`, `y`, `x`, `key`, `token`) are padded at the end: NaN in floats, -1 in signed
and 0 in unsigned integers, "" in strings.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Variable:
    """What one variable of a record is. A dimension in [brackets] may be left out."""

    dims: str
    units: str
    long_name: str
    low: float = -np.inf
    high: float = np.inf
    dtype: str = "float32"

    def dims_of(self, ndim: int) -> tuple[str, ...]:
        """The names of the dims of an array with so many."""
        names = self.dims.split()
        if ndim < len(names):
            names = [name for name in names if not name.startswith("[")]
        return tuple(name.strip("[]") for name in names)


def _text(dims: str, long_name: str) -> Variable:
    return Variable(dims, "text", long_name, dtype="object")


def _count(dims: str, long_name: str, units: str = "queries") -> Variable:
    return Variable(dims, units, long_name, low=0.0, dtype="int32")


def _index(dims: str, long_name: str) -> Variable:
    return Variable(dims, "index", long_name, dtype="int32")


_TYPES = "query_type key_type"

ROOT = {
    "question": _text("sample", "question as asked"),
    "prompt": _text("sample", "prompt after the chat template"),
    "response": _text("sample", "response"),
    "tokens": _text("sample position", "decoded token"),
    "token_type": _text("sample position", "token type"),
    "response_ids": _index("sample answer", "token ids of the response, its closing included"),
    "images": Variable(
        "sample image y x channel", "8-bit RGB", "image, longest side ≤ 672", dtype="uint8"
    ),
    "image_size": Variable(
        "sample image side", "px", "height and width of `image`", dtype="uint16"
    ),
    "image_sha256": _text("sample image", "SHA-256 of the image, where its pixels are not kept"),
}

STACK = {
    "mass": Variable(f"sample layer head {_TYPES}", "fraction", "attention per query", 0.0, 1.0),
    "share": Variable(f"sample layer head {_TYPES}", "fraction", "share of attention", 0.0, 1.0),
    "lift": Variable(f"sample layer head {_TYPES}", "ratio", "attention ÷ an even spread", 0.0),
    "contribution": Variable(
        f"sample layer head {_TYPES}", "norm", "contribution to the residual stream", 0.0
    ),
    "entropy": Variable(f"sample layer {_TYPES}", "nat", "entropy of head-averaged attention", 0.0),
    "head_entropy": Variable(f"sample layer head {_TYPES}", "nat", "entropy within each head", 0.0),
    "entropy_count": _count(f"sample layer {_TYPES}", "queries averaged in `entropy`"),
    "head_entropy_count": _count(
        f"sample layer head {_TYPES}", "queries averaged in `head_entropy`"
    ),
    "query_count": _count(f"sample [layer] {_TYPES}", "queries that see such a key"),
    "share_count": _count("sample [layer] query_type", "queries that see a vision key"),
    "key_count": _count(
        "sample key_type", "keys of the type, of one image in the encoder", units="keys"
    ),
    "received": Variable(
        "sample layer query_type key", "fraction", "attention received, head mean", 0.0, 1.0
    ),
    "received_head": Variable(
        "sample layer head query_type key", "fraction", "attention received in a head", 0, 1
    ),
    "key_image": _index("sample key", "image of the vision key"),
    "key_tile": _index("sample key", "tile of the image; 0 = the whole image"),
    "key_row": _index("sample key", "row within the tile; -1 = newline"),
    "key_col": _index("sample key", "column within the tile; -1 = newline"),
    "key_box": Variable("sample key edge", "fraction", "edges of the patch in the image"),
    "key_sink": Variable(
        "sample layer key",
        "yes or no",
        "attention sink, by the rule of probe/measures/attention/sinks.py",
        0.0,
        1.0,
    ),
    "maps": Variable(
        "sample layer [head] token key", "fraction", "attention of one token", 0.0, 1.0
    ),
    "map_position": _index("sample token", "position of the query token"),
    "map_token": _text("sample token", "the query token"),
}

REQUIRED = ("mass", "query_count", "key_count")
LABELS = ("layer", "head", "query_type", "key_type", "edge")  # dims that always have a coordinate
EDGES = ("left", "top", "right", "bottom")
COUNT_OF = {"mass": "query_count", "entropy": "entropy_count", "head_entropy": "head_entropy_count"}
# What a table shows unless told otherwise.
MEASURED = ("mass", "share", "lift", "contribution", "entropy", "head_entropy")
# Records that differ in one of these attrs did not measure the same thing and cannot be merged.
CONDITIONS = ("model", "revision", "dtype", "attention", "aspect", "types", "turns", "rows", "toy")
CONDITIONS += ("intervention", "reducer", "sinks")
