"""What a reducer leaves of an image: the patches that are kept, and which of the others were merged
into one token.

inputs = subject.encode(image, question)
reduction = probe.reducers.encode(tower, inputs["pixel_values"], reducer)
probe.plots.kept(reduction, image, inputs.encoder_grid[0])
"""

from math import isqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from probe.data.image import ImageSource, open_image
from probe.data.patch_grid import PatchGrid
from probe.errors import ProbeError
from probe.plots.style import panels, title

_KEPT = "#0072B2"
# Tol's muted scheme, told apart by colour-blind readers; groups beyond these begin again, with a
# border between them
_COLOURS = (
    "#332288",
    "#DDCC77",
    "#88CCEE",
    "#CC6677",
    "#117733",
    "#AA4499",
    "#44AA99",
    "#882255",
    "#999933",
)
_VEIL = (1.0, 1.0, 1.0, 0.78)  # over what has no token of its own
_WIDTH = 3.1  # of a panel, in inches


def kept(
    reduction: Any, image: ImageSource, grid: PatchGrid | None = None, *, ax: Any = None
) -> np.ndarray:
    """The image where patches are kept, faded elsewhere; and beside it the groups of patches that
    share a token, each in a colour, with a dot on the patch that the token stands for. A row for
    the image, one for its tiles together.

    reduction: of the views of one image (`probe.reducers.encode`), on any device. grid: where the
    encoder's patches lie in the image (`inputs.encoder_grid[0]`); without it the image is taken to
    be stretched to one view. Returns Axes of shape (1 or 2 rows, 2), or (rows, 1) where nothing was
    merged. A class token, and a token for no patch, are not drawn but counted in the title.

    Raises ProbeError for an image that can't be read, and a grid of another image or number of
    views.
    """
    views = _views(reduction)
    pixels = np.asarray(open_image(image))
    boxes = _boxes(views, grid)
    rows = [[0], list(range(1, len(views)))] if len(views) > 1 else [[0]]
    grouped = any((view["group"] >= 0).any() for view in views)
    height = _WIDTH * min(max(pixels.shape[0] / pixels.shape[1], 0.4), 2) + 0.35
    axes = panels(ax, len(rows), 1 + grouped, (_WIDTH, height), "plots.kept")
    for line, members, whole in zip(axes, rows, (True, False), strict=False):
        name = "the image" if whole else f"its {len(members)} tiles"
        _draw_kept(line[0], pixels, [(views[view], boxes[view]) for view in members], name)
        if grouped:
            _draw_groups(line[1], pixels, [(views[view], boxes[view]) for view in members])
    if ax is None:
        _legend(axes, grouped)
    return axes


def _views(reduction: Any) -> list[dict[str, Any]]:
    """For each view: which patches are kept, the group that each other one is in (-1: none), the
    dots' patches.
    """
    values = {
        name: _plain(getattr(reduction, name))
        for name in ("source", "kept", "merged_into", "scores")
    }
    first, patches = int(reduction.first_patch), values["scores"].shape[1]
    found = []
    for source, kept_, into, count in zip(
        values["source"], values["kept"], values["merged_into"], reduction.count, strict=True
    ):
        own = np.isin(np.arange(patches), kept_[kept_ >= first] - first)
        sizes = np.bincount(into[into >= 0], minlength=len(source))
        group = np.where(sizes[into] > 1, into, -1)[first:]
        group[into[first:] < 0] = -1
        targets = [token for token in np.unique(group[group >= 0]) if source[token] >= first]
        dots = {int(token): int(source[token]) - first for token in targets}
        found.append({"kept": own, "group": group, "dots": dots, "tokens": count})
    return found


def _plain(values: Any) -> np.ndarray:
    """A numpy array, also from a tensor on another device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _boxes(
    views: list[dict[str, Any]], grid: PatchGrid | None
) -> Float[np.ndarray, "view patch edge=4"]:
    patches = len(views[0]["kept"])
    if grid is None and len(views) == 1:
        side = isqrt(patches)
        row, col = np.divmod(np.arange(patches), side)
        return (np.stack([col, row, col + 1, row + 1], -1) / side)[None]
    there = 0 if grid is None else int((grid.image == grid.image[:1]).sum())
    if grid is None or there != patches * len(views):
        got = "none" if grid is None else f"{there} patches"
        raise ProbeError(
            "plots.kept",
            expected=f"the grid of {len(views)} views of {patches} patches",
            got=got,
            fix="pass inputs.encoder_grid[0] and one image's reduction",
        )
    return grid.box[:there].reshape(len(views), patches, 4)


def _draw_kept(
    axis: Axes, pixels: np.ndarray, views: list[tuple[dict, np.ndarray]], name: str
) -> None:
    _show(axis, pixels)
    for view, boxes in views:
        _fill(axis, pixels, boxes[~view["kept"]], facecolors=[_VEIL], linewidths=0)
        _fill(
            axis, pixels, boxes[view["kept"]], facecolors="none", edgecolors=_KEPT, linewidths=0.9
        )
        if len(views) > 1:
            tile = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]
            _fill(axis, pixels, tile, facecolors="none", edgecolors="0.4", linewidths=0.8)
    number, total = (
        sum(view["tokens"] for view, _ in views),
        sum(len(view["kept"]) for view, _ in views),
    )
    count = sum(int(view["kept"].sum()) for view, _ in views)
    title(axis, f"{name}: {number} tokens\n{count} of {total} patches kept")


def _draw_groups(axis: Axes, pixels: np.ndarray, views: list[tuple[dict, np.ndarray]]) -> None:
    _show(axis, pixels, grey=True)
    groups = sum(len(np.unique(view["group"][view["group"] >= 0])) for view, _ in views)
    merged = 0
    for view, boxes in views:
        colours = {
            token: _COLOURS[i % len(_COLOURS)] for i, token in enumerate(np.unique(view["group"]))
        }
        merged += int((view["group"] >= 0).sum())
        inside = view["group"] >= 0
        shown = [colours[group] for group in view["group"][inside]]
        _fill(axis, pixels, boxes[inside], facecolors=shown, linewidths=0, alpha=0.6)
        _fill(axis, pixels, boxes[view["kept"] & ~inside], facecolors="white", linewidths=0)
        lines = [line * pixels.shape[1::-1] for line in _borders(view["group"], boxes)]
        axis.add_collection(LineCollection(lines, colors="white", linewidths=1.1))
        for token, patch in view["dots"].items():
            left, top, right, bottom = boxes[patch] * np.tile(pixels.shape[1::-1], 2)
            place = (left + right) / 2, (top + bottom) / 2
            axis.plot(*place, "o", ms=4.5, mfc=colours[token], mec="black", mew=0.9)
    title(axis, f"{merged} patches merged\ninto {groups} tokens")


def _borders(
    group: Int[np.ndarray, " patch"], boxes: Float[np.ndarray, "patch edge=4"]
) -> list[np.ndarray]:
    """The edges between patches of different groups, as fractions of the image."""
    side = isqrt(len(group))
    square, corners = group.reshape(side, side), boxes.reshape(side, side, 4)
    right = corners[:, :-1][square[:, :-1] != square[:, 1:]][:, [2, 1, 2, 3]]
    below = corners[:-1][square[:-1] != square[1:]][:, [0, 3, 2, 3]]
    return [*np.concatenate([right, below]).reshape(-1, 2, 2)]


def _show(axis: Axes, pixels: np.ndarray, grey: bool = False) -> None:
    height, width = pixels.shape[:2]
    shown = 1 - (1 - pixels.mean(-1) / 255) * 0.7 if grey else pixels
    axis.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")


def _fill(
    axis: Axes, pixels: np.ndarray, boxes: Float[np.ndarray, "patch edge=4"], **look: Any
) -> None:
    left, top, right, bottom = (np.clip(boxes, 0, 1) * np.tile(pixels.shape[1::-1], 2)).T
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], -1).reshape(-1, 4, 2)
    axis.add_collection(PolyCollection([*corners], **look))


def _legend(axes: np.ndarray, grouped: bool) -> None:
    entries: list[Any] = [Patch(facecolor="white", edgecolor=_KEPT, label="kept as it is")]
    if grouped:
        entries += [
            Patch(facecolor="#88CCEE", label="merged: one colour, one token; white: kept"),
            Line2D(
                [],
                [],
                ls="",
                marker="o",
                ms=5,
                mfc="white",
                mec="black",
                label="where the merged token stands",
            ),
        ]
    axes.flat[0].figure.legend(
        handles=entries, loc="outside lower left", ncols=2, fontsize=8, frameon=False
    )
