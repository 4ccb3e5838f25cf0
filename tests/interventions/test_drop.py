"""Dropping vision tokens: the senses equal where they must, nothing stays behind, what cannot be
done is refused.
"""

from functools import partial

import models
import numpy as np
import pytest
import torch
from prompts import decoded, in_double, logits, prompt, row, six_layers
from transformers import DynamicCache, StaticCache

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.model_state import active_interventions
from probe.interventions import drop_vision
from probe.subject.inputs import collate, with_response

RANGES = [range(a, b) for a in range(6) for b in range(a + 1, 7)]
SENSES = {
    "mask": {},
    "mask_frozen": {"mode": "mask_frozen"},
    "remove": {"mode": "remove"},
    "remove_for_good": {"mode": "remove_for_good"},
    "zero": {"mode": "zero"},
}


@pytest.fixture(scope="module")
def subject():
    return six_layers()


def dropped(subject, inputs, layers, run=logits, **mode):
    with drop_vision(subject, layers, **mode):
        return run(subject, inputs)


def same(x, y, tolerance=1e-5):
    """Equal to rounding, as a fraction of the largest logit."""
    torch.testing.assert_close(x, y, atol=tolerance * y.abs().max().clamp(min=1).item(), rtol=0)


# -- the senses equal where they must
# ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "left", "right"])
def test_frozen_mask_is_remove_in_every_range_and_plain_mask_is_to_the_end(subject, kind):
    inputs = prompt(subject, kind)
    untouched = logits(subject, inputs)
    for layers in RANGES:
        removed = dropped(subject, inputs, layers, mode="remove")
        same(dropped(subject, inputs, layers, mode="mask_frozen"), removed)
        assert (removed - untouched).abs().max() > 0.1, (
            "an intervention that does nothing proves nothing"
        )
        plain = dropped(subject, inputs, layers)
        if layers.stop == 6:
            text = (inputs["input_ids"] != subject.model.config.image_token_id)[
                inputs["attention_mask"].bool()
            ]
            same(plain[text], removed[text])
        else:
            assert (plain - removed).abs().max() > 1e-3, "behind the block vision rows have evolved"


@pytest.mark.parametrize(("kind", "ranges"), [("one", RANGES[::6]), ("left", RANGES[::3])])
def test_the_same_while_decoding_16_tokens(subject, kind, ranges):
    inputs, run = prompt(subject, kind), partial(decoded, steps=16)
    for layers in ranges:
        ids, steps = dropped(subject, inputs, layers, run, mode="remove")
        frozen_ids, frozen_steps = dropped(subject, inputs, layers, run, mode="mask_frozen")
        assert torch.equal(ids, frozen_ids)
        same(frozen_steps, steps)
        if layers.stop == 6:
            same(dropped(subject, inputs, layers, run)[1], steps)


@pytest.mark.parametrize("kind", ["one", "left"])
def test_in_double_precision_they_are_equal_to_1e_12(subject, kind):
    double = in_double(subject)
    inputs = prompt(double, kind)
    inputs = inputs.having(
        {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    )
    for layers in RANGES[::6]:
        for run in (logits, lambda *given: decoded(*given)[1]):
            removed = dropped(double, inputs, layers, run, mode="remove")
            torch.testing.assert_close(
                dropped(double, inputs, layers, run, mode="mask_frozen"),
                removed,
                atol=1e-12,
                rtol=0,
            )


@pytest.mark.parametrize("layers", [(0, 1, 4), (1, 3, 5), (0, 2, 3)])
def test_disjoint_layers_are_blocks_of_their_own(subject, layers):
    inputs = prompt(subject, "left")
    removed = dropped(subject, inputs, layers, mode="remove")
    same(dropped(subject, inputs, layers, mode="mask_frozen"), removed)
    with (
        drop_vision(subject, layers[:1], mode="remove"),
        drop_vision(subject.model, layers[1:], mode="remove"),
    ):
        assert torch.equal(logits(subject, inputs), removed), "nested blocks add up"


def test_without_restoring_the_rows_never_come_back(subject):
    inputs = prompt(subject, "left")
    for run in (logits, lambda *given: decoded(*given)[1]):
        gone = dropped(subject, inputs, [2, 4], run, mode="remove_for_good")
        assert torch.equal(gone, dropped(subject, inputs, range(2, 6), run, mode="remove"))


def test_zero_leaves_the_softmax_and_takes_what_vision_says(subject):
    inputs, calls, said = prompt(subject, "one"), [], []
    (name, module), *_ = list(
        probe.hooks.model_structure.stacks(subject.model)["llm"].attention.items()
    )[2:]
    hook = module.o_proj.register_forward_pre_hook(lambda module, args: said.append(args[0]))
    with drop_vision(subject, 2, mode="zero"), tap({name: module}, calls.append):
        logits(subject, inputs)
    hook.remove()
    call = next(
        call for call in calls if call.active_queries is not None and call.active_queries[0, -1]
    )
    own = next(
        call for call in calls if call.active_queries is not None and not call.active_queries[0, -1]
    )
    hidden = torch.ones(call.query_count, call.key_count).triu(1) * -1e9
    weights = torch.softmax(
        call.query[0] @ call.key[0].transpose(-1, -2) * call.scaling + hidden, -1
    )
    vision = inputs["input_ids"][0] == subject.model.config.image_token_id
    expected = (weights @ own.value[0]) - (weights[..., vision] @ own.value[0][:, vision]) * (
        ~vision
    )[:, None]
    torch.testing.assert_close(said[0][0], expected.transpose(0, 1).flatten(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize("kind", ["one", "left"])
def test_eager_and_sdpa_agree(sense, kind):
    outputs = []
    for attn in ("sdpa", "eager"):
        subject = six_layers(attn)
        outputs.append(
            dropped(
                subject,
                prompt(subject, kind),
                (1, 2, 4),
                lambda *x: decoded(*x)[1],
                **SENSES[sense],
            )
        )
    same(*outputs)


# -- batches, caches, beams
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sense", SENSES)
def test_a_row_of_a_batch_is_the_row_alone(subject, sense):
    rows = [
        row(subject),
        row(subject, 2, "how many circles are there in both?", 1),
        row(subject, 1, "where?", 3),
    ]
    together = dropped(subject, collate(rows), (1, 2, 4), decoded, **SENSES[sense])
    for i, alone in enumerate(rows):
        ids, steps = dropped(subject, alone, (1, 2, 4), decoded, **SENSES[sense])
        assert torch.equal(ids[0], together[0][i])
        same(steps[:, 0], together[1][:, i])


@pytest.mark.parametrize("sense", SENSES)
def test_decoding_with_a_cache_is_the_forward_over_everything(subject, sense):
    inputs = prompt(subject, "one")
    ids, steps = dropped(subject, inputs, (0, 1, 3), decoded, **SENSES[sense])
    everything = with_response(inputs, ids[0])
    over = dropped(subject, everything, (0, 1, 3), **SENSES[sense])[-len(steps) - 1 : -1]
    same(over, steps[:, 0])


@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize(
    "generate", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_beams_and_sampling(subject, sense, generate):
    inputs = prompt(subject, "left")

    def said(mode):
        torch.manual_seed(0)
        options = {
            "max_new_tokens": 6,
            "min_new_tokens": 6,
            "pad_token_id": 0,
            "do_sample": False,
            **generate,
        }
        with drop_vision(subject, (1, 2), **mode):
            return subject.model.generate(**inputs, **options)

    reference = {"remove": "mask_frozen", "mask_frozen": "remove"}.get(sense, sense)
    assert torch.equal(said(SENSES[sense]), said(SENSES[reference]))


def test_beams_of_a_batch_are_those_of_its_rows(subject):
    rows = [row(subject), row(subject, 2, "how many circles are there in both?", 1)]

    def said(inputs):
        with drop_vision(subject, range(2, 5), mode="remove"):
            return subject.model.generate(
                **inputs, num_beams=3, max_new_tokens=6, min_new_tokens=6, do_sample=False
            )

    together = said(collate(rows))[:, -6:]
    assert all(torch.equal(said(alone)[0, -6:], together[i]) for i, alone in enumerate(rows))


def test_removed_rows_are_not_computed_and_not_stored(subject):
    inputs, cache, widths = prompt(subject, "one"), DynamicCache(config=subject.model.config), []
    layers = subject.model.get_decoder().layers
    hooks = [
        layer.mlp.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
        for layer in layers
    ]
    with torch.no_grad(), drop_vision(subject, (1, 2, 4), mode="remove"):
        subject.model(**inputs, past_key_values=cache)
    for hook in hooks:
        hook.remove()
    whole = inputs["input_ids"].shape[1]
    assert widths == [whole, whole - 9, whole - 9, whole, whole - 9, whole]
    assert [layer.keys.shape[2] for layer in cache.layers] == widths
    assert {layer.get_seq_length() for layer in cache.layers} == {whole}


@pytest.mark.parametrize("sense", SENSES)
def test_sequences_may_take_turns_and_grow_by_several_tokens(subject, sense):
    first, second = prompt(subject, "one"), row(subject, 2, "and here?", 5)
    more = torch.tensor([[300, 301, 302]])

    def grown(inputs):
        ids = torch.cat([inputs["input_ids"], more], 1)
        given = {k: v for k, v in inputs.items() if k != "attention_mask"} | {"input_ids": ids}
        return subject.model(**given).logits[:, -3:]

    with torch.no_grad(), drop_vision(subject, (0, 3), **SENSES[sense]):
        caches = [subject.model(**inputs).past_key_values for inputs in (first, second)]
        for inputs, cache in zip((first, second), caches, strict=True):
            step = subject.model(input_ids=more, past_key_values=cache).logits
            same(step, grown(inputs))


@pytest.mark.parametrize("sense", SENSES)
def test_half_precision(sense):
    model, processor = models.llava15(layers=6, side=24)
    subject = probe.load(model.bfloat16(), processor=processor)
    inputs = prompt(subject, "left")
    exact = dropped(six_layers(), prompt(six_layers(), "left"), (1, 2, 3), **SENSES[sense])
    assert (dropped(subject, inputs, (1, 2, 3), **SENSES[sense]).float() - exact).abs().mean() < 0.1
    assert decoded(subject, inputs)[1].isfinite().all()


@pytest.mark.parametrize(
    "factory", [models.llava_llama3, models.llava_next_vicuna, models.llava_next_mistral]
)
def test_other_families(factory):
    model, processor = factory(layers=3)  # Mistral's window of 64 tokens ends in the prompt
    subject = probe.load(model, processor=processor)
    inputs = collate([row(subject), row(subject, 2, "how many?", 1)])
    for layers in ([0], [1], [0, 2]):
        _, steps = dropped(subject, inputs, layers, decoded, mode="remove")
        same(dropped(subject, inputs, layers, decoded, mode="mask_frozen")[1], steps)


# -- nothing stays behind
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sense", SENSES)
def test_no_layer_changes_nothing_and_so_does_a_prompt_without_images(subject, sense):
    inputs = prompt(subject, "left")
    assert torch.equal(logits(subject, inputs), dropped(subject, inputs, [], **SENSES[sense]))
    text = subject.encode(None, "where is the red square?")
    for run in (logits, lambda *given: decoded(*given)[1]):
        assert torch.equal(
            run(subject, text), dropped(subject, text, range(6), run, **SENSES[sense])
        )


@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_undone_on_any_exit(subject, sense, error):
    inputs = prompt(subject, "left")
    before, config = logits(subject, inputs), subject.model.get_decoder().layers[2].self_attn.config
    dropped(subject, inputs, (1, 2, 4), **SENSES[sense])

    def interrupt(module, args):
        raise error

    hook = (
        subject.model.get_decoder().layers[2].self_attn.o_proj.register_forward_pre_hook(interrupt)
    )
    with pytest.raises(error):
        dropped(subject, inputs, (1, 2, 4), **SENSES[sense])
    hook.remove()
    assert torch.equal(logits(subject, inputs), before)
    assert subject.model.get_decoder().layers[2].self_attn.config is config
    assert active_interventions(subject.model) == ""
    assert not any(module._forward_pre_hooks for module in subject.model.modules())


def test_what_is_at_work_has_a_name(subject):
    with drop_vision(subject, (0, 2, 3, 4)), drop_vision(subject, 5, mode="remove"):
        said = active_interventions(subject.model)
    assert said == "drop_vision(layers=0,2-4, mode=mask); drop_vision(layers=5, mode=remove)"


# -- measured
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sense", ["mask", "mask_frozen", "remove"])
def test_a_record_shows_no_mass_and_no_entropy_where_vision_is_dropped(subject, sense):
    image = models.picture(0)
    with drop_vision(subject, (1, 2), **SENSES[sense]):
        node = probe.measure(subject, image, "what is there?", "a red circle")["llm"].isel(sample=0)
    untouched = probe.measure(subject, image, "what is there?", "a red circle")["llm"].isel(
        sample=0
    )
    reads = node.sel(query_type="response", key_type="vision")
    assert (reads["mass"].isel(layer=[1, 2]) == 0).all()
    assert (reads["mass"].isel(layer=[0, 3, 4, 5]) > 0).all()
    assert reads["entropy"].isel(layer=[1, 2]).isnull().all()
    assert reads["entropy"].isel(layer=[0, 3]).notnull().all()
    assert (node["query_count"] == untouched["query_count"]).all(), (
        "hidden keys are still visible by causality"
    )
    rest = node["mass"].sel(query_type="response").sum("key_type")
    np.testing.assert_allclose(rest.values, 1, atol=1e-5)
    looking = node["mass"].sel(query_type="vision", key_type="vision").isel(layer=[1, 2])
    assert looking.isnull().all() if sense == "remove" else (looking > 0).all()


def test_a_record_counts_vision_queries_in_the_layers_that_have_them(subject):
    given = (models.picture(0), "what is there?", "a red circle")
    counts = probe.measure(subject, *given)["llm"]["query_count"]
    with drop_vision(subject, range(2), mode="remove"):
        record = probe.measure(subject, *given)
    assert (record["llm"]["query_count"] == counts).all()
    assert record.attrs["intervention"] == "drop_vision(layers=0-1, mode=remove)"
    looking = record["llm"]["mass"].sel(query_type="vision").isel(sample=0)
    assert looking.isel(layer=[0, 1]).isnull().all()
    assert looking.sel(key_type="vision").isel(layer=slice(2, None)).notnull().all()


@pytest.mark.parametrize("sense", SENSES)
def test_measuring_inside_changes_nothing(subject, sense):
    inputs, calls = prompt(subject, "left"), []
    bare = dropped(subject, inputs, (0, 1, 3), **SENSES[sense])
    stack = probe.hooks.model_structure.stacks(subject.model)["llm"]
    with drop_vision(subject, (0, 1, 3), **SENSES[sense]), tap(stack.attention, calls.append):
        assert torch.equal(logits(subject, inputs), bare)
    assert {call.key_count for call in calls} == {inputs["input_ids"].shape[1]}, (
        "calls are shown over the whole"
    )


# -- what cannot be done
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"layers": 6}, "drop_vision: expected layers from 0 to 5, got 6"),
        ({"layers": [-1]}, "layers from 0 to 5, got -1"),
        ({"layers": "all"}, "layers as whole numbers"),
        ({"layers": np.array([True, False, True])}, "layers as whole numbers, got array"),
        ({"layers": torch.tensor([True, False])}, "layers as whole numbers, got tensor"),
        (
            {"layers": 1, "mode": "delete"},
            "mode='mask', 'mask_frozen', 'remove', 'remove_for_good', 'zero', got 'delete'",
        ),
        ({"layers": 1, "mode": "swap"}, "'zero', got 'swap'"),
        (
            {"layers": 1, "stack": "vision"},
            "stack='llm', whose tokens are text and vision, got 'vision'",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(subject, given, complaint):
    with pytest.raises(ProbeError) as told, drop_vision(subject, **given):
        pass
    assert complaint in str(told.value)
    assert "\n" not in str(told.value)


def test_caches_that_cannot_shrink_are_refused_before_anything_runs(subject):
    inputs, ran = prompt(subject, "one"), []
    hook = subject.model.get_decoder().layers[0].register_forward_hook(lambda *_: ran.append(1))
    static = StaticCache(config=subject.model.config, max_cache_len=64)
    with (
        drop_vision(subject, 1, mode="remove"),
        pytest.raises(ProbeError, match="a DynamicCache, got StaticCache"),
    ):
        subject.model(**inputs, past_key_values=static)
    hook.remove()
    assert not ran
    masked = dropped(subject, inputs, (1, 2), lambda *x: decoded(*x)[1])
    same(
        dropped(subject, inputs, (1, 2), lambda *x: decoded(*x, cache_implementation="static")[1]),
        masked,
    )


def test_a_cache_from_outside_is_refused(subject):
    with torch.no_grad():
        cache = subject.model(**prompt(subject, "one")).past_key_values
    for sense in SENSES.values():
        with (
            drop_vision(subject, 1, **sense),
            pytest.raises(ProbeError, match="tokens from elsewhere"),
        ):
            subject.model(input_ids=torch.tensor([[300]]), past_key_values=cache)


def test_overlapping_removals_and_compiled_models_are_refused(subject):
    with (
        drop_vision(subject, (1, 2), mode="remove"),
        pytest.raises(ProbeError, match="layers 2, already under drop_vision"),
        drop_vision(subject, (2, 3), mode="remove"),
    ):
        pass
    with (
        pytest.raises(ProbeError, match="not compiled"),
        drop_vision(torch.compile(subject.model), 1),
    ):
        pass
