"""Heads taken away: as a plain edit of what the output projection gets, and nothing else."""

import models
import pytest
import torch
from prompts import decoded, logits, prompt, row, six_layers

import probe
from probe.errors import ProbeError
from probe.hooks.model_state import active_interventions, is_clear
from probe.interventions import ablate_heads, drop_vision
from probe.interventions.head_ablation import HEAD_MODES
from probe.models.planted import planted
from probe.subject.inputs import collate, with_response

CHOSEN = {1: [0, 2], 3: 3}


@pytest.fixture(scope="module")
def subject():
    return six_layers()


def grouped():
    """LLaVA-NeXT with grouped queries and a sliding window that bites."""
    model, processor = models.llava_next_mistral()
    return probe.load(model, processor=processor)


def plainly(subject, inputs, edit, chosen=CHOSEN, layers=None):
    """Logits of a forward in which `edit(layer, parts)` changes what the output projection gets,
    (batch, position, head, dim).
    """
    handles, model = [], subject.model
    for layer, heads in chosen.items():
        attention = (layers or model.get_decoder().layers)[layer].self_attn

        def before(module, args, layer=layer, heads=heads):
            parts = args[0].unflatten(-1, (model.config.text_config.num_attention_heads, -1))
            changed = parts.clone()
            changed[:, :, heads] = edit(layer, parts)[:, :, heads]
            return (changed.flatten(2),)

        handles.append(attention.o_proj.register_forward_pre_hook(before))
    try:
        return logits(subject, inputs)
    finally:
        for handle in handles:
            handle.remove()


def values_of(subject, inputs, layer):
    """Weights (batch, head, query, key) and values (batch, head, key, dim), in an eager forward."""
    calls = []

    def keep(module, args, kwargs, output):
        calls.append((output[1], kwargs["hidden_states"]))

    attention = subject.model.get_decoder().layers[layer].self_attn
    handle = attention.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        subject.model(**inputs)
    handle.remove()
    weights, hidden = calls[0]
    value = attention.v_proj(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    return weights, value.repeat_interleave(weights.shape[1] // value.shape[1], 1)


@pytest.mark.parametrize("kind", ["one", "left"])
def test_zero_and_mean_are_those_of_the_parts_before_the_output_projection(subject, kind):
    inputs = prompt(subject, kind)
    real = inputs["attention_mask"].bool()[..., None, None]

    def mean(layer, parts):
        return ((parts * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)).expand_as(parts)

    plain = {"zero": lambda layer, parts: torch.zeros_like(parts), "mean": mean}
    for mode, edit in plain.items():
        with ablate_heads(subject, CHOSEN, mode):
            found = logits(subject, inputs)
        torch.testing.assert_close(found, plainly(subject, inputs, edit), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [lambda: six_layers("eager"), grouped])
def test_uniform_is_the_mean_of_the_visible_values(make):
    subject = make()
    inputs = row(subject)
    eager = probe.load(subject.model, processor=subject.processor)
    own = subject.model.config.text_config._attn_implementation
    eager.model.set_attn_implementation({"text_config": "eager"})
    try:
        weights, value = values_of(eager, inputs, 1)
        visible = (weights > 0).float()
        expected = visible / visible.sum(-1, keepdim=True) @ value

        def edit(layer, parts):
            return expected.transpose(1, 2)

        chosen = {1: [0, 3]}
        with ablate_heads(subject, chosen, "uniform") as report:
            found = logits(subject, inputs)
        plain = plainly(subject, inputs, edit, chosen)
    finally:
        subject.model.set_attn_implementation({"text_config": own})
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
    assert report.calls_changed == 1


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["one", "left"])
def test_no_vision_in_all_heads_is_dropping_by_mask(attn, kind):
    subject = six_layers(attn)
    inputs = prompt(subject, kind)
    with drop_vision(subject, (1, 4)):
        dropped = logits(subject, inputs)
        _, dropped_steps = decoded(subject, inputs)
    with ablate_heads(subject, {1: "all", 4: range(4)}, "no_vision"):
        assert torch.equal(logits(subject, inputs), dropped)
        assert torch.equal(decoded(subject, inputs)[1], dropped_steps)


@pytest.mark.parametrize("mode", HEAD_MODES)
def test_a_batch_with_a_cache_is_each_row_alone_without_one(subject, mode):
    rows = [row(subject), row(subject, 1, "where?", 3)]
    with ablate_heads(subject, CHOSEN, mode) as report:
        ids, steps = decoded(subject, collate(rows, side="left"))
        for number, alone in enumerate(rows):
            whole = with_response(alone, ids[number])
            over = logits(subject, whole)[-5:-1]  # the closing token's row predicts nothing
            torch.testing.assert_close(over, steps[:, number], atol=1e-4, rtol=0)
    assert report.calls_changed == report.calls == 2 * 6
    assert report.largest_change > 0


@pytest.mark.parametrize("mode", HEAD_MODES)
def test_prefusion_of_llava_mini(mode):
    model, processor = models.llava_mini()
    subject = probe.load(model, processor=processor)
    inputs = row(subject)
    untouched = logits(subject, inputs)
    chosen = {0: [1], 1: [0, 3]}
    with ablate_heads(subject, chosen, mode, stack="prefusion") as report:
        changed = logits(subject, inputs)
    assert report.calls_changed and not torch.equal(changed, untouched)
    if mode in ("zero", "mean"):
        # vision rows run first, then the rest: each call has rows of one kind
        edits = {"zero": torch.zeros_like, "mean": lambda p: p.mean(1, keepdim=True).expand_as(p)}
        layers = model.model.prefusion.layers
        plain = plainly(subject, inputs, lambda layer, p: edits[mode](p), chosen, layers)
        torch.testing.assert_close(changed, plain, atol=1e-5, rtol=0)
    if mode == "no_vision":
        everything = dict.fromkeys(range(2), "all")
        with drop_vision(subject, range(2), stack="prefusion"):
            dropped = logits(subject, inputs)
        with ablate_heads(subject, everything, mode, stack="prefusion"):
            assert torch.equal(logits(subject, inputs), dropped)


def test_the_planted_head_is_what_the_answer_needs():
    known = planted(read_layers=(2, 4))
    subject = probe.load(known.model, processor=known.processor)
    answers = {}
    for layer in (1, 2, 4, 5):
        for head in range(2):
            with ablate_heads(subject, {layer: head}):
                answers[layer, head] = subject.answer(known.image("red"), known.question)
    assert {case for case, said in answers.items() if said != "red"} == {(2, 0), (4, 0)}


def test_a_measurement_in_the_block_counts_each_query_once(subject):
    with ablate_heads(subject, {5: "all"}, "uniform"):
        changed = probe.measure(subject, models.picture(0), "what?", "a red circle")
    own = probe.measure(subject, models.picture(0), "what?", "a red circle")
    # the last layer's heads attend as before: only what they add is changed
    assert changed["llm"]["mass"].equals(own["llm"]["mass"])
    assert "ablate_heads(layers=5, mode=uniform" in str(changed.attrs)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_model_is_restored_after_an_error(subject, error):
    inputs = row(subject)
    before = logits(subject, inputs)

    def fail(*hooked):
        raise error

    handle = subject.model.get_decoder().layers[3].register_forward_hook(fail)
    with pytest.raises(error), ablate_heads(subject, CHOSEN):
        logits(subject, inputs)
    handle.remove()
    assert torch.equal(logits(subject, inputs), before)
    assert all(is_clear(module) for module in subject.model.modules())
    assert active_interventions(subject.model) == ""


def test_what_reached_no_call_is_an_error_and_what_changed_nothing_is_reported(subject):
    unused = pytest.raises(ProbeError, match="run the forward inside the block")
    with unused, ablate_heads(subject, CHOSEN):
        pass
    block = ablate_heads(subject, {})
    with block as report:
        logits(subject, row(subject))
    assert report.calls == 0
    with pytest.raises(ProbeError, match="a block that is entered once"), block:
        pass
    known = planted()
    subject = probe.load(known.model, processor=known.processor)
    with ablate_heads(subject, {0: 1}) as report:  # a head that adds nothing
        subject.answer(known.image("red"), known.question, max_new_tokens=1)
    assert (report.calls, report.calls_changed, report.largest_change) == (1, 0, 0.0)
    assert str(report) == "ablate_heads: changed 0 of 1 calls in 1 layer, by at most 0"


@pytest.mark.parametrize(
    ("heads", "options", "message"),
    [
        ({1: 4}, {}, "heads from 0 to 3 in layer 1, got 4"),
        ({6: 0}, {}, "layers from 0 to 5, got 6"),
        ({1: "each"}, {}, "heads as numbers or all, got 'each'"),
        ({1: [0.5]}, {}, "heads as whole numbers"),
        ({1: [True, False]}, {}, "heads as whole numbers"),
        ({1: 0}, {"mode": "one"}, "a mode of zero, mean, uniform, no_vision, got 'one'"),
        ({1: 0}, {"stack": "vision"}, "stack='llm'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(subject, heads, options, message):
    with pytest.raises(ProbeError, match=message), ablate_heads(subject, heads, **options):
        raise AssertionError("the block must not be entered")
