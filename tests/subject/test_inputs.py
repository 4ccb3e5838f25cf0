import models
import numpy as np
import pytest
import torch

from probe.errors import ProbeError
from probe.subject.inputs import collate, with_response
from probe.subject.loading import load

QUESTIONS = [
    ("what is in the picture?", 1),
    ("why?", 2),
    ("", 1),
    ("how many circles are there in the picture?", 0),
]


def subject_of(factory):
    model, processor = factory()
    return load(model, processor=processor)


def rows_of(subject, response=None):
    sizes = [(40, 30), (90, 20), (20, 70)]
    return [
        subject.encode(
            [models.picture(seed, *sizes[seed + row]) for seed in range(count)], question, response
        )
        for row, (question, count) in enumerate(QUESTIONS)
        if row + count <= len(sizes) or count == 0
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("factory", models.FACTORIES)
def test_a_batch_computes_and_knows_what_its_rows_do(factory, side):
    subject = subject_of(factory)
    rows = rows_of(subject, "a red circle")
    batch = collate(rows, side)
    with torch.no_grad():
        together = subject.model(**batch).logits
        for index, row in enumerate(rows):
            width = row["input_ids"].shape[1]
            place = slice(-width, None) if side == "left" else slice(width)
            torch.testing.assert_close(
                together[index, place], subject.model(**row).logits[0], atol=3e-5, rtol=1e-4
            )
            assert batch["input_ids"][index, place].tolist() == row["input_ids"][0].tolist()
            for name in ("ids", "vision", "role", "turn", "is_query"):
                ours = getattr(batch.types, name)[index, place]
                np.testing.assert_array_equal(ours, getattr(row.types, name)[0], err_msg=name)
            assert batch.tokens[index][place] == row.tokens[0]
            assert len(batch.grid[index]) == batch.types.vision[index].sum()
    np.testing.assert_array_equal(batch["attention_mask"].numpy() == 1, batch.types.role >= 0)


def test_a_response_of_ids_is_appended_as_it_is_and_its_end_is_instruction():
    subject = subject_of(models.llava15)
    prompt = subject.encode(models.picture(), "why?", types="fine")
    end = subject.processor.tokenizer.eos_token_id
    answered = with_response(prompt, [7, 300, 7, end])
    assert answered["input_ids"][0, -4:].tolist() == [7, 300, 7, end]
    assert answered["attention_mask"].shape == answered["input_ids"].shape
    assert answered["attention_mask"].all()
    assert [answered.types.names[id] for id in answered.types.ids[0, -5:]] == [
        "last",
        "response",
        "response",
        "response",
        "instruction",
    ]
    assert answered.types.is_query[0].tolist()[-2:] == [True, False]
    assert answered.response == [subject.processor.tokenizer.decode([7, 300, 7]).strip()]
    assert prompt.response == [""]
    assert prompt["input_ids"].shape[1] == answered["input_ids"].shape[1] - 4
    unfinished = with_response(prompt, torch.tensor([7, 300]))
    assert [unfinished.types.names[id] for id in unfinished.types.ids[0, -2:]] == [
        "response",
        "response",
    ]
    assert unfinished.types.is_query[0].tolist()[-2:] == [True, False]


@pytest.mark.parametrize(
    "ids", [(7, 9), [np.int64(7), np.int32(9)], np.array([7, 9], np.int32), [torch.tensor(7), 9]]
)
def test_ids_of_any_kind_of_whole_number(ids):
    assert with_response(subject_of(models.llava15).encode(None, "why?"), ids)["input_ids"][
        0, -2:
    ].tolist() == [7, 9]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([7, -3], "expected ids from 0 to 480, got -3"),
        ([7, 481], "expected ids from 0 to 480, got 481"),
        ([7, 2**70], "expected response ids"),
        ([7, 480], "expected ids without the image token, got 480"),
        ([0.5], "expected response ids .whole numbers, one after the other., got .0.5."),
        (["a"], "expected response ids .*, got .'a'."),
        (torch.ones(2), "expected response ids"),
        (7, "expected response ids .*, got 7"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_ids_of_a_response_is_told_in_a_line(ids, message):
    with pytest.raises(ProbeError, match=f"response: {message}") as error:
        with_response(subject_of(models.llava15).encode(None, "why?"), ids)
    assert "\n" not in str(error.value)


def test_an_answer_that_is_nothing_but_its_end():
    subject = subject_of(models.llava15)
    answered = with_response(
        subject.encode(None, "why?"), [subject.processor.tokenizer.eos_token_id]
    )
    assert not answered.types.mask("response").any()
    assert answered.types.is_query[0].tolist()[-2:] == [True, False]


def test_only_single_rows_are_collated_or_answered():
    subject = subject_of(models.llava15)
    batch = collate(rows_of(subject))
    with pytest.raises(ProbeError, match="collate: expected inputs of one row, got 4 rows"):
        collate([batch])
    with pytest.raises(ProbeError, match="with_response: expected inputs of one row"):
        with_response(batch, [1])


def test_copies_leave_the_original_alone():
    subject = subject_of(models.llava15)
    inputs = subject.encode(models.picture(), "why?")
    fine = inputs.to("cpu").as_types("fine")
    assert (inputs.types.names[0], fine.types.names[0]) == ("instruction", "bos")
    assert fine["input_ids"].tolist() == inputs["input_ids"].tolist()
