"""Samples that differ in what they show, measured together: the numbers of each are its own."""

import numpy as np
import pytest

import probe
from tests.families.checks import EXACT, QUESTION, picture
from tests.families.document_models import DOCUMENT_FAMILIES
from tests.families.models import FAMILIES
from tests.families.picture_models import PICTURE_FAMILIES
from tests.families.video_models import VIDEO_FAMILIES, clip

ALL_FAMILIES = FAMILIES | DOCUMENT_FAMILIES | PICTURE_FAMILIES | VIDEO_FAMILIES
RESPONSE = [14, 16]
BESIDE = (clip(0), picture(1, (30, 80)))  # a video and an image in one prompt
SMALL, LARGE = picture(2, (60, 40)), picture(3)
SHOWN = {  # what two samples show
    "images of unequal sizes, gemma4": (LARGE, SMALL),
    "images of unequal sizes, fuyu": (LARGE, SMALL),
    "patches of unequal images in one strip, minicpmv4_6": (LARGE, SMALL),
    "images that the model counts over all rows, hunyuan_vl": (LARGE, SMALL),
    "a video and an image, onevision": (clip(0), LARGE),
    "a video and an image, video_llava": (clip(0), LARGE),
    "videos of unequal length, onevision": (clip(0), clip(1, frames=2)),
    "an image, and an image beside a video, qwen2_vl": (LARGE, BESIDE),
}


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("shown", SHOWN)
def test_samples_measured_together_equal_each_alone(shown):
    name = shown.rpartition(" ")[2]
    subject = probe.load(*ALL_FAMILIES[name]())
    samples = []
    for number, images in enumerate(SHOWN[shown]):
        count = len(images) if isinstance(images, tuple) else 1
        words = {"type": "text", "text": QUESTION}
        asked = [{"role": "user", "content": [{"type": "image"}] * count + [words]}]
        samples.append(probe.Sample(str(number), images, asked))
    together = probe.measure_samples(subject, samples, [RESPONSE] * 2)
    for number, sample in enumerate(samples):
        alone = probe.measure_samples(subject, [sample], [RESPONSE])
        for stack in together.children:
            found = together[stack]["mass"].isel(sample=number)
            assert found.notnull().any()
            np.testing.assert_allclose(found, alone[stack]["mass"].isel(sample=0), atol=EXACT)


def test_a_stack_that_one_sample_does_not_run_is_left_out_with_a_warning():
    subject = probe.load(*FAMILIES["qwen2_vl"]())
    samples = [probe.Sample("a", LARGE, QUESTION), probe.Sample("b", None, QUESTION)]
    record = probe.measure_samples(subject, samples, [RESPONSE] * 2)
    assert "vision" in record.children  # none of its images
    subject = probe.load(*VIDEO_FAMILIES["video_llava"]())
    samples = [probe.Sample("a", clip(0), QUESTION), probe.Sample("b", LARGE, QUESTION)]
    with pytest.warns(UserWarning, match="vision_video left out: not measured in all samples"):
        record = probe.measure_samples(subject, samples, [RESPONSE] * 2)
    assert list(record.children) == ["llm"]


def test_cases_of_an_attribution_are_read_one_by_one_where_a_model_counts_images_over_all_rows():
    subject = probe.load(*DOCUMENT_FAMILIES["hunyuan_vl"]())
    halves = np.arange(97)[None] < np.full((61, 1), 48)
    masks = [{"left": halves, "right": ~halves}]
    options = {"over": masks, "method": "ablation", "progress": False}
    found = probe.attribute(subject, picture(0), QUESTION, RESPONSE, **options)
    for feature, mask in masks[0].items():
        alone = probe.attribute(
            subject, picture(0), QUESTION, RESPONSE, **options | {"over": [{feature: mask}]}
        )
        expected = float(alone["attribution"].sel(feature=feature))
        assert float(found["attribution"].sel(feature=feature)) == pytest.approx(expected, abs=1e-5)
