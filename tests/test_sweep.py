"""The sweep against every case alone: a dense reference that runs one case at a time, without cache or sharing."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from models import FACTORIES, llava15, llava_next_mistral, llava_next_vicuna, picture

from probe.errors import ProbeError
from probe.inputs import with_response
from probe.interventions.case_views import Reading, row_layers
from probe.interventions.cases import ALWAYS, ANOTHER_IMAGE, NO_VISION, UNTOUCHED, from_layer, resolve, until_layer, windows
from probe.interventions.sweep import Sweep, drop_sweep, schedule, sweep_one
from probe.locate import stacks
from probe.samples import Sample
from probe.subject import load
from probe.tap import routed, tap

LAYERS, TOKENS = 5, 4
QUESTION, OTHER_QUESTION = "what is in the picture?", "how many circles are there? is a red square above it?"


def subject_of(factory=llava15, **options):
    options = {"layers": LAYERS, "max_positions": 4096} | options
    if factory is llava_next_mistral:
        options = {"sliding_window": 4096} | options
    model, processor = factory(**options)
    return load(model, processor)


def random_sets(count, layers=LAYERS, seed=0):
    rng = np.random.default_rng(seed)
    return {f"set {i}": set(np.flatnonzero(rng.random(layers) < 0.5).tolist()) or {0} for i in range(count)}


def keys_of(subject, inputs):
    """What every layer of the untouched model makes of a prompt."""
    kept = {}
    with torch.no_grad(), tap(stacks(subject.model)["llm"].attention, lambda call: kept.update({call.name: (call.key, call.value)})):
        subject.model(**inputs, use_cache=False)
    return kept


def dense(call, vision, how, donor):
    """One attention call in which text sees vision as `how` says, written out."""
    groups = call.query.shape[1] // call.key.shape[1]
    text_to_vision = ~vision[:, None] & vision[None]
    causal = torch.ones(len(vision), len(vision), dtype=torch.bool).tril()

    def scores(key):
        return (call.query @ key.repeat_interleave(groups, 1).mT) * call.scaling

    value = call.value.repeat_interleave(groups, 1)
    s = scores(call.key)
    if how == "swap":
        key, values = (t.clone() for t in (call.key, call.value))
        key[:, :, vision], values[:, :, vision] = (t[:, :, : len(vision)][:, :, vision] for t in donor)
        s = torch.where(text_to_vision, scores(key), s)
    visible = causal & ~text_to_vision if how == "mask" else causal
    weights = torch.softmax(s.masked_fill(~visible, -torch.inf), -1)
    if how == "zero":
        weights = weights * ~text_to_vision
    out = weights @ value
    if how == "swap":
        to_vision = weights * text_to_vision
        out = out + to_vision @ (values.repeat_interleave(groups, 1) - value)
    return out.transpose(1, 2).contiguous(), None


def logits_alone(subject, inputs, layers, how="mask", freeze=False, donor=None):
    """Logits of all positions when one case runs by itself."""
    stack = stacks(subject.model)["llm"]
    names = list(stack.attention)
    vision = torch.from_numpy(inputs.types.vision[0])

    def around(call, kernel):
        if names.index(call.name) not in layers:
            return kernel(call)
        return dense(call, vision, how, donor and donor[call.name])

    def keep(module, args, output):
        return torch.where(vision[:, None], args[0], output)

    with ExitStack() as hooks, torch.no_grad():
        for layer in layers if freeze else ():
            hooks.callback(stack.layers[layer].register_forward_hook(keep).remove)
        hooks.enter_context(routed(stack.attention, around))
        return subject.model(**inputs, use_cache=False).logits[0]


def alone(subject, sample, layers, gold=(), **options):
    """Prompt logits with the gold answer's, and the greedy answer, one full forward for each token."""
    inputs = subject.encode(list(sample.images), sample.question)
    length = inputs["input_ids"].shape[1]
    logits = logits_alone(subject, with_response(inputs, gold[:-1]) if len(gold) > 1 else inputs, layers, **options)
    said = []
    while len(said) < TOKENS and not (said and said[-1] in subject.vocabulary.end_ids):
        step = logits_alone(subject, with_response(inputs, said) if said else inputs, layers, **options)
        said.append(int(step[-1].argmax()))
    return logits[length - 1 :], said


def outcomes(subject, sample, cases, donor=None, **options):
    """What the sweep got for each case: logits and ids, before they become text and distances."""
    sweep = Sweep(subject, cases, max_new_tokens=TOKENS, **options)
    with torch.no_grad():
        inputs = subject.encode(list(sample.images), sample.question)
        other = donor and subject.encode(donor, sample.question)
        gold = sweep._gold(sample, inputs)
        assert sweep._judged(inputs).reason == ""
        present = [name for name in sweep.cases if name != ANOTHER_IMAGE or other is not None]
        outcome = sweep._together(present, inputs, other, gold)
    return gold.tolist(), {name: (outcome.logits[i], outcome.answers[i].tolist()) for i, name in enumerate(present)}, outcome


def assert_as_alone(subject, sample, cases, *, donor=None, how="mask", freeze=False, restore=True, **reference):
    reading = {"how": how, "freeze": freeze, "restore": restore}
    gold, found, _ = outcomes(subject, sample, cases, donor, **reading)
    for name, layers in {UNTOUCHED: set(), NO_VISION: range(LAYERS), **cases}.items():
        options = {"how": "mask"} if name == NO_VISION else reference or {"how": how}
        logits, said = alone(subject, sample, set(layers), gold, **options)
        torch.testing.assert_close(found[name][0], logits, rtol=1e-5, atol=1e-5)
        assert found[name][1] == said, name
    if donor:
        logits, said = alone(subject, Sample("d", tuple(donor), sample.question), set(), gold)
        torch.testing.assert_close(found[ANOTHER_IMAGE][0], logits, rtol=1e-5, atol=1e-5)
        assert found[ANOTHER_IMAGE][1] == said


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_every_case_is_what_it_is_alone(factory, attn):
    subject = subject_of(factory, attn=attn)
    sample = Sample("1", picture(1), QUESTION, answer="a red circle")
    assert_as_alone(subject, sample, random_sets(4), donor=[picture(2)])


def test_x():
    subject = subject_of()
    t = drop_sweep(subject, [Sample("1", picture(1), QUESTION, answer="a red circle"), Sample("2", picture(1), OTHER_QUESTION, answer="a red circle"),Sample("3", picture(2), OTHER_QUESTION)], windows(2))
    print(t)
    assert 0
