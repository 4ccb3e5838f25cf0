"""All figures that a record, or a run of `probe drop`, has numbers for: what the command line and
reports write."""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.evaluation.drop_effects import from_cases, has_scores, tables_of, window_cases
from probe.plots.arguments import default_query, labelled
from probe.plots.by_head import heads
from probe.plots.by_layer import entropy, mass
from probe.plots.compressor_map import compression
from probe.plots.on_image import has_values, heatmaps
from probe.plots.style import unmanaged
from probe.plots.sweep import depth, dropped, readings, swaps
from probe.records import node


def figures(record: xr.DataTree, sample: int | str = 0) -> dict[str, Figure]:
    """{"llm-mass": Figure, ...}: every figure that the record has numbers for.

    sample: of the heat maps. The figures are for writing to files: pyplot does not keep them.
    Raises ProbeError for anything but a record, and for a sample that it does not have.
    """
    labelled(record, "plots.figures")
    return {
        f"{stack}-{name}": unmanaged(drawn)
        for stack in record.children
        for name, drawn in _of_stack(record, sample, stack).items()
    }


def _of_stack(record: xr.DataTree, sample: int | str, stack: str) -> dict[str, Axes | Figure]:
    measured = node(record, stack)
    query = default_query(measured)
    on_image = has_values(measured, sample, query)
    if query == "compressed" and measured.sizes["key_type"] == 1:
        # one layer and only patches: lines over layers and types would say nothing
        return {"compression": compression(record, sample)} if on_image else {}
    drawn: dict[str, Axes | Figure] = {}
    for value in ("mass", "share", "lift", "contribution"):
        if value in measured and bool(measured[value].notnull().any()):
            drawn[value] = mass(record, stack, value)
    if "entropy" in measured and "head_entropy" in measured:
        drawn["entropy"] = entropy(record, stack)
        drawn["entropy-ratio"] = entropy(record, stack, ratio=True)
    if "vision" in measured["key_type"].values:
        drawn["heads"] = heads(record, query, "vision", stack)
    if on_image:
        drawn["heatmaps"] = heatmaps(record, sample, query, stack=stack)
    return drawn


def drop_figures(results: xr.DataTree, size: int | None = None) -> dict[str, Figure]:
    """{"dropped": Figure, ...}: every figure that a run of `probe drop` has cases for.

    size: of the windows of layers. Where no answer has a score (a judge's benchmark), total
    variation from the untouched model is drawn. pyplot does not keep the figures. Raises ProbeError
    for anything but the results of a sweep.
    """
    tables = tables_of(results)
    first = next(iter(tables.values()))
    value = "correct" if has_scores(first) else "total_variation"
    drawn: dict[str, Axes | Figure] = {}
    if window_cases(first, size):
        drawn["dropped"] = dropped(results, size=size, value=value)
        if len(tables) > 1:
            drawn["readings"] = readings(results, size, value)
    swapped = [table for table in tables.values() if "donor_answer_given" in table]
    if any(window_cases(table, size) for table in swapped):
        drawn["swaps"] = swaps(results, size)
    if len(from_cases(first)) > 1:
        drawn["depth"] = depth(results, value=value)
    return {name: unmanaged(one) for name, one in drawn.items()}
