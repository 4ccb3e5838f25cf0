"""Reading another image: where it must be the donor's own run it is, to the bit or to rounding."""

import models
import pytest
import torch
from prompts import decoded, logits, prompt, row, six_layers

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from probe.interventions import drop_vision, swap_vision
from probe.subject.inputs import collate, with_response

WORDS = "what is in the picture?"


@pytest.fixture(scope="module")
def subject():
    return six_layers()


def swapped(subject, inputs, layers, donor, run=logits):
    with swap_vision(subject, layers, donor):
        return run(subject, inputs)


def same(x, y):
    torch.testing.assert_close(x, y, atol=1e-5 * y.abs().max().item(), rtol=0)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_in_all_layers_text_says_what_it_says_about_the_donor(attn):
    subject = six_layers(attn)
    inputs, donor = row(subject, seed=0), row(subject, seed=7)
    text = inputs["input_ids"][0] != subject.model.config.image_token_id
    same(swapped(subject, inputs, range(6), donor)[text], logits(subject, donor)[text])
    assert (logits(subject, donor) - logits(subject, inputs))[text][-1].abs().max() > 0.1
    ids, steps = swapped(subject, inputs, range(6), donor, decoded)
    donor_ids, donor_steps = decoded(subject, donor)
    assert torch.equal(ids, donor_ids)
    same(steps, donor_steps)


def test_vision_rows_are_the_own_image_s(subject):
    inputs, donor = row(subject, seed=0), row(subject, seed=7)
    vision = inputs["input_ids"][0] == subject.model.config.image_token_id
    same(swapped(subject, inputs, range(6), donor)[vision], logits(subject, inputs)[vision])


def test_one_layer_reads_the_donor_s_keys_and_values(subject):
    """Against a run in which the hidden states of one layer are put together by hand."""
    inputs, donor, layer = row(subject, seed=0), row(subject, seed=7), 2
    vision = inputs["input_ids"][0] == subject.model.config.image_token_id
    module = subject.model.get_decoder().layers[layer]
    seen = []
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits(subject, donor)
    hook.remove()

    def exchanged(module, args):
        return (torch.where(vision[:, None], seen[0], args[0]), *args[1:])

    def own_vision(module, args, output):
        return torch.where(vision[:, None], own[0], output)

    own = []
    hook = module.register_forward_hook(lambda module, args, output: own.append(output))
    logits(subject, inputs)
    hook.remove()
    hooks = [module.register_forward_pre_hook(exchanged), module.register_forward_hook(own_vision)]
    expected = logits(subject, inputs)
    for hook in hooks:
        hook.remove()
    same(swapped(subject, inputs, layer, donor), expected)


@pytest.mark.parametrize("kind", ["one", "left", "right"])
def test_the_own_images_as_donor_change_nothing(subject, kind):
    inputs = prompt(subject, kind)
    same(swapped(subject, inputs, (1, 2, 4), inputs), logits(subject, inputs))


def test_rows_of_a_batch_and_of_beams_have_their_own_donors(subject):
    rows = [row(subject), row(subject, 2, "how many circles are there in both?", 1)]
    donors = [row(subject, seed=11), row(subject, 2, "how many circles are there in both?", 13)]
    for run in (decoded, lambda *given: decoded(*given, num_beams=3)):
        ids, steps = swapped(subject, collate(rows), (1, 3), collate(donors), run)
        for i in range(2):
            alone, alone_steps = swapped(subject, rows[i], (1, 3), donors[i], run)
            assert torch.equal(alone[0], ids[i])
            if run is decoded:
                same(alone_steps[:, 0], steps[:, i])


def test_one_donor_serves_a_batch_of_differently_padded_rows(subject):
    rows, donor = [row(subject), row(subject, 1, "where?", 3)], row(subject, seed=9)
    for side in ("left", "right"):
        inputs = collate(rows, side)
        together = swapped(subject, inputs, (0, 3), donor)
        alone = torch.cat([swapped(subject, inputs, (0, 3), donor) for inputs in rows])
        same(together, alone)


def test_decoding_with_a_cache_is_the_forward_over_everything(subject):
    inputs, donor = row(subject), row(subject, seed=9)
    ids, steps = swapped(subject, inputs, (1, 4), donor, decoded)
    same(swapped(subject, with_response(inputs, ids[0]), (1, 4), donor)[-5:-1], steps[:, 0])


def test_a_image_will_do_for_a_subject(subject):
    inputs = row(subject)
    found = swapped(subject, inputs, (1, 4), models.picture(7))
    with swap_vision(subject.model, (1, 4), row(subject, seed=7)):
        assert torch.equal(logits(subject, inputs), found)
    with (
        pytest.raises(ProbeError, match=r"pass subject\.encode"),
        swap_vision(subject.model, 1, models.picture(7)),
    ):
        pass


@pytest.mark.parametrize("factory", [models.llava_next_vicuna, models.llava_next_mistral])
def test_any_resolution_and_a_sliding_window_that_bites(factory):
    model, processor = factory(layers=3)
    subject = probe.load(model, processor=processor)
    inputs, donor = row(subject), row(subject, seed=7)
    ids, _ = swapped(subject, inputs, range(3), donor, lambda *x: decoded(*x, steps=8))
    assert torch.equal(ids, decoded(subject, donor, steps=8)[0])
    wide = subject.encode(models.picture(7, 90, 20), WORDS)
    with pytest.raises(ProbeError, match=r"a donor with \d+ vision tokens"):
        swapped(subject, inputs, 1, wide)


def test_it_composes(subject):
    inputs, donor, calls = prompt(subject, "one"), row(subject, seed=7), []
    bare = swapped(subject, inputs, (1, 2), donor)
    with (
        swap_vision(subject, (1, 2), donor),
        tap(stacks(subject.model)["llm"].attention, calls.append),
    ):
        assert torch.equal(logits(subject, inputs), bare)
    assert len(calls) == 6 + 2, "the donor's run is not observed; two layers are read in two ways"
    with drop_vision(subject, (1, 2)):
        dropped = logits(subject, inputs)
        text = inputs["input_ids"][0] != subject.model.config.image_token_id
        same(swapped(subject, inputs, (1, 2), donor)[text], dropped[text])
    record = probe.measure(subject, models.picture(0), WORDS, "a circle")
    with swap_vision(subject, (1, 2), donor):
        other = probe.measure(subject, models.picture(0), WORDS, "a circle")
    for name in ("query_count", "entropy_count"):
        assert (record["llm"][name] == other["llm"][name]).all(), "each query is counted once"
    before, after = record["llm"]["mass"].fillna(0), other["llm"]["mass"].fillna(0)
    assert (before == after).isel(layer=0).all()
    assert (before != after).isel(layer=1).sel(query_type="response", key_type="vision").any()
    assert abs(after.sel(query_type="response").sum("key_type") - 1).max() < 1e-5


def test_it_is_undone_on_any_exit(subject):
    inputs, donor = prompt(subject, "one"), row(subject, seed=7)
    before = logits(subject, inputs)

    def interrupt(module, args):
        raise KeyboardInterrupt

    hook = (
        subject.model.get_decoder().layers[2].self_attn.o_proj.register_forward_pre_hook(interrupt)
    )
    with pytest.raises(KeyboardInterrupt), swap_vision(subject, 2, inputs):
        pass  # the donor's forward is interrupted
    hook.remove()
    assert torch.equal(logits(subject, inputs), before)
    assert torch.equal(swapped(subject, inputs, [], donor), before)
    assert not any(module._forward_pre_hooks for module in subject.model.modules())


def test_overlapping_swaps_and_removed_layers_are_refused(subject):
    donor = row(subject, seed=7)
    with (
        swap_vision(subject, (1, 2), donor),
        pytest.raises(ProbeError, match="layers 2, already under swap_vision"),
    ):
        swapped(subject, donor, (2, 3), donor)
    with (
        drop_vision(subject, (1, 2), mode="remove"),
        pytest.raises(ProbeError, match="layers 1, already under drop"),
    ):
        swapped(subject, donor, 1, donor)
    with pytest.raises(ProbeError, match="a donor with 18 vision tokens, as in row 0, got 9"):
        swapped(subject, row(subject, 2), 1, donor)
