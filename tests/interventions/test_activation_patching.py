"""Activations of another run put in: as plain hooks would, at every site."""

import models
import pytest
import torch
from prompts import decoded, logits, row, six_layers

import probe
from probe.errors import ProbeError
from probe.hooks.model_state import is_clear
from probe.interventions import drop_vision, patch
from probe.models.planted import planted
from probe.subject.inputs import collate, with_response

SITES = ("residual", "attention", "mlp", "head")


@pytest.fixture(scope="module")
def subject():
    return six_layers()


def place(subject, layer, site):
    """The module of a site and whether it is its input that counts."""
    block = subject.model.get_decoder().layers[layer]
    if site == "head":
        return block.self_attn.o_proj, True
    return {"residual": block, "attention": block.self_attn, "mlp": block.mlp}[site], False


def plainly(subject, inputs, source, layers, mask, site, columns=slice(None)):
    """Logits, with activations of the source's run kept and put in by hooks written out here."""
    kept = {}

    def run(inputs, change):
        handles = []
        for layer in layers:
            module, is_input = place(subject, layer, site)

            def before(module, args, layer=layer):
                return (change(layer, args[0]),)

            def after(module, args, output, layer=layer):
                hidden = output[0] if isinstance(output, tuple) else output
                changed = change(layer, hidden)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            if is_input:
                handles.append(module.register_forward_pre_hook(before))
            else:
                handles.append(module.register_forward_hook(after))
        found = logits(subject, inputs)
        for handle in handles:
            handle.remove()
        return found

    def keep(layer, hidden):
        kept[layer] = hidden.clone()
        return hidden

    def put(layer, hidden):
        changed = hidden.clone()
        for sequence in range(len(hidden)):
            at = mask[sequence].nonzero()[:, 0]
            changed[sequence, at, columns] = kept[layer][sequence, at, columns]
        return changed

    run(source, keep)
    return run(inputs, put)


def masks(inputs):
    vision = torch.as_tensor(inputs.types.vision)
    real = inputs["attention_mask"].bool()
    last = torch.zeros_like(vision)
    last[:, -1] = True  # left padding
    return {"vision": vision, "text": ~vision & real, "last": last}


def hooks(subject):
    """How many hooks are on the model's modules."""
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in subject.model.modules()
    ]


def batches(subject):
    """A batch of two rows of unequal length, and the same questions about other images."""
    return tuple(
        collate([row(subject, seed=seed), row(subject, 1, "where?", seed + 1)], side="left")
        for seed in (0, 7)
    )


@pytest.mark.parametrize(
    ("site", "attn"),
    [
        *((site, "sdpa") for site in SITES),
        *(pytest.param(site, "eager", marks=pytest.mark.wide) for site in SITES),
    ],
)
def test_every_site_and_position_equals_plain_hooks(site, attn):
    subject = six_layers(attn)
    inputs, source = batches(subject)
    heads, columns = (None, slice(None)) if site != "head" else ([1, 2], slice(12, 36))
    for positions, mask in masks(inputs).items():
        with patch(subject, source, (1, 3), positions, site, heads) as report:
            found = logits(subject, inputs)
        plain = plainly(subject, inputs, source, (1, 3), mask, site, columns)
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
        assert report.calls == 2 and report.layers[1].calls == 1
    with patch(subject, source, (1, 3), masks(inputs)["vision"], site, heads):
        by_mask = logits(subject, inputs)
    with patch(subject, source, (1, 3), "vision", site, heads):
        assert torch.equal(logits(subject, inputs), by_mask)


def test_all_of_the_residual_stream_is_the_other_run(subject):
    inputs, source = row(subject), row(subject, seed=5)
    other = logits(subject, source)
    everywhere = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    with patch(subject, source, 2, everywhere):
        torch.testing.assert_close(logits(subject, inputs), other, atol=1e-6, rtol=0)
    with patch(subject, source, 5, "last") as report:
        assert torch.equal(logits(subject, inputs)[-1], other[-1])
    assert report.calls_changed == 1
    with patch(subject, inputs, range(6)) as report:  # its own activations change nothing
        logits(subject, inputs)
    assert (report.calls, report.calls_changed, report.largest_change) == (6, 0, 0.0)


def test_what_is_generated_reads_what_was_patched(subject):
    inputs, source = row(subject), row(subject, seed=5)
    with patch(subject, source, (1, 2), "vision", "mlp") as report:
        ids, steps = decoded(subject, inputs)
        again, own_steps = decoded(subject, inputs, use_cache=False)
        whole = with_response(inputs, ids[0])
    assert report.layers[1].calls == 1 + 4
    torch.testing.assert_close(own_steps, steps, atol=1e-4, rtol=0)
    with patch(subject, with_response(source, ids[0]), (1, 2), "vision", "mlp"):
        over = logits(subject, whole)[-5:-1]
    torch.testing.assert_close(over, steps[:, 0], atol=1e-4, rtol=0)
    assert torch.equal(ids, again)


@pytest.mark.parametrize("positions", ["vision", "text"])
def test_prefusion_of_llava_mini(positions):
    model, processor = models.llava_mini()
    subject = probe.load(model, processor=processor)
    inputs, source = row(subject), row(subject, seed=5)
    own, other = logits(subject, inputs), logits(subject, source)
    with patch(subject, source, 1, positions, "residual", stack="prefusion") as report:
        changed = logits(subject, inputs)
    assert report.calls == 2  # vision rows, then what reads them
    # text is all that leaves the last pre-fusion layer besides compressed tokens
    assert torch.equal(changed, own) == (positions == "vision")
    with patch(subject, source, (0, 1), "vision", stack="prefusion"):
        partly = logits(subject, inputs)
    assert not torch.equal(partly, own) and not torch.equal(partly, other)


def test_the_planted_layers_read_the_other_image():
    known = planted(read_layers=(2, 4))
    subject = probe.load(known.model, processor=known.processor)
    red, blue = (subject.encode(known.image(c), known.question) for c in ("red", "blue"))
    said = {}
    for layer in range(6):
        with patch(subject, red, layer, "vision"), torch.no_grad():
            said[layer] = int(subject.model(**blue).logits[0, -1].argmax())
    words = subject.processor.tokenizer
    assert words.decode(said[1]) == "red"  # both layers read the patched image
    assert words.decode(said[4]) == words.decode(said[5]) == "blue"
    with patch(subject, red, (2, 4), "last", "head", 0), torch.no_grad():
        heads = int(subject.model(**blue).logits[0, -1].argmax())
    assert words.decode(heads) == "red"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_model_is_restored_after_an_error(subject, error):
    inputs, source = row(subject), row(subject, seed=5)
    before, known_hooks = logits(subject, inputs), hooks(subject)

    for last_good in (0, 1):  # in the source's run, or in the patched one
        forwards = []

        def fail(*hooked, forwards=forwards, last_good=last_good):
            forwards.append(hooked)
            if len(forwards) > last_good:
                raise error

        handle = subject.model.get_decoder().layers[3].register_forward_hook(fail)
        with pytest.raises(error), patch(subject, source, 1):
            logits(subject, inputs)
        handle.remove()
    assert torch.equal(logits(subject, inputs), before)
    assert all(is_clear(module) for module in subject.model.modules())
    assert hooks(subject) == known_hooks


def test_what_does_not_fit_is_refused(subject):
    inputs = row(subject)
    longer = row(subject, 1, "what is in the picture and where?")
    cases = [
        (longer, 1, {}, "inputs of .* tokens, as the source"),
        (row(subject, 2, "where?"), 1, {}, "vision tokens in the same places"),
        (inputs, 6, {}, "layers from 0 to 5, got 6"),
        (inputs, 1, {"site": "norm"}, "a site of residual, attention, mlp, head"),
        (inputs, 1, {"positions": "first"}, "one of vision, text, last"),
        (inputs, 1, {"positions": torch.zeros(3, dtype=torch.bool)}, "at least one position"),
        (inputs, 1, {"positions": torch.ones(3, dtype=torch.bool)}, "a mask of 1 x"),
        ({}, 1, {}, "a source's inputs, got an empty dict"),
        (inputs, 1, {"heads": [1]}, "heads= with site='head' only"),
        (inputs, 1, {"site": "head", "heads": 4}, "heads from 0 to 3"),
    ]
    for source, layers, options, message in cases:
        with pytest.raises(ProbeError, match=message), patch(subject, source, layers, **options):
            logits(subject, inputs)
    unused = pytest.raises(ProbeError, match="run the forward inside the block")
    with unused, patch(subject, inputs, 1):
        pass
    refused = pytest.raises(ProbeError, match="already under")
    with drop_vision(subject, (1, 2), "remove"):
        logits(subject, inputs)
        with refused, patch(subject, inputs, 2):
            pass
