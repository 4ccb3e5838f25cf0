"""Layers on a subset of positions: the table of what is present, its cache layer, and calls shown
over the whole.
"""

import models
import pytest
import torch
from flash_double import flash
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import decoded, logits, prompt, row
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import flash_attention_mask

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.kept_positions import KeptPositions
from probe.hooks.model_structure import stacks
from probe.hooks.partial_cache import PartialLayer
from probe.interventions import drop_vision, knockout, swap_vision
from probe.subject.inputs import collate

absences = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4)


@given(absences)
@settings(max_examples=50, deadline=None)
def test_take_and_put_are_each_other_s_inverse(rows):
    absent = torch.tensor([[False, *row] for row in rows])  # a prompt begins with text
    present, x = KeptPositions.without(absent), torch.rand(len(rows), 6, 2)
    part = present.take(x, 1)
    assert part.shape[1] == (~absent).sum(1).max()
    assert torch.equal(
        present.put(part, torch.tensor(-1.0), 1), torch.where(absent[..., None], -1.0, x)
    )
    for i in range(len(rows)):
        assert torch.equal(part[i][present.real[i]], x[i][~absent[i]])
        assert present.index[i].tolist() == sorted(present.index[i].tolist())


def test_a_partial_layer_holds_less_than_it_reports():
    present = KeptPositions.without(
        torch.tensor([[False, True, True, False], [False, False, True, False]])
    )
    layer = PartialLayer(present)
    assert layer.get_seq_length() == 0
    for count in (3, 2, 1):
        keys, _ = layer.update(torch.rand(2, 1, count, 4), torch.rand(2, 1, count, 4))
    assert (keys.shape[2], layer.get_seq_length(), layer.get_mask_sizes(1)) == (6, 7, (8, 0))
    assert layer.present.index.tolist() == [[-1, 0, 3, 4, 5, 6], [0, 1, 3, 4, 5, 6]]
    layer.crop(-2)
    assert (layer.keys.shape[2], layer.get_seq_length()) == (4, 5)
    layer.reorder_cache(torch.tensor([1, 1]))
    assert layer.present.index.tolist() == [[0, 1, 3, 4]] * 2
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 3]))
    assert layer.present.index.shape == (2, 4) == layer.keys.shape[::2]
    layer.reset()
    layer.update(torch.rand(1, 1, 3, 4), torch.rand(1, 1, 3, 4))
    assert layer.get_seq_length() == 3, "after a reset it is a layer like any other"


def test_a_cache_without_a_config_grows_into_it():
    model, processor = models.llava15(side=24)
    subject = probe.load(model, processor=processor)
    inputs, given = prompt(subject, "one"), []
    with torch.no_grad(), drop_vision(subject, (0, 2), mode="remove"):
        for cache in (DynamicCache(), DynamicCache(config=model.config)):
            model(**inputs, past_key_values=cache)
            given.append(model(input_ids=torch.tensor([[300]]), past_key_values=cache).logits)
            assert [type(layer) is PartialLayer for layer in cache.layers] == [True, False, True]
    assert torch.equal(*given)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["one", "left", "right"])
def test_calls_over_some_positions_are_shown_as_calls_over_all(attn, kind):
    """What `tap` shows of a layer without vision rows is what it shows of one that hides them,
    where somebody asks.
    """
    model, processor = models.llava15(layers=3, side=24, attn=attn)
    subject = probe.load(model, processor=processor)
    inputs, seen = prompt(subject, kind), {}
    for mode in ({"mode": "remove"}, {"mode": "mask_frozen"}):
        calls = []
        with drop_vision(subject, 1, **mode), tap(stacks(model)["llm"].attention, calls.append):
            logits(subject, inputs)
        seen[mode["mode"]] = calls[1]
    removed, hidden = seen["remove"], seen["mask_frozen"]
    text = removed.active_queries
    assert torch.equal(text, inputs["input_ids"] != model.config.image_token_id)
    for name in ("query", "key", "value"):
        ours, theirs = (getattr(call, name).transpose(1, 2)[text] for call in (removed, hidden))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    real = text & inputs["attention_mask"].bool()
    ours, theirs = (
        call.effective_mask if call.effective_mask.dtype == torch.bool else call.effective_mask == 0
        for call in (removed, hidden)
    )
    assert torch.equal(
        ours.expand(len(text), -1, -1, -1)[:, 0][real],
        theirs.expand(len(text), -1, -1, -1)[:, 0][real],
    )


def test_an_intervention_on_a_layer_without_vision_rows_works_in_the_positions_of_the_whole():
    model, processor = models.llava15(layers=3, side=24)
    subject = probe.load(model, processor=processor)
    answered = subject.encode(models.picture(0), "what is there?", "a red circle")
    inputs = collate([answered, row(subject, 2, "how many?")])
    found = []
    for mode in ({"mode": "remove"}, {"mode": "mask_frozen"}):
        with (
            drop_vision(subject, 1, **mode),
            knockout(subject, "response", "instruction", (0, 1), types=inputs.types),
        ):
            found.append(logits(subject, inputs))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)
    prompts = prompt(subject, "left")
    found = []
    for mode in ({"mode": "remove"}, {"mode": "mask_frozen"}):
        with (
            drop_vision(subject, 1, **mode),
            knockout(subject, "response", "instruction", (0, 1), types=prompts.types),
        ):
            found.append(decoded(subject, prompts)[1])
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["one", "left", "right"])
def test_flash_attention_takes_masks_over_keys_only(kind):
    AttentionInterface.register("flash_double", flash)
    AttentionMaskInterface.register("flash_double", flash_attention_mask)
    found = []
    for attn in ("sdpa", "flash_double"):
        model, processor = models.llava15(layers=3, side=24)
        model.set_attn_implementation({"text_config": attn})
        subject = probe.load(model, processor=processor)
        inputs, given = prompt(subject, kind), []
        donors = collate(
            [row(subject, 1 + (i == 1), "why?", 9 + i) for i in range(len(inputs.prompt))]
        )
        for intervention, options in (
            (drop_vision, {"layers": (0, 2), "mode": "remove"}),
            (drop_vision, {"layers": (0, 2), "mode": "zero"}),
            (swap_vision, {"layers": 1, "donor": donors}),
        ):
            with intervention(subject, **options):
                given.append(logits(subject, inputs))
                if kind != "right":
                    given.append(decoded(subject, inputs)[1].flatten(0, 1))
        found.append(torch.cat(given))
    torch.testing.assert_close(*found, atol=5e-5, rtol=0)
    for block in (drop_vision(subject, 1), knockout(subject, "text", "vision", 1)):
        with pytest.raises(ProbeError, match="expected attention that takes a mask"), block:
            pass
