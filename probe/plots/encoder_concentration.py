"""Why few patches are enough: how the encoder's attention gathers on them from layer to layer, and
why softmax does so.

    found = probe.reducers.concentration(subject, images)
    plots.concentration(found)                  # share of the k best, Gini and entropy, and since when they are best
    plots.softmax_gradient(found)               # the gradient of a weight, and where the encoder's weights lie on it

Source: arXiv 2412.04467, its figures on the redundancy of vision tokens and on the gradient of
softmax.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.errors import ProbeError
from probe.plots.style import caption, count_from_one, layer_label, panels, title

_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def concentration(found: xr.Dataset, *, ax: Any = None) -> np.ndarray:
    """Three panels over the encoder's layers: the share held by the k best patches (dashed: an even
    spread), Gini and entropy ratio, and the overlap of each layer's best patches with those of the
    layer that the LLM reads (dotted line: that layer). Lines are means over views, bands reach from
    the 10th to the 90th percentile of views.

    Returns Axes of shape (1, 3). Raises ProbeError for what `probe.reducers.concentration` did not
    make.
    """
    _check(found, "plots.concentration")
    axes = panels(ax, 1, 3, (3.5, 3.1), "plots.concentration")
    patches = int(found.attrs["patch_count"])
    for i, k in enumerate(found["k"].values.tolist()):
        _line(axes[0, 0], found["top_share"].sel(k=k), f"{k} of {patches}", i)
        axes[0, 0].axhline(
            k / patches, color=_COLOURS[i % len(_COLOURS)], lw=0.7, ls="--", zorder=0
        )
    title(axes[0, 0], "share of attention held by the best")
    _line(axes[0, 1], found["gini"], "Gini", 1)
    _line(axes[0, 1], found["head_gini"].mean("head"), "Gini, each head alone", 2)
    _line(axes[0, 1], found["entropy"] / np.log(patches), "entropy / log(patches)", 3)
    title(axes[0, 1], "how uneven the attention is")
    best = max(1, round(float(found.attrs["best"]) * patches))
    _line(axes[0, 2], found["kept_from_last"], f"overlap of the {best} best", 1)
    axes[0, 2].axhline(best / patches, color="0.5", lw=0.8, ls="--", label="by chance")
    title(axes[0, 2], f"best here and in layer {int(found.attrs['read_layer']) + 1}")
    for axis in axes.flat:
        axis.axvline(int(found.attrs["read_layer"]) + 1, color="0.6", lw=1, ls=":", zorder=0)
        axis.set(ylim=(0, 1.02), xlabel=layer_label("vision"), ylabel="fraction")
        count_from_one(axis.xaxis, found.sizes["layer"])
        axis.legend(fontsize=7, frameon=False, loc="best")
    _note(axes, found, ax is None)
    return axes


def softmax_gradient(
    found: xr.Dataset, layers: Sequence[int] | None = None, *, ax: Any = None
) -> np.ndarray:
    """The gradient a (1 - a) of an attention weight by its own score, and below it where the
    encoder's weights lie: how many patches of these layers (from 0; by default first, middle and
    the one that the LLM reads) have which weight, heads averaged. Returns Axes of shape (2, 1).
    """
    _check(found, "plots.softmax_gradient")
    read = int(found.attrs["read_layer"])
    chosen = sorted({0, read // 2, read}) if layers is None else list(layers)
    if wrong := [layer for layer in chosen if not 0 <= layer < found.sizes["layer"]]:
        expected = f"layers from 0 to {found.sizes['layer'] - 1}"
        raise ProbeError("plots.softmax_gradient", expected=expected, got=str(wrong[0]))
    axes = panels(ax, 2, 1, (4.6, 2.4), "plots.softmax_gradient")
    weights = np.logspace(-5, 0, 400)
    axes[0, 0].plot(weights, weights * (1 - weights), color="black", lw=1.5)
    axes[0, 0].set(xscale="log", ylabel="∂a / ∂score = a (1 − a)", xlim=(1e-5, 1), ylim=(0, 0.27))
    title(axes[0, 0], "the larger a weight (up to a half), the more it is moved")
    for i, layer in enumerate(chosen):
        values = found["received"].isel(layer=layer).values.ravel()
        look = {
            "color": _COLOURS[1 + i % 6],
            "histtype": "step",
            "lw": 1.4,
            "label": f"layer {layer + 1}",
        }
        axes[1, 0].hist(
            values,
            bins=list(np.logspace(-5, 0, 51)),
            weights=np.full(values.shape, 1 / len(values)),
            **look,
        )
    axes[1, 0].set(
        xscale="log",
        xlim=(1e-5, 1),
        xlabel="attention weight a of a patch (patches only, head mean)",
        ylabel="fraction of patches",
    )
    axes[1, 0].axvline(
        1 / int(found.attrs["patch_count"]), color="0.5", lw=0.8, ls="--", label="even spread"
    )
    axes[1, 0].legend(fontsize=7, frameon=False)
    _note(axes, found, ax is None)
    return axes


def _line(axis: Axes, values: xr.DataArray, label: str, index: int) -> None:
    layer = values["layer"].values + 1
    low, mean, high = (
        values.quantile(0.1, "view"),
        values.mean("view"),
        values.quantile(0.9, "view"),
    )
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    axis.plot(layer, mean, marker=marker, ms=3.5, lw=1.3, label=label, color=colour)
    axis.fill_between(layer, low, high, alpha=0.15, lw=0, color=colour)


def _check(found: xr.Dataset, called: str) -> None:
    if not isinstance(found, xr.Dataset) or "top_share" not in found:
        raise ProbeError(
            called, expected="what probe.reducers.concentration returns", got=type(found).__name__
        )


def _note(axes: np.ndarray, found: xr.Dataset, own: bool) -> None:
    model, weights, patches = (
        str(found.attrs[name]) for name in ("model", "weights", "patch_count")
    )
    views = f"{found.sizes['view']} views of {patches} patches"
    lines = [f"{model}: attention {weights}, {views}"]
    caption(axes, lines, {model: found}, own)
