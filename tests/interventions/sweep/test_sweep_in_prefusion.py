"""Sweeps over LLaVA-Mini, its LLM and its pre-fusion: every case is what it is alone."""

from functools import lru_cache

import models
import pytest
import torch

import probe
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.interventions import drop_vision, swap_vision
from probe.interventions.sweep import Sweep, drop_sweep, windows
from probe.interventions.sweep.layer_sets import ANOTHER_IMAGE, NO_VISION, UNTOUCHED
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.models.llava_mini import (
    LlavaMiniConfig,
    LlavaMiniForConditionalGeneration,
    LlavaMiniProcessor,
)
from probe.subject.inputs import with_response

LAYERS, TOKENS = 3, 3
QUESTION = "what is in the picture?"
SETS = {"first": {0}, "late": {1, 2}, "two": {0, 2}}


@lru_cache
def subject_of(**fields):
    """A random LLaVA-Mini of 3 pre-fusion and 3 LLM layers; 16 patches, 4 compressed tokens."""
    torch.manual_seed(0)
    tokenizer = models.llama_tokenizer()
    config = LlavaMiniConfig(
        vision_config=models._vision(32, 8, 3),
        text_config=models._text(models.LlamaConfig, tokenizer, LAYERS, 512),
        num_prefusion_layers=LAYERS,
        **{"compressor_size": 2, "compressor_num_heads": 4, **fields},
    )
    model = LlavaMiniForConditionalGeneration(config).eval()
    images = models.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = LlavaMiniProcessor(
        images,
        tokenizer,
        compressor_size=config.compressor_size,
        image_token_id=config.image_token_index,
        chat_template=models.LLAVA15,
    )
    return probe.load(model, processor=processor)


def sample(seed=1, question=QUESTION, images=1):
    shown = tuple(models.picture(seed + i) for i in range(images))
    return Sample(str(seed), shown if images > 1 else shown[0], question, answer="a red circle")


def outcome(subject, asked, donor, **options):
    """Logits and ids of each case, as the sweep got them."""
    sweep = Sweep(subject, SETS, max_new_tokens=TOKENS, **options)
    with torch.no_grad():
        question = SamplePrompts.of(subject, asked, donor)
        assert sweep.check_sharing(question.inputs).reason == ""
        names = [name for name in sweep.cases if name != ANOTHER_IMAGE or donor]
        found = sweep.batched(question, names)
    return question, dict(zip(names, zip(found.logits, found.answers, strict=True), strict=True))


def assert_as_alone(subject, asked, donor, doing, **options):
    question, found = outcome(subject, asked, donor, **options)
    stack = options.get("stack", "llm")
    expected = {
        UNTOUCHED: (question.inputs, lambda: drop_vision(subject, ())),
        NO_VISION: (question.inputs, lambda: drop_vision(subject, range(LAYERS), stack=stack)),
        ANOTHER_IMAGE: (question.other, lambda: drop_vision(subject, ())),
        **{
            name: (question.inputs, lambda layers=layers: doing(question, layers))
            for name, layers in SETS.items()
        },
    }
    for name, (logits, said) in found.items():
        inputs, done = expected[name]
        with torch.no_grad(), done():
            forced = subject.model(
                **with_response(inputs, question.gold[:-1]), use_cache=False
            ).logits
            greedy = subject.generate_ids(inputs, TOKENS)[0]
        torch.testing.assert_close(logits, forced[0, -len(question.gold) :], rtol=1e-5, atol=1e-5)
        assert said.tolist() == greedy.tolist(), name
    return found


LLM = [
    {},
    {"mode": "zero"},
    {"mode": "mask_frozen"},
    {"mode": "remove"},
    {"mode": "remove_for_good"},
]


@pytest.mark.parametrize("reading", LLM, ids=str)
@pytest.mark.parametrize("images", [2])
def test_in_the_llm_every_case_is_what_it_is_alone(reading, images):
    subject, donor = subject_of(), [models.picture(7 + i) for i in range(images)]

    def doing(question, layers):
        return drop_vision(subject, layers, **reading)

    found = assert_as_alone(subject, sample(images=images), donor, doing, **reading)
    assert (found["late"][0] - found[UNTOUCHED][0]).abs().max() > 1e-3


@pytest.mark.parametrize("images", [1, 2])
def test_swapping_in_the_llm_is_what_it_is_alone(images):
    subject, donor = subject_of(), [models.picture(7 + i) for i in range(images)]
    assert_as_alone(
        subject,
        sample(images=images),
        donor,
        lambda question, layers: swap_vision(subject, layers, question.other),
        mode="swap",
    )


PREFUSION = [
    {},
    {"mode": "zero"},
    {"mode": "mask_frozen"},
    {"queries": "text"},
    {"queries": "compressed", "mode": "zero"},
]


@pytest.mark.parametrize("reading", PREFUSION, ids=str)
@pytest.mark.parametrize("images", [1, 2])
def test_in_pre_fusion_every_case_is_what_it_is_alone(reading, images):
    subject, donor = subject_of(), [models.picture(7 + i) for i in range(images)]
    reading = reading | {"stack": "prefusion"}

    def doing(question, layers):
        return drop_vision(subject, layers, **reading)

    found = assert_as_alone(subject, sample(images=images), donor, doing, **reading)
    assert (found["late"][0] - found[UNTOUCHED][0]).abs().max() > 1e-3


def test_a_image_is_read_once_and_every_case_costs_its_words_alone():
    subject = subject_of()
    patches = []
    hook = subject.model.model.prefusion.layers[0].register_forward_hook(
        lambda m, a, out: patches.append(out.shape[1])
    )
    samples = [sample(i // 2, f"{QUESTION} {i}") for i in range(4)]
    samples = [Sample(str(i), one.image, one.question) for i, one in enumerate(samples)]
    table = drop_sweep(
        subject, samples, windows(1), stack="prefusion", max_new_tokens=1, progress=False
    )
    hook.remove()
    assert table.attrs["image_prefixes"] == 2
    assert table.attrs["row_layers"] == 4 * LAYERS * table.sizes["case"]
    assert patches.count(16) <= 2 + 1, "once an image, and once to try it out"
    assert (table["dropped"].sel(case="no vision").sum() == LAYERS) and table.attrs[
        "sharing"
    ] == "exact"
    assert (table["kl"].sel(case=["1", "2", "3"]) > 0).any()


def test_the_estimate_names_what_it_counts(capsys):
    drop_sweep(subject_of(), sample(), [{0}], stack="prefusion", max_new_tokens=1)
    assert "1 samples, 1 images, 4 cases: 12 row-layers of 12; at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "remove"}, "use mode='mask_frozen'"),
        ({"mode": "swap"}, "mode='swap' in the LLM"),
        ({"queries": "vision"}, "queries of 'text' and 'compressed'"),
        ({"stack": "compressor"}, "whose tokens are text and vision, got 'compressor'"),
        ({"stack": "audio"}, "a stack of vision, compressor, prefusion, llm, got 'audio'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(options, told):
    with pytest.raises(ProbeError, match=told):
        Sweep(subject_of(), [{0}], **({"stack": "prefusion"} | options))
