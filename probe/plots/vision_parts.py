"""What happens to the answers when some frames of a video, or some of several images, are dropped.

plots.dropped_parts(results)     # a point for each part of vision
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.errors import ProbeError
from probe.evaluation.drop_effects import layers_of_cases, parts_of_cases, tables_of
from probe.plots.style import below, caption, finish, legend, looks, panels, styled
from probe.plots.sweep_curves import (
    chosen_mode,
    draw_baselines,
    draw_points,
    note,
    significance,
    stack_of,
    value_axis,
)

_PANEL = (5.4, 3.9)  # inches
_SPREAD = 0.6  # of the distance between two parts, over which the sets of layers are spread
_FEW = 8  # parts whose names stand upright


@styled()
def dropped_parts(
    results: Any,
    mode: str | None = None,
    value: str = "correct",
    *,
    seed: int = 0,
    ax: Any = None,
) -> Axes:
    """A point for each part of vision that is dropped (frames, or images), in each set of layers.

    How to read it: a part whose point lies at the black line (the untouched model) is not needed;
    at the grey line no vision is left at all. Bars cover all points at once (95 %, images redrawn).
    A filled point differs from the untouched model: the band of the paired differences excludes
    zero. A distance from it (KL, total variation, changed first tokens) cannot be below zero and
    has no filled points.

    Args:
        mode: of dropping, where there are several; by default "mask", or the first one.
        value: any of `probe.evaluation.drop_effects.VALUES`.

    Raises ProbeError for a mode or a value that `results` do not have, and without such cases.
    """
    name, table = chosen_mode(results, mode)
    parts = parts_of_cases(table)
    if not parts:
        raise ProbeError(
            "plots.dropped_parts",
            expected="a sweep with frame_parts(), frame_windows() or VisionPart",
            got="other cases",
        )
    axis = panels(ax, 1, 1, _PANEL, "plots.dropped_parts")[0, 0]
    draw_baselines(axis, table, value)
    places = {part: place for place, part in enumerate(dict.fromkeys(parts.values()))}
    sets = _by_layers(table, parts)
    for number, (layers, look) in enumerate(looks(sets).items()):
        cases = sets[layers]
        shift = _SPREAD * ((number + 0.5) / len(sets) - 0.5)
        x = np.array([places[parts[case]] for case in cases]) + shift
        draw_points(axis, table, cases, x, value, seed, look, layers)
    axis.set_xticks(range(len(places)), list(places), rotation=45 if len(places) > _FEW else 0)
    axis.set_xlim(-0.6, len(places) - 0.4)
    model = table.attrs.get("model", "")
    xlabel = f"vision tokens that are dropped ({name})"
    finish(
        axis, f"Some frames or images dropped\n{model}", xlabel=xlabel, **value_axis(table, value)
    )
    legend(axis, ncols=2, **below(axis))
    lines = [note(table, seed, "all points"), significance(value)]
    caption(axis, lines, {name: table}, ax is None)
    return axis


def has_parts(results: Any) -> bool:
    """Whether `dropped_parts` has something to draw."""
    return any(parts_of_cases(table) for table in tables_of(results).values())


def _by_layers(table: xr.Dataset, parts: dict[str, str]) -> dict[str, list[str]]:
    """The cases of each set of layers, by how a legend calls it."""
    layers = layers_of_cases(table)
    sets: dict[str, list[str]] = {}
    for case in parts:
        count = len(layers[case])
        first = layers[case][0] + 1
        last = layers[case][-1] + 1
        has_gaps = count < last - first + 1
        if count == table.sizes["layer"]:
            called = "all layers"
        elif last == first:
            called = f"layer {first}"
        elif has_gaps:
            called = f"{count} of layers {first}-{last}"
        else:
            called = f"layers {first}-{last}"
        sets.setdefault(f"{stack_of(table)} {called}", []).append(case)
    return sets
