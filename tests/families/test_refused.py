"""Models that can't be observed are refused when they are loaded, by the true reason."""

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import probe
from probe.errors import ProbeError
from tests.families.refused_models import REFUSED, refusal
from tests.families.table import PAGE, refused_row

APART = "a model that answers in the sequence in which image and question stand"
IN_WORDS = "a model that answers word by word (with a generate of transformers)"
OF_IMAGES = "a vision-language model, whose config names an image token"
EXPECTED = {
    **dict.fromkeys(REFUSED, (APART, "an encoder-decoder")),
    "diffusion_gemma": (IN_WORDS, "whose decoder is given no prompt but what its encoder made"),
    "pi0": (IN_WORDS, "which has none"),
    **dict.fromkeys(
        ("blip", "git", "kosmos-2", "kosmos-2.5", "evolla", "mistral4"), (OF_IMAGES, "without one")
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_can_t_be_observed_is_refused_by_its_reason(name):
    model = REFUSED[name]()
    expected, got = refusal(model)
    assert expected == EXPECTED[name][0]
    assert type(model).__name__ in got
    assert EXPECTED[name][1] in got
    page = PAGE.read_text()
    if f"transformers {transformers.__version__})" in page:
        assert refused_row(name, model, expected, got) in page.splitlines()


def test_an_encoder_decoder_is_refused_before_its_weights_are_read(tmp_path):
    REFUSED["blip2, T5"]().config.save_pretrained(tmp_path)  # no weights, no processor
    with pytest.raises(ProbeError, match=r"an encoder-decoder") as caught:
        probe.load(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ProbeError, match=r"an encoder-decoder"):
        probe.cost(str(tmp_path))


NOT_BUILT = {  # of transformers' list, and what would have to be installed
    "FastVlmForConditionalGeneration": "timm",
    "Gemma3nForConditionalGeneration": "timm",
    "PerceptionLMForConditionalGeneration": "timm",
    "InstructBlipVideoForConditionalGeneration": "videos only",
}


def test_every_model_of_transformers_list_is_on_the_page():
    page = PAGE.read_text()
    if f"transformers {transformers.__version__})" not in page:
        pytest.skip("the page is about another transformers")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    classes = {row[1] for row in rows}
    listed = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    assert listed - classes == NOT_BUILT.keys()
