"""Heads, directions, patches and other images where words read the image by cross-attention: as
plain hooks on the model's own modules, in its layers and in their cross-attention.
"""

from contextlib import ExitStack
from typing import Any

import pytest
import torch

import probe
from probe.errors import ProbeError
from probe.hooks.attention_call import as_bool
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from probe.interventions import ablate_heads, direction, drop_vision, patch, steer, swap_vision
from probe.measures.verify import state
from probe.subject.inputs import collate, with_response
from tests.families.checks import QUESTION, RESPONSE, Case, picture
from tests.families.models import FAMILIES
from tests.families.processors import IMAGE

READERS = ["mllama", "idefics"]
SITES = ["residual", "attention", "mlp", "head"]
STACKS = ["llm", "cross"]
HEADS, WIDTH = 4, 32
LAYER = {"llm": 2, "cross": 1}  # that is edited, by the LLM's numbers
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module", params=READERS)
def case(request):
    return Case(probe.load(*FAMILIES[request.param]()))


def block_of(case, stack):
    """The module of the edited layer, written out for each model."""
    model = case.subject.model.model
    if hasattr(model, "gated_cross_attn_layers"):  # Idefics: blocks beside the layers
        return {"llm": model.layers[2], "cross": model.gated_cross_attn_layers[1]}[stack]
    return model.language_model.layers[LAYER[stack]]


def site_of(case, stack, site):
    """The module of a site, and whether it is its input that counts."""
    block = block_of(case, stack)
    attention = block.cross_attn if stack == "cross" else block.self_attn
    modules = {"residual": block, "attention": attention, "mlp": block.mlp}
    return (attention.o_proj, True) if site == "head" else (modules[site], False)


def changed(undo, module, is_input, change):
    """Has `change(hidden)` in place of what a module is given, or gives, until `undo`."""

    def before(module, args):
        return (change(args[0]), *args[1:])

    def after(module, args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    if is_input:
        undo.enter_context(module.register_forward_pre_hook(before))
    else:
        undo.enter_context(module.register_forward_hook(after))


def plainly(case, stack, site, change, inputs):
    with ExitStack() as undo:
        changed(undo, *site_of(case, stack, site), change)
        return case.logits(inputs)


def call_of(case, stack, inputs):
    """The attention call of the edited layer."""
    calls = []
    known = stacks(case.subject.model)[stack]
    name = dict(known.numbered())[LAYER[stack]]
    assert name is not None
    with torch.no_grad(), tap({name: known.attention[name]}, calls.append):
        case.subject.model(**inputs, use_cache=False)
    return calls[0]


def spread_evenly(case, stack, inputs):
    """The mean of the values that each query sees: (batch, query, head, dim)."""
    call = call_of(case, stack, inputs)
    queries = call.query_count
    if call.model_mask is None:
        visible = torch.ones(1, 1, queries, call.key_count).tril()
    else:
        visible = as_bool(call.model_mask).float()
    weights = visible / visible.sum(-1, keepdim=True)
    groups = call.query.shape[1] // call.value.shape[1]
    values = call.value.repeat_interleave(groups, 1)
    return (weights @ values).transpose(1, 2)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("mode", ["zero", "mean", "uniform"])
def test_a_head_is_taken_away_as_in_what_its_output_projection_gets(case, stack, mode):
    inputs, plain = case.answered[0], case.logits(case.answered[0])
    prompt = inputs["input_ids"].shape[1] - len(RESPONSE)
    even = spread_evenly(case, stack, inputs)

    def change(parts):
        by_head = parts.unflatten(-1, (HEADS, -1)).clone()
        mean = by_head[:, :prompt].mean(1, keepdim=True).expand_as(by_head)
        other = {"zero": torch.zeros_like(by_head), "mean": mean, "uniform": even}[mode]
        by_head[:, :, [0, 3]] = other[:, :, [0, 3]]
        return by_head.flatten(2)

    expected = plainly(case, stack, "head", change, inputs)
    before = state(case.subject.model)
    with ablate_heads(case.subject, {LAYER[stack]: [0, 3]}, mode, stack=stack) as report:
        torch.testing.assert_close(case.logits(inputs), expected, **CLOSE)
    assert report.calls_changed == 1 and (expected - plain).abs().max() > 1e-5
    with ablate_heads(case.subject, {}, mode, stack=stack):
        assert torch.equal(case.logits(inputs), plain)
    assert state(case.subject.model) == before and torch.equal(case.logits(inputs), plain)


def test_all_heads_of_cross_attention_at_zero_are_a_drop(case):
    inputs = case.answered[0]
    with drop_vision(case.subject, [1]):
        expected = case.logits(inputs)
    with ablate_heads(case.subject, {1: "all"}, stack="cross"):
        assert torch.equal(case.logits(inputs), expected)
    everywhere = dict.fromkeys(
        (number for number, _ in stacks(case.subject.model)["cross"].numbered()), "all"
    )
    with ablate_heads(case.subject, everywhere, stack="cross"):
        assert torch.equal(*map(case.logits, case.answered))
        assert torch.equal(*map(case.scores, case.prompts))


@pytest.mark.parametrize("stack", STACKS)
def test_the_mean_stays_that_of_the_prompt_while_decoding(case, stack):
    prompt, block = case.prompts[0], {LAYER[stack]: [1, 2]}
    with ablate_heads(case.subject, block, "mean", stack=stack):
        made = case.subject.model.generate(
            **prompt,
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            suppress_tokens=[IMAGE],
            output_logits=True,
            return_dict_in_generate=True,
        )
        steps = torch.cat(made.logits)
        answer = made.sequences[0, prompt["input_ids"].shape[1] :].tolist()
        inputs = with_response(prompt, answer)
        whole = case.logits(inputs)[-len(answer) - 1 : -1]
    torch.testing.assert_close(steps, whole, atol=5e-5, rtol=0)


def test_padding_takes_no_part_in_the_mean(case):
    rows = [case.subject.encode(picture(0), text) for text in (QUESTION, "is it red or blue ?")]
    batch = collate(rows, side="left")
    with torch.no_grad(), ablate_heads(case.subject, {1: [0]}, "mean", stack="cross"):
        together = case.subject.model(**batch, use_cache=False).logits[:, -1]
        alone = [case.subject.model(**row, use_cache=False).logits[0, -1] for row in rows]
    torch.testing.assert_close(together, torch.stack(alone), atol=5e-5, rtol=0)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("site", SITES)
def test_steering_adds_a_direction(case, stack, site):
    inputs, plain = case.answered[0], case.logits(case.answered[0])
    vector = torch.linspace(-1, 1, WIDTH)
    expected = plainly(case, stack, site, lambda hidden: hidden + 2 * vector, inputs)
    layer = LAYER[stack]
    where: dict[str, Any] = {"site": site, "stack": stack}
    for positions in ("all", "text"):
        with steer(case.subject, vector, layer, 2.0, positions=positions, **where) as report:
            torch.testing.assert_close(case.logits(inputs), expected, **CLOSE)
        assert report.calls_changed == 1 and (expected - plain).abs().max() > 1e-4
    with steer(case.subject, vector, layer, 0.0, **where) as report:
        assert torch.equal(case.logits(inputs), plain)
    assert (report.calls, report.calls_changed) == (1, 0)


def test_the_layer_that_reads_the_image_is_steered_as_any(case):
    """The residual stream after each layer of the LLM, with cross-attention or without."""
    layers = case.subject.model.get_decoder().layers
    for number, layer in enumerate(layers):
        with ExitStack() as undo:
            changed(undo, layer, False, lambda hidden: hidden + 1)
            expected = case.logits(case.answered[0])
        with steer(case.subject, torch.ones(WIDTH), number):
            torch.testing.assert_close(case.logits(case.answered[0]), expected, **CLOSE)


def test_a_direction_is_read_where_it_is_added(case):
    shown = [case.subject.encode(picture(seed), QUESTION) for seed in range(3)]
    found = direction(case.subject, shown[:1], shown[1:], "attention", 1, stack="cross")
    read = []

    def keep(hidden):
        read.append(hidden[0, -1])
        return hidden

    for prompt in shown:
        plainly(case, "cross", "attention", keep, prompt)
    torch.testing.assert_close(found.vector, read[0] - (read[1] + read[2]) / 2, **CLOSE)
    expected = plainly(
        case, "cross", "attention", lambda hidden: hidden + found.vector, case.answered[0]
    )
    with steer(case.subject, found):
        torch.testing.assert_close(case.logits(case.answered[0]), expected, **CLOSE)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("site", SITES)
def test_another_run_is_put_in(case, stack, site):
    (inputs, source), plain = case.answered, case.logits(case.answered[0])
    kept = []

    def keep(hidden):
        kept.append(hidden.clone())
        return hidden

    plainly(case, stack, site, keep, source)
    length = inputs["input_ids"].shape[1]
    prompt = torch.arange(length) < length - len(RESPONSE)
    some = torch.zeros(length, dtype=torch.bool)
    some[[1, 3]] = True
    last = torch.arange(length) == length - len(RESPONSE) - 1
    before = state(case.subject.model)
    differences = []
    for positions, mask in (("text", None), ("last", last), (some, some)):
        where = torch.ones_like(prompt) if mask is None else mask

        def put(hidden, where=where):
            return torch.where(where[:, None], kept[0], hidden)

        expected = plainly(case, stack, site, put, inputs)
        with patch(case.subject, source, LAYER[stack], positions, site, stack=stack) as report:
            found = case.logits(inputs)
        assert report.calls == 1
        torch.testing.assert_close(found, expected, **CLOSE)
        differences.append(float((expected - plain).abs().max()))
    assert differences[0] > 1e-4
    with patch(case.subject, inputs, LAYER[stack], "text", site, stack=stack) as report:
        assert torch.equal(case.logits(inputs), plain)
    assert report.calls_changed == 0 and state(case.subject.model) == before


def test_one_head_of_another_run_is_put_in(case):
    (inputs, source), kept = case.answered, []

    def keep(parts):
        kept.append(parts.clone())
        return parts

    plainly(case, "cross", "head", keep, source)

    def put(parts):
        mixed = parts.clone()
        mixed[..., 8:16] = kept[0][..., 8:16]
        return mixed

    expected = plainly(case, "cross", "head", put, inputs)
    with patch(case.subject, source, 1, "text", "head", 1, stack="cross"):
        torch.testing.assert_close(case.logits(inputs), expected, **CLOSE)


def test_another_image_is_read_in_some_layers(case):
    """As if the block's cross-attention were given the donor's image states."""
    (inputs, donor), plain = case.answered, case.logits(case.answered[0])
    attention, given = block_of(case, "cross").cross_attn, []
    names = ("cross_attention_states", "key_value_states")

    def keep(module, args, kwargs):
        given.append({name: kwargs[name] for name in names if name in kwargs})

    def put(module, args, kwargs):
        return args, kwargs | given[0]

    with attention.register_forward_pre_hook(keep, with_kwargs=True):
        case.logits(donor)
    with attention.register_forward_pre_hook(put, with_kwargs=True):
        expected = case.logits(inputs)
    before = state(case.subject.model)
    with swap_vision(case.subject, [1], case.prompts[1]):
        torch.testing.assert_close(case.logits(inputs), expected, **CLOSE)
    assert (expected - plain).abs().max() > 1e-4
    assert torch.equal(case.logits(inputs), plain) and state(case.subject.model) == before
    other, other_steps = case.logits(donor), case.scores(case.prompts[1])
    with swap_vision(case.subject, case.layers, picture(1)):
        torch.testing.assert_close(case.logits(inputs), other, **CLOSE)
        torch.testing.assert_close(case.scores(case.prompts[0]), other_steps, **CLOSE)


def test_a_donor_that_does_not_fit_is_told(case):
    both = case.subject.encode((picture(0), picture(1)), QUESTION)
    with (
        pytest.raises(ProbeError, match=r"a donor whose image has \d+ keys"),
        swap_vision(case.subject, [1], both),
    ):
        case.logits(case.answered[0])
    with (
        pytest.raises(ProbeError, match="a donor of 1 row or of 1, as the inputs, got 2"),
        swap_vision(case.subject, [1], collate(list(case.prompts))),
    ):
        case.logits(case.answered[0])


def test_what_is_not_defined_is_told(case):
    subject, ones = case.subject, torch.ones(WIDTH)
    of_words = r"positions of words .* got 'vision'"
    for block, message in (
        (lambda: ablate_heads(subject, {2: 0}, "no_vision"), "which sees words alone"),
        (
            lambda: ablate_heads(subject, {1: 0}, "no_vision", stack="cross"),
            "which sees nothing but the image; use mode='zero'",
        ),
        (lambda: patch(subject, case.prompts[1], 2), of_words),
        (lambda: patch(subject, case.prompts[1], 1, stack="cross"), of_words),
        (lambda: steer(subject, ones, 2, positions="vision"), of_words),
        (lambda: steer(subject, ones, 1, stack="prefusion"), "stack='llm' or 'cross'"),
    ):
        with pytest.raises(ProbeError, match=message), block():
            pass


def test_layers_without_cross_attention_are_told():
    subject = probe.load(*FAMILIES["mllama"]())
    readers = r"layers that read the image by cross-attention: 1, got layer 0 \(from 0\)"
    for stack, heads, message in (
        ("cross", {0: 0}, readers),
        ("cross", {7: 0}, "layers from 0 to 2, got 7"),
        ("llm", {1: 0}, "got layer 1 .*; stack='cross' has those that read the image"),
    ):
        with pytest.raises(ProbeError, match=message), ablate_heads(subject, heads, stack=stack):
            pass


@pytest.mark.parametrize("stack", STACKS)
def test_a_prompt_without_an_image_skips_the_layers_that_read_it(stack):
    subject = probe.load(*FAMILIES["mllama"]())
    words = subject.encode(None, "is it red ?")
    message = r"got none in layer 1 \(from 0\).*; run a prompt with an image"
    with (
        pytest.raises(ProbeError, match=message),
        torch.no_grad(),
        steer(subject, torch.ones(WIDTH), 1, stack=stack),
    ):
        subject.model(**words)
    with (
        pytest.raises(ProbeError, match="a donor with an image, got none that "),
        swap_vision(subject, [1], words),
    ):
        pass
    with (
        pytest.raises(ProbeError, match=r"none in layer 1 .*; run a prompt with an image"),
        torch.no_grad(),
        ablate_heads(subject, {1: 0}, stack="cross"),
    ):
        subject.model(**words)
