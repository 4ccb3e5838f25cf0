"""All figures that a record, or a run of `probe drop`, has numbers for: what the command line and
reports write."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from probe.evaluation.drop_effects import from_cases, has_scores, tables_of, window_cases
from probe.plots.arguments import default_query, labelled
from probe.plots.by_head import heads
from probe.plots.by_layer import entropy, mass
from probe.plots.compressor_map import compression
from probe.plots.on_image import has_values, heatmaps
from probe.plots.style import heading, title, unmanaged
from probe.plots.sweep import depth, dropped, readings, swaps
from probe.plots.video import frames, has_frames
from probe.plots.vision_parts import dropped_parts, has_parts
from probe.records import node
from probe.records.sample_blocks import differ, largest

_PAGE, _TITLE, _NAME, _GAP = 15.0, 0.7, 0.45, 0.15  # inches of the overview and of its parts
_SCALE, _DPI = 0.65, 130  # of the figures on it, and their resolution
_PAIRS = 10  # lines that can be told apart
_SAME = 1e-5  # values that differ by less are equal


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


def main_figures(record: xr.DataTree, sample: int | str = 0) -> dict[str, Figure]:
    """The four figures to look at first: "llm-mass", "llm-entropy", "llm-heatmaps" (of a video
    "llm-frames" too), as far as the record has numbers for them, and "overview", a page on which
    all others are small.

    sample: of the heat maps. Raises ProbeError as `figures` does.
    """
    drawn = figures(record, sample)
    stack = "llm" if "llm" in record.children else next(iter(record.children))
    first = {f"{stack}-{name}" for name in ("mass", "entropy", "heatmaps", "frames")}
    main: dict[str, Figure] = {}
    rest: dict[str, Figure] = {}
    for name, figure in drawn.items():
        group = main if name in first else rest
        group[name] = figure
    if rest:
        main["overview"] = _overview(rest, record)
    return main


def _overview(drawn: dict[str, Figure], record: xr.DataTree) -> Figure:
    """A page of figures, all at one scale, each as an image under its name."""
    images = {name: _rendered(figure) for name, figure in drawn.items()}
    inches: dict[str, np.ndarray] = {}
    for name, image in images.items():
        pixel_height, pixel_width = image.shape[:2]
        inches[name] = np.array([pixel_width, pixel_height]) / _DPI * _SCALE
    rows = _rows({name: float(size[0]) for name, size in inches.items()})
    heights = []
    for row in rows:
        highest = max(float(inches[name][1]) for name in row)
        heights.append(highest + _NAME)
    page = Figure(figsize=(_PAGE, sum(heights) + _TITLE))
    width, height = page.get_size_inches()
    top = height - _TITLE
    for row, row_height in zip(rows, heights, strict=True):
        left = 0.0
        for name in row:
            own_width, own_height = inches[name]
            bottom = top - _NAME - own_height
            place = (left / width, bottom / height, own_width / width, own_height / height)
            axis = page.add_axes(place)
            axis.set_axis_off()
            axis.imshow(images[name], interpolation="antialiased", aspect="auto")
            title(axis, name)
            left += own_width + _GAP
        top -= row_height
    model = next(iter(labelled(record, "plots.main_figures")))
    heading(page, f"{model}: the other figures of this record (plots.figures draws them all)")
    return page


def _rows(widths: dict[str, float]) -> list[list[str]]:
    """Names in rows that are not wider than the page, in their order."""
    rows, room = [[]], _PAGE
    for name, width in widths.items():
        if rows[-1] and width > room:
            rows.append([])
            room = _PAGE
        rows[-1].append(name)
        room -= width + _GAP
    return rows


def _rendered(figure: Figure) -> np.ndarray:
    """The pixels of a figure, of shape (height, width, 4)."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def _of_stack(record: xr.DataTree, sample: int | str, stack: str) -> dict[str, Axes | Figure]:
    measured = node(record, stack)
    query = default_query(measured)
    on_image = has_values(measured, sample, query)
    drawn: dict[str, Axes | Figure] = {}
    if query == "compressed" and on_image:
        drawn["compression"] = compression(record, sample)
    if query == "compressed" and measured.sizes["key_type"] == measured.sizes["layer"] == 1:
        return drawn  # one layer and only patches: lines over layers and types would say nothing
    for value in ("mass", "share", "lift", "contribution"):
        if value == "share" and value in measured and not differ(measured, "mass", value, _SAME):
            continue  # every query sees the image: the figure would be that of mass
        if value in measured and not bool(np.isnan(largest(measured, value)).all()):
            drawn[value] = mass(record, stack, value)
    keys = _key_types(measured)
    if "entropy" in measured and "head_entropy" in measured:
        drawn["entropy"] = entropy(record, stack, key_types=keys)
    if "entropy_ratio" in measured and "head_entropy_ratio" in measured:
        drawn["entropy-ratio"] = entropy(record, stack, ratio=True, key_types=keys)
    if _reads_vision(measured, query):
        drawn["heads"] = heads(record, query, "vision", stack)
    if on_image:
        drawn["heatmaps"] = heatmaps(record, sample, query, stack=stack)
    if on_image and has_frames(measured, sample):
        drawn["frames"] = frames(record, sample, query, stack=stack)
    return drawn


def _reads_vision(measured: xr.Dataset, query: str) -> bool:
    """Whether any head has a number for query → vision: not where words read it elsewhere."""
    if "vision" not in measured["key_type"].values:
        return False
    to_vision = largest(measured, "mass").sel(query_type=query, key_type="vision")
    return bool(to_vision.notnull().any())


def _key_types(measured: xr.Dataset) -> str | None:
    """The keys of the lines: only vision where all pairs would be too many to tell apart."""
    counts = largest(measured, "query_count")
    pairs = counts.max([dim for dim in counts.dims if dim not in ("query_type", "key_type")]) > 0
    known = "vision" in pairs["key_type"].values and bool(pairs.sel(key_type="vision").any())
    return "vision" if known and int(pairs.sum()) > _PAIRS else None


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
    if has_parts(results):
        drawn["dropped_parts"] = dropped_parts(results, value=value)
    return {name: unmanaged(one) for name, one in drawn.items()}
