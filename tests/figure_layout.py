"""What is wrong with how a figure is laid out, at the size of a notebook: texts, legends and colour
bars that lie on each other, are cut off, or hide what is drawn.

>>> import matplotlib.pyplot as plt
>>> figure, axis = plt.subplots(figsize=(3, 2), layout="constrained")
>>> _ = axis.text(0.5, 0.5, "one"), axis.text(0.5, 0.5, "two")
>>> faults(figure)
["'one' and 'two' overlap"]
>>> plt.close(figure)
"""

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

NOTEBOOK_DPI = 72  # of the inline backend
TOUCHES = 1.0  # pixels
LEGIBLE = 4.5  # contrast of small text with its background (WCAG 2.1, AA)


def faults(figure: Figure) -> list[str]:
    """One line for each thing that overlaps another or leaves the figure, and for each legend over
    a curve."""
    figure.set_dpi(NOTEBOOK_DPI)
    figure.canvas.draw()
    boxes = _boxes(figure)
    page = figure.bbox
    overlaps = [
        f"{one} and {other} overlap"
        for (one, first), (other, second) in combinations(boxes, 2)
        if _overlap(first, second)
    ]
    cut = [f"{name} is cut off" for name, box in boxes if not _inside(box, page)]
    return overlaps + cut + _legends_over_curves(figure)


def illegible(figure: Figure) -> list[str]:
    """The texts outside of images whose colour is too close to the background of the figure."""
    figure.canvas.draw()
    page = to_rgb(figure.get_facecolor())
    texts = [text for text in _texts(figure) if not text.get_path_effects()]
    return [
        f"{text.get_text()!r} ({text.get_color()})"
        for text in texts
        if _contrast(to_rgb(text.get_color()), page) < LEGIBLE
    ]


def _texts(figure: Figure) -> list[Text]:
    """Visible texts that are drawn: tick labels beyond the limits of their axis are not."""
    texts = figure.findobj(lambda artist: isinstance(artist, Text) and _shown(artist))
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
        if not axes.axison or not _within(tick.get_loc(), axis.get_view_interval())
    }
    return [text for text in texts if id(text) not in hidden]


def _shown(text: Text) -> bool:
    return bool(text.get_visible() and text.get_text().strip())


def _within(place: float, interval: np.ndarray) -> bool:
    low, high = sorted(interval)
    margin = 1e-9 * max(abs(low), abs(high))
    return low - margin <= place <= high + margin


def _boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Name and extent of each text outside of legends, each legend and each colour bar."""
    legends = figure.findobj(Legend)
    inside = {id(text) for legend in legends for text in legend.findobj(Text)}
    boxes = [(repr(text.get_text()), text) for text in _texts(figure) if id(text) not in inside]
    boxes += [(f"legend {[text.get_text() for text in one.texts]}", one) for one in legends]
    boxes = [(name, artist.get_window_extent()) for name, artist in boxes]
    bars = [axes for axes in figure.axes if hasattr(axes, "_colorbar")]
    boxes += [(f"colour bar {axes.get_ylabel()}{axes.get_xlabel()}", axes.bbox) for axes in bars]
    return [(name, box) for name, box in boxes if box.width > 0 and box.height > 0]


def _overlap(one: Bbox, other: Bbox) -> bool:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > TOUCHES and height > TOUCHES


def _inside(box: Bbox, page: Bbox) -> bool:
    return (
        box.x0 >= page.x0 - TOUCHES
        and box.y0 >= page.y0 - TOUCHES
        and box.x1 <= page.x1 + TOUCHES
        and box.y1 <= page.y1 + TOUCHES
    )


def _legends_over_curves(figure: Figure) -> list[str]:
    found = []
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None and _crossed(axes, legend.get_window_extent()):
            found.append(f"legend {[text.get_text() for text in legend.texts]} lies on a curve")
    return found


def _crossed(axes: Axes, box: Bbox) -> bool:
    """Whether a line of the Axes, between its points too, enters the box."""
    inside = Bbox.intersection(box, axes.bbox)
    if inside is None or not inside.width or not inside.height:
        return False
    paths = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
    return any(path.intersects_bbox(inside, filled=False) for path in paths if len(path.vertices))


def _contrast(one: tuple, other: tuple) -> float:
    """The contrast ratio of two colours, from 1 to 21 (WCAG 2.1)."""
    darker, brighter = sorted((_luminance(one), _luminance(other)))
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: tuple) -> float:
    channels = np.array(colour)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
