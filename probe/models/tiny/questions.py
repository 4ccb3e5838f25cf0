"""Questions about a scene, with their answers: what the tiny models are asked.

Seven kinds. A question also records how it identifies its thing (`key`: by colour, shape, both or
cell) and how many other things in the image share the named colour or shape: on those images a
shortcut fails, and `training/evaluate` reports them separately.

    kind      question                              answer
    shape     What shape is the red object?         it is a circle
    colour    What colour is the circle?            it is red
    at        What is at the top left?              a red circle | nothing
    where     Where is the red circle?              at the top left
    count     How many circles are there?           two
    exist     Is there a red circle?                yes | no
    caption   Describe the image.                 a red circle at the top left, a blue ring at ...

>>> import numpy as np
>>> from probe.models.tiny.scenes import sample_scene
>>> rng = np.random.default_rng(7)
>>> asked = ask(sample_scene(rng), "where", rng)
>>> asked.question, asked.answer
('In which place is the blue square?', 'at the middle right')
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from probe.errors import one_of
from probe.models.tiny.scenes import (
    COLOURS,
    COLUMN_NAMES,
    ROW_NAMES,
    SHAPES,
    Scene,
    Thing,
    draw,
    sample_scene,
    stream,
)

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TEMPLATES = {
    "shape": (
        "What shape is {the}?",
        "What is the shape of {the}?",
        "Which shape does {the} have?",
    ),
    "colour": (
        "What colour is {the}?",
        "What color is {the}?",
        "What is the color of {the}?",
        "Which colour does {the} have?",
    ),
    "at": ("What is at {cell}?", "What do you see at {cell}?", "Which object is at {cell}?"),
    "where": ("Where is {the}?", "Where can you see {the}?", "In which place is {the}?"),
    "count": (
        "How many {many} are there?",
        "How many {many} are in the picture?",
        "How many {many} do you see?",
        "Count the {many}.",
    ),
    "exist": ("Is there {a}?", "Is there {a} in the image?", "Can you see {a}?", "Do you see {a}?"),
    "caption": (
        "Describe the picture.",
        "Describe the image.",
        "What is in the picture?",
        "What do you see in the image?",
        "What can you see?",
    ),
}
QUESTION_KINDS = tuple(TEMPLATES)


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene and its one right answer.

    `key` is what identifies the thing: "colour", "shape", "both", "cell", or "all" (the whole
    image). `same_colour` and `same_shape` count the other things that share only the target's
    colour or shape.
    """

    kind: str
    question: str
    answer: str
    key: str
    things: int
    same_colour: int = 0
    same_shape: int = 0

    @property
    def distractors(self) -> str:
        """Which shortcuts the image defeats: "none", "same colour", "same shape" or "both"."""
        names = {(False, False): "none", (True, False): "same colour", (False, True): "same shape"}
        return names.get((self.same_colour > 0, self.same_shape > 0), "both")


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> SceneQuestion:
    """One question of that kind about the scene. Raises ProbeError on a kind that is not in
    `QUESTION_KINDS`.
    """
    one_of("questions.ask", "a kind among", kind, QUESTION_KINDS)
    return _ASK[kind](scene, rng)


def sample_image(
    seed: int = 0, kind: str = "caption", size: int = 480
) -> tuple[Image.Image, str, str]:
    """An example image, a question about it and its answer: the command line's defaults.

    These images are in no training or evaluation set; `tests/models/tiny/test_weights.py` checks
    that the shipped model answers the first of them correctly.
    """
    rng = stream("sample", seed)
    scene = sample_scene(rng, things=(3, 4), alike=0.0)
    asked = ask(scene, kind, rng)
    return draw(scene, size), asked.question, asked.answer


def _shape(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    target, key = _target(scene, "colour", rng)
    return _question(
        "shape", scene, rng, target, key, f"it is a {target.shape}", the=_the(target, key)
    )


def _colour(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    target, key = _target(scene, "shape", rng)
    return _question(
        "colour", scene, rng, target, key, f"it is {target.colour}", the=_the(target, key)
    )


def _at(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    """A filled cell four times in five, else an empty one."""
    filled = {thing.cell: thing for thing in scene.things}
    empty = [
        (row, column) for row in range(3) for column in range(3) if (row, column) not in filled
    ]
    cell = _pick(list(filled), rng) if rng.random() < 0.8 else _pick(empty, rng)
    target = filled.get(cell)
    answer = _a(target.colour, target.shape) if target else "nothing"
    return _question("at", scene, rng, target, "cell", answer, cell=_cell(cell))


def _where(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    looks = Counter((thing.colour, thing.shape) for thing in scene.things)
    unique = [thing for thing in scene.things if looks[thing.colour, thing.shape] == 1]
    target = _pick(unique, rng)
    keys = ["both", "both"] + [key for key in ("colour", "shape") if _alone(scene, target, key)]
    key = _pick(keys, rng)
    place = f"at {_cell(target.cell)}"
    return _question("where", scene, rng, target, key, place, the=_the(target, key))


def _count(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    """First draws the number, uniformly among those in the image, then something that occurs that
    often.
    """
    colours = Counter(thing.colour for thing in scene.things)
    shapes = Counter(thing.shape for thing in scene.things)
    counts = [("colour", f"{colour} objects", colours[colour]) for colour in COLOURS]
    counts += [("shape", plural(shape), shapes[shape]) for shape in SHAPES]
    counts += [("all", "objects", len(scene.things))]
    numbers = sorted({count for _, _, count in counts})
    number = _pick(numbers, rng)
    that_often = [entry for entry in counts if entry[2] == number]
    key, many, _ = _pick(that_often, rng)
    return _question("count", scene, rng, None, key, NUMBER_WORDS[number], many=many)


def _exist(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    """Yes and no equally often. Three in four "no" questions name a colour or shape that is
    present.
    """
    present = {(thing.colour, thing.shape) for thing in scene.things}
    colour, shape = _pick(sorted(present), rng)
    yes = rng.random() < 0.5
    while not yes and (colour, shape) in present:
        colour, shape = _pick(sorted(present), rng)
        change = rng.random()
        if change > 0.375:
            colour = _pick(COLOURS, rng)
        if not 0.375 < change < 0.75:
            shape = _pick(SHAPES, rng)
    text = _pick(TEMPLATES["exist"], rng).format(a=_a(colour, shape))
    sharing = _sharing(scene, colour, shape)
    return SceneQuestion("exist", text, "yes" if yes else "no", "both", len(scene.things), *sharing)


def _caption(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    parts = [f"{_a(thing.colour, thing.shape)} at {_cell(thing.cell)}" for thing in scene.things]
    return _question("caption", scene, rng, None, "all", ", ".join(parts))


_ASK: dict[str, Callable[[Scene, np.random.Generator], SceneQuestion]] = {
    "shape": _shape,
    "colour": _colour,
    "at": _at,
    "where": _where,
    "count": _count,
    "exist": _exist,
    "caption": _caption,
}


def _question(
    kind: str,
    scene: Scene,
    rng: np.random.Generator,
    target: Thing | None,
    key: str,
    answer: str,
    **words,
) -> SceneQuestion:
    text = _pick(TEMPLATES[kind], rng).format(**words)
    if target is None:
        return SceneQuestion(kind, text, answer, key, len(scene.things))
    return SceneQuestion(
        kind, text, answer, key, len(scene.things), *_sharing(scene, target.colour, target.shape)
    )


def _sharing(scene: Scene, colour: str, shape: str) -> tuple[int, int]:
    """How many things share only the colour, and how many only the shape."""
    same = [(thing.colour == colour, thing.shape == shape) for thing in scene.things]
    return same.count((True, False)), same.count((False, True))


def _target(scene: Scene, key: str, rng: np.random.Generator) -> tuple[Thing, str]:
    """A thing unique in its colour (or shape); one in five, or if none is, by its cell."""
    unique = [thing for thing in scene.things if _alone(scene, thing, key)]
    if unique and rng.random() < 0.8:
        return _pick(unique, rng), key
    return _pick(scene.things, rng), "cell"


def _alone(scene: Scene, thing: Thing, attribute: str) -> bool:
    return [getattr(other, attribute) for other in scene.things].count(
        getattr(thing, attribute)
    ) == 1


def _pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def _a(colour: str, shape: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def _the(thing: Thing, key: str) -> str:
    match key:
        case "both":
            return f"the {thing.colour} {thing.shape}"
        case "shape":
            return f"the {thing.shape}"
        case "colour":
            return f"the {thing.colour} object"
    return f"the object at {_cell(thing.cell)}"


def _cell(cell: tuple[int, int]) -> str:
    return f"the {ROW_NAMES[cell[0]]} {COLUMN_NAMES[cell[1]]}"


def plural(shape: str) -> str:
    """A shape's plural: circles, crosses."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"
