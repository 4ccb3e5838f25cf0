"""All the figures a record, or a run of `probe drop`, can give: what the command line and reports
write.
"""

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from probe.evaluation.drop_effects import from_cases, has_scores, tables_of, window_cases
from probe.plots.by_head import heads
from probe.plots.by_layer import entropy, mass
from probe.plots.comparing import readings, swaps
from probe.plots.compressor_map import compression
from probe.plots.depths import depth
from probe.plots.dropping import dropped
from probe.plots.on_image import heatmaps
from probe.plots.style import default_query, labelled
from probe.plots.views import has_values
from probe.records import node


def figures(record: xr.DataTree, sample: int | str = 0) -> dict[str, Figure]:
    """{"llm-mass": Figure, ...}: every figure that the record has numbers for; heat maps are of one
    `sample`.

    They are for writing to files: pyplot does not keep them, so they do not pile up. Raises
    ProbeError for what is no record, and for a sample that it does not have.
    """
    labelled(record, "plots.figures")
    found = {}
    for stack in record.children:
        for name, axes in _of_stack(record, sample, stack):
            found[f"{stack}-{name}"] = figure = np.ravel(axes)[0].figure
            plt.close(figure)
    return found


def _of_stack(record: xr.DataTree, sample: int | str, stack: str) -> Iterator[tuple[str, Any]]:
    """The Axes of each figure of a stack, one after the other."""
    measured = node(record, stack)
    query = default_query(measured)
    if query == "compressed" and measured.sizes["key_type"] == 1:
        if has_values(
            measured, sample, query
        ):  # curves over one layer, with nothing but patches, would say nothing
            yield "compression", compression(record, sample)
        return
    for value in ("mass", "share", "lift", "contribution"):
        if value in measured and bool(measured[value].notnull().any()):
            yield value, mass(record, stack, value)
    if "entropy" in measured and "head_entropy" in measured:
        yield "entropy", entropy(record, stack)
        yield "entropy-ratio", entropy(record, stack, ratio=True)
    if "vision" in measured["key_type"].values:
        yield "heads", heads(record, query, "vision", stack)
    if has_values(measured, sample, query):
        yield "heatmaps", heatmaps(record, sample, query, stack=stack)


def drop_figures(results: xr.DataTree, size: int | None = None) -> dict[str, Figure]:
    """{"dropped": Figure, ...}: every figure that a run of `probe drop` has cases for.

    Where no answer has a score (a judge's benchmark), total variation from the untouched model is
    drawn. Raises ProbeError for what is no result of a sweep.
    """
    tables = tables_of(results)
    first = next(iter(tables.values()))
    value = "correct" if has_scores(first) else "total_variation"
    drawn = {}
    if window_cases(first, size):
        drawn["dropped"] = dropped(results, size=size, value=value)
        if len(tables) > 1:
            drawn["readings"] = readings(results, size, value)
    if any(
        "donor_answer_given" in table and window_cases(table, size) for table in tables.values()
    ):
        drawn["swaps"] = swaps(results, size)
    if len(from_cases(first)) > 1:
        drawn["depth"] = depth(results, value=value)
    found = {name: np.ravel(axes)[0].figure for name, axes in drawn.items()}
    for figure in found.values():
        plt.close(figure)
    return found
