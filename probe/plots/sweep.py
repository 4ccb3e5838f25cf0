"""What happens to the answers when vision tokens are dropped in some layers: the paper's Fig. 5.

    plots.dropped(results)     # a window of layers at a time, attention next to it
    plots.readings(results)    # all modes of dropping on one axis
    plots.swaps(results)       # whose answer is given when text reads another image
    plots.depth(results)       # dropped from a layer on, and up to a layer

`results` is a run of `probe drop`, what `drop_sweep` returned, or several of those by name. Source:
arXiv 2501.03895, Fig. 5.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.errors import ProbeError
from probe.evaluation.drop_effects import (
    ALL,
    ATTENTION,
    from_cases,
    kinds_of,
    of_kind,
    tables_of,
    until_cases,
    window_cases,
)
from probe.evaluation.headline import Headline
from probe.plots.sample_mean import DRAWS
from probe.plots.style import (
    BLACK,
    BLUE,
    DOTTED,
    GREY,
    VERMILION,
    Look,
    below,
    caption,
    figure_of,
    finish,
    heading,
    legend,
    looks,
    panels,
    shade,
    styled,
)
from probe.plots.sweep_curves import (
    chosen_mode,
    curve,
    draw_baselines,
    draw_windows,
    estimates,
    finish_windows,
    in_units,
    no_windows,
    note,
    significance,
    stack_of,
    value_axis,
    windows_of,
    within,
)
from probe.records.bootstrap import bootstrap
from probe.records.schema import as_text

_PANEL = (5.4, 3.9)
_ATTENTION_WIDTH = 3.6  # inches, right of Fig. 5
_KINDS = 8  # kinds of question that have a line
_HANDLE = 3.2  # length of a line in a legend


@styled()
def dropped(
    results: Any,
    mode: str | None = None,
    size: int | None = None,
    value: str = "correct",
    *,
    seed: int = 0,
    ax: Any = None,
) -> Axes:
    """Fig. 5: a point for each window of layers in which vision tokens are dropped.

    How to read it: layers whose point lies at the black line (the untouched model) do not need
    vision; at the grey lines vision is of no use at all. The band covers all windows at once (95 %,
    images redrawn). A filled point differs from the untouched model: the band of the paired
    differences excludes zero. A distance from it (KL, total variation, changed first tokens)
    cannot be below zero and has no filled points. Where `results` hold attention, share and lift of
    vision from the same samples are drawn to the right, on two further Axes of the same figure;
    with `ax` they are not.

    Args:
        mode: of dropping, where there are several; by default "mask", or the first one.
        size: layers of a window, where there are several sizes.
        value: any of `probe.evaluation.drop_effects.VALUES`.

    Raises ProbeError for a mode, a size of windows or a value that `results` do not have.
    """
    name, table = chosen_mode(results, mode)
    windows = windows_of(table, size)
    attention = _attention_in(results) if ax is None else None
    if attention is None:
        axes = panels(ax, 1, 1, _PANEL, "plots.dropped")[0]
    else:
        size_ = (_PANEL[0] + 0.6 + _ATTENTION_WIDTH, _PANEL[1] + 0.4)
        mosaic = plt.figure(figsize=size_).subplot_mosaic("AAB;AAC", width_ratios=(1.5, 1.5, 2))
        axes = np.array(list(mosaic.values()), dtype=object)
    axis = axes[0]
    draw_baselines(axis, table, value)
    label = f"vision dropped ({name})"
    look = looks([name])[name]
    draw_windows(axis, table, windows, value, seed, look, label, shaded=True)
    finish_windows(axis, table, windows, value, "Vision tokens dropped in a window of layers")
    legend(axis, ncols=2, handlelength=_HANDLE, **below(axis))
    if attention is not None:
        images = table["image"].values
        _attention(axes[1], attention["share"], images, seed)
        finish(axes[1], "Attention on vision: share", ylim=(0, 1))
        _attention(axes[2], attention["lift"], images, seed)
        axes[2].axhline(1, color=GREY, linewidth=0.8, zorder=0)
        axes[2].set_ylim(bottom=0)
        finish(axes[2], "lift (1: an even spread)", xlabel=f"{stack_of(table)} layer")
        legend(axes[2], handlelength=_HANDLE, **below(axes[2]))
    caption(axes, [note(table, seed), significance(value)], {name: table}, ax is None)
    return axis


def _attention_in(results: Any) -> xr.Dataset | None:
    """The attention on vision that a run measured on its samples, if it did: not where words read
    the image by cross-attention.
    """
    if not isinstance(results, xr.DataTree) or ATTENTION not in results.children:
        return None
    attention = results[ATTENTION].to_dataset()
    return attention if attention["share"].notnull().any() else None


def _attention(axis: Axes, attention: xr.DataArray, images: np.ndarray, seed: int) -> None:
    """Attention on vision over layers, of each type of query but vision."""
    layers = attention["layer"].values + 1
    types = attention["query_type"].values.tolist()
    for query in ("response", "instruction", "compressed"):
        if query not in types:
            continue
        values = attention.sel(query_type=query).transpose("sample", "layer").values.astype(float)
        if np.isnan(values).all():
            continue
        interval = bootstrap(values, as_text(images), seed=seed, draws=DRAWS)
        look = looks(types)[query]
        every = max(1, len(layers) // 12)
        axis.plot(
            layers, interval.estimate, label=f"{query} → vision", markevery=every, **look._asdict()
        )
        shade(axis, layers, interval.low, interval.high, look.color)
    finish(axis, "", layers=len(layers), xlim=(0.5, len(layers) + 0.5))


@styled()
def readings(
    results: Any, size: int | None = None, value: str = "correct", *, seed: int = 0, ax: Any = None
) -> Axes:
    """Every mode of dropping on one axis, next to each other within each window of layers.

    How to read it: where modes disagree, the effect depends on how vision is dropped ("zero", for
    instance, keeps the softmax as it was). Bars cover all windows at once; lines and filled points
    are those of `dropped`. Raises ProbeError without windows of this size.
    """
    tables = {
        name: table for name, table in tables_of(results).items() if window_cases(table, size)
    }
    if not tables:
        raise no_windows(size)
    axis = panels(ax, 1, 1, (_PANEL[0] + 1.4, _PANEL[1]), "plots.readings")[0, 0]
    first = next(iter(tables.values()))
    windows = windows_of(first, size)
    draw_baselines(axis, first, value)
    width = 0.75 * min(map(len, windows.values()))
    for position, (name, look) in enumerate(looks(tables).items()):
        table = tables[name]
        shift = width * ((position + 0.5) / len(tables) - 0.5)
        draw_windows(axis, table, windows_of(table, size), value, seed, look, name, shift=shift)
    finish_windows(axis, first, windows, value, "Every mode of dropping")
    legend(axis, ncols=3, handlelength=_HANDLE, **below(axis))
    caption(axis, [note(first, seed), significance(value)], tables, ax is None)
    return axis


@styled()
def swaps(results: Any, size: int | None = None, *, seed: int = 0, ax: Any = None) -> Axes:
    """How often the right answer is given, and how often the other image's, where text reads
    another image in a window of layers.

    How to read it: the layers in which the right answer falls and the other image's rises are
    those in which text takes from vision what it answers. Dotted lines: the untouched model. Raises
    ProbeError without a sweep that swapped.
    """
    swapped = [table for table in tables_of(results).values() if "donor_answer_given" in table]
    if not swapped:
        raise ProbeError("plots.swaps", expected="a sweep with mode='swap'", got="none")
    table = swapped[0]
    axis = panels(ax, 1, 1, _PANEL, "plots.swaps")[0, 0]
    windows = windows_of(table, size)
    answers = {
        "correct": ("the right answer", Look(BLUE, "s")),
        "donor_answer_given": ("the answer given about the other image", Look(VERMILION, "o")),
    }
    for value, (label, look) in answers.items():
        draw_windows(axis, table, windows, value, seed, look, label, shaded=True)
        untouched = estimates(table, value)[0]
        if not np.isnan(untouched):
            axis.axhline(
                untouched,
                label="  the same, untouched",
                color=look.color,
                linewidth=1,
                linestyle=DOTTED,
            )
    text = "Text reads another image in a window of layers"
    finish_windows(
        axis,
        table,
        windows,
        "correct",
        text,
        xlabel="layers that read another image",
        ylabel="answers (%)",
    )
    legend(axis, handlelength=_HANDLE, **below(axis))
    caption(axis, [note(table, seed)], {"swap": table}, ax is None)
    return axis


@styled()
def depth(
    results: Any,
    mode: str | None = None,
    value: str = "correct",
    *,
    seed: int = 0,
    ax: Any = None,
) -> Figure:
    """Two panels: vision dropped from a layer to the last one, and from the first one to a layer.

    How to read it: left, the layer from which on vision can be dropped without loss; right, the
    layer up to which it can. A line for each kind of question (the eight most frequent) and a
    thick black one for all, with a band over the whole curve. At the end of each curve marked
    "none" the model is untouched.

    Args:
        mode: by default "mask", which equals "remove" from a layer to the last.
        ax: two Axes.

    Raises ProbeError for a mode that `results` do not have, and without such cases.
    """
    called = "plots.depth"
    name, table = chosen_mode(results, mode)
    layers = table.sizes["layer"]
    since = {layer + 1: case for layer, case in from_cases(table).items()}
    until = {layer + 1: case for layer, case in until_cases(table).items()}
    if len(since) < 2 and len(until) < 2:
        raise ProbeError(
            called, expected="a sweep with from_layer() or until_layer()", got="other cases"
        )
    untouched = str(table["case"].values[0])
    axes = panels(ax, 1, 2, (4.6, 3.8), called)
    _depth_curves(axes[0, 0], table, since | {layers + 1: untouched}, value, seed)
    _depth_curves(axes[0, 1], table, {0: untouched} | until, value, seed)
    _finish_depth(axes[0, 0], table, value, "Dropped from this layer to the last", layers + 1)
    _finish_depth(axes[0, 1], table, value, "Dropped from the first layer to this", 0)
    axes[0, 1].sharey(axes[0, 0])
    legend(axes[0, 0], ncols=4, handlelength=_HANDLE, **below(axes[0, 0]))
    counts = [
        f"{kind}: {of_kind(table, kind).sizes['sample']}" for kind in kinds_of(table)[:_KINDS]
    ]
    lines = [f"how: {name}; {note(table, seed, 'the curve of all')}"]
    lines += [f"questions: {'; '.join(counts)}"] if counts else []
    if ax is None:
        heading(figure_of(axes), f"How deep vision is needed · {table.attrs.get('model', '')}")
    caption(axes, lines, {name: table}, ax is None)
    return figure_of(axes)


def _depth_curves(
    axis: Axes, table: xr.Dataset, case_at: Mapping[int, str], value: str, seed: int
) -> None:
    """A line for each kind of question and one for all; `case_at`: place on the axis -> case."""
    x = np.array(list(case_at))
    order = table["case"].values.tolist()
    cases = [order.index(case) for case in case_at.values()]
    is_mean = value != "correct" or Headline(table).is_mean
    kinds = kinds_of(table)[:_KINDS] if is_mean else []
    for kind, look in looks(kinds).items():
        values = in_units(of_kind(table, kind), value)
        mean = np.nanmean(values[:, cases], axis=0)
        axis.plot(x, mean, label=kind, linewidth=1.2, **look._asdict())
    all_questions = curve(table, value, cases, seed)
    low, high = within(all_questions, table, value)
    shade(axis, x, low, high, BLACK)
    axis.plot(x, all_questions.estimate, color=BLACK, linewidth=2.2, label=ALL, zorder=4)


def _finish_depth(axis: Axes, table: xr.Dataset, value: str, text: str, none: int) -> None:
    """`none`: the place at which no layer is dropped."""
    layers = table.sizes["layer"]
    xlabel = f"{stack_of(table)} layer"
    finish(axis, text, layers=layers, xlabel=xlabel, **value_axis(table, value))
    room = (layers + 1) / 12  # for the label "none"
    ticks = [tick for tick in axis.get_xticks() if abs(tick - none) > room]
    labels = [f"{tick:g}" for tick in ticks]
    axis.set_xticks([*ticks, none], [*labels, "none"])
