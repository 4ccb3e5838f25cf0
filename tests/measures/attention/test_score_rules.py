"""Caps of scores, learned sinks and learned biases: every number of the statistic against the plain
computation from whole maps, by call and through a model.
"""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import transformers

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import routed, tap
from probe.hooks.model_structure import output_projection, stacks
from probe.hooks.score_rule import ScoreRule
from probe.measures.attention.reference import difference, plain_table
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.statistic import AttentionStatistic
from probe.records.validate import validate
from probe.reducers import FastV
from probe.subject.inputs import with_response
from tests.families.checks import QUESTION, RESPONSE, picture
from tests.families.further_models import FURTHER_FAMILIES
from tests.families.score_models import BIASED_FAMILIES, CAPPED, LLAVA, SCORE_FAMILIES
from tests.measures.attention.test_statistic import NAMES, call_of, layout, rows, visibility

HEADS, KEY_HEADS, DIM = 4, 2, 8
RANDOM = torch.Generator().manual_seed(3)


def drawn(*shape):
    return 2 * torch.randn(*shape, generator=RANDOM)


LENGTH = len(layout())
RULES = {
    "cap": ScoreRule(cap=1.5),
    "sink": ScoreRule(sink=drawn(HEADS)),
    "sink of each query": ScoreRule(sink=drawn(1, HEADS, LENGTH, 1)),
    "a sink that takes all": ScoreRule(sink=torch.tensor([1e4, 0.0, -1e4, 90.0])),
    "every sink takes all": ScoreRule(sink=torch.full((HEADS,), 1e4)),
    "bias": ScoreRule(position_bias=drawn(1, HEADS, LENGTH, LENGTH)),
    "all": ScoreRule(1.5, drawn(HEADS), drawn(1, HEADS, LENGTH, LENGTH)),
}


def plain_weights(call, visible):
    """The definition, in float64: cap, bias, mask, and a column for the sink."""
    rule = call.rule
    key = call.key.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], 1)
    scores = call.query.double() @ key.mT * call.scaling
    if rule.cap is not None:
        scores = rule.cap * torch.tanh(scores / rule.cap)
    if rule.position_bias is not None:
        scores = scores + rule.position_bias.double()
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    if rule.sink is None:
        return scores.softmax(-1)
    column = rule.sink.double()
    column = column.view(1, -1, 1, 1) if column.ndim == 1 else column
    return torch.cat([scores, column.expand(*scores.shape[:3], 1)], -1).softmax(-1)[..., :-1]


def statistic_of(ids, query_ids, vision, call, **options):
    statistic = AttentionStatistic(NAMES, ids, query_ids, vision, **options)
    statistic(call)
    return statistic


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_a_call_under_a_rule_equals_the_plain_computation(name, masked, window):
    ids, query_ids, vision = rows(layout())
    visible = visibility(ids, window=window)
    query, key = drawn(1, HEADS, LENGTH, DIM), drawn(1, KEY_HEADS, LENGTH, DIM)
    mask = visible[:, None] if masked else None
    call = replace(call_of(query, key, mask=mask, window=window), rule=RULES[name])
    weights = plain_weights(call, visible)
    has_sink = call.rule.sink is not None
    expected = plain_table(weights[0], visible[0], NAMES, ids[0], ids[0], vision[0], has_sink)
    options = {"map_positions": [[LENGTH - 1, 3]], "map_heads": True, "received_head": True}
    for more in ({}, options):
        statistic = statistic_of(ids, query_ids, vision, call, **more)
        assert difference(statistic.table("layer"), expected) < 1e-5
    assert ("learned_sink" in statistic.table("layer")) == has_sink
    maps = statistic.table("layer")["maps"]  # (head, token, key)
    np.testing.assert_allclose(maps, weights[0][:, [LENGTH - 1, 3]][..., vision[0]], atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_contribution_is_the_norm_of_what_arrives_under_a_rule(name):
    ids, query_ids, vision = rows(layout())
    query, key, value = (drawn(1, heads, LENGTH, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    call = replace(call_of(query, key, value), rule=RULES[name])
    projection = torch.nn.Linear(HEADS * DIM, 20)
    statistic = statistic_of(ids, query_ids, vision, call, contribution=lambda module: projection)
    weights = plain_weights(call, visibility(ids))[0]
    of_heads = projection.weight.double().view(20, HEADS, DIM)
    whole = value[0].double().repeat_interleave(2, 0)
    response, seen = ids[0] == 2, torch.from_numpy(vision[0])
    mixed = (weights[:, response][..., seen] @ whole[:, seen]).detach()
    norms = torch.einsum("ohd,hqd->hqo", of_heads, mixed).norm(dim=-1).mean(-1)
    found = statistic.table("layer")["contribution"][:, 2, 1]
    np.testing.assert_allclose(found, norms.detach(), atol=1e-5, rtol=1e-5)


def test_a_kernel_of_another_kind_is_refused():
    ids, query_ids, vision = rows(layout())
    key = drawn(1, KEY_HEADS, LENGTH, DIM)
    call = replace(call_of(drawn(1, HEADS, LENGTH, DIM), key), rule=None, options={"softcap": 5.0})
    with pytest.raises(ProbeError, match=r"measure: .*got softcap in layer, used in another way"):
        statistic_of(ids, query_ids, vision, call)


HALF = ("LlavaForConditionalGeneration", "PaliGemmaForConditionalGeneration")
MEASURED = {**SCORE_FAMILIES, **BIASED_FAMILIES}
if hasattr(transformers, "Inkling2ForConditionalGeneration"):
    MEASURED["inkling2"] = partial(FURTHER_FAMILIES["inkling2"], attn="eager")


IN_DEFAULT = ("llava_gemma2", "llava_gpt_oss", "inkling")
MARKED = [
    name if name in IN_DEFAULT else pytest.param(name, marks=pytest.mark.wide) for name in MEASURED
]


@pytest.fixture(scope="module", params=MARKED)
def subject(request):
    model, processor = MEASURED[request.param]()
    return probe.load(model, processor=processor)


def has_sinks(module):
    return getattr(module, "sinks", None) is not None or hasattr(module, "sink_proj")


def eager_tables(subject, inputs):
    """The table of each layer, from the weights that the model's own eager kernel returns."""
    made = stack_statistics(subject, inputs, ["llm"])["llm"].statistic
    attention, tables = stacks(subject.model)["llm"].attention, {}
    ids, vision = made.ids[0], made.vision[0]

    def keep(call, kernel):
        output, weights = kernel(call)
        visible = call.effective_mask[0, 0] == 0  # eager: what is added to scores
        arguments = made.names, ids, made.query_ids[0], vision, has_sinks(call.module)
        tables[call.name] = plain_table(weights[0], visible, *arguments)
        return output, weights

    with torch.no_grad(), routed(attention, keep):
        subject.model(**inputs, use_cache=False)
    return tables


def test_a_models_statistics_are_those_of_its_own_eager_maps(subject):
    inputs = with_response(subject.encode([picture(0), picture(1)], QUESTION), RESPONSE)
    made = stack_statistics(subject, inputs, ["llm"])["llm"].statistic
    with torch.no_grad(), tap(stacks(subject.model)["llm"].attention, made):
        subject.model(**inputs, use_cache=False)
    tables = eager_tables(subject, inputs)
    assert len(tables) == len(stacks(subject.model)["llm"].attention)
    for name, expected in tables.items():
        assert difference(made.table(name), expected) < 1e-5


def test_a_record_says_what_the_sinks_take_and_its_sums_are_checked(subject):
    record = probe.measure(subject, picture(0), QUESTION, [*RESPONSE], maps=True)
    llm = record["llm"]
    modules = stacks(subject.model)["llm"].attention.values()
    has_any = any(map(has_sinks, modules))
    assert ("learned_sink" in llm) == has_any
    if not has_any:
        return
    assert llm["learned_sink"].dims == ("sample", "layer", "head", "query_type")
    assert 0.2 < float(llm["learned_sink"].max()) < 1
    without = [layer for layer, module in enumerate(modules) if not has_sinks(module)]
    assert (llm["learned_sink"][:, without] == 0).all()
    response = {"query_type": "response"}
    whole = llm.to_dataset().sel(response).isel(layer=[0, 2])  # layers without a window
    total = whole["share"].sum("key_type") + whole["learned_sink"]
    np.testing.assert_allclose(total, 1, atol=1e-5)
    table = probe.to_dataframe(record, "learned_sink")
    assert len(table) == llm["learned_sink"].size
    llm["learned_sink"] = llm["learned_sink"] * 0
    with pytest.raises(ProbeError, match="to sum to 1"):
        validate(record)


def test_a_sink_can_take_nothing_or_everything():
    model, processor = SCORE_FAMILIES["llava_gpt_oss"]()
    subject = probe.load(model, processor=processor)
    with torch.no_grad():
        model.model.language_model.layers[1].self_attn.sinks.fill_(-1e4)
        model.model.language_model.layers[2].self_attn.sinks.fill_(1e4)
    sink = probe.measure(subject, picture(0), QUESTION, [*RESPONSE])["llm"]["learned_sink"]
    assert (sink[0, 1] == 0).all() and (sink[0, 2] == 1).all() and float(sink[0, 0].min()) > 0


@pytest.mark.wide
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_keeps_the_promises_in_batches_and_while_decoding(subject, dtype):
    if dtype == torch.bfloat16 and subject.name not in HALF:
        pytest.skip("its own convolutions stay in float32")
    model, processor = copy.deepcopy(subject.model).to(dtype), subject.processor
    report = probe.verify(probe.load(model, processor=processor), picture(0), QUESTION)
    assert report.passed, [check for check in report.checks if not check.passed]


def test_what_the_heads_contribute_is_what_leaves_the_projection(subject):
    """Over all types together it is the head's own output."""
    inputs = with_response(subject.encode(picture(0), QUESTION), RESPONSE)
    if subject.name == "Inkling2ForConditionalGeneration":
        pytest.skip("its output projection is gated: contribution is refused")
    everything = {"all": np.ones(inputs["input_ids"].shape[1], bool)}
    record = probe.measure(
        subject, picture(0), QUESTION, [*RESPONSE], types=everything, contribution=True
    )
    outputs = {}

    def keep(call, kernel):
        outputs[call.name] = kernel(call)
        return outputs[call.name]

    with torch.no_grad(), routed(stacks(subject.model)["llm"].attention, keep):
        subject.model(**inputs, use_cache=False)
    for layer, (name, module) in enumerate(stacks(subject.model)["llm"].attention.items()):
        output = outputs[name][0][0]  # (query, head, dim)
        weight = output_projection(module).weight.view(-1, *output.shape[1:])
        norms = torch.einsum("ohd,qhd->qho", weight, output).norm(dim=-1)[:-1].mean(0)
        found = record["llm"]["contribution"].isel(sample=0, layer=layer)
        found = found.sel(query_type="all", key_type="all")
        np.testing.assert_allclose(found, norms.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava_gemma2", "llava_gpt_oss"])
def test_a_record_is_made_where_a_reducer_leaves_few_queries_in_a_window(name):
    """Those that are left see other types than those that are gone: nothing is wrong with it."""
    model, processor = SCORE_FAMILIES[name]()
    subject = probe.load(model, processor=processor)
    with FastV(1, 0.5)(subject):
        llm = probe.measure(subject, picture(0), QUESTION, [*RESPONSE])["llm"].to_dataset()
    total = llm["share"].sum("key_type").sel(query_type="response").isel(layer=1)
    if "learned_sink" in llm:
        total = total + llm["learned_sink"].sel(query_type="response").isel(layer=1)
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_removed_tokens_leave_the_sinks_of_the_others_as_freezing_does():
    model, processor = SCORE_FAMILIES["llava_gpt_oss"]()
    subject = probe.load(model, processor=processor)
    sinks = []
    for mode in ("remove", "mask_frozen"):
        with probe.drop_vision(subject, [1], mode):
            record = probe.measure(subject, picture(0), QUESTION, [*RESPONSE])
        text = {"query_type": ["instruction", "response"]}
        sinks.append(record["llm"]["learned_sink"].sel(text))
    np.testing.assert_allclose(*sinks, atol=1e-5)


def test_a_cap_that_hardly_shows_keeps_cases_from_sharing_all_the_same():
    """What is shared is computed as a plain softmax: its logits would be 1e-5 away."""
    language = {**CAPPED, "sliding_window": 512, "attn_logit_softcapping": 1000.0}
    model, processor = LLAVA(text_config=language)
    subject = probe.load(model, processor=processor)
    sample = probe.Sample("a", picture(0), QUESTION, answer="red")
    sweep = probe.drop_sweep(subject, sample, {"first": [0]}, progress=False)
    assert sweep.attrs["sharing"] == "its attention has caps, sinks or biases of scores"
