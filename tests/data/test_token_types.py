import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.data.patch_grid import PatchGrid
from probe.data.token_types import (
    BOS,
    FINE,
    INSTRUCTION,
    LAST,
    PADDING,
    PAPER,
    RESPONSE,
    SYSTEM,
    TokenTypes,
    Types,
    label,
    stack,
)
from probe.errors import ProbeError

#        bos  system  user  image  image  user  answer  user  last  answer  answer  eos
ROLE = np.array(
    [BOS, SYSTEM, *[INSTRUCTION] * 4, RESPONSE, INSTRUCTION, LAST, RESPONSE, RESPONSE, INSTRUCTION]
)
TURN = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
VISION = np.isin(np.arange(12), [3, 4])
SIDES = st.sampled_from(["left", "right"])


def conversation(types: Types = "paper", turns: str = "last") -> TokenTypes:
    return label(ROLE, TURN, VISION, types, turns)


def letters(types: TokenTypes, row=0) -> str:
    return "".join("." if id == PADDING else types.names[id][0] for id in types.ids[row])


def test_the_papers_types_count_earlier_answers_as_instruction_or_as_response():
    assert letters(conversation()) == "iiivviiiirri"
    assert letters(conversation(turns="all")) == "iiivviriirri"


def test_the_fine_types():
    assert letters(conversation("fine")) == "bsivviiilrri"
    assert letters(conversation("fine", "all")) == "bsivviri" + "lrri"


def test_one_encoding_is_read_in_any_types_and_back():
    fine = conversation("fine", "all")
    assert letters(fine.as_types("paper")) == letters(conversation())
    np.testing.assert_array_equal(fine.as_types("paper", "all").ids, conversation(turns="all").ids)


def test_queries_are_all_but_the_last_token_and_only_where_something_was_answered():
    assert conversation().is_query.tolist() == [[True] * 11 + [False]]
    prompt = label(ROLE[:9], TURN[:9], VISION[:9])
    assert prompt.is_query.all()
    assert prompt.prompt_length.tolist() == conversation().prompt_length.tolist() == [9]


def test_own_masks_come_first_and_the_rest_keeps_the_papers_types():
    dog = np.zeros(12, dtype=bool)
    dog[3] = True
    types = conversation({"dog": dog, "word": [i == 2 for i in range(12)]})
    assert types.names == ("dog", "word", *PAPER)
    assert letters(types) == "iiwdviiiirri"
    assert types.vision.tolist() == [VISION.tolist()]
    assert types.mask("dog").tolist() == [dog.tolist()]


def test_a_mask_as_long_as_the_prompt_leaves_the_response_uncovered():
    types = conversation({"all": np.ones(9, dtype=bool)})
    assert letters(types) == "a" * 9 + "rri"


def test_an_array_of_names_may_use_the_papers_and_leave_gaps():
    names = np.array(["", "", "x", "x", None, "", "response", "", "", "", "", ""], dtype=object)
    types = conversation(names)
    assert types.names == ("x", *PAPER)
    assert letters(types) == "iixxviriirri"


@pytest.mark.parametrize("dtype", [object, np.int64, np.float32])
def test_numbers_are_names_and_zero_is_one(dtype):
    types = conversation(np.array([0, 0, 7, 7, 0, 0, 0, 0, 0], dtype=dtype))
    zero, seven = ("0.0", "7.0") if dtype is np.float32 else ("0", "7")
    assert types.names == (zero, seven, *PAPER)
    assert letters(types) == "007700000rri"
    assert conversation({7: VISION}).names == ("7", *PAPER)
    assert letters(conversation([0, None, 1, "", 1, *[None] * 7])) == "0i1v1iiiirri"


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (VISION, "expected a name for each position, got booleans; pass .name: mask."),
        ("papre", "expected 'paper', 'fine', an array of names or {name: mask}, got 'papre'"),
        (
            {"dog": np.ones(5, dtype=bool)},
            "expected 12 positions .or 9, the prompt., got 1 x 5 for 'dog'",
        ),
        (
            {"a": np.ones(12, dtype=bool), "b": np.eye(12, dtype=bool)[3]},
            "'b', which shares 1 .* first 3",
        ),
        ({"vision": np.ones(12, dtype=bool)}, "expected names of your own, got 'vision'"),
        ({"dog": np.full(12, 7)}, "expected a mask of booleans for 'dog'"),
    ],
)
def test_mistakes_in_types_are_one_clear_line(types, message):
    with pytest.raises(ProbeError, match=message):
        conversation(types)


def test_unknown_turns_and_unknown_names_are_refused():
    with pytest.raises(ProbeError, match="expected 'last' or 'all', got 'first'"):
        conversation(turns="first")
    with pytest.raises(
        ProbeError, match="expected one of instruction, vision, response, got 'dog'"
    ):
        conversation().mask("dog")


@pytest.mark.parametrize("types", ["paper", "fine", {"dog": np.eye(9, dtype=bool)[4]}])
def test_a_response_appended_later_is_the_same_as_one_labelled_at_once(types):
    later = label(ROLE[:9], TURN[:9], VISION[:9], types).with_response(2, closing=1)
    at_once = conversation(types)
    assert later.names == at_once.names
    for name in ("ids", "vision", "role", "turn", "is_query"):
        np.testing.assert_array_equal(getattr(later, name), getattr(at_once, name), err_msg=name)


@given(st.lists(st.integers(0, 11), min_size=1, max_size=4), SIDES, st.booleans())
def test_stacked_rows_are_the_rows_and_types_partition_what_is_not_padding(cuts, side, fine):
    rows = [
        label(ROLE[cut:], TURN[cut:], VISION[cut:], "fine" if fine else "paper") for cut in cuts
    ]
    batch = stack(rows, side)
    real = batch.ids != PADDING
    assert (sum(batch.mask(name).astype(int) for name in batch.names) == real).all()
    np.testing.assert_array_equal(real, batch.role != PADDING)
    assert not (batch.is_query & ~real).any()
    for row, types in enumerate(rows):
        width = types.ids.shape[1]
        place = slice(12 - min(cuts) - width, None) if side == "left" else slice(width)
        assert letters(types) == letters(batch, row).replace(".", "")
        np.testing.assert_array_equal(batch.is_query[row, place], types.is_query[0])
        np.testing.assert_array_equal(batch.vision[row, place], types.vision[0])


def test_stacking_keeps_the_names_that_only_one_row_has():
    dog = label(ROLE, TURN, VISION, {"dog": np.eye(12, dtype=bool)[3]})
    cat = label(ROLE, TURN, VISION, {"cat": np.eye(12, dtype=bool)[4]})
    batch = stack([dog, cat, conversation("fine")])
    assert batch.names[:2] == ("dog", "cat")
    assert [int(batch.mask(name).sum()) for name in ("dog", "cat")] == [1, 1]
    assert batch.mask("bos")[2].any()


def test_own_types_of_a_batch_need_masks_of_the_whole_batch():
    batch = stack([conversation(), conversation()])
    mask = np.zeros((2, 12), dtype=bool)
    mask[1, 3] = True
    assert batch.as_types({"dog": mask}).mask("dog").tolist() == mask.tolist()
    with pytest.raises(ProbeError, match="expected 2 x 12 positions"):
        batch.as_types({"dog": mask[0]})


def test_padding_never_gets_a_type_of_ones_own():
    batch = stack([conversation(), label(ROLE[3:], TURN[3:], VISION[3:])])
    types = batch.as_types({"everything": np.ones((2, 12), dtype=bool)})
    assert letters(types, 1) == "..." + "e" * 9


def test_the_grids_of_no_images_are_an_empty_grid():
    assert len(PatchGrid.join([])) == 0
    assert PatchGrid.join([]).box.shape == (0, 4)
    assert FINE[LAST] == "last"
