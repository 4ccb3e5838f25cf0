"""All the figures a record, or a run of `probe drop`, can give: what the command line and reports write."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from probe.effects import from_cases, has_scores, tables_of, window_cases
from probe.plots.comparing import readings, swaps
from probe.plots.curves import entropy, mass
from probe.plots.depths import depth
from probe.plots.dropping import dropped
from probe.plots.look import default_query, labelled
from probe.plots.matrix import heads
from probe.plots.overlay import heatmaps
from probe.plots.views import has_values
from probe.record import node


def figures(record: xr.DataTree, sample: int | str = 0) -> dict[str, Figure]:
    """{"llm-mass": Figure, ...}: every figure that the record has numbers for; heat maps are of one `sample`.

    They are for writing to files: pyplot does not keep them, so they do not pile up. Raises ProbeError for what is no
    record, and for a sample that it does not have.
    """
    labelled(record, "plots.figures")
    drawn = {}
    for stack in record.children:
        measured = node(record, stack)
        for value in ("mass", "share", "lift", "contribution"):
            if value in measured and bool(measured[value].notnull().any()):
                drawn[f"{stack}-{value}"] = mass(record, stack, value)
        if "entropy" in measured and "head_entropy" in measured:
            drawn[f"{stack}-entropy"] = entropy(record, stack)
            drawn[f"{stack}-entropy-ratio"] = entropy(record, stack, ratio=True)
        query = default_query(measured)
        if "vision" in measured["key_type"].values:
            drawn[f"{stack}-heads"] = heads(record, query, "vision", stack)
        if has_values(measured, sample, query):
            drawn[f"{stack}-heatmaps"] = heatmaps(record, sample, query, stack=stack)
    found = {name: np.ravel(axes)[0].figure for name, axes in drawn.items()}
    for figure in found.values():
        plt.close(figure)
    return found


def drop_figures(results: xr.DataTree, size: int | None = None) -> dict[str, Figure]:
    """{"dropped": Figure, ...}: every figure that a run of `probe drop` has cases for.

    Where no answer has a score (a judge's benchmark), total variation from the untouched model is drawn. Raises
    ProbeError for what is no result of a sweep.
    """
    tables = tables_of(results)
    first = next(iter(tables.values()))
    value = "correct" if has_scores(first) else "total_variation"
    drawn = {}
    if window_cases(first, size):
        drawn["dropped"] = dropped(results, size=size, value=value)
        if len(tables) > 1:
            drawn["readings"] = readings(results, size, value)
    if any("donor_answer_given" in table and window_cases(table, size) for table in tables.values()):
        drawn["swaps"] = swaps(results, size)
    if len(from_cases(first)) > 1:
        drawn["depth"] = depth(results, value=value)
    found = {name: np.ravel(axes)[0].figure for name, axes in drawn.items()}
    for figure in found.values():
        plt.close(figure)
    return found
