"""What the answer owes to each region of the image and to each word, drawn where they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from probe.errors import ProbeError
from probe.plots.on_image import draw_patches
from probe.plots.style import caption, panels, title
from probe.plots.views import View

OWED = "PuOr_r"  # orange speaks for the answer, violet against it
UNIT = "nat of the answer's log-probability"


def attribution(found: Any, image: int = 0, *, ax: Any = None) -> np.ndarray:
    """The map of an attribution over its image, and the words as bars beside it; a row a dataset.

    found: a dataset of `probe.attribute`, or {label: dataset}. Each map has a scale of its own,
    symmetric around zero. Returns Axes (dataset, 2). Raises ProbeError for what is no attribution
    and an image that it does not have.
    """
    named = attributions(found, "plots.attribution")
    axes = panels(ax, len(named), 2, (4.2, 3.4), "plots.attribution")
    for (map_, bars), (name, one) in zip(axes, named.items(), strict=True):
        _words(bars, one)
        regions = one["attribution"].values[one["feature_kind"].values == "region"]
        if not len(regions):
            map_.set_axis_off()
            continue
        reach = float(np.abs(regions).max(initial=0)) or 1.0
        drawn = draw_regions(
            map_, one, one["attribution"].values, TwoSlopeNorm(0, -reach, reach), OWED, image
        )
        map_.figure.colorbar(drawn, ax=map_, label=UNIT, shrink=0.85)
        title(
            map_,
            f"{name}: {one.attrs['method']}, baseline {one.attrs['baseline']}"
            if len(named) > 1
            else f"{one.attrs['method']}, baseline {one.attrs['baseline']}",
        )
    caption(axes, [_told(one) for one in named.values()], named, own=ax is None)
    return axes


def attributions(found: Any, called: str) -> dict[str, xr.Dataset]:
    """{label: dataset} of one attribution or several."""
    named = (
        found if isinstance(found, Mapping) and not isinstance(found, xr.Dataset) else {"": found}
    )
    named = {
        str(name) or str(getattr(one, "attrs", {}).get("method")): one
        for name, one in named.items()
    }
    wrong = [
        one for one in named.values() if not isinstance(one, xr.Dataset) or "attribution" not in one
    ]
    if wrong or not named:
        got = type(wrong[0]).__name__ if wrong else "none"
        raise ProbeError(
            called, expected="an attribution (of probe.attribute) or {label: attribution}", got=got
        )
    return named


def draw_regions(
    axis: Axes,
    found: xr.Dataset,
    values: Float[np.ndarray, "feature"],
    norm: Normalize,
    colours: str,
    image: int = 0,
) -> PolyCollection:
    """Values of the regions, each over the patches of the whole image that lie in it."""
    owner, tile, feature = (found[f"patch_{name}"].values for name in ("image", "tile", "feature"))
    here = (owner == image) & (tile == 0) & (feature >= 0)
    if not here.any():
        raise ProbeError(
            "plots",
            expected=f"an image with regions, 0 to {int(owner.max(initial=0))}",
            got=str(image),
        )
    shown = values[feature[here]]
    height, width = found["image_size"].values[image]
    view = View(
        "",
        found["images"].values[image, :height, :width],
        found["patch_box"].values[here],
        shown[None],
    )
    return draw_patches(axis, view, shown, norm, colours)


def _words(axis: Axes, found: xr.Dataset) -> None:
    """A bar a word, in the order of the prompt."""
    there = found["feature_kind"].values != "region"
    names, values = found["feature"].values[there], found["attribution"].values[there]
    if not len(names):
        axis.set_axis_off()
        return
    place = np.arange(len(names))
    axis.barh(place, values, color=np.where(values < 0, "#7F3B9E", "#D55E00"), height=0.7)
    axis.set_yticks(place, names, fontsize=8, parse_math=False)
    axis.invert_yaxis()
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_xlabel(UNIT, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    title(
        axis,
        "words of the prompt"
        if "word" in found["feature_kind"].values
        else "vision read in each layer",
    )


def _told(found: xr.Dataset) -> str:
    delta = float(found["delta"])
    off = "" if np.isnan(delta) else f"; attributions sum to all features' worth {delta:+.3g} nat"
    worth = float(found["logprob"] - found["logprob_without"])
    told = "" if np.isnan(worth) else f"; all features are worth {worth:.2f} nat{off}"
    return (
        f"answer {found.attrs['response']!r}, log-probability {float(found['logprob']):.2f}{told}"
    )
