"""The logit lens drawn: what vision rows already say, over the image, and how probable the answer
becomes by layer.

plots.lens(found)                 # a panel a layer: the word of each patch, coloured by the answer's probability
plots.lens_curves(found)          # the answer's tokens over layers, and the patch that says it loudest
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke

from probe.errors import ProbeError
from probe.plots.on_image import draw_patches
from probe.plots.style import caption, count_from_one, layer_label, panels, title
from probe.plots.views import View, layers_of

_LEGIBLE = 12  # patches along a side: in more, words can't be read and are left out
_LETTERS = 7
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SHOWN = 7  # tokens of the answer with a line of their own


def lens(
    found: Any, layers: int | Sequence[int] | None = None, *, image: int = 0, ax: Any = None
) -> np.ndarray:
    """What the vision rows say behind these layers (from 0; up to nine, evenly spread, by default),
    a panel a layer.

    Colours: probability of the answer's likeliest word, one linear scale. Words where they can be
    read, up to 12 patches a side. Returns Axes (layer). Raises ProbeError for what is no logit
    lens, and a layer or image that it does not have.
    """
    _check(found, "plots.lens")
    drawn = layers_of(found, layers)
    row_of = {key: row for row, key in enumerate(found["row_key"].values.tolist()) if key >= 0}
    owner, tile, boxes = (found[f"key_{name}"].values for name in ("image", "tile", "box"))
    keys = np.flatnonzero((owner == image) & (tile == 0) & ~np.isnan(boxes).any(-1))
    if not len(keys):
        raise ProbeError(
            "plots.lens", expected="an image with vision rows", got=f"none in image {image}"
        )
    rows = [row_of[key] for key in keys.tolist()]
    values = found["says_answer"].values[:, rows]
    height, width = found["image_size"].values[image].tolist()
    view = View("", found["images"].values[image, :height, :width], boxes[keys], values)
    columns = min(3, len(drawn))
    axes = (
        panels(ax, -(-len(drawn) // columns), columns, (3.5, 3.6), "plots.lens").ravel()
        if ax is None
        else panels(ax, 1, len(drawn), (0, 0), "plots.lens").ravel()
    )
    scale = Normalize(0, float(values[drawn].max()) or 1.0)
    for axis, layer in zip(axes, drawn, strict=False):
        patches = draw_patches(axis, view, values[layer], scale)
        axis.set_title(f"{layer_label(found.attrs['stack'])} {layer + 1}", fontsize=9)
        if int(found["key_col"].values[keys].max()) < _LEGIBLE:
            _words(axis, found["word"].values[layer, rows], boxes[keys], (width, height))
    for axis in axes[len(drawn) :]:
        axis.remove()
    figure = axes[0].figure
    figure.colorbar(
        patches,
        ax=list(axes[: len(drawn)]),
        label="probability of the answer's likeliest word",
        shrink=0.8,
    )
    if ax is None:
        figure.suptitle("What the image's rows already say", x=0.01, ha="left", fontsize=11)
    caption(axes[: len(drawn), None], [_told(found)], {"": found}, own=ax is None)
    return axes[: len(drawn)]


def _words(axis: Axes, words: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> None:
    for word, (left, top, right, bottom) in zip(words, boxes, strict=True):
        if 0 <= (left + right) / 2 <= 1 and 0 <= (top + bottom) / 2 <= 1:
            text = " ".join(str(word).split())[:_LETTERS] or "·"
            axis.text(
                (left + right) / 2 * size[0],
                (top + bottom) / 2 * size[1],
                text,
                fontsize=5.5,
                color="white",
                ha="center",
                va="center",
                parse_math=False,
                path_effects=[withStroke(linewidth=1.2, foreground="black")],
            )


def lens_curves(found: Any, *, ax: Any = None) -> Axes:
    """Probability of each token of the answer behind each layer, in the row that is to say it; and
    of the likeliest of its words in the vision row that says it loudest. Of pre-fusion only the
    latter: its rows predict nothing yet.
    """
    _check(found, "plots.lens_curves")
    axis = plt.subplots(figsize=(6.6, 3.9), layout="constrained")[1] if ax is None else ax
    layers = found["layer"].values + 1
    if "next" in found:
        for number, text in enumerate(found["answer_text"].values[:_SHOWN].tolist()):
            axis.plot(
                layers,
                found["next"].values[:, number],
                color=_COLOURS[number % len(_COLOURS)],
                marker="o",
                markersize=4,
                label=f"{number + 1}. {text.strip() or text!r}",
            )
    vision = found["row_key"].values >= 0
    if vision.any():
        axis.plot(
            layers,
            found["says_answer"].values[:, vision].max(1),
            color="0.4",
            linestyle=(0, (5, 2)),
            marker="s",
            markersize=4,
            label="loudest vision row, any of them",
        )
    axis.set(xlabel=layer_label(found.attrs["stack"]), ylabel="probability", ylim=(-0.02, 1.02))
    count_from_one(axis.xaxis, len(layers))
    axis.spines[["top", "right"]].set_visible(False)
    legend = axis.legend(
        fontsize=8,
        frameon=False,
        title="token of the answer",
        title_fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
    )
    for text in legend.texts:
        text.set_parse_math(False)
    title(axis, "When is the answer there? Layer outputs through the model's own norm and head")
    caption(np.array([[axis]]), [_told(found)], {"": found}, own=ax is None)
    return axis


def _check(found: Any, called: str) -> None:
    if not isinstance(found, xr.Dataset) or "says_answer" not in found:
        raise ProbeError(
            called, expected="a logit lens (of probe.logit_lens)", got=type(found).__name__
        )


def _told(found: xr.Dataset) -> str:
    return (
        f"{found.attrs['model']}; answer {found.attrs['response'][:60]!r}; one image, one question"
    )
