"""The sweep against every case alone: a dense reference that runs one case at a time, without cache
or sharing.
"""

from contextlib import ExitStack
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from models import FACTORIES, llava15, llava_next_mistral, llava_next_vicuna, picture
from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.drop_effects import MODES
from probe.hooks.attention_tap import routed, tap
from probe.hooks.model_structure import stacks
from probe.interventions.drop import drop_vision
from probe.interventions.sweep import Sweep, drop_sweep, from_layer, sweep_one, until_layer, windows
from probe.interventions.sweep.case_batch import untouched_logits
from probe.interventions.sweep.layer_sets import (
    ALWAYS,
    ANOTHER_IMAGE,
    NO_VISION,
    UNTOUCHED,
    resolve,
)
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.schedule import schedule
from probe.interventions.sweep.visibility import SWEEP_MODES, row_layers, visibility_of_cases
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix
from probe.subject.inputs import with_response
from probe.subject.loading import load
from probe.subject.prefix_check import check_sharing

LAYERS, TOKENS = 5, 4
QUESTION, OTHER_QUESTION = (
    "what is in the picture?",
    "how many circles are there? is a red square above it?",
)


@lru_cache
def subject_of(factory=llava15, **options):
    options = {"layers": LAYERS, "max_positions": 4096} | options
    if factory is llava_next_mistral:
        options = {"sliding_window": 4096} | options
    model, processor = factory(**options)
    return load(model, processor)


def random_sets(count, layers=LAYERS, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"set {i}": set(np.flatnonzero(rng.random(layers) < 0.5).tolist()) or {0}
        for i in range(count)
    }


def keys_of(subject, inputs):
    """What every layer of the untouched model makes of a prompt."""
    kept = {}

    def keep(call):
        kept[call.name] = call.key, call.value

    with torch.no_grad(), tap(stacks(subject.model)["llm"].attention, keep):
        subject.model(**inputs, use_cache=False)
    return kept


def dense(call, vision, mode, donor):
    """One attention call in which text sees vision as `mode` says, written out."""
    groups = call.query.shape[1] // call.key.shape[1]
    text_to_vision = ~vision[:, None] & vision[None]
    causal = torch.ones(len(vision), len(vision), dtype=torch.bool).tril()

    def scores(key):
        return (call.query @ key.repeat_interleave(groups, 1).mT) * call.scaling

    value = call.value.repeat_interleave(groups, 1)
    s = scores(call.key)
    if mode == "swap":
        key, values = (t.clone() for t in (call.key, call.value))
        there = vision.nonzero()[:, 0]
        key[:, :, there], values[:, :, there] = (t[:, :, there] for t in donor)
        s = torch.where(text_to_vision, scores(key), s)
    visible = causal & ~text_to_vision if mode == "mask" else causal
    weights = torch.softmax(s.masked_fill(~visible, -torch.inf), -1)
    if mode == "zero":
        weights = weights * ~text_to_vision
    out = weights @ value
    if mode == "swap":
        to_vision = weights * text_to_vision
        out = out + to_vision @ (values.repeat_interleave(groups, 1) - value)
    return out.transpose(1, 2).contiguous(), None


def logits_alone(subject, inputs, layers, mode="mask", donor=None):
    """Logits of all positions when one case runs by itself."""
    stack = stacks(subject.model)["llm"]
    names = list(stack.attention)
    vision = torch.from_numpy(inputs.types.vision[0])

    def around(call, kernel):
        if names.index(call.name) not in layers:
            return kernel(call)
        return dense(call, vision, mode.removesuffix("_frozen"), donor and donor[call.name])

    def keep(module, args, output):
        return torch.where(vision[:, None], args[0], output)

    with ExitStack() as hooks, torch.no_grad():
        for layer in layers if mode == "mask_frozen" else ():
            hooks.callback(stack.layers[layer].register_forward_hook(keep).remove)
        hooks.enter_context(routed(stack.attention, around))
        return subject.model(**inputs, use_cache=False).logits[0]


def alone(subject, sample, layers, said, gold=(), **options):
    """Logits of the prompt's end and the gold answer, and what greedy decoding says where it has
    said `said` so far.
    """
    inputs = subject.encode(list(sample.images), sample.question)
    length = inputs["input_ids"].shape[1]
    forced = logits_alone(
        subject, with_response(inputs, said[:-1]) if len(said) > 1 else inputs, layers, **options
    )
    if len(gold) <= 1:
        return forced[length - 1 : length], forced[length - 1 :].argmax(-1).tolist()
    logits = logits_alone(subject, with_response(inputs, gold[:-1]), layers, **options)
    return logits[length - 1 :], forced[length - 1 :].argmax(-1).tolist()


def outcomes(subject, sample, cases, donor=None, sweep=None, **options):
    """What the sweep got for each case: logits and ids, before they become text and distances."""
    sweep = sweep or Sweep(subject, cases, max_new_tokens=TOKENS, **options)
    with torch.no_grad():
        question = SamplePrompts.of(subject, sample, donor)
        assert sweep.check_sharing(question.inputs).reason == ""
        names = [name for name in sweep.cases if name != ANOTHER_IMAGE or donor]
        outcome = sweep.batched(question, names)
    answers = [ids.tolist() for ids in outcome.answers]
    return question.gold.tolist(), dict(
        zip(names, zip(outcome.logits, answers, strict=True), strict=True)
    )


def assert_as_alone(
    subject, sample, cases, *, donor=None, reference=None, layers=LAYERS, **reading
):
    gold, found = outcomes(subject, sample, cases, donor, **reading)

    def compare(name, asked, dropped, options):
        logits, said = found[name]
        expected, greedy = alone(subject, asked, set(dropped), said, gold, **options)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert said == greedy, name
        assert len(said) == TOKENS or said[-1] in subject.vocabulary.end_ids

    compare(UNTOUCHED, sample, (), {})
    compare(NO_VISION, sample, range(layers), {})
    for name, dropped in cases.items():
        compare(name, sample, dropped, reference or {})
    if donor:
        compare(ANOTHER_IMAGE, Sample("d", tuple(donor), sample.question), (), {})


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_every_case_is_what_it_is_alone(factory, attn):
    subject = subject_of(factory, attn=attn)
    sample = Sample("1", picture(1), QUESTION, answer="a red circle")
    assert_as_alone(subject, sample, random_sets(3), donor=[picture(2)])


@pytest.mark.parametrize("mode", ["zero", "swap"])
@pytest.mark.parametrize("factory", [llava15, llava_next_mistral])
def test_zero_and_swap_are_what_they_are_alone(factory, mode):
    subject = subject_of(factory)
    sample, donor = Sample("1", picture(1), QUESTION, answer="a red circle"), [picture(2)]
    theirs = keys_of(subject, subject.encode(donor, QUESTION)) if mode == "swap" else None
    assert_as_alone(
        subject,
        sample,
        random_sets(4),
        donor=donor,
        mode=mode,
        reference={"mode": mode, "donor": theirs},
    )


@pytest.mark.parametrize("reading", [{"mode": "mask_frozen"}, {"mode": "remove"}])
def test_freezing_and_removing_are_masking_while_vision_rows_skip_the_layers(reading):
    sample = Sample("1", picture(1), QUESTION, answer="a red circle")
    sets = {"all": range(LAYERS), "late": {3, 4}, "middle": {1, 2}, "two blocks": {0, 3}}
    assert_as_alone(subject_of(), sample, sets, reference={"mode": "mask_frozen"}, **reading)


def test_what_is_removed_for_good_is_masked_from_its_first_layer_on():
    subject, sample = subject_of(), Sample("1", picture(1), QUESTION)
    _, found = outcomes(subject, sample, {"once": {1, 3}}, mode="remove_for_good")
    logits, said = alone(subject, sample, {1, 2, 3, 4}, found["once"][1])
    torch.testing.assert_close(found["once"][0], logits, rtol=1e-5, atol=1e-5)
    assert found["once"][1] == said


CONVERSATION = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "where is the red square?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "above it"}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a circle?"}]},
]


@pytest.mark.parametrize("mode", ["mask", "zero", "swap", "remove"])
@pytest.mark.parametrize("factory", [llava15, llava_next_mistral])
def test_text_between_two_images(factory, mode):
    """What the text between them becomes differs by case, and the second image sees it."""
    subject, donor = subject_of(factory), [picture(3), picture(4)]
    sample = Sample("1", (picture(1), picture(2)), CONVERSATION, answer="a red circle")
    reference = {"mode": mode}
    if mode == "swap":
        reference["donor"] = keys_of(subject, subject.encode(donor, CONVERSATION))
    if mode == "remove":
        reference = {"mode": "mask_frozen"}
    assert_as_alone(subject, sample, random_sets(3), donor=donor, mode=mode, reference=reference)


def test_questions_and_system_prompts_of_one_image():
    """Questions share a prefix; another system prompt is another prefix."""
    subject, cases = subject_of(), random_sets(2)
    system = {
        "role": "system",
        "content": [{"type": "text", "text": "You are a helpful assistant. "}],
    }
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    sweep = Sweep(subject, cases, max_new_tokens=TOKENS)
    for question, prefixes in (
        (QUESTION, 1),
        (OTHER_QUESTION, 1),
        ([system, asked], 2),
        ("a circle?", 2),
    ):
        assert_as_alone(
            subject, Sample("1", picture(1), question, answer="a red circle"), cases, sweep=sweep
        )
        assert sweep.cache.computed == prefixes


def test_distances_are_those_of_the_next_token():
    subject, sample = subject_of(), Sample("1", picture(1), QUESTION, answer="a red circle")
    found = sweep_one(subject, sample, {"late": {3, 4}}, max_new_tokens=1).sel(case="late")
    inputs = subject.encode(sample.image, sample.question)
    first, case = (
        logits_alone(subject, inputs, layers)[-1].double().log_softmax(-1)
        for layers in ((), {3, 4})
    )
    assert found["kl"].item() == pytest.approx(
        (first.exp() * (first - case)).sum().item(), abs=1e-5
    )
    assert found["total_variation"].item() == pytest.approx(
        (first.exp() - case.exp()).abs().sum().item() / 2, abs=1e-5
    )
    assert found["first_token_changed"].item() == (first.argmax() != case.argmax())
    gold = SamplePrompts.of(subject, sample, None).gold
    logits = (
        logits_alone(subject, with_response(inputs, gold), {3, 4})[-len(gold) - 1 : -1]
        .double()
        .log_softmax(-1)
    )
    assert len(gold) == 2 or subject.processor.tokenizer.decode(gold).strip() == "a red circle"
    assert found["gold_logprob"].item() == pytest.approx(
        logits.gather(-1, gold[:, None]).sum().item(), abs=1e-4
    )


def test_the_shipped_model():
    subject = load("tiny-llava")
    layers = len(stacks(subject.model)["llm"].layers)
    sample = Sample("1", picture(1, 60, 60), "what colour is the circle ?", answer="it is red")
    assert_as_alone(
        subject, sample, random_sets(4, layers), donor=[picture(2, 60, 60)], layers=layers
    )


@pytest.mark.parametrize("mode", ["mask", "zero", "remove", "swap"])
def test_the_context_managers_say_the_same(mode):
    """The other path, each case alone under its context manager, gives the same table."""
    subject = subject_of(llava15)
    sample, donor = Sample("1", picture(1), QUESTION, answer="a red circle"), picture(2)
    sweep = Sweep(subject, random_sets(3), mode, max_new_tokens=TOKENS)
    shared = sweep(sample, donor)
    sweep.batched = sweep.sequential  # pyright: ignore
    apart = sweep(sample, donor)
    assert (shared["answer"] == apart["answer"]).all()
    for name in ("gold_logprob", "kl", "total_variation", "first_token_changed"):
        np.testing.assert_allclose(shared[name], apart[name], rtol=1e-4, atol=2e-5, err_msg=name)
    assert apart["row_layers"] == LAYERS * len(sweep.cases)


def formula(sets):
    """Rows of a layer: the distinct histories of dropped or not, up to it."""
    return sum(
        len({tuple(layer in s for layer in range(depth + 1)) for s in sets})
        for depth in range(LAYERS)
    )


def test_rows_are_computed_once_for_each_history():
    """A loop over cases would compute cases x layers, and one prefix for each."""
    cases, samples = (
        [windows(2), from_layer(), {0, 3}],
        [Sample(str(i), picture(i // 2), QUESTION) for i in range(4)],
    )
    table = drop_sweep(subject_of(), samples, cases, max_new_tokens=1, progress=False)
    sets = [frozenset(), frozenset(range(LAYERS)), *resolve(cases, LAYERS).values()]
    assert (
        table["row_layers"] == formula(sets) + LAYERS
    ).all()  # + another image, a row of its own
    assert formula(sets) + LAYERS < 0.75 * LAYERS * table.sizes["case"]
    assert table.attrs["image_prefixes"] == 2
    assert table.attrs["row_layers"] == 4 * (formula(sets) + LAYERS)


def test_row_layers_of_the_paper_s_size():
    cases = {UNTOUCHED: frozenset()} | resolve([from_layer(), windows(4)], 32)
    assert row_layers(visibility_of_cases("mask", cases, 32).values()) == 672  # of 41 x 32 = 1312


def test_the_table():
    subject = subject_of()
    given = (("a", 1, "a red circle"), ("b", 2, None), ("c", 1, ("x", "y", "y")))
    samples = [Sample(name, picture(seed), QUESTION, answer=answer) for name, seed, answer in given]
    table = drop_sweep(subject, samples, windows(2), "swap", max_new_tokens=TOKENS, progress=False)
    assert table["sample"].values.tolist() == [
        "a",
        "b",
        "c",
    ]  # although both questions about image 1 ran together
    assert table["case"].values.tolist() == [*ALWAYS, "1-2", "3-4", "5"]
    assert table["answer"].dtype == object
    assert table["dropped"].sel(case="3-4").values.tolist() == [False, False, True, True, False]
    assert table["correct"].isnull().all("case").values.tolist() == [False, True, False]
    assert table["gold_logprob"].isnull().all("case").values.tolist() == [False, True, False]
    assert (table["kl"].sel(case=UNTOUCHED) == 0).all()
    assert (table["donor_answer_given"].sel(case=ANOTHER_IMAGE) == 1).all()
    said = table["answer"]
    assert ((said == said.sel(case=ANOTHER_IMAGE)) == table["donor_answer_given"]).all()
    assert table.attrs["mode"] == "swap"
    assert table.attrs["sharing"] == "exact"
    assert all(table[name].attrs["long_name"] for name in table.data_vars)


def test_cases_name_their_layers_as_text_and_as_a_half_open_range():
    sample = Sample("1", picture(1), QUESTION)
    cases = {"late": {3, 4}, "gaps": {0, 2, 3}, "one": {1}, "nothing": ()}
    table = sweep_one(subject_of(), sample, cases, max_new_tokens=1)
    found = {
        str(case): (layers, start, stop)
        for case, layers, start, stop in zip(
            table["case"].values,
            table["layers"].values.tolist(),
            table["layer_start"].values.tolist(),
            table["layer_stop"].values.tolist(),
            strict=True,
        )
    }
    assert found == {
        "untouched": ("", -1, -1),
        "no vision": ("0-4", 0, 5),
        "another image": ("", -1, -1),
        "late": ("3-4", 3, 5),
        "gaps": ("0,2-3", -1, -1),
        "one": ("1", 1, 2),
        "nothing": ("", -1, -1),
    }
    assert "from 0" in table["layers"].attrs["long_name"]


def test_the_modes_of_the_results_are_those_of_the_sweep():
    assert MODES == SWEEP_MODES


def test_correct_is_the_score():
    subject = subject_of()
    sample = Sample("1", picture(1), QUESTION)
    said = (
        sweep_one(subject, sample, [{0}], max_new_tokens=TOKENS)["answer"]
        .sel(case=UNTOUCHED)
        .item()
    )
    answered = Sample("1", picture(1), QUESTION, answer=(f" {said.upper()}.", "no"))
    table = sweep_one(subject, answered, [{0}], max_new_tokens=TOKENS)
    assert table["correct"].sel(case=UNTOUCHED) == 1
    halves = sweep_one(
        subject, sample, [{0}], max_new_tokens=TOKENS, score=lambda answer, sample: 0.5
    )
    assert (halves["correct"].sel(case=[UNTOUCHED, NO_VISION]) == 0.5).all()


def test_without_another_image_that_case_is_missing():
    table = drop_sweep(
        subject_of(), Sample("1", picture(1), QUESTION), [{0}], max_new_tokens=1, progress=False
    )
    assert table["answer"].sel(case=ANOTHER_IMAGE).item() == ""
    assert table["kl"].sel(case=ANOTHER_IMAGE).isnull().all()


def test_another_image_may_have_another_size():
    subject = subject_of(llava_next_vicuna)
    sample, donor = Sample("1", picture(1), QUESTION, answer="a circle"), picture(2, 90, 30)
    assert_as_alone(subject, sample, {"2": {1}}, donor=[donor])
    with pytest.raises(ProbeError, match="vision tokens in the same places"):
        sweep_one(subject, sample, [{1}], "swap", donor)


def test_a_sample_without_a_image_is_the_same_in_every_case():
    table = drop_sweep(
        subject_of(), Sample("1", None, QUESTION), windows(2), max_new_tokens=TOKENS, progress=False
    )
    assert table["row_layers"] == LAYERS
    assert (table["kl"].drop_sel(case=ANOTHER_IMAGE) == 0).all()


def test_donors_are_the_next_image_s():
    pictures = {"a": "x.png", "b": "y.png", "c": "x.png", "d": ("x.png", "y.png")}
    samples = [Sample(name, images, "?") for name, images in pictures.items()]
    order, donors = schedule(samples)
    assert [sample.id for sample in order] == ["a", "c", "b", "d"]
    assert donors == {"a": ("y.png",), "c": ("y.png",), "b": ("x.png",), "d": None}


def test_a_model_whose_image_sees_the_question_shares_nothing(capsys):
    """Found out by trying: here layer 2 mixes the mean of all tokens into each."""
    subject = subject_of(seed=1)  # its own: a model is tried once
    layer = stacks(subject.model)["llm"].layers[1]
    hook = layer.register_forward_hook(
        lambda module, args, output: output + output.mean(1, keepdim=True)
    )
    samples = [
        Sample("1", picture(1), QUESTION, answer="a red circle"),
        Sample("2", picture(2), QUESTION),
    ]
    table = drop_sweep(subject, samples, [{0}, {1, 2}], max_new_tokens=1)
    hook.remove()
    assert "depends on the question" in table.attrs["sharing"]
    assert "each case alone" in capsys.readouterr().err
    assert (table["row_layers"] == LAYERS * table.sizes["case"]).all()


@torch.no_grad()
def test_attention_in_both_directions_is_found_out():
    """PaliGemma's image sees the question."""
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    text = GemmaConfig(
        vocab_size=50, num_key_value_heads=2, head_dim=8, initializer_range=0.3, **size
    )
    vision = SiglipVisionConfig(
        image_size=32, patch_size=8, num_image_tokens=16, projection_dim=32, **size
    )
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=49, projection_dim=32
    )
    model = PaliGemmaForConditionalGeneration(config).eval()
    ids = torch.tensor([[49] * 16 + [2, 5, 6, 7]])
    inputs = {
        "input_ids": ids,
        "token_type_ids": ids * 0,
        "pixel_values": torch.randn(1, 3, 32, 32),
    }
    stack, prompt = stacks(model)["llm"], EmbeddedPrompt.of(model, inputs)
    prefix = ImagePrefix.of(model, stack, prompt)
    logits = partial(untouched_logits, model, stack, prompt, prefix)
    check = check_sharing(model, stack, inputs, logits, prefix)
    assert "depends on the question" in check.reason


def test_the_model_is_as_it_was_whatever_happens():
    subject, sample = subject_of(), Sample("1", picture(1), QUESTION)
    inputs = subject.encode(sample.image, sample.question)
    before = logits_alone(subject, inputs, ())
    layer = stacks(subject.model)["llm"].layers[2]

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = layer.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep_one(subject, sample, windows(2))
    hook.remove()
    assert torch.equal(logits_alone(subject, inputs, ()), before)
    sweep_one(subject, sample, windows(2), max_new_tokens=TOKENS)
    assert torch.equal(logits_alone(subject, inputs, ()), before)
    for module in subject.model.modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        assert not [hook for hook in hooks if "probe" in getattr(hook, "__module__", "")]


@pytest.mark.parametrize(
    ("cases", "options", "complaint"),
    [
        ([{LAYERS}], {}, "expected layers of 0 to 4, got 5"),
        ({"mask": [True, False]}, {}, "expected layers of 'mask' as whole numbers"),
        ({"half": [0.5]}, {}, "expected layers of 'half' as whole numbers"),
        ({"untouched": {0}}, {}, "every sweep has this case"),
        (
            [{0}],
            {"mode": "drop"},
            "mode of mask, mask_frozen, remove, remove_for_good, zero, swap, got 'drop'",
        ),
        ([{0}], {"mode": "swap"}, "pass donor="),
        ([{0}], {"max_new_tokens": 0}, "max_new_tokens of 1 or more, got 0"),
        ([{0}], {"stack": "encoder"}, "a stack of vision, llm, got 'encoder'"),
    ],
)
def test_mistakes_are_told_in_a_line(cases, options, complaint):
    with pytest.raises(ProbeError, match=complaint):
        sweep_one(subject_of(), Sample("1", picture(1), QUESTION), cases, **options)


def test_samples_need_ids_of_their_own():
    with pytest.raises(ProbeError, match="'1' twice"):
        drop_sweep(
            subject_of(), [Sample("1", picture(1), "a"), Sample("1", picture(1), "b")], [{0}]
        )


@pytest.mark.parametrize("mode", ["mask", "remove"])
def test_under_a_window_shorter_than_the_prompt_each_case_runs_alone(mode):
    subject = subject_of(llava_next_mistral, sliding_window=16)
    sample = Sample("1", picture(1), QUESTION)
    table = sweep_one(subject, sample, [{0}], mode, max_new_tokens=TOKENS)
    assert table.attrs["sharing"].startswith("the sliding window of layer 0 is 16 tokens")
    inputs = subject.encode(sample.image, sample.question)
    with drop_vision(subject.model, [0], mode):
        (ids,) = subject.generate_ids(inputs, TOKENS)
    assert table["answer"].sel(case="1").item() == inputs.vocabulary.words(ids)


def test_a_window_of_more_layers_than_there_are_is_refused():
    assert resolve(windows(4), 4) == {"1-4": {0, 1, 2, 3}}
    with pytest.raises(ProbeError, match=r"windows: expected a size of at most 4, .* got 99"):
        resolve(windows(99), 4)


def test_helpers_make_cases():
    assert resolve(windows(2, 1), 4) == {"1-2": {0, 1}, "2-3": {1, 2}, "3-4": {2, 3}}
    both = resolve([until_layer(2), {"mine": [3]}, {0, 2}], 4)
    assert both == {"1-2": {0, 1}, "1-4": {0, 1, 2, 3}, "mine": {3}, "1, 3": {0, 2}}
    assert resolve([1, 2], 4) == {"2-3": {1, 2}}


@pytest.mark.parametrize("cases", [windows, from_layer, until_layer])
@pytest.mark.parametrize("step", [0, -1, 1.5, float("nan"), float("inf"), "3", None, [1], True])
def test_a_step_that_is_no_number_of_layers_is_one_line(unchecked, cases, step):
    with pytest.raises(
        ProbeError, match=f"^{cases.__name__}: expected a s[a-z]+ of 1 or more, got"
    ):
        cases(step)
    assert [*windows(np.int64(4))(8)] == ["1-4", "5-8"]
