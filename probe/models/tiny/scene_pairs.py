"""Pairs of drawn images with a minimal difference that changes the answer to one question.

    colour     one thing has another colour          What colour is the circle?
    position   one thing is in another place         Where is the red circle?
    object     there is one thing more               How many circles are there?

Everything else is the same to the pixel: places, sizes, background and noise.

>>> pair, = scene_pairs(1, "colour")
>>> pair.question, pair.answer
('What colour is the triangle?', 'it is green')
>>> pair.image.size == pair.corrupted.size
True
"""

from dataclasses import replace
from itertools import product

import numpy as np

from probe.data.sample import Sample
from probe.errors import at_least, one_of
from probe.models.tiny.questions import NUMBER_WORDS, plural
from probe.models.tiny.scenes import (
    COLOURS,
    COLUMN_NAMES,
    HUES,
    ROW_NAMES,
    Scene,
    Thing,
    draw,
    sample_scene,
)

CHANGES = ("colour", "position", "object")
STREAM = 2000  # first number of the seed: these scenes are in no training or evaluation set

Pair = tuple[Scene, Scene, str, str]  # clean, changed, question, answer of the clean scene


def scene_pairs(count: int, change: str = "colour", seed: int = 0) -> list[Sample]:
    """Samples whose `corrupted` image differs from their own in one thing. Raises ProbeError for an
    unknown change and a count below 1.
    """
    one_of("scene_pairs", "a change of", change, CHANGES)
    at_least("scene_pairs", "a count", count, 1)
    make = {"colour": _other_colour, "position": _other_place, "object": _one_more}[change]
    samples = []
    for number in range(count):
        rng = np.random.default_rng([STREAM, CHANGES.index(change), seed, number])
        clean, changed, question, answer = make(rng)
        name = f"{change}-{seed}-{number:05d}"
        meta = {"image": name, "kind": change, "question_id": name, "unit": name}
        images = draw(clean), draw(changed)
        samples.append(
            Sample(name, images[0], question, answer=answer, meta=meta, corrupted=images[1])
        )
    return samples


def _scene_with_target(rng: np.random.Generator) -> tuple[Scene, Thing]:
    """A scene, and a thing of it whose shape no other has."""
    while True:
        scene = sample_scene(rng, things=(2, 4))
        shapes = [thing.shape for thing in scene.things]
        alone = [thing for thing in scene.things if shapes.count(thing.shape) == 1]
        if alone:
            return scene, alone[int(rng.integers(len(alone)))]


def _with(scene: Scene, things: list[Thing]) -> Scene:
    return replace(scene, things=tuple(sorted(things, key=lambda thing: thing.cell)))


def _other_colour(rng: np.random.Generator) -> Pair:
    scene, target = _scene_with_target(rng)
    others = [name for name in COLOURS if name != target.colour]
    colour = others[int(rng.integers(len(others)))]
    turn = HUES[colour] - HUES[target.colour]
    hue = (target.hue + turn) % 360
    changed = replace(target, colour=colour, hue=hue)
    rest = [thing for thing in scene.things if thing is not target]
    question = f"What colour is the {target.shape}?"
    return scene, _with(scene, [*rest, changed]), question, f"it is {target.colour}"


def _empty_cell(scene: Scene, rng: np.random.Generator) -> tuple[int, int]:
    taken = {thing.cell for thing in scene.things}
    cells = product(range(3), range(3))
    free = [cell for cell in cells if cell not in taken]
    return free[int(rng.integers(len(free)))]


def _moved(thing: Thing, cell: tuple[int, int]) -> Thing:
    """The thing in another cell, at the same place within it."""
    x = thing.x + (cell[1] - thing.column) / 3
    y = thing.y + (cell[0] - thing.row) / 3
    return replace(thing, row=cell[0], column=cell[1], x=x, y=y)


def _other_place(rng: np.random.Generator) -> Pair:
    scene, target = _scene_with_target(rng)
    changed = _moved(target, _empty_cell(scene, rng))
    rest = [thing for thing in scene.things if thing is not target]
    place = f"{ROW_NAMES[target.row]} {COLUMN_NAMES[target.column]}"
    question = f"Where is the {target.colour} {target.shape}?"
    return scene, _with(scene, [*rest, changed]), question, f"at the {place}"


def _one_more(rng: np.random.Generator) -> Pair:
    scene, target = _scene_with_target(rng)
    added = _moved(target, _empty_cell(scene, rng))
    question = f"How many {plural(target.shape)} are there?"
    return scene, _with(scene, [*scene.things, added]), question, NUMBER_WORDS[1]
