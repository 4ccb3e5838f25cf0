"""The logit lens: which words the vision tokens predict, over the image, and how probable the
answer becomes from layer to layer.

    plots.lens(dataset)          # a panel a layer: the word of each patch
    plots.lens_curves(dataset)   # a line a token of the answer, over layers
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from probe.errors import ProbeError, one_of, shown
from probe.plots.arguments import layer_indices, require
from probe.plots.patches import View, draw_patches, middles, outlined
from probe.plots.style import (
    DARK_GREY,
    DASHED,
    RIGHT,
    SMALL_TITLE,
    caption,
    figure_of,
    finish,
    heading,
    layer_label,
    legend,
    looks,
    panels,
    styled,
)

_MADE_BY = "a logit lens (of probe.logit_lens)"
_LEGIBLE = 12  # patches along a side: with more, words cannot be read and are left out
_LETTERS = 7
_WORD_WIDTH = 0.64  # inches of a patch with a word on it
_SCALES = {
    "word": ("probability", "probability of the word on the patch"),
    "answer": ("says_answer", "probability of the answer's likeliest word"),
}
_SHOWN = 7  # tokens of the answer that have a line


@styled()
def lens(
    dataset: Any,
    layers: int | Sequence[int] | None = None,
    *,
    value: str = "word",
    image: int = 0,
    ax: Any = None,
) -> Figure:
    """What the vision tokens predict after each of these layers, a panel a layer.

    How to read it: the word on a patch is the most probable one when the model's norm and head are
    applied to the patch's hidden state, and its colour says how probable; with value="answer"
    colour and text are the probability of the likeliest word of the answer. All panels share one
    linear scale.

    Args:
        layers: counted from 0; by default up to nine, evenly spread.
        value: "word" or "answer".
        image: which image, from 0.
        ax: one Axes for each layer.

    Words are drawn for up to 12 patches a side. Raises ProbeError for anything that is not a logit
    lens, and a layer or image that it does not have.
    """
    called = "plots.lens"
    one_of(called, "value of", value, _SCALES)
    dataset = require(dataset, "says_answer", called, _MADE_BY)
    drawn = layer_indices(dataset, layers, called)
    owner = dataset["key_image"].values
    tile = dataset["key_tile"].values
    boxes = dataset["key_box"].values
    is_base_view = (owner == image) & (tile == 0)
    has_place = ~np.isnan(boxes).any(-1)
    keys = np.flatnonzero(is_base_view & has_place)
    if not len(keys):
        has_tokens = bool((owner == image).any())
        raise ProbeError(
            called,
            expected="an image whose vision tokens lie in places of it",
            got=f"image {image}, whose tokens have each read the whole of it"
            if has_tokens
            else f"no vision token of image {image}",
            fix="use plots.lens_curves",
        )
    row_of_key = {key: row for row, key in enumerate(dataset["row_key"].values.tolist())}
    rows = [row_of_key[key] for key in keys.tolist()]
    height, width = dataset["image_size"].values[image].tolist()
    pixels = dataset["images"].values[image, :height, :width]
    variable, scale = _SCALES[value]
    view = View("", pixels, boxes[keys], dataset[variable].values[:, rows])
    side = int(dataset["key_col"].values[keys].max()) + 1
    legible = side <= _LEGIBLE
    width = max(3.5, side * _WORD_WIDTH) if legible else 3.5
    columns = min(3 if width < 5 else 2, len(drawn))
    rows_of_panels = -(-len(drawn) // columns)
    shape = (rows_of_panels, columns) if ax is None else (1, len(drawn))
    axes = panels(ax, *shape, (width, width + 0.1), called).ravel()
    norm = Normalize(0, float(view.values[drawn].max()) or 1.0)
    for axis, layer in zip(axes, drawn, strict=False):
        draw_patches(axis, view, view.values[layer], norm, outlines=not legible)
        axis.set_title(f"{layer_label(dataset.attrs['stack'])} {layer + 1}", fontsize=SMALL_TITLE)
        if legible:
            percents = [f"{100 * probability:.0f} %" for probability in view.values[layer]]
            words = dataset["word"].values[layer, rows]
            _words(axis, view, words if value == "word" else np.array(percents))
    for axis in axes[len(drawn) :]:
        axis.remove()
    figure = figure_of(axes)
    axes = axes[: len(drawn)]
    figure.colorbar(axes[0].collections[0], ax=list(axes), label=scale, shrink=0.8)
    if ax is None:
        heading(figure, f"What the vision tokens predict · {dataset.attrs['model']}")
    caption(axes, [_note(dataset)], {"": dataset}, own=ax is None)
    return figure


def _words(axis: Axes, view: View, words: np.ndarray) -> None:
    """The word of each patch whose middle lies in the image."""
    width, height = view.size
    for word, (x, y) in zip(words, middles(view.boxes, view.size), strict=True):
        if 0 <= x <= width and 0 <= y <= height:
            text = " ".join(str(word).split())[:_LETTERS] or "·"
            axis.text(
                x,
                y,
                text,
                parse_math=False,
                path_effects=outlined(1.6),
                fontsize=8,
                color="white",
                ha="center",
                va="center",
            )


@styled()
def lens_curves(dataset: Any, *, ax: Any = None) -> Axes:
    """How probable each token of the answer is after each layer.

    How to read it: a coloured line is a token of the answer (the first seven), at the position that
    predicts it; where it rises, the model has settled on it. The grey line is the maximum, over
    vision tokens, of the probability of any answer token. For pre-fusion only the latter: its
    tokens predict nothing yet. Raises ProbeError for anything that is not a logit lens.
    """
    dataset = require(dataset, "says_answer", "plots.lens_curves", _MADE_BY)
    axis = panels(ax, 1, 1, (6.6, 3.9), "plots.lens_curves")[0, 0]
    layers = dataset["layer"].values + 1
    if "next" in dataset:
        tokens = dataset["answer_text"].values[:_SHOWN].tolist()
        names = [f"{i}. {token.strip() or token!r}" for i, token in enumerate(tokens, 1)]
        for name, values, look in zip(
            names, dataset["next"].values.T, looks(names).values(), strict=False
        ):
            axis.plot(layers, values, color=look.color, marker="o", label=name)
    vision = dataset["row_key"].values >= 0
    if vision.any():
        highest = dataset["says_answer"].values[:, vision].max(1)
        axis.plot(
            layers,
            highest,
            label="highest vision token, any of them",
            color=DARK_GREY,
            linestyle=DASHED,
            marker="s",
        )
    text = "When is the answer there?\nLayer outputs through the model's own norm and head"
    finish(
        axis,
        text,
        layers=len(layers),
        ylim=(-0.02, 1.02),
        xlabel=layer_label(dataset.attrs["stack"]),
        ylabel="probability",
    )
    legend(axis, title="token of the answer", **RIGHT)
    caption(axis, [_note(dataset)], {"": dataset}, own=ax is None)
    return axis


def _note(dataset: xr.Dataset) -> str:
    attrs = dataset.attrs
    return f"{attrs['model']}; answer {shown(attrs['response'])}; one image, one question"
