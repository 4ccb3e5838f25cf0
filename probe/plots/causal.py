"""What carries the answer: heads ranked by their effect, layers and positions that bring it back,
steering.

    plots.head_effects(sweep, record)      # of probe.head_sweep, beside attention of the same heads
    plots.recovered(sweep)                 # of probe.patch_sweep: layer x group of positions
    plots.steering(curve)                  # of probe.steering_curve: effect over scale
"""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probe.plots.arguments import default_query, require
from probe.plots.sample_mean import average
from probe.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    VERMILION,
    below,
    caption,
    figure_of,
    finish,
    heading,
    layer_label,
    legend,
    panels,
    shade,
    styled,
    title,
)
from probe.records import node
from probe.records.bootstrap import bootstrap, paired
from probe.records.head_effects import BESIDE, SCHEMA
from probe.records.head_effects import head_effects as effects_of
from probe.records.patch_effects import DIRECTIONS, recovered_share
from probe.records.significance import RATE

_ROW = 0.24  # inches of a head
_MODES = {
    "zero": "the head's part set to 0",
    "mean": "the head's part set to its mean over the prompt",
    "uniform": "the head made to attend evenly",
    "no_vision": "the head's text queries kept from vision keys",
}
_OF_STACK = {
    "cross": "heads of cross-attention to the image; ",
    "prefusion": "heads of pre-fusion; ",
}
_CORRUPTIONS = {
    "given": "each question's own counterpart",
    "image": "another question's image",
    "blank": "a grey image",
    "noise": "noise",
    "question": "another question",
}


@styled()
def head_effects(
    sweep: Any, record: xr.DataTree | None = None, top: int = 16, *, ax: Any = None
) -> Figure:
    """The heads with the largest effect on the gold answer, beside their mass, entropy and
    contribution.

    How to read it: a row is a head, the largest effect on top; to the right of 0 the answer needs
    the head. Blue is what of the effect depends on the image: the effect less that about another
    image. Filled points are significant. Layers and heads count from 1.

    Args:
        sweep: of `head_sweep`.
        record: a measurement of the same model; its values are those of response → vision (or what
            comes nearest), mean over samples. By default what was measured with the sweep, by
            `probe heads`.
        top: heads that are drawn.
        ax: one Axes, and one more for each value of the record.

    Raises ProbeError for anything else than a head sweep.
    """
    called = "plots.head_effects"
    made_by = "a head sweep (of probe.head_sweep)"
    sweep = require(sweep, "untouched_gold_logprob", called, made_by)
    frame = effects_of(sweep)
    shown = frame.iloc[: min(top, len(frame))]
    values = _measured(sweep)
    if record is not None:
        values = _beside(record, str(sweep.attrs["stack"]))
    height = max(2.6, len(shown) * _ROW + 1.4)
    axes = panels(ax, 1, 1 + len(values), (3.6, height), called).ravel()
    _ranked(axes[0], shown)
    for axis, (name, mean) in zip(axes[1:], values.items(), strict=True):
        cells = mean.values[shown["layer"].to_numpy(), shown["head"].to_numpy()]
        axis.barh(np.arange(len(shown)), cells, color=GREY, height=0.6)
        axis.set(yticks=[], ylim=(len(shown) - 0.4, -0.6))
        finish(axis, name, xlabel=f"{name} ({mean.attrs['units']})")
    if ax is None:
        heading(figure_of(axes), f"What heads add to the answer · {sweep.attrs['model']}")
    note = (
        f"{sweep.sizes['sample']} questions on {_images(sweep['image'])}; "
        f"{_OF_STACK.get(str(sweep.attrs.get('stack')), '')}"
        f"{_MODES[str(sweep.attrs['mode'])]}; intervals: 95 %, bootstrap over images; filled: "
        f"significant at a false discovery rate of {100 * RATE:.0f} % among {len(frame)} heads"
    )
    caption(axes, [note], {"": sweep}, own=ax is None)
    return figure_of(axes)


def _measured(sweep: xr.Dataset) -> dict[str, xr.DataArray]:
    """What was measured with the sweep: values of each head, (layer, head), mean over samples."""
    return {
        f"{name}, response → vision": sweep[name].mean("sample").assign_attrs(SCHEMA[name].attrs)
        for name in BESIDE
        if name in sweep and sweep[name].notnull().any()  # not where words read across
    }


def _beside(record: xr.DataTree, stack: str) -> dict[str, xr.DataArray]:
    """Values of each head, (layer, head): query → vision."""
    measured = node(record, stack)
    query = default_query(measured)
    known = [name for name in BESIDE if name in measured]
    means = {name: average(record, stack, name, per_head=True, band=False).mean for name in known}
    return {
        f"{name}, {query} → vision": mean.sel(query_type=query, key_type="vision")
        for name, mean in means.items()
    }


def _ranked(axis: Axes, shown: pd.DataFrame) -> None:
    """Effects with their intervals, one row a head."""
    place = np.arange(len(shown))
    significant = shown["significant"].to_numpy(dtype=bool)
    handles = {}
    for name, text, colour, shift in (
        ("effect", "effect", BLACK, -0.12),
        ("picture_effect", "of which: of the image", BLUE, 0.12),
    ):
        centre = shown[name].to_numpy(dtype=float)
        if np.isnan(centre).all():
            continue  # without a control
        low = shown[f"{name}_low"].to_numpy(dtype=float)
        high = shown[f"{name}_high"].to_numpy(dtype=float)
        reach = np.nan_to_num([centre - low, high - centre]).clip(0)
        face = [colour if filled else "white" for filled in significant]
        axis.errorbar(centre, place + shift, xerr=reach, fmt="none", ecolor=colour, elinewidth=1)
        axis.scatter(centre, place + shift, s=20, c=face, edgecolors=colour, zorder=3)
        handles[text] = Line2D([], [], color=colour, marker="o", linestyle="none")
    axis.axvline(0, color=LIGHT_GREY, zorder=0)
    heads = zip(shown["layer"], shown["head"], strict=True)
    axis.set_yticks(place, [f"layer {layer + 1}, head {head + 1}" for layer, head in heads])
    axis.set_ylim(len(shown) - 0.4, -0.6)
    finish(axis, "gold answer", xlabel="loss of log p (nat)")
    legend(axis, handles, **below(axis))


@styled()
def recovered(sweep: Any, *, ax: Any = None) -> Figure:
    """The share of the log-probability difference that a patch moves, layer x group of positions.

    How to read it: denoising, 1 means that clean activations there bring the answer back; noising,
    1 means that corrupted ones there take it away. Red is above 0, blue below; the first layer is
    on top. In brackets: the 95 % interval of the largest share.

    Args:
        sweep: of `patch_sweep` or `attribution_patching`.
        ax: one Axes for each direction.

    Raises ProbeError for anything else.
    """
    called = "plots.recovered"
    sweep = require(sweep, "patched", called, "a patch sweep (of probe.patch_sweep)")
    directions = [name for name in DIRECTIONS if name in sweep["direction"].values]
    groups = [str(name) for name in sweep["group"].values]
    layers = sweep["layer"].values + 1
    size = 1.9 + 0.62 * len(groups), max(3.0, 1.8 + 0.22 * len(layers))
    axes = panels(ax, 1, len(directions), size, called).ravel()
    shares = {direction: recovered_share(sweep, direction) for direction in directions}
    known = np.abs([interval.estimate for interval in shares.values()])
    limit = max(1.0, float(np.nanmax(known, initial=0.0)))
    for axis, (direction, interval) in zip(axes, shares.items(), strict=True):
        image = _cells(axis, interval.estimate, limit)
        axis.set_xticks(range(len(groups)), groups, rotation=40, ha="right")
        step = max(1, len(layers) // 12)
        axis.set_yticks(range(0, len(layers), step), layers[::step].tolist())
        axis.set(ylabel=layer_label(str(sweep.attrs["stack"])), xlabel="positions patched")
        name = "share brought back" if direction == "denoise" else "share taken away"
        title(axis, f"{direction}: {_largest(interval)}")
        figure_of(axes).colorbar(image, ax=axis, label=f"{name} (1)")
    if ax is None:
        site = sweep.attrs["site"]
        model = sweep.attrs["model"]
        heading(figure_of(axes), f"What a patch at {site} moves · {model}")
    kind = "estimated by gradients; " if sweep.attrs["kind"] != "patch_sweep" else ""
    note = (
        f"{kind}{sweep.sizes['sample']} pairs on {_images(sweep['image'])}, corrupted by "
        f"{_CORRUPTIONS[str(sweep.attrs['corruption'])]}; share of "
        "Σ (log p clean − log p corrupted) of the gold answer; intervals: bootstrap over images"
    )
    caption(axes, [note], {"": sweep}, own=ax is None)
    return figure_of(axes)


def _cells(axis: Axes, values: Float[np.ndarray, "layer group"], limit: float) -> Any:
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad=LIGHT_GREY)
    return axis.imshow(values, colours, Normalize(-limit, limit), aspect="auto")


def _largest(interval: Any) -> str:
    """The largest share and its interval, in words."""
    if np.isnan(interval.estimate).all():
        return "no difference"
    at = np.unravel_index(np.nanargmax(interval.estimate), interval.estimate.shape)
    share = interval.estimate[at]
    low = interval.low[at]
    high = interval.high[at]
    bounds = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"largest {share:.2f}{bounds}"


@styled()
def steering(curve: Any, *, ax: Any = None) -> Figure:
    """The effect of steering over its scale: the gold answer's log-probability, accuracy, and how
    far the next token's distribution is from the untouched model's.

    How to read it: at scale 0 the model is untouched. Where accuracy falls and the divergence grows
    on both sides, the direction breaks the model rather than steering it.

    Args:
        curve: of `steering_curve`.
        ax: three Axes.

    Raises ProbeError for anything else.
    """
    called = "plots.steering"
    curve = require(curve, "steered_logprob", called, "a steering curve")
    axes = panels(ax, 1, 3, (3.6, 3.2), called).ravel()
    images = curve["image"].values.astype(str)
    scales = curve["scale"].values
    drawn = (
        ("steered_logprob", "gold answer", 1.0, BLUE),
        ("correct", "accuracy (%)", 100.0, GREEN),
        ("kl", "divergence from untouched", 1.0, VERMILION),
    )
    for axis, (name, text, factor, colour) in zip(axes, drawn, strict=True):
        values = factor * curve[name].transpose("sample", "scale").values.astype(float)
        if name == "steered_logprob":
            baseline = curve["untouched_logprob"].values.astype(float)
            interval = paired(values, baseline, images, seed=0)
        else:
            interval = bootstrap(values, images, seed=0)
        axis.plot(scales, interval.estimate, "o-", color=colour)
        if not np.isnan(interval.low).all():
            shade(axis, scales, interval.low, interval.high, colour)
        axis.axvline(0, color=LIGHT_GREY, zorder=0)
        unit = "change of log p (nat)" if name == "steered_logprob" else text
        finish(axis, text, xlabel="scale (1)", ylabel=unit if name != "kl" else "KL (nat)")
    if ax is None:
        heading(figure_of(axes), f"Steering {curve.attrs['site']} · {curve.attrs['model']}")
    added = ", ".join(str(int(layer) + 1) for layer in str(curve.attrs["layers"]).split(","))
    note = (
        f"{curve.sizes['sample']} questions on {_images(images)}; direction of layer "
        f"{int(curve.attrs['read_layer']) + 1} added in layers {added}; "
        "bands: 95 %, bootstrap over images, changes paired"
    )
    caption(axes, [note], {"": curve}, own=ax is None)
    return figure_of(axes)


def _images(names: Any) -> str:
    """How many different images, in words."""
    count = len(np.unique(names))
    return "one image" if count == 1 else f"{count} images"
