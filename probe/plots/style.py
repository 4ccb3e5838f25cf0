"""What all figures share: which colour is which type, panels for several records, labels and
captions.

Keys have a colour (Okabe and Ito's, safe for colour-blind readers) and a marker, queries a dash: A
→ B can be told apart in grey.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis

from probe.errors import ProbeError

# A record, a list of records, or {label: record}. `labelled` tells anything else in one line.
Records = Any

_COLOURS = {
    "instruction": "#0072B2",
    "vision": "#D55E00",
    "response": "#009E73",
    "system": "#56B4E9",
    "last": "#CC79A7",
    "bos": "#000000",
    "cls": "#0072B2",
}
_MARKERS = {
    "instruction": "o",
    "vision": "s",
    "response": "^",
    "system": "v",
    "last": "D",
    "bos": "X",
    "cls": "o",
}
_DASHES = {
    "instruction": (0, (5, 2)),
    "vision": (0, (1, 1.2)),
    "response": "-",
    "system": (0, (9, 3)),
    "last": (0, (6, 1.5, 1, 1.5)),
    "bos": (0, (1, 4)),
    "cls": "-",
}
_SPARE_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#000000", "#F0E442", "#999999")
_SPARE_MARKERS = ("P", "*", "h", "<", ">", "d", "p", "8")
_SPARE_DASHES = ((0, (3, 1, 1, 1, 1, 1)), (0, (12, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)), (0, (4, 4)))

_STACKS = {
    "llm": "LLM layer",
    "vision": "vision encoder layer",
    "compressor": "compressor layer",
    "prefusion": "pre-fusion layer",
}
_TOY = "toy model: not a finding about LLaVA"
_SMALL = {"fontsize": 8, "color": "0.35", "ha": "left", "parse_math": False}


def line_style(
    query_type: str, key_type: str, query_types: Sequence[str], key_types: Sequence[str]
) -> dict:
    """matplotlib's settings for the line of A → B; the same type looks the same in every figure."""
    return {
        "color": _assigned(key_types, _COLOURS, _SPARE_COLOURS)[key_type],
        "marker": _assigned(key_types, _MARKERS, _SPARE_MARKERS)[key_type],
        "linestyle": _assigned(query_types, _DASHES, _SPARE_DASHES)[query_type],
    }


def _assigned(
    names: Sequence[str], known: Mapping[str, Any], spare: Sequence[Any]
) -> dict[str, Any]:
    taken = [known[name] for name in names if name in known]
    free = [look for look in spare if look not in taken]
    new = [name for name in names if name not in known]
    return {**known, **{name: free[i % len(free)] for i, name in enumerate(new)}}


def labelled(record: Records, called: str) -> dict[str, xr.DataTree]:
    """{label: record}; records of a list are named by what differs between them."""
    if isinstance(record, xr.DataTree):
        found = {str(record.attrs.get("model", "record")): record}
    elif isinstance(record, Mapping):
        found = {str(label): one for label, one in record.items()}
    elif isinstance(record, Sequence) and not isinstance(record, str):
        found = dict(zip(_labels(record), record, strict=True))
    else:
        found = {}
    if not found or not all(
        isinstance(one, xr.DataTree) and one.children for one in found.values()
    ):
        got = (
            ", ".join(type(one).__name__ for one in found.values()) if found else repr(record)[:60]
        )
        raise ProbeError(called, expected="a record, a list of records or {label: record}", got=got)
    return found


def _labels(records: Sequence[Any]) -> list[str]:
    attrs = [getattr(record, "attrs", {}) for record in records]
    names = (
        "model",
        "revision",
        "aspect",
        "types",
        "intervention",
        "reducer",
        "dtype",
        "attention",
    )
    differ = [name for name in names if len({str(each.get(name)) for each in attrs}) > 1]
    labels = [", ".join(str(each.get(name)) for name in differ) for each in attrs]
    unique = len(set(labels)) == len(labels)
    return labels if unique else [f"{i}: {label}".strip(": ") for i, label in enumerate(labels, 1)]


def chosen(names: str | Sequence[str] | None, there: Sequence[str], called: str) -> list[str]:
    """The types asked for (None: all), checked against those of the record."""
    asked = list(there) if names is None else [names] if isinstance(names, str) else list(names)
    wrong = [name for name in asked if name not in there]
    if wrong:
        raise ProbeError(
            called, expected=f"types of {', '.join(there)}", got=", ".join(map(repr, wrong))
        )
    return asked


def default_query(measured: xr.Dataset) -> str:
    """Whose attention to draw unless told: the response's, or of what comes nearest and was
    measured.
    """
    there = measured["query_type"].values.tolist()
    asked = measured["query_count"].max(
        [dim for dim in measured["query_count"].dims if dim != "query_type"]
    )
    order = [name for name in ("response", "last", "instruction", "cls") if name in there] + there
    return next((name for name in order if asked.sel(query_type=name) > 0), there[0])


def panels(ax: Any, rows: int, columns: int, size: tuple[float, float], called: str) -> np.ndarray:
    """Axes of shape (rows, columns): new ones in a figure of their own, or the user's."""
    if ax is None:
        figsize = (columns * size[0], rows * size[1])
        return plt.subplots(rows, columns, figsize=figsize, layout="constrained", squeeze=False)[1]
    given = np.array(ax, dtype=object).reshape(-1)
    if given.size != rows * columns or not all(isinstance(one, Axes) for one in given):
        got = f"{given.size} ({', '.join(sorted({type(one).__name__ for one in given}))})"
        raise ProbeError(called, expected=f"ax= {rows * columns} Axes", got=got)
    return given.reshape(rows, columns)


def layer_label(stack: str) -> str:
    """Which layers an axis counts."""
    return _STACKS.get(stack, f"{stack} layer")


def count_from_one(ticks: Axis, count: int) -> None:
    """Tick the first of `count` layers or heads and then every so many."""
    step = -(-count // 10)
    ticks.set_ticks(sorted({1, *range(step, count + 1, step)}))


def title(axis: Axes, text: str) -> None:
    """Above the left edge; a dollar sign in a user's name is no formula."""
    axis.set_title(text, loc="left", fontsize=10, parse_math=False)


def label(array: xr.DataArray) -> str:
    """What an axis measures, with its unit, as the record says it."""
    return f"{array.attrs['long_name']} ({array.attrs['units']})"


def caption(axes: np.ndarray, lines: Sequence[str], records: Mapping[str, Any], own: bool) -> None:
    """Small print below a figure of ours, or below the user's first axes; says so where a model is
    a toy.
    """
    toys = [
        name for name, record in records.items() if str(record.attrs.get("toy")).lower() == "true"
    ]
    only = f" ({', '.join(toys)})" if 0 < len(toys) < len(records) else ""
    lines = [*dict.fromkeys(lines), *([_TOY + only] if toys else [])]
    figure = axes.flat[0].figure
    width = (
        figure.get_figwidth() if own else figure.get_figwidth() * axes.flat[0].get_position().width
    )
    text = "\n".join(wrapped for line in lines for wrapped in textwrap.wrap(line, int(width * 17)))
    if own:
        figure.supxlabel(text, x=0.01, va="bottom", **_SMALL)
        return
    below = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.flat[0].annotate(text, (0, 0), (0, -36), va="top", **below, **_SMALL)
