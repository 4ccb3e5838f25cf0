"""Does attention agree with attribution on which regions of the image an answer depends on?

One figure: both maps; their rank correlation in each layer, between what misplaced regions reach
(the floor) and what two methods of attribution reach with each other (the ceiling); every head;
deletion and insertion; and the same for a model with shuffled weights. The verdict is its title.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from probe.errors import ProbeError, one_of, shown
from probe.plots.attribution_map import (
    attributions,
    draw_attribution,
    draw_regions,
    map_reach,
    which,
)
from probe.plots.by_head import layer_by_head
from probe.plots.patches import show_image
from probe.plots.style import (
    DASHED,
    GREEN,
    GREY,
    LIGHT_GREY,
    PURPLE,
    RIGHT,
    below,
    caption,
    figure_of,
    finish,
    heading,
    label,
    layer_label,
    legend,
    looks,
    styled,
    title,
)
from probe.records.rank_agreement import (
    FEWEST,
    MEASURES,
    above_floor,
    agreeing_layers,
    can_tell,
    ceiling_of,
    highest_agreement,
    rank_agreement,
    regions_of,
)

_CLOSE = 0.05  # below the ceiling: attention agrees as well as another attribution does
_EQUAL = 0.005  # measures whose correlations differ by less in all layers are drawn as one line


@styled()
def agreement(
    dataset: Any,
    *,
    curves: xr.Dataset | None = None,
    control: xr.Dataset | None = None,
    measure: str | None = None,
    image: int = 0,
    seed: int = 0,
) -> Figure:
    """Six panels on one image; attention is that of the queries that predict the answer.

    How to read it: attention agrees with attribution in the layers whose line (top right) leaves
    the grey floor. The closer it comes to the ceiling, the better: methods of attribution do not
    agree with each other more than that. Below, every head; what deleting the highest regions does
    to the answer; and how many heads reach which correlation, also with shuffled weights.

    Args:
        dataset: an attribution (`probe.attribute`), or {label: attribution}: attention is compared
            with the first, the others give the ceiling.
        curves: of `probe.deletion_curves`.
        control: the attribution of a model with shuffled weights on the same image
            (`probe.measures.attribution.weight_randomisation`); its attention is compared with
            the first attribution.
        measure: of attention, for the map and the heads; by default contribution, or mass where
            there is none (quantized weights).
        image: which image of the maps, from 0.

    Raises ProbeError for attributions without attention or over different regions, and for an
    unknown measure.
    """
    datasets = attributions(dataset, "plots.agreement")
    if measure is not None and measure not in MEASURES:
        raise ProbeError(
            "plots.agreement", expected=f"a measure of {', '.join(MEASURES)}", got=repr(measure)
        )
    table = rank_agreement(datasets, seed)
    reference, first = next(iter(datasets.items()))
    known = table["measure"].values.tolist()
    measure = measure or ("contribution" if "contribution" in known else "mass")
    one_of("plots.agreement", "a measure that was taken:", measure, known)
    axes = plt.subplots(2, 3, figsize=(15, 8.4), width_ratios=(1, 1, 1.4))[1]
    draw_attribution(axes[0, 0], first, image, map_reach([first]))
    method = f"{first.attrs['method']}, baseline {first.attrs['baseline']}{which(first, image)}"
    title(axes[0, 0], f"what each region contributes to the answer\n{method}")
    _attention_map(axes[0, 1], first, measure, _best_layer(table, measure), image)
    _layers(axes[0, 2], table.sel(reference=reference), reference)
    _heads(axes[1, 0], table, measure)
    _deletion(axes[1, 1], curves)
    shuffled = None
    if control is not None:
        control = control.assign(attribution=first["attribution"])
        shuffled = rank_agreement({reference: control})
    _correlations_of_heads(axes[1, 2], table, shuffled, measure)
    figure = figure_of(axes)
    count = len(np.unique(first["patch_image"].values))
    regions = f"{table.attrs['regions']} regions of {count} image{'s' * (count > 1)}, one question"
    asked = f"Does attention agree with attribution? {first.attrs['model']}; {regions}"
    heading(figure, f"{asked}\n{verdict(table)}")
    caption(axes, [_note(table, first, list(datasets))], datasets, own=True)
    return figure


def verdict(table: xr.Dataset) -> str:
    """One sentence: the layers (from 1) in which a measure, heads averaged, agrees with every
    attribution (`agreeing_layers`).

    Where the ceiling does not exceed the floor it can't be told: two methods of attribution agree
    no more than chance, so that agreement with one of them would mean nothing. Nor can it where
    attention agrees with one of them only, where it stays below the floor and yet reaches the
    ceiling, and, with one attribution alone, where some measures of attention agree and others not.

    table: of `probe.records.rank_agreement.rank_agreement`; its first attribution counts.
    """
    reference = str(table["reference"].values[0])
    regions = table.attrs["regions"]
    if regions < FEWEST:
        return f"It cannot be said of {regions} region{'s' * (regions > 1)}."
    if bool(table["by_layer"].sel(reference=reference).isnull().all()):
        return "It cannot be said: one of the two is the same everywhere."
    numbers = _three_numbers(table, reference)
    if not can_tell(table, reference):
        return f"Can't tell: {numbers}; the ceiling does not exceed the floor."
    ceiling = ceiling_of(table, reference)
    agreeing = agreeing_layers(table)
    if agreeing:
        layers = ", ".join(str(layer + 1) for layer in agreeing)
        return f"Yes in layer{'s' * (len(agreeing) > 1)} {layers}, more than misplaced regions do."
    if any(above_floor(table, reference, name) for name in table["measure"].values):
        why = f"it agrees with {reference} above the floor, and not with every attribution"
        if table.sizes["other"] == 1:
            why = "some measures of attention agree and others do not; add a second attribution"
        return f"Can't tell: {numbers}; {why}."
    if highest_agreement(table, reference) > ceiling - _CLOSE:
        return f"Can't tell: {numbers}; attention is as close to chance as the ceiling is."
    return f"No: agreement is noise, no more than misplaced regions give ({numbers})."


def _three_numbers(table: xr.Dataset, reference: str) -> str:
    ceiling = ceiling_of(table, reference)
    floor = float(table["floor"].sel(reference=reference))
    ceiling_text = "1 (no second method)" if np.isnan(ceiling) else f"{ceiling:.2f}"
    best = highest_agreement(table, reference)
    return f"best correlation {best:.2f}, floor {floor:.2f}, ceiling {ceiling_text}"


def _best_layer(table: xr.Dataset, measure: str) -> int:
    """The layer whose heads, averaged, agree most; the middle one where none can be compared."""
    values = table["by_layer"].sel(measure=measure)[0].values
    return len(values) // 2 if np.isnan(values).all() else int(np.nanargmax(values))


def _attention_map(axis: Axes, dataset: xr.Dataset, measure: str, layer: int, image: int) -> None:
    if np.isnan(regions_of(dataset)[measure].values).all():
        show_image(axis, np.zeros((0, 0, 3), np.uint8))
        title(axis, "the LLM has no token of these regions")
        return
    values = dataset[measure][layer].mean("head").values
    is_region = dataset["feature_kind"].values == "region"
    top = float(np.nanmax(values[is_region])) or 1.0
    drawn = draw_regions(axis, dataset, values, Normalize(0, top), "inferno", image)
    colorbar = axis.figure.colorbar(drawn, ax=axis, shrink=0.8)
    colorbar.set_label(label(dataset[measure]), fontsize=8)
    where = f"{layer_label('llm')} {layer + 1} (agrees most)"
    title(axis, f"what it attends to: {measure}\n{where}")


def _layers(axis: Axes, table: xr.Dataset, reference: str) -> None:
    """A line a measure between floor and ceiling; measures that are equal share a line."""
    layers = table["layer"].values + 1
    lines: dict[str, np.ndarray] = {}  # label -> values
    for name in table["measure"].values.tolist():
        values = table["by_layer"].sel(measure=name).values
        if np.isnan(values).all():
            continue
        equal = [other for other, drawn in lines.items() if _same(drawn, values)]
        if equal:
            lines[f"{equal[0]} = {name}"] = lines.pop(equal[0])
        else:
            lines[name] = values
    for name, values in lines.items():
        look = looks(MEASURES)[name.split(" =")[0]]
        axis.plot(layers, values, label=name, **look._asdict())
    floor = float(table["floor"])
    if not np.isnan(floor):
        axis.axhspan(-floor, floor, color=LIGHT_GREY, zorder=0, label="floor: misplaced regions")
    ceiling = ceiling_of(table.expand_dims("reference"), reference)
    if not np.isnan(ceiling):
        others = "another attribution" if table.sizes["other"] == 2 else "closest attribution"
        axis.axhline(ceiling, color=GREEN, linestyle=DASHED, label=f"ceiling: {others}")
    axis.axhline(0, color=GREY, linewidth=0.8)
    text = "agreement in each layer, heads averaged\n(even attention ranks nothing: no point)"
    finish(
        axis,
        text,
        layers=len(layers),
        xlim=(0.5, len(layers) + 0.5),
        ylim=(-1.05, 1.05),
        xlabel=layer_label("llm"),
        ylabel="Spearman's rank correlation",
    )
    legend(axis, **RIGHT)


def _same(drawn: np.ndarray, values: np.ndarray) -> bool:
    return not np.isnan(values).all() and np.allclose(drawn, values, atol=_EQUAL, equal_nan=True)


def _heads(axis: Axes, table: xr.Dataset, measure: str) -> None:
    values = table["correlation"][0].sel(measure=measure).values
    image = layer_by_head(axis, values, Normalize(-1, 1), "PuOr_r", "llm")
    axis.figure.colorbar(image, ax=axis, label="rank correlation", shrink=0.8)
    title(axis, f"every head: {measure}\n(grey: even over the regions)")


def _deletion(axis: Axes, curves: xr.Dataset | None) -> None:
    if curves is None:
        axis.set_axis_off()
        return
    percent = curves["fraction"].values * 100
    for score, look in looks(curves["score"].values.tolist()).items():
        logprob = curves["logprob"].sel(score=score)
        axis.plot(percent, logprob.sel(direction="deletion"), color=look.color, label=score)
        inserted = logprob.sel(direction="insertion")
        axis.plot(percent, inserted, color=look.color, linestyle=DASHED)
    text = f"highest first: removed (solid), inserted (dashed)\nbaseline {curves.attrs['baseline']}"
    ylabel = "log-probability of the answer (nat)"
    finish(axis, text, xlabel="regions removed or inserted (%)", ylabel=ylabel)
    legend(axis, ncols=2, **below(axis))


def _correlations_of_heads(
    axis: Axes, table: xr.Dataset, shuffled: xr.Dataset | None, measure: str
) -> None:
    """How many heads reach which correlation, in this model and with shuffled weights."""
    groups = {"this model": (table, looks(MEASURES)[measure].color)}
    if shuffled is not None:
        groups["weights shuffled"] = (shuffled, PURPLE)
    for name, (one, colour) in groups.items():
        values = one["correlation"][0].sel(measure=measure).values
        known = values[~np.isnan(values)]
        sns.histplot(
            x=known,
            binrange=(-1, 1),
            bins=20,
            ax=axis,
            color=colour,
            alpha=0.6,
            label=f"{name} ({len(known)} heads)",
        )
    if not any(len(patches) for patches in axis.containers):
        axis.set_axis_off()
        title(axis, "no head can be compared:\nthe LLM has no token of these regions")
        return
    axis.axvline(0, color=GREY, linewidth=0.8)
    text = "all heads of all layers" + (", also with shuffled weights" if len(groups) > 1 else "")
    xlabel = f"rank correlation of a head's {measure} with the attribution"
    finish(axis, text, xlabel=xlabel, ylabel="heads", xlim=(-1, 1))
    axis.xaxis.set_major_locator(MultipleLocator(0.5))
    legend(axis, **RIGHT)


def _note(table: xr.Dataset, first: xr.Dataset, names: list[str]) -> str:
    answer = "".join(letter if letter.isprintable() else "?" for letter in first.attrs["response"])
    attrs = table.attrs
    return (
        f"attention of the queries that predict the answer {shown(answer)}; attributions: "
        f"{', '.join(names)}; floor: the highest that {attrs['shuffles']} shuffles of the "
        f"regions within their image (seed {attrs['seed']}), and shifts and flips of its grid, "
        "reach in any layer and measure"
    )
