"""What a reducer leaves of an image: the patches that are kept, and which of the others were merged
into one token.

    inputs = subject.encode(image, question)
    reduction = probe.reducers.encode(tower, inputs["pixel_values"], reducer)
    probe.plots.kept(reduction, image, inputs.encoder_grid[0])
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from probe.data.image import ImageSource, open_image
from probe.data.image_views import bounding_box
from probe.data.patch_grid import PatchGrid
from probe.errors import ProbeError
from probe.plots.patches import corners, middles, show_image
from probe.plots.style import BLUE, figure_of, panels, styled, title

_CALLED = "plots.kept"
# Tol's muted scheme, safe for colour-blind readers; with more groups it starts again, and groups
# are told apart by the borders between them.
_GROUPS = (
    *("#332288", "#DDCC77", "#88CCEE", "#CC6677", "#117733", "#AA4499", "#44AA99", "#882255"),
    "#999933",
)
_VEIL = (1.0, 1.0, 1.0, 0.78)  # over patches that have no token
_WIDTH = 3.1  # of a panel, in inches


@dataclass(frozen=True)
class _View:
    """What is left of the patches of one view (the image, or a tile)."""

    boxes: Float[np.ndarray, "patch edge=4"]
    kept: Bool[np.ndarray, " patch"]
    group: Int[np.ndarray, " patch"]  # the token that a patch is merged into; -1: none
    anchors: dict[int, int]  # group -> the patch whose token it is
    tokens: int
    class_token: bool  # whether the encoder's class token is kept

    @property
    def merged(self) -> Bool[np.ndarray, " patch"]:
        return self.group >= 0


@styled()
def kept(
    reduction: Any, image: ImageSource, grid: PatchGrid | None = None, *, ax: Any = None
) -> Figure:
    """Which patches keep a token and, to the right, which were merged into one; a row for the
    image, and one for all of its tiles.

    How to read it: framed patches are kept, faded ones have no token. On the right, patches of one
    colour share a token, a dot is the patch whose token that is, and white patches are kept. A
    class token is mentioned below; a token without a patch is only counted in the title. Where
    nothing was merged there is no right column.

    Args:
        reduction: of the views of one image (`probe.reducers.encode`), on any device.
        image: the image that was encoded.
        grid: where the encoder's patches lie in the image (`inputs.encoder_grid[0]`); without it
            the image is taken to be stretched to one view.
        ax: the Axes to draw on.

    Raises ProbeError for an image that cannot be read, and for a grid of another image or number
    of views.
    """
    views = _views(reduction, grid)
    pixels = np.asarray(open_image(image))
    rows = [views[:1], views[1:]] if len(views) > 1 else [views]
    grouped = any(view.merged.any() for view in views)
    height = _WIDTH * min(max(pixels.shape[0] / pixels.shape[1], 0.4), 2) + 0.35
    axes = panels(ax, len(rows), 1 + grouped, (_WIDTH, height), _CALLED)
    names = ("the image", f"its {len(views) - 1} tiles")
    for row, members, name in zip(axes, rows, names, strict=False):
        _draw_kept(row[0], pixels, members, name)
        if grouped:
            _draw_groups(row[1], pixels, members)
    if ax is None:
        _legend(figure_of(axes), grouped, sum(view.class_token for view in views))
    return figure_of(axes)


def _views(reduction: Any, grid: PatchGrid | None) -> list[_View]:
    sources = _to_numpy(reduction.source)
    kept_tokens = _to_numpy(reduction.kept)
    merged_into = _to_numpy(reduction.merged_into)
    patches = _to_numpy(reduction.scores).shape[1]
    first = int(reduction.first_patch)
    boxes = _boxes(len(sources), patches, grid)
    views = []
    for number, (source, into) in enumerate(zip(sources, merged_into, strict=True)):
        kept = kept_tokens[number]
        is_kept = np.isin(np.arange(patches), kept[kept >= first] - first)
        of_class = bool(((kept >= 0) & (kept < first)).any())
        sizes = np.bincount(into[into >= 0], minlength=len(source))
        is_shared = (into >= 0) & (sizes[into] > 1)
        group = np.where(is_shared, into, -1)[first:]
        tokens = [token for token in np.unique(group[group >= 0]) if source[token] >= first]
        anchors = {int(token): int(source[token]) - first for token in tokens}
        count = int(reduction.count[number])
        views.append(_View(boxes[number], is_kept, group, anchors, count, of_class))
    return views


def _to_numpy(values: Any) -> np.ndarray:
    """A numpy array, also from a tensor on another device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _boxes(
    views: int, patches: int, grid: PatchGrid | None
) -> Float[np.ndarray, "view patch edge=4"]:
    if grid is None and views == 1:
        side = isqrt(patches)
        row, col = np.divmod(np.arange(patches), side)
        return (np.stack([col, row, col + 1, row + 1], -1) / side)[None]
    count = 0 if grid is None else int((grid.image == grid.image[:1]).sum())
    if grid is None or count != patches * views:
        raise ProbeError(
            _CALLED,
            expected=f"the grid of {views} views of {patches} patches",
            got="none" if grid is None else f"{count} patches",
            fix="pass inputs.encoder_grid[0] and one image's reduction",
        )
    return grid.box[:count].reshape(views, patches, 4)


def _draw_kept(axis: Axes, pixels: np.ndarray, views: list[_View], name: str) -> None:
    show_image(axis, pixels)
    outlined = {"facecolors": "none", "edgecolors": BLUE, "linewidths": 0.9}
    tile = {"facecolors": "none", "edgecolors": "0.4", "linewidths": 0.8}
    for view in views:
        _fill(axis, pixels, view.boxes[~view.kept], facecolors=[_VEIL], linewidths=0)
        _fill(axis, pixels, view.boxes[view.kept], **outlined)
        if len(views) > 1:
            _fill(axis, pixels, bounding_box(view.boxes)[None], **tile)
    tokens = sum(view.tokens for view in views)
    patches = sum(len(view.kept) for view in views)
    kept_patches = sum(int(view.kept.sum()) for view in views)
    title(axis, f"{name}: {tokens} tokens\n{kept_patches} of {patches} patches kept")


def _draw_groups(axis: Axes, pixels: np.ndarray, views: list[_View]) -> None:
    show_image(axis, pixels, grey=0.7)
    size = _size(pixels)
    for view in views:
        groups = np.unique(view.group)
        colours = {group: _GROUPS[i % len(_GROUPS)] for i, group in enumerate(groups)}
        shown = [colours[group] for group in view.group[view.merged]]
        _fill(axis, pixels, view.boxes[view.merged], facecolors=shown, linewidths=0, alpha=0.6)
        alone = view.kept & ~view.merged
        _fill(axis, pixels, view.boxes[alone], facecolors="white", linewidths=0)
        borders = [*(_borders(view) * size)]
        axis.add_collection(LineCollection(borders, colors="white", linewidths=1.1))
        centres = middles(view.boxes, size)
        for group, patch in view.anchors.items():
            axis.plot(
                *centres[patch],
                "o",
                markerfacecolor=colours[group],
                markersize=4.5,
                markeredgecolor="black",
                markeredgewidth=0.9,
            )
    merged = sum(int(view.merged.sum()) for view in views)
    tokens = sum(len(np.unique(view.group[view.merged])) for view in views)
    title(axis, f"{merged} patches merged\ninto {tokens} tokens")


def _borders(view: _View) -> Float[np.ndarray, "border end=2 xy=2"]:
    """The edges between patches of different groups, as fractions of the image."""
    side = isqrt(len(view.group))
    group = view.group.reshape(side, side)
    boxes = view.boxes.reshape(side, side, 4)
    differs_right = group[:, :-1] != group[:, 1:]
    differs_below = group[:-1] != group[1:]
    # A box is (left, top, right, bottom), a border (x, y) of its one end and of the other.
    right_edges = boxes[:, :-1][differs_right][:, [2, 1, 2, 3]]
    bottom_edges = boxes[:-1][differs_below][:, [0, 3, 2, 3]]
    return np.concatenate([right_edges, bottom_edges]).reshape(-1, 2, 2)


def _size(pixels: np.ndarray) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[0]


def _fill(
    axis: Axes, pixels: np.ndarray, boxes: Float[np.ndarray, "patch edge=4"], **style: Any
) -> None:
    axis.add_collection(PolyCollection(corners(boxes, _size(pixels)), **style))


def _legend(figure: Figure, grouped: bool, class_tokens: int) -> None:
    entries: list[Any] = [Patch(facecolor="white", edgecolor=BLUE, label="kept as it is")]
    if grouped:
        colours = "merged: one colour, one token; white: kept"
        entries.append(Patch(facecolor=_GROUPS[2], label=colours))
        dot = Line2D([], [], linestyle="", marker="o", label="patch of the merged token")
        dot.set(markerfacecolor="white", markeredgecolor="black")
        entries.append(dot)
    if class_tokens:
        text = f"and {class_tokens} class token{'s' * (class_tokens > 1)}, without a place"
        entries.append(Line2D([], [], linestyle="", label=text))
    figure.legend(handles=entries, loc="outside lower left", ncols=2)
