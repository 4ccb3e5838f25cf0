"""How deep vision is needed: accuracy when it is dropped from a layer on, and up to a layer, by
kind of question.

plots.depth(results)             # needs cases of from_layer() and until_layer()
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.errors import ProbeError
from probe.evaluation.drop_effects import ALL, from_cases, kinds_of, of_kind, until_cases
from probe.evaluation.headline import Headline
from probe.plots.style import caption, count_from_one, panels, title
from probe.plots.sweep import LEGEND, chosen_reading, curve, in_units, note, scale, stack_of

KIND_LOOKS = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", (0, (5, 2))),
    ("#009E73", "^", (0, (1, 1.2))),
    ("#CC79A7", "D", "-"),
    ("#E69F00", "v", (0, (5, 2))),
    ("#56B4E9", "P", (0, (1, 1.2))),
    ("#999999", "X", "-"),
    ("#8B5A2B", "*", (0, (5, 2))),
)
_SIZE = (4.6, 3.8)


def depth(
    results: Any,
    reading: str | None = None,
    value: str = "correct",
    *,
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """Two Axes: vision dropped from a layer to the last one, and from the first one up to a layer.

    A line a kind of question (the eight most frequent) and all of them in black, with a band over
    the whole curve. The end of each curve at which no layer is left is the untouched model.
    `reading`: by default "mask", the same as "remove" from a layer on. Raises ProbeError for a
    reading that `results` do not have, and without such cases.
    """
    name, table = chosen_reading(results, reading)
    layers = table.sizes["layer"]
    since = {layer + 1: case for layer, case in from_cases(table).items()}
    until = {layer + 1: case for layer, case in until_cases(table).items()}
    if len(since) < 2 and len(until) < 2:
        raise ProbeError(
            "plots.depth", expected="a sweep with from_layer() or until_layer()", got="other cases"
        )
    untouched = str(table["case"].values[0])
    axes = panels(ax, 1, 2, _SIZE, "plots.depth")[0]
    _curves(axes[0], table, since | {layers + 1: untouched}, value, seed)
    _curves(axes[1], table, {0: untouched} | until, value, seed)
    _dress(axes[0], table, value, "Dropped from this layer to the last", range(1, layers + 2))
    _dress(axes[1], table, value, "Dropped from the first layer to this", range(layers + 1))
    axes[0].legend(**LEGEND, ncols=4)
    axes[1].sharey(axes[0])
    kinds = "; ".join(
        f"{kind}: {of_kind(table, kind).sizes['sample']}"
        for kind in kinds_of(table)[: len(KIND_LOOKS)]
    )
    lines = [
        f"how: {name}; {note(table, seed, 'the curve of all')}",
        *([f"questions: {kinds}"] if kinds else []),
    ]
    caption(axes, lines, {name: table}, ax is None)
    return axes


def _curves(axis: Axes, table: xr.Dataset, cases: Mapping[int, str], value: str, seed: int) -> None:
    """A line a kind and one of all, over the layers of these cases."""
    x, order = list(cases), table["case"].values.tolist()
    at = [order.index(case) for case in cases.values()]
    kinds = kinds_of(table) if value != "correct" or Headline(table).is_mean else []
    for kind, (colour, marker, dash) in zip(kinds, KIND_LOOKS, strict=False):
        mean = np.nanmean(in_units(of_kind(table, kind), value)[:, at], axis=0)
        axis.plot(
            x,
            mean,
            color=colour,
            marker=marker,
            linestyle=dash,
            markersize=4,
            linewidth=1.2,
            label=kind,
        )
    everything = curve(table, value, at, seed)
    axis.fill_between(x, everything.low, everything.high, color="black", alpha=0.13, linewidth=0)
    axis.plot(x, everything.estimate, color="black", linewidth=2.2, label=ALL, zorder=4)


def _dress(axis: Axes, table: xr.Dataset, value: str, above: str, ticks: range) -> None:
    title(axis, above)
    count_from_one(axis.xaxis, table.sizes["layer"])
    none = ticks[0] if ticks[0] == 0 else ticks[-1]
    shown = [tick for tick in axis.get_xticks() if abs(tick - none) > len(ticks) / 12]
    axis.set_xticks([*shown, none], [*(f"{tick:g}" for tick in shown), "none"])
    axis.set_xlabel(f"{stack_of(table)} layer")
    scale(axis, table, value)
