"""How every figure looks: one palette, one style, and the parts that all figures share.

A name has the same colour, marker and dash wherever it is drawn (`LOOKS`): a token type, a drop
mode, a reducer, a model, a measure. The colours are those of Okabe and Ito, safe for colour-blind
readers; the untouched model is black and baselines are grey. In a line of A → B, colour and marker
are those of the keys B and the dash is that of the queries A, so that lines can be told apart in
grey as well.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from probe.errors import ProbeError

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
AMBER = "#E69F00"
YELLOW = "#F0E442"
BLACK = "#000000"
DARK_GREY = "#595959"
GREY = "#999999"
LIGHT_GREY = "#CCCCCC"

DASHED = (0, (5, 2))
DOTTED = (0, (1, 1.2))
DASH_DOT = (0, (6, 1.5, 1, 1.5))
LONG_DASHES = (0, (9, 3))
FAR_DOTS = (0, (1, 4))


class Look(NamedTuple):
    """matplotlib's settings for a line."""

    color: str
    marker: str
    linestyle: Any = "-"


LOOKS = {
    # token types
    "instruction": Look(BLUE, "o", DASHED),
    "vision": Look(VERMILION, "s", DOTTED),
    "response": Look(GREEN, "^"),
    "system": Look(SKY, "v", LONG_DASHES),
    "last": Look(PURPLE, "D", DASH_DOT),
    "compressed": Look(AMBER, "P", (0, (3, 1, 1, 1, 1, 1))),
    "bos": Look(BLACK, "X", FAR_DOTS),
    "cls": Look(BLACK, "o"),
    "other": Look(GREY, "x", DOTTED),
    # modes of dropping, and the cases that every sweep has
    "mask": Look(VERMILION, "o"),
    "mask_frozen": Look(AMBER, "^"),
    "remove": Look(BLUE, "s"),
    "remove_for_good": Look(SKY, "D"),
    "zero": Look(GREEN, "v"),
    "swap": Look(PURPLE, "P"),
    "untouched": Look(BLACK, ""),
    "no vision": Look(DARK_GREY, "", DOTTED),
    "another image": Look(GREY, "", DASH_DOT),
    # reducers and their baselines
    "visionzip": Look(VERMILION, "o"),
    "prumerge": Look(AMBER, "s"),
    "prumerge+": Look(AMBER, "D", DASHED),
    "dominant only": Look(VERMILION, "<", DASHED),
    "contextual only": Look(VERMILION, ">", DOTTED),
    "fastv": Look(BLUE, "^"),
    "pyramiddrop": Look(SKY, "D"),
    "sparsevlm": Look(GREEN, "v"),
    "sparsevlm, recycling": Look(GREEN, "P", DASHED),
    "vispruner": Look(PURPLE, "o"),
    "cdpruner": Look(PURPLE, "s", DASHED),
    "holov": Look(PURPLE, "^", DOTTED),
    "vscan": Look(GREEN, "<", DASH_DOT),
    "hiprune": Look(GREEN, ">", LONG_DASHES),
    "divprune": Look(AMBER, "h", DASH_DOT),
    "dart": Look(BLUE, "v", LONG_DASHES),
    "down-sampling": Look(BLACK, "d", DOTTED),
    "random": Look(GREY, "X", DASHED),
    "grid": Look(DARK_GREY, "h", DOTTED),
    # models
    "tiny-llava": Look(BLUE, "o", DASHED),
    "tiny-llava-mini": Look(PURPLE, "P"),
    "llava-1.5-7b": Look(BLUE, "o", DASHED),
    "llava-mini": Look(PURPLE, "P"),
    # measures of attention
    "mass": Look(BLUE, "o"),
    "lift": Look(SKY, "s", DASHED),
    "received": Look(AMBER, "^", DOTTED),
    "contribution": Look(VERMILION, "D"),
    # kinds of question of the tiny models' own task
    "shape": Look(AMBER, "v", LONG_DASHES),
    "colour": Look(VERMILION, "s", DASHED),
    "at": Look(BLUE, "o"),
    "where": Look(SKY, "P", (0, (12, 2))),
    "count": Look(GREEN, "^", DOTTED),
    "exist": Look(PURPLE, "D", DASH_DOT),
    "caption": Look(DARK_GREY, "X", (0, (2, 2))),
    # components of a model
    "vision_encoder": Look(VERMILION, ""),
    "projector": Look(SKY, ""),
    "compressor": Look(AMBER, ""),
    "prefusion": Look(PURPLE, ""),
    "llm": Look(BLUE, ""),
}
_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, AMBER, SKY, BLACK, YELLOW, GREY)
_MARKERS = "os^DvPX*h<>dp8"
_DASHES = (
    *("-", DASHED, DOTTED, DASH_DOT, LONG_DASHES, (0, (12, 2)), (0, (2, 2))),
    *((0, (8, 2, 2, 2)), (0, (4, 4))),
)

_SETTINGS: dict[Any, Any] = sns.axes_style("ticks") | {
    "axes.titlesize": 10,
    "errorbar.capsize": 2,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11,
    "image.interpolation": "nearest",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.title_fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
}
RIGHT: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}  # where a legend goes
SMALL_TITLE, _TITLE_LETTERS = 9, 11  # size over an image; letters in an inch of a figure's title
_AXIS_LABEL = 0.55  # inches that ticks and label of a horizontal axis take

_STACKS = {
    "llm": "LLM layer",
    "vision": "vision encoder layer",
    "vision_video": "video encoder layer",
    "compressor": "compressor layer",
    "prefusion": "pre-fusion layer",
    "cross": "LLM layer (cross-attention)",
}
_TOY = "toy model: not a finding about LLaVA"
_SMALL_PRINT = {"fontsize": 8, "color": "0.35", "ha": "left", "parse_math": False}


@contextmanager
def styled() -> Iterator[None]:
    """The style of all figures while a plot is drawn: `@styled()` above it.

    matplotlib's own settings are the user's, and are as they were afterwards. Others are not
    touched (as `matplotlib.rc_context` would): the first figure of a notebook makes its backend
    interactive, without which no later figure is shown.
    """
    before = {name: matplotlib.rcParams[name] for name in _SETTINGS}
    matplotlib.rcParams.update(_SETTINGS)
    try:
        yield
    finally:
        matplotlib.rcParams.update(before)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each name: its own in `LOOKS`, otherwise the first one that no other name has.

    >>> looks(["vision", "cat"])["cat"]
    Look(color='#0072B2', marker='o', linestyle='-')
    """
    names = list(dict.fromkeys(names))
    known = {name: LOOKS[name.lower()] for name in names if name.lower() in LOOKS}

    def spares(choices: Sequence[Any], part: int) -> cycle:
        taken = [look[part] for look in known.values()]
        free = [choice for choice in choices if choice not in taken]
        return cycle(free or choices)

    colours = spares(_COLOURS, 0)
    markers = spares(_MARKERS, 1)
    dashes = spares(_DASHES, 2)
    found = {}
    for name in names:
        found[name] = known.get(name) or Look(next(colours), next(markers), next(dashes))
    return found


def line_style(
    query_type: str, key_type: str, query_types: Sequence[str], key_types: Sequence[str]
) -> dict[str, Any]:
    """matplotlib's settings for the line of A → B: colour and marker of B, dash of A."""
    look = looks(key_types)[key_type]
    return look._replace(linestyle=looks(query_types)[query_type].linestyle)._asdict()


def panels(ax: Any, rows: int, columns: int, size: tuple[float, float], called: str) -> np.ndarray:
    """Axes of shape (rows, columns): the user's, or those of a new figure.

    size: width and height of a panel in inches. Raises ProbeError for an `ax` of another number.
    """
    if ax is None:
        figsize = (columns * size[0], rows * size[1])
        return plt.subplots(rows, columns, figsize=figsize, squeeze=False)[1]
    axes = np.array(ax, dtype=object).reshape(-1)
    if axes.size != rows * columns or not all(isinstance(axis, Axes) for axis in axes):
        types = ", ".join(sorted({type(axis).__name__ for axis in axes}))
        raise ProbeError(
            called, expected=f"ax= {rows * columns} Axes", got=f"{axes.size} ({types})"
        )
    return axes.reshape(rows, columns)


def figure_of(drawn: Any) -> Figure:
    """The figure of Axes, or of an array of them."""
    return np.ravel(drawn)[0].figure


def unmanaged(drawn: Axes | Figure) -> Figure:
    """The figure of what was drawn; pyplot no longer keeps or shows it: it is for a file."""
    figure = figure_of(drawn)
    plt.close(figure)
    return figure


def layer_label(stack: str) -> str:
    """Which layers an axis counts."""
    return _STACKS.get(stack, f"{stack} layer")


def count_from_one(axis: Axis, count: int) -> None:
    """Ticks at 1 and at about ten more of `count` layers or heads."""
    step = -(-count // 10)
    axis.set_ticks(sorted({1, *range(step, count + 1, step)}))


def title(axis: Axes, text: str) -> None:
    """A title above the left edge; a dollar sign in a user's name does not start a formula."""
    axis.set_title(text, loc="left", parse_math=False)


def heading(figure: Figure, text: str) -> None:
    """A title above all panels, in lines that are not wider than the figure."""
    width = int(figure.get_figwidth() * _TITLE_LETTERS)
    text = "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, width))
    figure.suptitle(text, x=0.01, ha="left", parse_math=False)


def label(array: xr.DataArray) -> str:
    """What an axis measures, with its unit, as the record has it."""
    return f"{array.attrs['long_name']} ({array.attrs['units']})"


def legend(axis: Axes, handles: Mapping[str, Any] | None = None, **settings: Any) -> None:
    """A legend of everything on the Axes, or of `handles`, whose names are not read as formulas."""
    entries = (list(handles.values()), list(handles)) if handles else ()
    for text in axis.legend(*entries, **settings).texts:
        text.set_parse_math(False)


def below(axis: Axes) -> dict[str, Any]:
    """Settings of a legend below the label of the horizontal axis, however high the Axes are."""
    offset = ScaledTranslation(0, -_AXIS_LABEL, figure_of(axis).dpi_scale_trans)
    under = axis.transAxes + offset
    return {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": under}


def finish(axis: Axes, text: str, *, layers: int = 0, **settings: Any) -> None:
    """Title and labels, no frame above and to the right; with `layers`, x counts them from 1."""
    title(axis, text)
    axis.set(**settings)
    sns.despine(ax=axis)
    if layers:
        count_from_one(axis.xaxis, layers)


def shade(
    axis: Axes,
    x: np.ndarray,
    low: Float[np.ndarray, " point"],
    high: Float[np.ndarray, " point"],
    colour: str,
) -> None:
    """The band around a line."""
    axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def caption(
    axes: Axes | np.ndarray, lines: Sequence[str], records: Mapping[str, Any], own: bool
) -> None:
    """Small print below a figure of ours (`own`), or below the first of the user's Axes.

    It also says which of the `records` are of a toy model.
    """
    toys = [name for name, one in records.items() if str(one.attrs.get("toy")).lower() == "true"]
    only = f" ({', '.join(toys)})" if 0 < len(toys) < len(records) else ""
    lines = [*dict.fromkeys(lines), *([_TOY + only] if toys else [])]
    figure = figure_of(axes)
    first: Axes = np.ravel(axes)[0]  # pyright: ignore
    width = figure.get_figwidth() * (1 if own else first.get_position().width)
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, int(width * 16)))
    if own:
        figure.supxlabel(text, x=0.01, va="bottom", **_SMALL_PRINT)
    else:
        first.annotate(
            text,
            (0, 0),
            (0, -36),
            va="top",
            annotation_clip=False,
            xycoords="axes fraction",
            textcoords="offset points",
            **_SMALL_PRINT,
        )
