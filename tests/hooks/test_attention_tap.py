"""Looking changes nothing: bit-identical logits, and the model as it was after every kind of
exit.
"""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import models
import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention

import probe.hooks.attention_tap
from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, attention_rows
from probe.hooks.attention_tap import routed, tap
from probe.hooks.model_state import is_clear, lock
from probe.hooks.model_structure import stacks
from probe.measures.verify import state
from probe.subject.inputs import collate
from probe.subject.loading import load


def subject_of(factory=models.llava15, **options):
    model, processor = factory(**options)
    return load(model, processor=processor)


def attention_of(model):
    return {
        name: module for stack in stacks(model).values() for name, module in stack.attention.items()
    }


@pytest.fixture(scope="module")
def subject():
    return subject_of()


@pytest.fixture(scope="module")
def inputs(subject):
    return subject.encode(models.picture(), "what is in the picture?", response="a red circle")


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factory", [models.llava15, models.llava_next_mistral])
def test_logits_are_bit_identical(factory, attn, dtype):
    subject = subject_of(factory, attn=attn)
    subject.model.to(dtype)
    one = subject.encode(models.picture(), "what is in the picture?")
    two = collate(
        [one, subject.encode(models.picture(1, 50, 20), "and what is it that you see here?")],
        side="left",
    )
    for batch in (one, two):
        calls = []
        with torch.no_grad():
            plain = subject.model(**batch).logits
            with tap(attention_of(subject.model), calls.append):
                seen = subject.model(**batch).logits
        assert torch.equal(plain, seen)
        assert {call.name for call in calls} == set(attention_of(subject.model))


def test_generate_is_unchanged_and_every_step_is_seen(subject, inputs):
    prompt = subject.encode(models.picture(), "what is in the picture?")
    plain, calls = subject.generate_ids(prompt, 4), []
    with tap(stacks(subject.model)["llm"].attention, calls.append):
        seen = subject.generate_ids(prompt, 4)
    assert torch.equal(plain[0], seen[0])
    width = prompt["input_ids"].shape[1]
    assert [(c.query_count, c.key_count) for c in calls[::3]] == [(width, width)] + [
        (1, width + n) for n in (1, 2, 3)
    ]


def test_two_models_in_one_process(subject, inputs):
    """Only the tapped one is seen, and the other computes what it always did."""
    other = subject_of(seed=1)
    untouched = other.model(**inputs).logits
    calls = []
    with tap(attention_of(subject.model), calls.append):
        subject.model(**inputs)
        count = len(calls)
        assert torch.equal(other.model(**inputs).logits, untouched)
    assert len(calls) == count and {id(call.module) for call in calls} <= {
        id(m) for m in subject.model.modules()
    }


def test_nested_with_itself_and_with_other_hooks(subject, inputs):
    before, outer, inner, hooked = state(subject.model), [], [], []
    module = next(iter(stacks(subject.model)["llm"].attention.values()))
    plain = subject.model(**inputs).logits
    handle = module.register_forward_hook(lambda module, args, output: hooked.append(1))
    with tap(attention_of(subject.model), outer.append):
        with tap(stacks(subject.model)["llm"].attention, inner.append):
            assert torch.equal(subject.model(**inputs).logits, plain)
        subject.model(**inputs)
    handle.remove()
    assert (len(outer), len(inner), len(hooked)) == (12, 3, 2)
    assert state(subject.model) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("stack", ["vision", "llm"])
def test_restored_after_an_error_inside_the_attention_call(subject, inputs, stack, error):
    before, plain = state(subject.model), subject.model(**inputs).logits

    def stop(call):
        raise error("in the middle of a layer")

    with pytest.raises(error, match="middle"), tap(stacks(subject.model)[stack].attention, stop):
        subject.model(**inputs)
    assert state(subject.model) == before
    assert torch.equal(subject.model(**inputs).logits, plain)


def test_restored_after_an_interrupt_at_any_line(subject, inputs):
    """Ctrl-C before each single line of tap.py, one after the other."""
    before, plain = state(subject.model), subject.model(**inputs).logits
    modules, line = dict(list(attention_of(subject.model).items())[:1]), 0

    def tracer(frame, event, argument):
        nonlocal passed
        if frame.f_code.co_filename != probe.hooks.attention_tap.__file__:
            return None
        if event == "line":
            passed += 1
            if passed == line:
                raise KeyboardInterrupt
        return tracer

    interrupted = True
    while interrupted:
        line, passed, interrupted = line + 1, 0, False
        try:
            sys.settrace(tracer)
            with tap(modules, lambda call: None):
                subject.model.model.vision_tower(inputs["pixel_values"])
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        assert state(subject.model) == before, f"line {line}"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lock.acquire, timeout=9).result()  # nothing holds it
        pool.submit(lock.release).result()
    assert line > 50 and all(is_clear(module) for module in subject.model.modules())
    assert torch.equal(subject.model(**inputs).logits, plain)


class UsersAttention(LlamaAttention):
    """In another file than Llama's, so its look-up of `eager` has to be found through its base."""


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_users_subclass_with_other_names(attn):
    subject = subject_of(attn=attn)
    inputs = subject.encode(models.picture(), "what is it?")
    plain = subject.model(**inputs).logits
    for i, layer in enumerate(stacks(subject.model)["llm"].layers):
        own = UsersAttention(layer.self_attn.config, i).eval()
        own.load_state_dict(layer.self_attn.state_dict())
        layer.self_attn = None
        layer.mixer = own
        layer.__class__ = type(
            "UsersLayer", (type(layer),), {"self_attn": property(lambda self: self.mixer)}
        )
        del layer._modules["self_attn"]
    calls = []
    with torch.no_grad(), tap(stacks(subject.model)["llm"].attention, calls.append):
        assert torch.equal(subject.model(**inputs).logits, plain)
    assert [call.name for call in calls] == [
        f"model.language_model.layers.{i}.mixer" for i in range(3)
    ]


def test_no_library_class_is_patched(subject, inputs):
    functions = {
        cls: dict(vars(cls)) for cls in {type(module) for module in subject.model.modules()}
    }
    with tap(attention_of(subject.model), lambda call: None):
        subject.model(**inputs)
        assert all(dict(vars(cls)) == functions[cls] for cls in functions)


class Returning(nn.Module):
    """An attention of its own that hands back its weights, as torch's MultiheadAttention does."""

    def __init__(self, dim=8, heads=2, weights=True):
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(dim, heads, batch_first=True), weights

    def forward(self, x):
        out, weights = self.attention(x, x, x, average_attn_weights=False)
        return (out, weights) if self.weights else out


def test_a_module_that_returns_its_weights():
    module, seen = Returning(), []
    with tap({"mine": module}, seen.append):
        _, weights = module(torch.randn(1, 5, 8))
    assert isinstance(seen[0], AttentionWeights) and torch.equal(seen[0].weights, weights)


def test_a_module_whose_weights_stay_inside_is_seen_by_its_parts():
    module, states, seen = Returning(weights=False), torch.randn(2, 5, 8), []
    plain = module(states)
    with tap({"mine": module}, seen.append):
        assert torch.equal(module(states), plain)
    assert not module.attention._forward_hooks
    module.weights = True
    found = torch.stack([attention_rows(seen[0], row, torch.arange(5)) for row in (0, 1)])
    torch.testing.assert_close(found, module(states)[1])


class Unseen(nn.Module):
    """An attention of its own whose parts have no names that say what they make."""

    def __init__(self):
        super().__init__()
        self.three = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.three(x).chunk(3, -1)
        return (q @ k.mT).softmax(-1) @ v


def test_what_cannot_be_seen_is_named(subject, inputs):
    module = Unseen()
    with pytest.raises(ProbeError, match=r"got mine \(Unseen\)"), tap({"mine": module}, print):
        module(torch.randn(1, 5, 8))
    with (
        pytest.raises(ProbeError, match="no call of model"),
        tap(stacks(subject.model)["llm"].attention, print),
    ):
        pass
    compiled = copy.deepcopy(subject.model)
    next(iter(stacks(compiled)["llm"].attention.values())).compile()
    with pytest.raises(ProbeError, match="compiled"), tap(stacks(compiled)["llm"].attention, print):
        pass


def test_an_intervention_changes_what_is_in_force_not_what_is_visible(subject, inputs):
    """The innermost route sees the edited mask, whichever was entered first."""
    stack, seen = stacks(subject.model)["llm"], []

    def hide(call: AttentionCall, kernel):
        return kernel(call.with_mask(torch.eye(call.key_count, dtype=torch.bool)[None, None]))

    plain = subject.model(**inputs).logits
    with tap(stack.attention, seen.append), routed(stack.attention, hide):
        changed = subject.model(**inputs).logits
    assert not torch.equal(plain, changed)
    assert seen[0].effective_mask.sum() == seen[0].key_count and seen[0].model_mask is None
