"""Images of coloured shapes: what the tiny models see.

A scene is one to four things in the nine cells of a square image, each a shape in a colour, with
jitter of place, size and hue, a light or dark tinted background and a little noise. It determines
its image, so `draw` is a pure function, at any size: 60 pixels for the models, 480 for people.

>>> import numpy as np
>>> scene = sample_scene(np.random.default_rng(0))
>>> draw(scene, size=480).size
(480, 480)
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

HUES = {"red": 0, "orange": 32, "yellow": 58, "green": 125, "blue": 220, "purple": 285}  # degrees
COLOURS = tuple(HUES)
SHAPES = ("circle", "square", "triangle", "cross", "ring")
ROW_NAMES = ("top", "middle", "bottom")
COLUMN_NAMES = ("left", "center", "right")
SIZE = 60  # pixels a side: what the models see
PURPOSES = (
    "pretraining",
    "training",
    "validation",
    "frozen",
    "prior",
    "sample",
    "fusion",
)  # only ever append

_HUE_JITTER = 6  # degrees: orange and yellow stay apart
_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Thing:
    """One shape. `x`, `y` and `radius` are fractions of the image; `hue` and `value` are those of
    HSV.
    """

    colour: str
    shape: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    hue: float
    value: float

    @property
    def cell(self) -> tuple[int, int]:
        return self.row, self.column


@dataclass(frozen=True)
class Scene:
    """An image before it is drawn. Things are in reading order, at most one a cell."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    noise: float  # standard deviation, in grey levels of 255
    noise_seed: int

    @property
    def layout(self) -> tuple[tuple[str, str, int, int], ...]:
        """What is where, without jitter, background and noise: what every question is about."""
        return tuple((thing.colour, thing.shape, *thing.cell) for thing in self.things)


def stream(purpose: str, *numbers: int) -> np.random.Generator:
    """The random numbers for one purpose: training, evaluation and examples never share any."""
    return np.random.default_rng([1 + PURPOSES.index(purpose), *numbers])


def sample_scene(
    rng: np.random.Generator, *, things: tuple[int, int] = (1, 4), alike: float = 0.4
) -> Scene:
    """Draws a scene with `things` (fewest, most) things, at least one of them unlike all others.

    `alike` is the probability that all colours come from only one or two, and (independently) all
    shapes: such images hold distractors of the same colour or shape, so that neither word alone
    finds a thing.
    """
    number = int(rng.integers(things[0], things[1] + 1))
    cells = sorted(rng.choice(9, size=number, replace=False).tolist())
    while True:
        looks = list(
            zip(
                _palette(COLOURS, number, alike, rng),
                _palette(SHAPES, number, alike, rng),
                strict=True,
            )
        )
        if any(looks.count(look) == 1 for look in looks):
            break
    return Scene(
        things=tuple(_thing(*look, cell, rng) for look, cell in zip(looks, cells, strict=True)),
        background=_background(rng),
        noise=float(rng.uniform(0, 4)),
        noise_seed=int(rng.integers(2**31)),
    )


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels. The same scene gives the same pixels."""
    large = size * _SUPERSAMPLING
    canvas = Image.new("RGB", (large, large), scene.background)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _draw_thing(pen, thing, large, scene.background)
    pixels = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32)
    rng = np.random.default_rng(scene.noise_seed)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32)
    noisy = np.clip(pixels + scene.noise * grain, 0, 255)
    return Image.fromarray(noisy.round().astype(np.uint8))


def _palette(
    names: tuple[str, ...], number: int, alike: float, rng: np.random.Generator
) -> list[str]:
    """`number` names, drawn from all of them or from only one or two."""
    if rng.random() < alike:
        names = tuple(
            names[i] for i in rng.choice(len(names), size=rng.integers(1, 3), replace=False)
        )
    return [names[i] for i in rng.integers(len(names), size=number)]


def _thing(colour: str, shape: str, cell: int, rng: np.random.Generator) -> Thing:
    row, column = divmod(cell, 3)
    radius = rng.uniform(0.095, 0.135)
    slack = 1 / 6 - radius  # keeps the shape within its cell
    return Thing(
        colour=colour,
        shape=shape,
        row=row,
        column=column,
        x=(column + 0.5) / 3 + rng.uniform(-slack, slack),
        y=(row + 0.5) / 3 + rng.uniform(-slack, slack),
        radius=radius,
        hue=(HUES[colour] + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) % 360,
        value=rng.uniform(0.8, 1.0),
    )


def _background(rng: np.random.Generator) -> tuple[int, int, int]:
    low, high = (225, 250) if rng.random() < 0.5 else (15, 50)
    red, green, blue = rng.integers(low, high, size=3).tolist()
    return red, green, blue


def _draw_thing(
    pen: ImageDraw.ImageDraw, thing: Thing, size: int, background: tuple[int, int, int]
) -> None:
    red, green, blue = colorsys.hsv_to_rgb(thing.hue / 360, 0.85, thing.value)
    colour = (round(255 * red), round(255 * green), round(255 * blue))
    x = thing.x * size
    y = thing.y * size
    r = thing.radius * size

    def box(half_width: float, half_height: float) -> tuple[float, float, float, float]:
        return x - half_width, y - half_height, x + half_width, y + half_height

    match thing.shape:
        case "circle":
            pen.ellipse(box(r, r), fill=colour)
        case "square":
            side = 0.88 * r
            pen.rectangle(box(side, side), fill=colour)
        case "triangle":
            base = y + 0.85 * r
            pen.polygon([(x, y - r), (x + r, base), (x - r, base)], fill=colour)
        case "cross":
            arm = 0.32 * r
            pen.rectangle(box(r, arm), fill=colour)
            pen.rectangle(box(arm, r), fill=colour)
        case "ring":
            hole = 0.55 * r
            pen.ellipse(box(r, r), fill=colour)
            pen.ellipse(box(hole, hole), fill=background)
