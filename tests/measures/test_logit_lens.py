"""Behind the last layer the lens is the model; in front of it, it finds where a planted answer
comes from.
"""

from functools import partial

import models
import numpy as np
import pytest
import torch
import transformers

import probe
from probe.errors import ProbeError
from probe.interventions import drop_vision
from probe.measures.logit_lens import logit_lens
from probe.models.planted import planted
from probe.subject.inputs import collate, with_response
from tests.families.checks import QUESTION, picture
from tests.families.further_models import FURTHER_FAMILIES
from tests.families.models import FAMILIES, text
from tests.families.patch_models import PATCH_FAMILIES
from tests.families.score_models import SCORE_FAMILIES

FACTORIES = (models.llava15, models.llava_next_mistral, models.llava_llama3)


@pytest.mark.parametrize("factory", FACTORIES)
def test_behind_the_last_layer_it_is_the_models_own_logits(factory):
    model, processor = factory(side=16)
    subject = probe.load(model, processor=processor)
    found = logit_lens(subject, models.picture(), "where is it?", "a red circle")
    inputs = subject.encode(models.picture(), "where is it?", "a red circle")
    with torch.no_grad():
        own = model(**inputs).logits[0, : found.sizes["row"]].softmax(-1)
    assert found.attrs["last_layer_difference"] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(found["probability"][-1], own.max(-1).values, atol=1e-5)
    start = int(inputs.types.prompt_length[0])
    ids = inputs["input_ids"][0, start : start + found.sizes["answer_token"]]
    said = own[torch.arange(start - 1, start - 1 + len(ids)), ids]
    np.testing.assert_allclose(found["next"][-1], said, atol=1e-5)
    assert found["row_text"].values[start - 1] == inputs.tokens[0][start - 1]


CAPPED = SCORE_FAMILIES["paligemma2"]  # and its logits at 30
SCALED = partial(FAMILIES["aya_vision"], text_config=text("cohere2", head_dim=8, logit_scale=0.25))


BOTH = pytest.param(
    PATCH_FAMILIES["muse_spark"],
    marks=pytest.mark.skipif(
        not hasattr(transformers, "MuseSparkForConditionalGeneration"),
        reason="of a later transformers",
    ),
)


@pytest.mark.parametrize("factory", [CAPPED, SCALED, BOTH])
def test_caps_and_factors_of_the_models_logits_are_applied(factory):
    model, processor = factory()
    subject = probe.load(model, processor=processor)
    found = logit_lens(subject, picture(0), QUESTION, [14, 16])
    assert found.attrs["last_layer_difference"] == pytest.approx(0, abs=1e-5)
    inputs = with_response(subject.encode(picture(0), QUESTION), [14, 16])
    with torch.no_grad():
        own = model(**inputs).logits[0].softmax(-1).max(-1).values
    np.testing.assert_allclose(found["probability"][-1], own, atol=1e-5)


@pytest.mark.skipif(
    not hasattr(transformers, "Inkling2ForConditionalGeneration"), reason="of a later transformers"
)
def test_a_model_that_mixes_the_outputs_of_its_layers_is_refused():
    model, processor = FURTHER_FAMILIES["inkling2"]()
    subject = probe.load(model, processor=processor)
    with pytest.raises(ProbeError, match=r"norm and head make its logits, got Inkling2For.* away"):
        logit_lens(subject, picture(0), QUESTION, [14, 16])


def test_the_planted_answer_is_said_from_the_last_layer_that_reads():
    known = planted((2, 4), (14, 15))
    subject = probe.load(known.model, processor=known.processor)
    found = logit_lens(subject, known.image("red", 1), known.question)
    assert (found["next"][:, 0] > 0.5).values.tolist() == [layer >= 4 for layer in range(6)]


def test_padding_and_several_images_change_nothing():
    model, processor = models.llava15(side=16)
    subject = probe.load(model, processor=processor)
    row = subject.encode([models.picture(1), models.picture(2)], "where is it?", "a red circle")
    found = logit_lens(subject, row)
    assert (found["row_key"].values >= 0).sum() == 8 == found.sizes["key"]
    alone = logit_lens(
        subject, [models.picture(1), models.picture(2)], "where is it?", "a red circle"
    )
    np.testing.assert_allclose(found["probability"], alone["probability"], atol=1e-6)
    with pytest.raises(ProbeError, match="inputs of one row"):
        logit_lens(subject, collate([row, row]))


def test_it_is_saved_and_opened(tmp_path):
    known = planted()
    found = logit_lens(
        probe.load(known.model, processor=known.processor), known.image("blue"), known.question
    )
    assert probe.open_record(probe.save_record(found, tmp_path / "lens")).identical(found)


def test_mistakes_are_told_in_one_line():
    known = planted()
    subject = probe.load(known.model, processor=known.processor)
    with pytest.raises(ProbeError, match="a stack of llm"):
        logit_lens(subject, known.image("blue"), known.question, stack="prefusion")
    with (
        drop_vision(subject, [2, 3], mode="remove"),
        pytest.raises(ProbeError, match="positions in every layer"),
    ):
        logit_lens(subject, known.image("blue"), known.question, "red")
