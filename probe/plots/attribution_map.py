"""What each region of the image and each word contributes to the answer, drawn where they are."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probe.errors import ProbeError
from probe.plots.patches import View, draw_patches
from probe.plots.style import (
    GREY,
    VERMILION,
    caption,
    figure_of,
    finish,
    panels,
    styled,
    title,
)

_CALLED = "plots.attribution"
_SIGNED = "PuOr_r"  # orange speaks for the answer, violet against it
_AGAINST = "#7F3B9E"  # that violet
_NAT = "nat"
_UNIT = "nat of the answer's log-probability"
_LEAST = 0.01  # of the largest effect in a figure: no scale ends below
_VISIBLE = 0.005  # of an axis: shorter bars can't be seen
_SMALLEST = 1e-3  # nat; the same where everything is smaller


@styled()
def attribution(dataset: Any, image: int = 0, *, ax: Any = None) -> Figure:
    """The map of an attribution over its image and, to the right, its words as bars; a row a
    dataset.

    How to read it: orange regions (bars to the right) make the answer more probable, violet ones
    (bars to the left) less probable, by as many nat as the scale says. All maps share one scale,
    symmetric around zero, and so do all bars; neither ends below 1 % of the largest effect in the
    figure, so that what is negligible looks so. Maps in other units (of `probe.flow`) have
    a scale for each unit.

    Args:
        dataset: of `probe.attribute` or `probe.flow`, or {label: dataset}.
        image: which image, from 0; of a video which frame.
        ax: two Axes for each dataset.

    Raises ProbeError for anything that is not an attribution, and an image that it does not have.
    """
    datasets = attributions(dataset, _CALLED)
    axes = panels(ax, len(datasets), 2, (4.8, 3.6), _CALLED)
    in_nat = [one for one in datasets.values() if _units(one) == _NAT]
    words = _word_limits(in_nat)
    for (map_axis, word_axis), (name, one) in zip(axes, datasets.items(), strict=True):
        _words(word_axis, one, words)
        if not (one["feature_kind"] == "region").any():
            map_axis.set_axis_off()
            continue
        alike = [other for other in datasets.values() if _units(other) == _units(one)]
        draw_attribution(map_axis, one, image, map_reach(alike))
        method = one.attrs["method"]
        baseline = f"baseline {one.attrs['baseline']}{which(one, image)}"
        says_method = len(datasets) == 1 or name.replace(" ", "_").lower() == method
        label = _readable(method) if says_method else f"{name}: {_readable(method)}"
        title(map_axis, f"{label}\n{baseline}")
    floor = f"{_floor(in_nat):.2g} nat (1 % of the largest effect in the figure)"
    scale = f"one scale for all maps, one for all bars, each at least to {floor}"
    if len(in_nat) < len(datasets):
        scale = "a scale for each unit" + f"; in nat: {scale}" * bool(in_nat)
    models = ", ".join(dict.fromkeys(str(one.attrs["model"]) for one in datasets.values()))
    summaries = [_summary(one) for one in datasets.values()]
    if len(summaries) > 1:
        summaries = [
            f"{_readable(name)}: {text}" for name, text in zip(datasets, summaries, strict=True)
        ]
    lines = [models, *summaries, scale]
    caption(axes, lines, datasets, own=ax is None)
    return figure_of(axes)


def which(dataset: xr.Dataset, image: int) -> str:
    """Which image the map shows, where there are several; frames of a video are images."""
    shown = np.unique(dataset["patch_image"].values[dataset["patch_feature"].values >= 0])
    several = len(shown) > 1 or image > 0
    return f"; image {image + 1} of {len(dataset['images'])}" if several else ""


def _readable(method: str) -> str:
    return method.replace("_", " ")


def attributions(dataset: Any, called: str) -> dict[str, xr.Dataset]:
    """{label: dataset} of one attribution or several."""
    if isinstance(dataset, xr.Dataset) or not isinstance(dataset, Mapping):
        dataset = {"": dataset}
    datasets: dict[str, Any] = {
        str(name) or str(getattr(one, "attrs", {}).get("method")): one
        for name, one in dataset.items()
    }
    types = [
        type(one).__name__
        for one in datasets.values()
        if not isinstance(one, xr.Dataset) or "attribution" not in one
    ]
    if types or not datasets:
        raise ProbeError(
            called,
            expected="an attribution (of probe.attribute) or {label: attribution}",
            got=types[0] if types else "none",
        )
    return datasets


def map_reach(datasets: Iterable[xr.Dataset]) -> float:
    """The end of the scale that maps in one unit share: their largest absolute value, at least the
    floor.
    """
    datasets = list(datasets)
    values = np.concatenate([_values_of(one, regions=True) for one in datasets])
    return max(float(np.abs(values).max(initial=0)), _floor(datasets)) or 1.0


def _units(dataset: xr.Dataset) -> str:
    return dataset["attribution"].attrs.get("units", _NAT)


def _word_limits(datasets: Iterable[xr.Dataset]) -> tuple[float, float]:
    """The limits that the bars of a figure share; the longest side is at least the floor."""
    datasets = list(datasets)
    values = np.concatenate([np.zeros(0), *(_values_of(one, regions=False) for one in datasets)])
    low = float(values.min(initial=0))
    high = float(values.max(initial=0))
    floor = _floor(datasets)
    if max(-low, high) < floor:
        low = -floor if low < 0 else 0.0
        high = floor
    return 1.05 * low, 1.05 * high


def _floor(datasets: Iterable[xr.Dataset]) -> float:
    """1 % of the largest effect in a figure: of a feature, or of all features together."""
    datasets = list(datasets)
    in_nat = all(_units(one) == _NAT for one in datasets)
    largest = _SMALLEST / _LEAST if in_nat else 0.0
    for one in datasets:
        together = np.abs(float(one["logprob"]) - float(one["logprob_without"]))
        alone = np.abs(one["attribution"].values).max(initial=0)
        largest = max(largest, float(alone), float(np.nan_to_num(together)))
    return _LEAST * largest


def _values_of(dataset: xr.Dataset, regions: bool) -> Float[np.ndarray, "feature"]:
    is_region = dataset["feature_kind"].values == "region"
    return dataset["attribution"].values[is_region == regions]


def draw_attribution(axis: Axes, dataset: xr.Dataset, image: int, reach: float) -> None:
    """The map of an attribution, with its colour bar, which ends at `reach`."""
    values = dataset["attribution"].values
    drawn = draw_regions(axis, dataset, values, TwoSlopeNorm(0, -reach, reach), _SIGNED, image)
    axis.figure.colorbar(drawn, ax=axis, label=_label(dataset), shrink=0.8)


def _label(dataset: xr.Dataset) -> str:
    units = _units(dataset)
    return _UNIT if units == _NAT else units


def draw_regions(
    axis: Axes,
    dataset: xr.Dataset,
    values: Float[np.ndarray, "feature"],
    norm: Normalize,
    colours: str,
    image: int = 0,
) -> PolyCollection:
    """Values of the regions, each over the patches of the whole image that lie in it."""
    owner = dataset["patch_image"].values
    tile = dataset["patch_tile"].values
    feature = dataset["patch_feature"].values
    inside = (owner == image) & (tile == 0) & (feature >= 0)
    if not inside.any():
        known = ", ".join(map(str, np.unique(owner[(tile == 0) & (feature >= 0)]).tolist()))
        raise ProbeError("plots", expected=f"image={known}, which has regions", got=str(image))
    shown = values[feature[inside]]
    height, width = dataset["image_size"].values[image]
    pixels = dataset["images"].values[image, :height, :width]
    view = View("", pixels, dataset["patch_box"].values[inside], shown[None])
    return draw_patches(axis, view, shown, norm, colours)


def _words(axis: Axes, dataset: xr.Dataset, limits: tuple[float, float]) -> None:
    """A bar a word, in the order of the prompt."""
    others = dataset["feature_kind"].values != "region"
    names = dataset["feature"].values[others]
    values = dataset["attribution"].values[others]
    if not len(names):
        axis.set_axis_off()
        return
    place = np.arange(len(names))
    colours = np.where(values < 0, _AGAINST, VERMILION)
    axis.barh(place, values, color=colours, height=0.7)
    axis.set_yticks(place, names, fontsize=8, parse_math=False)
    axis.invert_yaxis()
    axis.set_xlim(limits)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.axvline(0, color=GREY, linewidth=0.8)
    largest = float(np.abs(values).max())
    if largest < _VISIBLE * (limits[1] - limits[0]):
        told = f"the longest bar is {largest:.2g} nat"
        axis.text(0.5, 0.5, told, transform=axis.transAxes, ha="center", color=GREY, fontsize=8)
    words = "word" in dataset["feature_kind"].values
    finish(axis, "words of the prompt" if words else "vision read in each layer", xlabel=_UNIT)


def _summary(dataset: xr.Dataset) -> str:
    """The answer, its log-probability, and what all features contribute to it."""
    logprob = round(float(dataset["logprob"]), 2) + 0.0  # not -0.00
    without = float(dataset["logprob_without"])
    delta = float(dataset["delta"])
    summary = f"answer {dataset.attrs['response']!r}, log-probability {logprob:.2f}"
    if not np.isnan(without):
        summary += f"; all features contribute {logprob - without:.2f} nat"
        if not np.isnan(delta):
            summary += f" (the sum of attributions differs by {delta:+.2g})"
    return summary
