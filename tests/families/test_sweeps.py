"""Sweeps on families: every case equals that case alone, whatever the model says."""

import pytest
import torch

import probe
from probe.hooks.model_structure import stacks
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.sweep import Sweep
from tests.families.checks import QUESTION, SAME, picture
from tests.families.models import FAMILIES
from tests.families.processors import END, IMAGE, START


def says_image(subject):
    """The model whose likeliest word is nearly always its image token."""
    head = subject.model.get_output_embeddings()
    with torch.no_grad():
        likeliest = head.weight.norm(dim=1).argmax()
        head.weight[IMAGE] = 3 * head.weight[likeliest]
        head.weight[IMAGE + 1] = -3 * head.weight[likeliest]


@pytest.mark.parametrize("name", ["video_llava", "qwen2_vl", "blip2", "mllama"])
def test_a_sweep_equals_each_case_alone_where_the_model_says_its_image_token(name):
    subject = probe.load(*FAMILIES[name]())
    if subject.model.get_output_embeddings().weight.shape[0] > IMAGE:
        says_image(subject)
    layers = range(len(stacks(subject.model)["llm"].layers))
    cases = {"first": [0], "two": [1, 2]}
    sample = probe.Sample("a", picture(1), QUESTION)
    sweep = Sweep(subject, cases, "mask", max_new_tokens=4)
    prompts = SamplePrompts.of(subject, sample, None)
    shares = not sweep.check_sharing(prompts.inputs).reason
    assert shares == (name != "mllama")
    outcome = (sweep.batched if shares else sweep.sequential)(prompts, ["no vision", *cases])
    for index, chosen in enumerate([layers, *cases.values()]):
        with probe.drop_vision(subject.model, chosen), torch.no_grad():
            logits = subject.model(**prompts.inputs, use_cache=False).logits[0, -1]
            (ids,) = subject.generate_ids(prompts.inputs, 4)
        assert (outcome.logits[index, 0] - logits).abs().max() < SAME
        assert outcome.answers[index].tolist() == ids.tolist()
        assert IMAGE not in ids.tolist()


RULES = {  # of a checkpoint's generation config
    "repetition_penalty": 3.0,  # 1.05 in Qwen2.5-VL's
    "no_repeat_ngram_size": 1,
    "begin_suppress_tokens": list(range(9, 24)),
    "suppress_tokens": list(range(9, 30)),
}


def each_alone(subject, cases, tokens):
    """The answer of each case by itself, and that of a sweep of all of them."""
    sample = probe.Sample("a", picture(1), QUESTION)
    table = probe.drop_sweep(subject, [sample], cases, max_new_tokens=tokens, progress=False)
    alone = {}
    for name, layers in cases.items():
        with probe.drop_vision(subject.model, layers):
            alone[name] = subject.answer(picture(1), QUESTION, tokens)
    swept = {name: str(table["answer"].sel(sample="a", case=name).values) for name in cases}
    return alone, swept, table.attrs["sharing"]


@pytest.mark.parametrize("rule", RULES)
def test_a_sweep_answers_by_the_rules_of_the_checkpoint(rule):
    subject = probe.load(*FAMILIES["qwen2_5_vl"]())
    cases = {"all": [0, 1, 2], "first": [0], "two": [0, 2]}
    plain, _, _ = each_alone(subject, cases, 5)
    setattr(subject.model.generation_config, rule, RULES[rule])
    alone, swept, sharing = each_alone(subject, cases, 5)
    assert alone != plain
    assert swept == alone
    by_itself = rule in ("no_repeat_ngram_size", "begin_suppress_tokens")
    assert sharing == (f"the checkpoint chooses words by {rule}" if by_itself else "exact")


def test_a_sweep_never_says_the_visual_indicators_of_ovis2():
    subject = probe.load(*FAMILIES["ovis2"]())
    head = subject.model.get_output_embeddings().weight
    with torch.no_grad():
        likeliest = head.norm(dim=1).argmax()
        head[START], head[END] = 3 * head[likeliest], -3 * head[likeliest]
    alone, swept, sharing = each_alone(subject, {"all": [0, 1, 2], "first": [0], "last": [2]}, 4)
    assert swept == alone
    assert sharing == "exact"


def test_dropping_in_the_llm_of_a_hybrid_model_by_removing_is_swept():
    subject = probe.load(*FAMILIES["qwen3_5"]())
    table = probe.drop_sweep(
        subject,
        [probe.Sample("a", picture(0), QUESTION)],
        {"all": range(4)},
        "remove",
        max_new_tokens=3,
        progress=False,
    )
    answers = table["answer"].sel(sample="a")
    assert answers.sel(case="no vision") == answers.sel(case="all")
    with pytest.raises(probe.ProbeError, match="through its state"):
        probe.drop_sweep(subject, [probe.Sample("a", picture(0), QUESTION)], {"all": range(4)})
