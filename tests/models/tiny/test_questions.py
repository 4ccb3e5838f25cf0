"""Every answer is right: read again from the question's words, by another route than the one that
made it.
"""

import re
from collections import Counter

import pytest

from probe.errors import ProbeError
from probe.models.tiny.questions import NUMBER_WORDS, QUESTION_KINDS, ask, sample_image
from probe.models.tiny.scenes import COLOURS, COLUMN_NAMES, ROW_NAMES, SHAPES, sample_scene, stream


def read_answer(kind, question, layout):
    """The answer, from the words of the question and the layout: an oracle that shares no code with
    `ask`.
    """
    words = re.findall(r"[a-z]+", question.lower())
    colour = next((word for word in words if word in COLOURS), None)
    shape = next(
        (name for name in SHAPES if name in words or any(w.startswith(name) for w in words)), None
    )
    place = re.search(rf"({'|'.join(ROW_NAMES)}) ({'|'.join(COLUMN_NAMES)})", question)
    found = [
        (c, s, row, column)
        for c, s, row, column in layout
        if colour in (None, c)
        and (kind == "shape" or shape in (None, s))
        and (place is None or place.groups() == (ROW_NAMES[row], COLUMN_NAMES[column]))
    ]
    match kind:
        case "count":
            return NUMBER_WORDS[len(found)]
        case "exist":
            return "yes" if found else "no"
        case "at":
            return look(found[0]) if found else "nothing"
        case "caption":
            return ", ".join(
                f"{look(thing)} at the {ROW_NAMES[thing[2]]} {COLUMN_NAMES[thing[3]]}"
                for thing in layout
            )
    assert len(found) == 1, "the question must have one answer"
    c, s, row, column = found[0]
    place = f"at the {ROW_NAMES[row]} {COLUMN_NAMES[column]}"
    return {"shape": f"it is a {s}", "colour": f"it is {c}", "where": place}[kind]


def look(thing):
    return f"an {thing[0]} {thing[1]}" if thing[0] == "orange" else f"a {thing[0]} {thing[1]}"


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_are_right(kind):
    for number in range(300):
        rng = stream("sample", 1, number)
        scene = sample_scene(rng)
        asked = ask(scene, kind, rng)
        words = asked.question.replace("shape", "").replace("object is", "")
        assert asked.answer == read_answer(kind, words, scene.layout), asked


def test_distractors_are_counted_by_what_they_share():
    for number in range(300):
        rng = stream("sample", 2, number)
        scene = sample_scene(rng)
        asked = ask(scene, "where", rng)
        row, column = asked.answer.split()[-2:]
        cell = (ROW_NAMES.index(row), COLUMN_NAMES.index(column))
        colour, shape = next((t[0], t[1]) for t in scene.layout if t[2:] == cell)
        assert asked.same_colour == sum(t[0] == colour and t[1] != shape for t in scene.layout)
        assert asked.same_shape == sum(t[1] == shape and t[0] != colour for t in scene.layout)
        assert not (asked.key == "colour" and asked.same_colour)
        assert not (asked.key == "shape" and asked.same_shape)


def test_yes_and_no_are_balanced():
    def answers():
        for number in range(1000):
            rng = stream("sample", 3, number)
            yield ask(sample_scene(rng), "exist", rng).answer

    assert 450 < Counter(answers())["yes"] < 550


def test_an_unknown_kind_is_named():
    rng = stream("sample", 0)
    with pytest.raises(
        ProbeError, match=r"questions.ask: expected a kind among shape, .* got 'taste'"
    ):
        ask(sample_scene(rng), "taste", rng)


def test_sample_image_is_large_and_repeatable():
    image, question, answer = sample_image()
    assert image.size == (480, 480)
    assert (question, answer) == sample_image()[1:]
    assert sample_image(1)[2] != answer
