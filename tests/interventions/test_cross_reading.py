"""Words that get nothing of the image in an LLM that reads it by cross-attention."""

import warnings

import numpy as np
import pytest
import torch

import probe
from probe.errors import ProbeError
from probe.hooks.model_structure import stacks
from probe.records.validate import validate
from tests.families.checks import QUESTION, RESPONSE, Case, picture
from tests.families.models import FAMILIES
from tests.families.processors import IMAGE

READERS = ["mllama", "idefics"]
GATES = ("cross_attn_attn_gate", "alpha_cross_attn")


@pytest.fixture(scope="module", params=READERS)
def case(request):
    return Case(probe.load(*FAMILIES[request.param]()))


def closed(case, layer):
    """The logits with the gate of a layer's cross-attention closed."""
    cross = stacks(case.subject.model)["cross"]
    block = cross.layers[cross.numbers.index(layer)]
    gate = next(getattr(block, name) for name in GATES if hasattr(block, name))
    before = gate.data.clone()
    gate.data.zero_()
    try:
        return case.logits(case.answered[0])
    finally:
        gate.data.copy_(before)


def test_all_words_knocked_out_is_the_gate_closed_and_is_a_drop(case):
    model, inputs, plain = case.subject.model, case.answered[0], case.logits(case.answered[0])
    expected = closed(case, 1)
    with probe.knockout(model, "text", "vision", [1]):
        assert torch.equal(case.logits(inputs), expected)
    with probe.drop_vision(model, [1]):
        assert torch.equal(case.logits(inputs), expected)
    assert torch.equal(case.logits(inputs), plain) and not torch.equal(plain, expected)


def test_the_response_alone_is_as_if_the_model_hid_the_image_from_it():
    """Idefics' own mask of images closes its cross-attention for words that see none."""
    case = Case(probe.load(*FAMILIES["idefics"]()))
    inputs = case.answered[0]
    mask = inputs["image_attention_mask"].clone()
    mask[0, torch.as_tensor(inputs.types.mask("response")[0])] = 0
    with torch.no_grad():
        hidden = case.subject.model(**inputs | {"image_attention_mask": mask}, use_cache=False)
    with probe.knockout(case.subject, "response", "vision", case.layers, types=inputs.types):
        found = case.logits(inputs)
    torch.testing.assert_close(found, hidden.logits[0, -len(RESPONSE) - 1 :])
    torch.testing.assert_close(found[0], case.logits(inputs)[0])  # it predicts from the prompt
    assert (found - case.logits(inputs)).abs().max() > 1e-3


def generated(case, prompt, beams=1):
    return case.subject.model.generate(
        **prompt,
        max_new_tokens=3,
        min_new_tokens=3,
        num_beams=beams,
        do_sample=False,
        suppress_tokens=[IMAGE],
        output_logits=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("beams", [1, 2])
def test_blind_while_decoding(case, beams):
    with probe.knockout(case.subject, "text", "vision", case.layers):
        first, second = (generated(case, prompt, beams).logits for prompt in case.prompts)
    assert torch.equal(torch.stack(first), torch.stack(second))


def test_only_what_is_generated_loses_the_image_while_decoding(case):
    """Step by step, what a forward over prompt and answer gives."""
    prompt = case.prompts[0]
    with probe.knockout(case.subject, "response", "vision", case.layers, types=prompt.types):
        made = generated(case, prompt)
    length = prompt["input_ids"].shape[1]
    answer = made.sequences[0, length:].tolist()
    inputs = case.subject.encode(picture(0), QUESTION, response=answer)
    options = {"types": inputs.types}
    with (
        torch.no_grad(),
        probe.knockout(case.subject, "response", "vision", case.layers, **options),
    ):
        logits = case.subject.model(**inputs, use_cache=False).logits[0]
    scores = torch.cat(made.logits)
    torch.testing.assert_close(scores, logits[length - 1 : length + 2], atol=2e-5, rtol=0)


def test_words_among_themselves_in_the_layers_that_have_such_attention(case):
    model, inputs, layers = case.subject.model, case.answered[0], case.layers
    own = [layer for layer in layers if stacks(model)["llm"].modules[layer] is not None]
    with probe.knockout(model, "response", "instruction", layers, types=inputs.types):
        found = case.logits(inputs)
    with probe.knockout(model, "response", "instruction", own, types=inputs.types):
        assert torch.equal(case.logits(inputs), found)
    with probe.knockout(model, "response", ["instruction", "vision"], layers, types=inputs.types):
        both = case.logits(inputs)
    assert not torch.equal(found, both) and not torch.equal(found, case.logits(inputs))


def test_layers_of_the_image_alone_hide_no_words():
    case = Case(probe.load(*FAMILIES["mllama"]()))
    with (
        pytest.raises(ProbeError, match=r"layer 1 \(from 0\), which attends to the image alone"),
        probe.knockout(case.subject, "text", "text", [1]),
    ):
        pass


def test_a_block_that_changes_nothing_says_so(case):
    """No token of these models is vision; and a prompt without an image has none to hide."""
    plain = case.logits(case.answered[0])
    with (
        pytest.warns(UserWarning, match="knockout: nothing was changed"),
        probe.knockout(case.subject, "vision", "vision", case.layers),
    ):
        assert torch.equal(case.logits(case.answered[0]), plain)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "knockout: nothing")
        with probe.knockout(case.subject, "text", "vision", case.layers):
            case.logits(case.answered[0])


def test_silent_words_give_the_image_nothing_and_could_see_it(case):
    """As on keys that any intervention hides: a number of 0 and a count, not NaN."""
    subject, inputs = case.subject, case.answered[0]
    options = {"response": list(RESPONSE), "contribution": True}
    names = ("query_count", "mass", "share", "contribution", "entropy")

    def numbers():
        record = validate(probe.measure(subject, picture(0), QUESTION, **options))
        node = record["cross"].to_dataset()
        of_layer = {
            name: node[name].broadcast_like(node["layer"]).sel(layer=1).isel(sample=0)
            for name in (*names, "received")
        }
        return {**of_layer, **{name: of_layer[name].sel(key_type="vision") for name in names}}

    plain = numbers()
    with probe.knockout(subject, "response", "vision", [1], types=inputs.types):
        found = numbers()
    with probe.drop_vision(subject, case.layers):
        dropped = numbers()
    assert plain["query_count"].sel(query_type="response") == len(RESPONSE) - 1
    for silenced, words in ((found, ["response"]), (dropped, ["instruction", "response"])):
        assert (silenced["query_count"] == plain["query_count"]).all()
        for name in ("mass", "share", "contribution", "received"):
            assert (silenced[name].sel(query_type=words) == 0).all(), name
        assert silenced["entropy"].sel(query_type=words).isnull().all()
    for name in (*names, "received"):
        of_prompt = [each[name].sel(query_type="instruction") for each in (plain, found)]
        np.testing.assert_allclose(*of_prompt, atol=1e-6)
