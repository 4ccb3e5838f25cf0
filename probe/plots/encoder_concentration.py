"""Why few patches are enough: how the encoder's attention concentrates on them from layer to layer,
and why softmax makes it do so.

    dataset = probe.measures.encoder_concentration.concentration(subject, images)
    plots.concentration(dataset)      # share of the best patches, Gini, entropy, overlap
    plots.softmax_gradient(dataset)   # the gradient of a weight, and where the weights lie on it

Source: arXiv 2412.04467, its figures on the redundancy of vision tokens and on the gradient of
softmax.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.errors import ProbeError
from probe.plots.arguments import require
from probe.plots.style import (
    BLACK,
    GREY,
    Look,
    below,
    caption,
    figure_of,
    finish,
    layer_label,
    legend,
    looks,
    panels,
    styled,
)

_MADE_BY = "what probe.measures.encoder_concentration.concentration returns"
_REFERENCE = {"color": GREY, "linewidth": 0.9, "linestyle": "--", "zorder": 0}
_BINS = np.logspace(-5, 0, 51).tolist()


@styled()
def concentration(dataset: xr.Dataset, *, ax: Any = None) -> Figure:
    """Three panels over the encoder's layers. Lines are means over views, bands reach from the 10th
    to the 90th percentile of views; the dotted vertical line is the layer that the LLM reads.

    How to read it: left, the share of attention that the k best patches hold (dashed: an even
    spread). Middle, Gini coefficient (0: even, 1: one patch has everything) and entropy ratio (1:
    even). Right, how many of a layer's best patches are also the best of the layer that the LLM
    reads (dashed: by chance).

    dataset: of `probe.measures.encoder_concentration.concentration`; ax: three Axes. Raises
    ProbeError for anything else.
    """
    dataset = require(dataset, "top_share", "plots.concentration", _MADE_BY)
    axes = panels(ax, 1, 3, (3.5, 3.6), "plots.concentration")
    patches = int(dataset.attrs["patch_count"])
    read = int(dataset.attrs["read_layer"]) + 1
    best = max(1, round(float(dataset.attrs["best"]) * patches))
    shares = dataset["top_share"]
    top = {f"{k} of {patches}": shares.sel(k=k) for k in dataset["k"].values.tolist()}
    unevenness = {
        "Gini": dataset["gini"],
        "Gini, each head alone": dataset["head_gini"].mean("head"),
        "entropy / log(patches)": dataset["entropy"] / np.log(patches),
    }
    overlap = {f"overlap of the {best} best": dataset["kept_from_last"]}
    texts = (
        "share of attention held by the best",
        "how uneven the attention is",
        f"best in this layer and in layer {read}",
    )
    for axis, text, curves in zip(axes.flat, texts, (top, unevenness, overlap), strict=True):
        for (name, values), look in zip(curves.items(), looks(curves).values(), strict=True):
            _line(axis, values, name, look)
        axis.axvline(read, color=GREY, linewidth=1, linestyle=":", zorder=0)
        finish(
            axis,
            text,
            layers=dataset.sizes["layer"],
            ylim=(0, 1.02),
            xlabel=layer_label("vision"),
            ylabel="fraction",
        )
    for k, look in zip(dataset["k"].values.tolist(), looks(top).values(), strict=True):
        axes[0, 0].axhline(k / patches, **_REFERENCE | {"color": look.color})
    axes[0, 2].axhline(best / patches, label="by chance", **_REFERENCE)
    for axis in axes.flat:
        legend(axis, **below(axis))
    return _with_caption(axes, dataset, ax is None)


@styled()
def softmax_gradient(
    dataset: xr.Dataset, layers: Sequence[int] | None = None, *, ax: Any = None
) -> Figure:
    """The gradient a (1 - a) of an attention weight a by its own score and, below it, how many
    patches have which weight, heads averaged.

    How to read it: the further right a weight lies, the more a step of training changes it; the
    few patches there are those that attention concentrates on. Both panels share the x axis.

    Args:
        layers: counted from 0; by default the first, the middle one, and the one the LLM reads.
        ax: two Axes.

    Raises ProbeError for a layer that there is not, and for a dataset that
    `probe.measures.encoder_concentration.concentration` did not make.
    """
    called = "plots.softmax_gradient"
    dataset = require(dataset, "top_share", called, _MADE_BY)
    read = int(dataset.attrs["read_layer"])
    drawn = sorted({0, read // 2, read}) if layers is None else list(layers)
    if wrong := [layer for layer in drawn if not 0 <= layer < dataset.sizes["layer"]]:
        raise ProbeError(
            called, expected=f"layers from 0 to {dataset.sizes['layer'] - 1}", got=str(wrong[0])
        )
    axes = panels(ax, 2, 1, (4.6, 2.4), called)
    gradient, histogram = axes.flat
    weights = np.logspace(-5, 0, 400)
    gradient.plot(weights, weights * (1 - weights), color=BLACK)
    logarithmic = {"xscale": "log", "xlim": (1e-5, 1)}
    text = "the larger a weight (up to a half), the more it is moved"
    finish(gradient, text, ylabel="∂a / ∂score = a (1 − a)", ylim=(0, 0.27), **logarithmic)
    for layer, look in zip(drawn, looks(map(str, drawn)).values(), strict=True):
        _histogram(histogram, dataset["received"].isel(layer=layer).values.ravel(), layer, look)
    even = 1 / int(dataset.attrs["patch_count"])
    histogram.axvline(even, label="even spread", **_REFERENCE)
    xlabel = "attention weight a of a patch (patches only, head mean)"
    finish(histogram, "", xlabel=xlabel, ylabel="fraction of patches", **logarithmic)
    legend(histogram)
    return _with_caption(axes, dataset, ax is None)


def _line(axis: Axes, values: xr.DataArray, name: str, look: Look) -> None:
    frame = values.rename("value").to_dataframe().reset_index()
    frame["layer"] += 1
    sns.lineplot(
        frame,
        x="layer",
        y="value",
        label=name,
        ax=axis,
        legend=False,
        errorbar=("pi", 80),
        err_kws={"linewidth": 0, "alpha": 0.15},
        color=look.color,
        marker=look.marker,
        markeredgewidth=0,
        markersize=4,
    )


def _histogram(axis: Axes, weights: Float[np.ndarray, " patch"], layer: int, look: Look) -> None:
    """Of the weights of all patches, those below the axis left out."""
    shares = np.full(weights.shape, 1 / len(weights))
    name = f"layer {layer + 1}"
    axis.hist(weights, _BINS, weights=shares, histtype="step", color=look.color, label=name)


def _with_caption(axes: np.ndarray, dataset: xr.Dataset, own: bool) -> Figure:
    attrs = dataset.attrs
    views = f"{dataset.sizes['view']} views of {attrs['patch_count']} patches"
    note = f"{attrs['model']}: attention of {attrs['attention_of']}, {views}"
    caption(axes, [note], {str(attrs["model"]): dataset}, own)
    return figure_of(axes)
