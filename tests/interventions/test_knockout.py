"""Knocking out one type of token for another: as attention with those weights taken out, and
nothing else.
"""

import models
import numpy as np
import pytest
import torch
from prompts import decoded, logits, prompt, row, six_layers

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from probe.interventions import drop_vision, knockout
from probe.subject.inputs import collate, with_response


@pytest.fixture(scope="module")
def subject():
    return six_layers()


def attention(subject, inputs, layer=0):
    """(batch, head, query, key) of one layer, as the eager kernel returns it."""
    with torch.no_grad():
        return subject.model(**inputs, output_attentions=True).attentions[layer]


def of_type(inputs, names):
    """(batch, token), from the inputs' own table."""
    if names == "text":
        return ~inputs.types.vision & (inputs.types.ids >= 0)
    return np.logical_or.reduce(
        [inputs.types.mask(name) for name in ([names] if isinstance(names, str) else names)]
    )


@pytest.mark.parametrize("kind", ["one", "left", "right"])
@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ("text", "vision"),
        ("vision", "vision"),
        ("instruction", "vision"),
        ("response", ("instruction", "vision")),
    ],
)
def test_the_rest_of_the_attention_is_renormalised(kind, queries, keys):
    subject = six_layers("eager")
    inputs = prompt(subject, kind)
    if kind == "one":
        inputs = subject.encode(models.picture(0), "what is in the picture?", "a red circle")
    own = attention(subject, inputs)
    with knockout(subject, queries, keys, [0], types=inputs.types):
        found = attention(subject, inputs)
    hidden = torch.as_tensor(of_type(inputs, queries)[:, :, None] & of_type(inputs, keys)[:, None])[
        :, None
    ]
    expected = own.masked_fill(hidden, 0)
    left = expected.sum(-1, keepdim=True)
    expected = torch.where(left > 0, expected / left, expected)
    real = inputs["attention_mask"].bool()[:, None, :, None] & (left > 1e-6)
    torch.testing.assert_close(found * real, expected * real, atol=1e-5, rtol=0)


def test_text_to_vision_is_dropping_by_mask(subject):
    inputs = prompt(subject, "left")
    for run in (logits, lambda *given: decoded(*given)[1]):
        with knockout(subject, "text", "vision", (1, 2, 4)):
            knocked_out = run(subject, inputs)
        with drop_vision(subject, (1, 2, 4)):
            assert torch.equal(run(subject, inputs), knocked_out)


def test_generated_tokens_are_response(subject):
    inputs = prompt(subject, "left")
    _, untouched = decoded(subject, inputs)
    with knockout(subject, "response", "vision", range(6), types=inputs.types):
        ids, steps = decoded(subject, inputs)
    assert torch.equal(steps[0], untouched[0]), "the prompt sees everything"
    rows = [
        row(subject),
        row(subject, 2, "how many circles are there in both?", 1),
        row(subject, 1, "where?", 3),
    ]
    for i, alone in enumerate(with_response(inputs, ids[i]) for i, inputs in enumerate(rows)):
        with knockout(subject, "response", "vision", range(6), types=alone.types):
            over = logits(subject, alone)[-5:-1]
        torch.testing.assert_close(over, steps[:, i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("queries", ["response", "instruction"])
def test_types_last_through_decoding_without_a_cache(subject, queries):
    inputs = prompt(subject, "left")
    with knockout(subject, queries, "vision", range(6), types=inputs.types):
        ids, steps = decoded(subject, inputs)
        again, own_steps = decoded(subject, inputs, use_cache=False)
    assert torch.equal(ids, again)
    torch.testing.assert_close(steps, own_steps, atol=1e-4, rtol=0)


def test_beams_share_the_types_of_their_row(subject):
    rows = [row(subject), row(subject, 2, "how many circles are there in both?", 1)]

    def said(inputs):
        with knockout(subject, "last", "vision", range(6), types=inputs.types.as_types("fine")):
            return subject.model.generate(
                **inputs, num_beams=3, max_new_tokens=5, min_new_tokens=5, do_sample=False
            )

    together = said(collate(rows))[:, -5:]
    assert all(torch.equal(said(alone)[0, -5:], together[i]) for i, alone in enumerate(rows))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_query_without_any_key_keeps_itself(attn):
    subject = six_layers(attn)
    inputs, calls = prompt(subject, "left"), []
    everything = ("text", "vision")
    with (
        knockout(subject, everything, everything, [2]),
        tap(stacks(subject.model)["llm"].attention, calls.append),
    ):
        assert logits(subject, inputs).isfinite().all()
    mask = calls[2].effective_mask if attn == "sdpa" else calls[2].effective_mask == 0
    real = inputs["attention_mask"].bool()
    expected = torch.eye(real.shape[1], dtype=torch.bool) & real[:, :, None]
    assert torch.equal(mask[:, 0] & real[:, :, None], expected)


def test_own_types_and_a_record(subject):
    image, question = models.picture(0), "what is there?"
    inputs = subject.encode(image, question, "a red circle")
    half = inputs.types.vision & (np.cumsum(inputs.types.vision, 1) <= 4)
    types = {"corner": half}
    own = inputs.as_types(types).types
    with knockout(subject, "response", "corner", [1], types=own):
        node = probe.measure(subject, image, question, "a red circle", types=types)["llm"].isel(
            sample=0
        )
    mass = node["mass"].sel(query_type="response")
    assert (mass.sel(key_type="corner").isel(layer=1) == 0).all()
    assert (mass.sel(key_type="corner").isel(layer=[0, 2]) > 0).all()
    assert (mass.sel(key_type="vision").isel(layer=1) > 0).all(), (
        "the rest of the image is still read"
    )


def test_no_layer_is_the_untouched_model(subject):
    inputs = prompt(subject, "left")
    with knockout(subject, "text", "vision", []):
        inside = logits(subject, inputs)
    assert torch.equal(inside, logits(subject, inputs))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("response", "vision", 1), "one of vision, text, got 'response'; pass types=inputs.types"),
        (("text", "image", 1), "got 'image'"),
        (("text", "vision", 9), "layers from 0 to 5, got 9"),
    ],
)
def test_mistakes_are_told_in_one_line(subject, given, complaint):
    with pytest.raises(ProbeError) as told, knockout(subject, *given):
        pass
    assert complaint in str(told.value)


def test_types_of_other_inputs_are_refused_before_any_layer_runs(subject):
    ran = []
    hook = subject.model.get_decoder().layers[0].register_forward_hook(lambda *_: ran.append(1))
    types = prompt(subject, "one").types
    with (
        knockout(subject, "instruction", "vision", 3, types=types),
        pytest.raises(ProbeError, match="as types="),
    ):
        logits(subject, prompt(subject, "left"))
    hook.remove()
    assert not ran
