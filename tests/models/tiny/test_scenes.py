"""The same scene gives the same pixels, things stay in their cells, and streams never meet."""

from itertools import pairwise

import numpy as np
import pytest

from probe.models.tiny.scenes import COLOURS, HUES, PURPOSES, SHAPES, draw, sample_scene, stream


def test_a_scene_is_drawn_the_same_every_time():
    first, again = (sample_scene(stream("sample", 3)) for _ in range(2))
    assert first == again
    assert draw(first).tobytes() == draw(again).tobytes()


@pytest.mark.parametrize("size", [60, 97, 480])
def test_any_size(size):
    image = draw(sample_scene(stream("sample", 1)), size)
    assert (image.size, image.mode) == ((size, size), "RGB")


def test_scenes_keep_their_promises():
    for seed in range(200):
        scene = sample_scene(stream("sample", seed), things=(2, 4))
        cells = [thing.cell for thing in scene.things]
        looks = [(thing.colour, thing.shape) for thing in scene.things]
        assert 2 <= len(cells) == len(set(cells)) <= 4
        assert cells == sorted(cells)
        assert any(looks.count(look) == 1 for look in looks)
        for thing in scene.things:
            assert thing.colour in COLOURS
            assert thing.shape in SHAPES
            for middle, cell in [(thing.x, thing.column), (thing.y, thing.row)]:
                assert cell / 3 <= middle - thing.radius < middle + thing.radius <= (cell + 1) / 3


def test_a_thing_changes_only_its_own_cell():
    scene = sample_scene(stream("sample", 8), things=(2, 4))
    with_all = np.asarray(draw(scene)).astype(int)
    without = np.asarray(
        draw(type(scene)(scene.things[1:], scene.background, scene.noise, scene.noise_seed))
    )
    changed = np.abs(with_all - without).max(-1).reshape(3, 20, 3, 20).max((1, 3)) > 30
    assert [tuple(cell) for cell in np.argwhere(changed)] == [scene.things[0].cell]


def test_hues_stay_apart():
    hues = sorted(HUES.values())
    assert min(b - a for a, b in pairwise(hues)) > 2 * 6


def test_streams_differ_by_purpose_and_number():
    numbers = [(0, 0), (0, 1), (1, 0)]
    draws = {stream(purpose, *pair).integers(2**62) for purpose in PURPOSES for pair in numbers}
    assert len(draws) == len(numbers) * len(PURPOSES)
