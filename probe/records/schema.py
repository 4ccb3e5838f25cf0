"""The schema of labelled datasets: what each variable is. Every dataset of this package is made by
`dataset` from a literal table of `Variable`s.

    SCHEMA = {"gini": Variable("view layer", "1", "Gini coefficient of the attention received")}
    dataset("concentration", {"gini": array}, SCHEMA, coords={"layer": range(32)}, attrs=...)

`ROOT` and `STACK` are the tables of a record. How each number is defined:
`probe/measures/attention/statistic.py`. Axes of unequal length (`position`, `image`, `y`, `x`,
`key`, `token`) are padded at the end: NaN in floats, -1 in signed and 0 in unsigned integers, "" in
strings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from probe.errors import ProbeError


@dataclass(frozen=True)
class Variable:
    """What one variable is. A dimension in [brackets] may be left out.

    `dtype`: "object" is text; None keeps the dtype of what is given. `low`, `high`: the range of
    its values.
    """

    dims: str
    units: str
    long_name: str
    low: float = -np.inf
    high: float = np.inf
    dtype: str | None = "float32"

    @property
    def attrs(self) -> dict[str, str]:
        return {"long_name": self.long_name, "units": self.units}

    def dims_of(self, ndim: int) -> tuple[str, ...]:
        """The names of the dims of an array with `ndim` axes."""
        names = self.dims.split()
        if ndim < len(names):
            names = [name for name in names if not name.startswith("[")]
        return tuple(name.strip("[]") for name in names)

    def mismatch(self, called: str, path: str, got: str) -> ProbeError:
        """The error for an array that is not this variable."""
        limits = "" if np.isinf(self.low) else f", {self.low:g} to {self.high:g}"
        expected = f"{path} ({self.dims}) {self.dtype or 'array'} in {self.units!r}{limits}"
        return ProbeError(called, expected=expected, got=got)

    def labelled(self, called: str, path: str, values: Any) -> xr.Variable:
        """The array with its dims and attrs. Raises ProbeError for another number of axes."""
        array = self._array(values)
        dims = self.dims_of(array.ndim)
        if len(dims) != array.ndim:
            raise self.mismatch(called, path, f"shape {array.shape}")
        return xr.Variable(dims, array, self.attrs)

    def _array(self, values: Any) -> np.ndarray:
        if self.dtype is None:
            return np.asarray(values)
        array = np.asarray(values, self.dtype)
        if self.dtype != "object" or all(type(value) is str for value in array.flat):
            return array
        # numpy's own strings among Python's cannot be written
        plain = np.vectorize(lambda value: str(value) if isinstance(value, str) else value, "O")
        return plain(array)


def dataset(
    called: str,
    values: Mapping[str, Any],
    schema: Mapping[str, Variable],
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    *,
    path: str = "",
) -> xr.Dataset:
    """A dataset from plain arrays: dims, dtypes, units and meanings come from `schema`.

    `coords`: labels of dims ({"layer": range(32)}), or coordinates that the schema describes;
    `edge`, `layer` and `head` (counted from 0) are added where a variable has them. Raises
    ProbeError that names the variable (below `path`) which the schema does not know, or whose shape
    does not fit.

    >>> schema = {"gini": Variable("view layer", "1", "Gini coefficient")}
    >>> dataset("concentration", {"gini": np.ones((1, 2))}, schema)["layer"].values.tolist()
    [0, 1]
    """
    variables, labels = variables_of(called, values, schema, coords, path)
    try:
        return xr.Dataset(variables, labels, plain_attrs(attrs or {}))
    except ValueError as error:  # xarray names the dimension whose sizes disagree
        where = f"in {path.strip('/')} " if path else ""
        raise ProbeError(
            called, expected=f"equal sizes {where}on shared dims", got=str(error)
        ) from None


def variables_of(
    called: str,
    values: Mapping[str, Any],
    schema: Mapping[str, Variable],
    coords: Mapping[str, Any] | None = None,
    path: str = "",
) -> tuple[dict[str, xr.Variable], dict[str, xr.Variable]]:
    """The variables and the coordinates of `dataset`. Sizes are not compared."""
    unknown = sorted(map(str, values.keys() - schema.keys()))
    if unknown:
        raise ProbeError(
            called,
            expected=f"{path.strip('/')} variables of {', '.join(schema)}".strip(),
            got=", ".join(unknown),
        )
    variables = {
        name: variable.labelled(called, path + name, values[name])
        for name, variable in schema.items()
        if name in values
    }
    labels = {
        name: schema[name].labelled(called, path + name, given)
        if name in schema
        else xr.Variable(name, axis_labels(given))
        for name, given in (coords or {}).items()
    }
    dims = {dim: size for each in variables.values() for dim, size in each.sizes.items()}
    counted = {name: range(dims[name]) for name in ("layer", "head") if name in dims}
    standard = counted | ({"edge": EDGES} if "edge" in dims else {})
    added = {name: xr.Variable(name, axis_labels(given)) for name, given in standard.items()}
    return variables, added | labels


def axis_labels(values: Any) -> np.ndarray:
    """Names as objects (numpy's fixed-width strings would grow with the longest), numbers as they
    are.
    """
    array = np.asarray(values)
    return array if array.dtype.kind in "iuf" else np.asarray(values, object)


def plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attrs with Python's own numbers and booleans for numpy's."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in attrs.items()
    }


def _text(dims: str, long_name: str) -> Variable:
    return Variable(dims, "text", long_name, dtype="object")


def _count(dims: str, long_name: str, units: str = "queries") -> Variable:
    return Variable(dims, units, long_name, low=0.0, dtype="int32")


def _index(dims: str, long_name: str) -> Variable:
    return Variable(dims, "index", long_name, dtype="int32")


def image_variables(dims: str = "") -> dict[str, Variable]:
    """Small copies of images, padded to one size, below the given leading dims."""
    return {
        "images": Variable(
            f"{dims} image y x channel", "8-bit RGB", "image, longest side ≤ 672", dtype="uint8"
        ),
        "image_size": Variable(
            f"{dims} image side", "px", "height and width of the image", dtype="uint16"
        ),
    }


def patch_variables(name: str, dims: str = "") -> dict[str, Variable]:
    """Where the patches along the dim `name` lie: the arrays of `PatchGrid.variables`."""
    dims = f"{dims} {name}".strip()
    return {
        f"{name}_image": _index(dims, "image of the patch; the frames of a video count one by one"),
        f"{name}_tile": _index(dims, "tile of the image; 0 = the whole image"),
        f"{name}_row": _index(dims, "row within the tile; -1 = newline"),
        f"{name}_col": _index(dims, "column within the tile; -1 = newline"),
        f"{name}_box": Variable(f"{dims} edge", "fraction", "edges of the patch in the image"),
        f"{name}_frame": _index(dims, "frame of a video; -1 = another image"),
        f"{name}_last_frame": _index(dims, "last frame that the patch shows, of several"),
        f"{name}_time": Variable(dims, "s", "time in the video, of several frames the mean"),
    }


_TYPES = "query_type key_type"

ROOT = {
    "question": _text("sample", "question as asked"),
    "prompt": _text("sample", "prompt after the chat template"),
    "response": _text("sample", "response"),
    "tokens": _text("sample position", "decoded token"),
    "token_type": _text("sample position", "token type"),
    "response_ids": _index("sample answer", "token ids of the response, its closing included"),
    "response_logprob": Variable(
        "sample answer", "nat", "log-probability of each token of the response", high=0.0
    ),
    "gold": _text("sample", "the benchmark's answer, the most frequent of several"),
    "kind": _text("sample", "kind of question"),
    "correct": Variable("sample", "1", "the benchmark's score of the response, 1 is right", 0.0),
    **image_variables("sample"),
    "image_number": _index("sample image", "number of the image, where not all are kept"),
    "image_path": _text("sample", "files of the images"),
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
    "entropy_ratio": Variable(
        f"sample layer {_TYPES}", "ratio", "pooled entropy ÷ ln(visible keys)", 0.0, 1.0
    ),
    "head_entropy_ratio": Variable(
        f"sample layer head {_TYPES}", "ratio", "head entropy ÷ ln(visible keys)", 0.0, 1.0
    ),
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
    **patch_variables("key", "sample"),
    "patch_token": _index(
        "sample patch", "vision token that the encoder's patch went into; -1 = none"
    ),
    **patch_variables("patch", "sample"),
    "learned_sink": Variable(
        "sample layer head query_type",
        "fraction",
        "attention that the layer's learned sink takes",
        0.0,
        1.0,
    ),
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

# Only records with a video, or of a benchmark, have these, and none of earlier versions the last
# ones: merged with others, those are padded.
OPTIONAL = ("image_number", "key_frame", "key_last_frame", "key_time")
OPTIONAL += ("gold", "kind", "correct", "response_logprob")
REQUIRED = ("mass", "query_count", "key_count")
LABELS = ("layer", "head", "query_type", "key_type", "edge")  # dims that always have a coordinate
EDGES = ("left", "top", "right", "bottom")
COUNT_OF = {
    "mass": "query_count",
    "entropy": "entropy_count",
    "entropy_ratio": "entropy_count",
    "head_entropy": "head_entropy_count",
    "head_entropy_ratio": "head_entropy_count",
}
# The variables of a table by default.
MEASURED = ("mass", "share", "lift", "contribution", "entropy", "head_entropy")
MEASURED += ("entropy_ratio", "head_entropy_ratio")
# Records that differ in one of these attrs did not measure the same thing and cannot be merged.
CONDITIONS = ("model", "revision", "weights", "dtype", "attention", "aspect", "types", "turns")
CONDITIONS += ("rows", "toy", "intervention", "reducer", "sinks")


def as_text(values: np.ndarray) -> np.ndarray:
    """Strings of fixed length, which numpy compares and sorts. zarr's come back as numpy's own
    string type, which does not convert by itself.
    """
    return values.astype(object).astype(str)
