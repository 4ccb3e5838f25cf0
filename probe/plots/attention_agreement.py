"""Does attention say what the answer owes to the image? One figure with all that an answer needs.

The maps side by side; their rank correlation in every layer, between what misplaced regions reach
(the floor) and what two methods of attribution reach with each other (the ceiling); every head;
deletion and insertion; and the same of a model that knows nothing. The verdict stands above.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm

from probe.errors import ProbeError
from probe.plots.attribution_map import OWED, UNIT, attributions, draw_regions
from probe.plots.on_image import show_image
from probe.plots.style import caption, count_from_one, layer_label, title
from probe.records.rank_agreement import FEWEST, MEASURES, above_floor, rank_agreement, regions_of

_LOOKS = {
    "mass": ("#0072B2", "o", "-"),
    "lift": ("#56B4E9", "s", (0, (5, 2))),
    "received": ("#E69F00", "^", (0, (1, 1.2))),
    "contribution": ("#D55E00", "D", "-"),
}
_CONTROL, _CEILING = "#CC79A7", "#009E73"
_CURVES = ("#D55E00", "#0072B2", "#009E73", "#56B4E9", "#E69F00", "#CC79A7")
_ALIKE = 0.005  # measures whose correlations differ by less everywhere are one line


def agreement(
    found: Any,
    *,
    curves: xr.Dataset | None = None,
    control: xr.Dataset | None = None,
    measure: str = "contribution",
    picture: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """The figure for one image. Attention is that of the rows that say the answer.

    found: an attribution (`probe.attribute`), or {label: attribution}: the first is what attention
    is held against, the others give the ceiling. curves: of `probe.deletion_curves`. control: the
    attribution of a model with shuffled weights on the same image
    (`probe.measures.attribution.weight_randomisation`), whose attention is held against the first,
    too. measure: of the map and of the heads. Returns Axes (2, 3). Raises ProbeError for
    attributions without attention or over different regions, and an unknown measure.
    """
    named = attributions(found, "plots.agreement")
    if measure not in MEASURES:
        raise ProbeError(
            "plots.agreement", expected=f"a measure of {', '.join(MEASURES)}", got=repr(measure)
        )
    table, first = rank_agreement(named, seed), next(iter(named.values()))
    reference = next(iter(named))
    axes = plt.subplots(2, 3, figsize=(13.5, 8), layout="constrained", width_ratios=(1, 1, 1.5))[1]
    layer = _best(table, measure)
    _owed(axes[0, 0], first, picture)
    _attended(axes[0, 1], first, measure, layer, picture)
    _layers(axes[0, 2], table, control, reference, seed)
    _heads(axes[1, 0], table, measure)
    _deletion(axes[1, 1], curves)
    _control(axes[1, 2], table, measure, control, reference, first)
    figure = axes[0, 0].figure
    figure.suptitle(
        f"Does attention say what the answer owes to the image?  {verdict(table)}",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    caption(axes, _notes(table, first, named), named, own=True)
    return axes


def verdict(table: xr.Dataset) -> str:
    """One sentence: in which layers any measure, heads averaged, is above the floor for the first
    attribution.
    """
    reference = str(table["reference"].values[0])
    if table.attrs["regions"] < FEWEST:
        return f"It cannot be said of {table.attrs['regions']} region{'s' * (table.attrs['regions'] > 1)}."
    if bool(table["by_layer"].sel(reference=reference).isnull().all()):
        return "It cannot be said: one of the two is the same everywhere."
    layers = sorted(
        {layer + 1 for name in MEASURES for layer in above_floor(table, reference, name)}
    )
    if not layers:
        return "No: agreement is noise, no more than misplaced regions give."
    return f"Yes in layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}, more than misplaced regions do."


def _best(table: xr.Dataset, measure: str) -> int:
    """The layer whose heads, averaged, agree most; the middle one where none can be compared."""
    values = table["by_layer"].sel(measure=measure)[0].values
    return len(values) // 2 if np.isnan(values).all() else int(np.nanargmax(values))


def _owed(axis: Axes, found: xr.Dataset, picture: int) -> None:
    values = found["attribution"].values
    reach = float(np.abs(values[found["feature_kind"].values == "region"]).max()) or 1.0
    drawn = draw_regions(axis, found, values, TwoSlopeNorm(0, -reach, reach), OWED, picture)
    axis.figure.colorbar(drawn, ax=axis, label=UNIT, shrink=0.8)
    title(
        axis,
        f"what the answer owes to each region\n{found.attrs['method']}, baseline {found.attrs['baseline']}",
    )


def _attended(axis: Axes, found: xr.Dataset, measure: str, layer: int, picture: int) -> None:
    values = found[measure][layer].mean("head").values
    if np.isnan(regions_of(found)[measure].values).all():
        show_image(axis, np.zeros((0, 0, 3), np.uint8))
        title(axis, "the LLM has no token of these regions")
        return
    top = float(np.nanmax(values[found["feature_kind"].values == "region"])) or 1.0
    drawn = draw_regions(axis, found, values, Normalize(0, top), "inferno", picture)
    label = f"{found[measure].attrs['long_name']} ({found[measure].attrs['units']})"
    axis.figure.colorbar(drawn, ax=axis, label=label, shrink=0.8)
    title(
        axis,
        f"what it attends to: {measure}\n{layer_label('llm')} {layer + 1}, where they agree most, head mean",
    )


def _layers(
    axis: Axes, table: xr.Dataset, control: xr.Dataset | None, reference: str, seed: int
) -> None:
    one, layers = table.sel(reference=reference), table["layer"].values + 1
    drawn: dict[str, np.ndarray] = {}
    for name in MEASURES:
        values = one["by_layer"].sel(measure=name).values
        twin = next(
            (o for o, v in drawn.items() if np.allclose(v, values, atol=_ALIKE, equal_nan=True)),
            None,
        )
        if twin is not None and not np.isnan(values).all():
            line = next(line for line in axis.lines if str(line.get_label()).split(" =")[0] == twin)
            line.set_label(f"{line.get_label()} = {name}")
            continue
        colour, marker, dash = _LOOKS[name]
        axis.plot(
            layers, values, color=colour, marker=marker, linestyle=dash, markersize=5, label=name
        )
        drawn[name] = values
    floor = float(one["floor"])
    if not np.isnan(floor):
        axis.axhspan(-floor, floor, color="0.88", zorder=0, label="floor: misplaced regions")
    ceiling = table["ceiling"].sel(reference=reference).drop_sel(other=reference)
    if ceiling.size and not bool(ceiling.isnull().all()):
        label = (
            "ceiling: another attribution"
            if ceiling.size == 1
            else "ceiling: mean of other attributions"
        )
        axis.axhline(float(ceiling.mean()), color=_CEILING, linestyle=(0, (6, 2)), label=label)
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.set(ylim=(-1.05, 1.05), xlabel=layer_label("llm"), ylabel="Spearman's rank correlation")
    count_from_one(axis.xaxis, len(layers))
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    title(axis, "agreement in each layer, heads averaged\n(even attention ranks nothing: no point)")


def _heads(axis: Axes, table: xr.Dataset, measure: str) -> None:
    values = table["correlation"][0].sel(measure=measure).values
    extent = (0.5, values.shape[1] + 0.5, values.shape[0] + 0.5, 0.5)
    colours = plt.get_cmap("PuOr_r").with_extremes(bad="0.8")
    image = axis.imshow(
        values, colours, Normalize(-1, 1), aspect="auto", interpolation="nearest", extent=extent
    )
    axis.figure.colorbar(image, ax=axis, label="rank correlation", shrink=0.8)
    axis.set(xlabel="head", ylabel=layer_label("llm"))
    count_from_one(axis.xaxis, values.shape[1])
    count_from_one(axis.yaxis, values.shape[0])
    title(axis, f"every head: {measure}\n(grey: even over the regions)")


def _deletion(axis: Axes, curves: xr.Dataset | None) -> None:
    if curves is None:
        axis.set_axis_off()
        return
    for direction, dash in (("deletion", "-"), ("insertion", (0, (4, 1.5)))):
        for number, score in enumerate(curves["score"].values):
            colour = "0.45" if score == "random" else _CURVES[number % len(_CURVES)]
            values = curves["logprob"].sel(score=score, direction=direction)
            axis.plot(
                curves["fraction"].values * 100,
                values,
                color=colour,
                linestyle=dash,
                linewidth=1.5,
                label=str(score) if direction == "deletion" else None,
            )
    axis.set(
        xlabel="regions taken away, or given (%)", ylabel="log-probability of the answer (nat)"
    )
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    title(
        axis,
        f"highest first: taken away (solid), given (dashed)\nbaseline {curves.attrs['baseline']}",
    )


def _control(
    axis: Axes,
    table: xr.Dataset,
    measure: str,
    control: xr.Dataset | None,
    reference: str,
    first: xr.Dataset,
) -> None:
    """How the heads' correlations are spread: this model's, and those of one that knows nothing."""
    bins = np.linspace(-1, 1, 21).tolist()
    groups = {
        "this model": (table["correlation"][0].sel(measure=measure).values, _LOOKS[measure][0])
    }
    if control is not None:
        theirs = rank_agreement({reference: control.assign(attribution=first["attribution"])})
        groups["weights shuffled"] = (
            theirs["correlation"][0].sel(measure=measure).values,
            _CONTROL,
        )
    for name, (values, colour) in groups.items():
        known = values[~np.isnan(values)]
        axis.hist(
            known,
            bins,
            color=colour,
            alpha=0.6,
            label=f"{name} ({len(known)} heads)",
            edgecolor="white",
        )
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set(
        xlabel=f"rank correlation of a head's {measure} with the attribution",
        ylabel="heads",
        xlim=(-1, 1),
    )
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    title(
        axis,
        "all heads of all layers"
        + (", and of a model that knows nothing" if control is not None else ""),
    )


def _notes(table: xr.Dataset, first: xr.Dataset, named: dict[str, xr.Dataset]) -> Sequence[str]:
    answer = "".join(letter if letter.isprintable() else "?" for letter in first.attrs["response"])
    return [
        f"{table.attrs['model']}; {table.attrs['regions']} regions of one image; attention of the rows that say the "
        f"answer {answer[:60]!r}; attributions: {', '.join(named)}; floor: 99 % of "
        f"{table.attrs['shuffles']} shuffles of the regions (seed {table.attrs['seed']}), and of all shifts and flips "
        "of their grid, stay inside in all layers and measures at once",
    ]
