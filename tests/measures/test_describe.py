"""`describe` says what a model offers by trying it, and leaves the model as it was."""

import pytest
import torch
from typer.testing import CliRunner

import probe
from probe.cli import _app
from probe.errors import ProbeError
from probe.hooks.model_state import is_clear
from probe.hooks.model_structure import vision_towers
from probe.hooks.other_encoders import other_encoders
from probe.models.tiny.questions import sample_image
from tests.families.checks import picture
from tests.families.document_models import DOCUMENT_FAMILIES
from tests.families.further_models import FURTHER_FAMILIES
from tests.families.models import FAMILIES
from tests.families.picture_models import PICTURE_FAMILIES


@pytest.fixture(scope="module")
def mini():
    subject = probe.load("tiny-llava-mini")
    image, question, _ = sample_image(seed=0)
    inputs = subject.encode(image, question)
    before = subject.model(**inputs).logits
    description = probe.describe(subject)
    assert is_clear(subject.model)
    assert torch.equal(subject.model(**inputs).logits, before)
    return description


def test_all_stacks_are_described_with_their_sites(mini):
    stacks = mini.to_dict()["stacks"]
    assert list(stacks) == ["vision", "compressor", "prefusion", "llm"]
    assert (stacks["llm"]["layers"], stacks["llm"]["heads"]) == (8, 4)
    assert stacks["prefusion"]["sites"] == ("residual", "attention", "mlp", "head")


def test_what_works_says_yes_and_what_does_not_says_why(mini):
    described = mini.to_dict()
    assert described["measures"]["attention, compressor"] == "yes"
    assert described["interventions"]["drop_vision mask, prefusion"] == "yes"
    assert "drop_vision remove, prefusion" not in described["interventions"]
    assert "compressor reads the whole grid" in described["reducers"]["VisionZip"]
    assert described["reducers"]["FastV"] == "yes"


def test_the_table_has_a_row_for_each_stack_and_feature(mini):
    table = mini.to_dataframe()
    assert len(table) == len(mini.stacks) + len(mini.features)
    assert (table["note"] != "")[~table["available"]].all()
    assert "VisionZip: no (" in str(mini)


def test_layers_without_attention_are_named():
    torch.manual_seed(0)
    model, processor = FAMILIES["qwen3_5"]()
    description = probe.describe(probe.load(model, processor=processor))
    described = description.to_dict()
    without = described["stacks"]["llm"]["without_attention"]
    assert without
    assert "softmax attention" in described["interventions"]["drop_vision mask, llm"]
    assert described["interventions"]["drop_vision remove, llm"] == "yes"
    assert "no softmax attention in layers 1" in str(description)


def test_the_command_writes_its_table(tmp_path):
    run = CliRunner().invoke(_app(), ["describe", "tiny-llava", "--csv", str(tmp_path / "a.csv")])
    assert run.exit_code == 0, run.output
    assert "VisionZip" in run.output
    assert (tmp_path / "a.csv").read_text().startswith("group,name,available,note")


def test_a_second_encoder_of_the_same_images_is_said_to_be_missing():
    table = probe.describe(probe.load(*PICTURE_FAMILIES["deepseek_vl_hybrid"]())).to_dataframe()
    notes = table.set_index("name")["note"]
    assert notes["attention, vision"] == ""
    assert notes["attention, high_res_vision_model"] == (
        "expected one encoder of images, the stack 'vision', "
        "got a second that reads them too (SamVisionModel), which is in no stack"
    )


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("got_ocr2", "vision_tower", "GotOcr2VisionEncoder"),  # SAM
        ("emu3", "vqmodel", "Emu3VQVAE"),  # to words of a codebook
    ],
)
def test_an_encoder_whose_attention_can_t_be_seen_is_named(family, name, kind):
    subject = probe.load(*{**DOCUMENT_FAMILIES, **FURTHER_FAMILIES}[family]())
    table = probe.describe(subject).to_dataframe()
    notes = table.set_index("name")["note"]
    assert "attention, vision" not in notes
    assert notes[f"attention, {name}"] == (
        "expected one encoder of images, the stack 'vision', "
        f"got one whose attention can't be seen ({kind}), which is in no stack"
    )
    with pytest.raises(ProbeError, match="expected stacks of llm, got vision"):
        probe.measure(subject, picture(0), "what is red ?", [14], stacks=["vision"])


def test_an_encoder_inside_the_encoder_is_named():
    """SAM, whose features the measured layers of DeepSeek-OCR 2 read."""
    subject = probe.load(*DOCUMENT_FAMILIES["deepseek_ocr2"]())
    found = other_encoders(subject.model, subject.encode(picture(0), "what is red ?"))
    assert {name: type(part).__name__ for name, part in found.items()} == {
        "vision_tower.sam_encoder": "DeepseekOcr2SamVisionEncoder"
    }


def test_an_encoder_that_does_not_run_is_none():
    subject = probe.load(*PICTURE_FAMILIES["janus"]())
    inputs = subject.encode(picture(0), "what is red ?")
    assert len(vision_towers(subject.model)) == 2
    assert other_encoders(subject.model, inputs) == {}
    assert not any(module._forward_pre_hooks for module in subject.model.model.vqmodel.modules())
