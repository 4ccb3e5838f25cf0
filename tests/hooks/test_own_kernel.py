"""Which caps, sinks and biases a kernel applies is found out by its output."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as capping
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks
from transformers.models.inkling.modeling_inkling import eager_attention_forward as biased
from transformers.models.llama.modeling_llama import eager_attention_forward as plain

import probe
from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, attention_rows
from probe.hooks.attention_tap import tap
from probe.hooks.chosen_keys import GivenMasks
from probe.hooks.model_structure import stacks
from probe.hooks.own_kernel import rule_of_kernel
from tests.families.checks import Case, picture
from tests.families.models import FAMILIES
from tests.families.score_models import SCORE_FAMILIES

HEADS, TOKENS = 4, 3
SINKS = torch.linspace(-80, 9, HEADS)
OPTIONS = {
    "softcap": 30.0,
    "s_aux": SINKS,
    "position_bias": torch.randn(1, HEADS, TOKENS, TOKENS),
}


def call_with(**options) -> AttentionCall:
    module = nn.Identity()
    module.num_key_value_groups, module.head_dim, module.sinks = 2, 8, SINKS
    module.config = SimpleNamespace(_attn_implementation="tried")
    query, key = torch.randn(1, HEADS, TOKENS, 8), torch.randn(1, 2, TOKENS, 8)
    given = "layer", module, query, key, key, None, None, 8**-0.5, True, None, options
    return AttentionCall(*given)


@pytest.mark.parametrize(
    ("kernel", "given", "applied"),
    [
        (capping, "softcap", "cap"),
        (with_sinks, "s_aux", "sink"),
        (biased, "position_bias", "position_bias"),
        (sdpa_attention_forward, "position_bias", "position_bias"),
        (sdpa_attention_forward, "s_aux", None),
        (plain, "softcap", None),
        (plain, "position_bias", None),
    ],
)
def test_what_a_kernel_applies_is_in_the_rule_and_nothing_else(kernel, given, applied):
    rule = rule_of_kernel(kernel, call_with(**{given: OPTIONS[given], "dropout": 0.0}))
    assert rule is not None and rule.is_plain == (applied is None)
    if applied is not None:
        assert getattr(rule, applied) is OPTIONS[given]


def test_sinks_of_each_query_and_several_options_at_once():
    def kernel(module, query, key, value, mask, scaling, softcap, position_bias, sinks, **options):
        key, value = (x.repeat_interleave(2, 1) for x in (key, value))
        scores = softcap * torch.tanh(query @ key.mT * scaling / softcap) + position_bias
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        return (weights @ value).transpose(1, 2), None

    sinks = torch.randn(1, HEADS, TOKENS, 1)
    options = {"sinks": sinks, **{name: OPTIONS[name] for name in ("softcap", "position_bias")}}
    rule = rule_of_kernel(kernel, call_with(**options))
    assert rule is not None and rule.cap == 30.0
    assert rule.sink is sinks and rule.position_bias is OPTIONS["position_bias"]


@pytest.mark.parametrize("way", ["another cap", "raises"])
def test_a_kernel_of_no_known_rule_is_not_guessed(way):
    def kernel(module, query, key, value, mask, scaling, softcap, **options):
        if way == "raises":
            raise ValueError
        return capping(module, query, key, value, mask, scaling=scaling, softcap=softcap / 2)

    assert rule_of_kernel(kernel, call_with(softcap=30.0)) is None


def test_trying_a_kernel_draws_no_random_number_and_runs_once():
    runs = []

    def kernel(*args, **options):
        runs.append(args)
        return with_sinks(*args, **options)

    call, state = call_with(s_aux=SINKS), torch.get_rng_state()
    for _ in range(3):
        assert rule_of_kernel(kernel, call) is not None
    assert len(runs) == 1 and torch.equal(state, torch.get_rng_state())


@pytest.mark.skipif(
    Version(transformers.__version__) >= Version("5.24"), reason="sdpa raises for a cap there"
)
def test_where_sdpa_drops_the_cap_the_model_is_measured_as_it_runs():
    model, processor = SCORE_FAMILIES["llava_gemma2"](attn="sdpa")
    case = Case(probe.load(model, processor=processor))
    rules = []
    with tap(stacks(model)["llm"].attention, lambda call: rules.append(call.rule)):
        case.logits(case.answered[0])
    assert all(rule.is_plain for rule in rules)


def block_mask() -> BlockMask:
    blocks, indices = torch.ones(2, 1, 1, 1, 1, dtype=torch.int).unbind()
    return BlockMask.from_kv_blocks(blocks, indices)


def call_with_blocks() -> AttentionCall:
    call = call_with()
    for name in ("effective_mask", "model_mask"):
        object.__setattr__(call, name, block_mask())  # as under flex attention
    return call


def test_masks_that_are_no_tensors_are_refused_in_one_line():
    with pytest.raises(ProbeError, match="whose mask is a tensor, got BlockMask in layer"):
        attention_rows(call_with_blocks(), 0, torch.tensor([1]))


def test_tokens_are_not_removed_under_masks_that_are_no_tensors():
    case = Case(probe.load(*FAMILIES["llava"]()))
    model, inputs = case.subject.model, case.answered[0]
    layer = stacks(model)["llm"].layers[0]

    def give(module, args, kwargs):
        return args, {**kwargs, "attention_mask": block_mask()}

    hook = layer.register_forward_pre_hook(give, with_kwargs=True)
    refused = r"drop_vision: .* a tensor, got BlockMask in .*layers\.0\.self_attn"
    with pytest.raises(ProbeError, match=refused), probe.drop_vision(model, [0], "remove"):
        case.logits(inputs)
    hook.remove()


def test_what_does_not_ask_what_a_mask_hides_takes_any():
    """Other keys and values need no mask; a conversation is begun anew."""
    GivenMasks().require_all_shown("drop_vision", call_with_blocks())
    chat = probe.load(*FAMILIES["llava"]()).chat(picture(0))
    chat._look(call_with_blocks())
    assert chat._looks_ahead
