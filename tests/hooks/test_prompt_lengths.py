"""A response never ranks, whatever the ids went through on their way to the model."""

import copy

import pytest
import torch
from accelerate.utils import send_to_device
from prompts import row, six_layers

import probe
from probe.errors import ProbeError
from probe.hooks import prompt_lengths
from probe.hooks.image_placeholders import resize_placeholders
from probe.hooks.prompt_lengths import prompt_ends, record_prompts, recorded_lengths
from probe.reducers import FastV
from probe.subject.inputs import collate, with_response

COPIES = {
    "clone": lambda inputs: {name: tensor.clone() for name, tensor in inputs.items()},
    "to": lambda inputs: {
        name: tensor.to("cpu", copy=True) for name, tensor in dict(inputs).items()
    },
    "send_to_device": lambda inputs: send_to_device(dict(COPIES["clone"](inputs)), "cpu"),
    "deepcopy": lambda inputs: copy.deepcopy(dict(inputs)),
    "deepcopy of the inputs": copy.deepcopy,
    "dictionary": dict,
    "slice": lambda inputs: {name: tensor[:] for name, tensor in inputs.items()},
    "int32": lambda inputs: COPIES["clone"](inputs) | {"input_ids": inputs["input_ids"].int()},
    "contiguous": lambda inputs: {
        name: tensor.mT.contiguous().mT for name, tensor in inputs.items()
    },
}


PROMPTS = (
    (1, "what is in the picture?", 0),
    (2, "how many circles are there in both?", 1),
    (1, "where?", 3),
)


def answered(subject, images, words, seed):
    return with_response(row(subject, images, words, seed), [270 + seed, 280, 290])


def batch(subject, side):
    """Three rows of different lengths, one of them with two images."""
    return collate([answered(subject, *prompt) for prompt in PROMPTS], side=side)


@torch.no_grad()
def kept(subject, tensors):
    """The patches that FastV keeps, and the logits."""
    with probe.reduced(subject, FastV(2, 0.25)) as stages:
        logits = subject.model(**tensors).logits
        return stages[0].kept, logits


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("side", ["one", "left", "right"])
def test_copies_give_the_same_result(make, side):
    subject = six_layers()
    inputs = answered(subject, *PROMPTS[0]) if side == "one" else batch(subject, side)
    patches, logits = kept(subject, inputs)
    copied_patches, copied_logits = kept(subject, make(inputs))
    assert torch.equal(patches, copied_patches)
    assert torch.equal(logits, copied_logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_keep_what_their_prompts_keep(side):
    subject = six_layers()
    inputs = batch(subject, side)
    together, _ = kept(subject, inputs)
    image_starts = [0, 1, 3, 4]
    for i, prompt in enumerate(PROMPTS):
        alone = row(subject, *prompt)
        expected = kept(subject, alone)[0][0, alone.types.vision[0]]
        assert torch.equal(together[i, inputs.types.vision[i]], expected)
        cut = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        cut["pixel_values"] = inputs["pixel_values"][image_starts[i] : image_starts[i + 1]]
        assert torch.equal(kept(subject, cut)[0][0], together[i])


def test_ids_that_were_never_encoded_are_a_prompt():
    ids = torch.tensor([[0, 0, 901, 902, 903], [904, 905, 906, 0, 0]])
    assert prompt_ends(ids, ids != 0).tolist() == [4, 2]
    assert prompt_ends(ids).tolist() == [4, 4]


def test_the_end_is_found_under_other_padding():
    ids = torch.tensor([[11, 12, 13, 14, 15]])
    record_prompts(ids, None, [{3}])
    for left, right in ((0, 0), (2, 0), (0, 3), (1, 1)):
        padded = torch.nn.functional.pad(ids, (left, right))
        assert prompt_ends(padded, padded != 0).tolist() == [left + 2]


def test_the_same_ids_with_two_prompt_lengths_are_refused_and_not_confused():
    ids = torch.tensor([[21, 22, 23, 24]])
    record_prompts(ids, None, [{2}])
    record_prompts(ids, None, [{2}])
    assert prompt_ends(ids).tolist() == [1]
    record_prompts(ids, None, [{3}])
    with pytest.raises(ProbeError, match="the same ids with prompts of 2 and 3 tokens") as error:
        prompt_ends(ids)
    assert "\n" not in str(error.value)


def test_resized_placeholders_keep_the_prompt():
    ids = torch.tensor([[0, 31, 9, 9, 9, 32, 33], [31, 9, 34, 9, 9, 35, 33]])
    record_prompts(ids, ids != 0, [{5}, {6}])  # 33 is a response
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    for counts in ([(3, 1), (1, 1), (2, 1)], [(3, 5), (1, 0), (2, 2)]):
        resized = resize_placeholders(batch, 9, counts)
        real = resized["attention_mask"].bool()
        ends = prompt_ends(resized["input_ids"], real)
        after_prompt = resized["input_ids"].gather(1, ends[:, None] + 1)
        assert after_prompt.tolist() == [[33], [33]]
        assert torch.equal(real, resized["input_ids"] != 0)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(prompt_lengths, "LIMIT", 10)
    rows = torch.arange(1000, 1100).view(50, 2)
    for ids in rows:
        record_prompts(ids[None], None, [{1}])
    assert len(prompt_lengths._recorded) == 10
    assert recorded_lengths(rows[-10:], None) == [{1}] * 10
