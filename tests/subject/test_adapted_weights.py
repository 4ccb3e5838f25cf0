"""Real adapters and real quantized weights: measured exactly, unchanged by it, and named. Skipped
where peft or bitsandbytes is not installed.
"""

import copy

import models
import numpy as np
import pytest
import torch

import probe
from probe.errors import ProbeError
from probe.measures.attention.reference import largest_difference
from probe.subject.inputs import with_response

ASKED = models.picture(0), "what is it?", "a red circle"
# The CPU kernel of 4 bits refuses weights narrower than its blocks of 64 numbers.
WIDE = {"hidden_size": 64, "intermediate_size": 128}
LEFT_PLAIN = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def assert_same_numbers(found, expected):
    for stack in expected.children:
        for name in ("mass", "share", "entropy", "head_entropy", "received"):
            np.testing.assert_allclose(found[stack][name], expected[stack][name], atol=1e-5)


def test_a_lora_adapter_is_measured_as_its_merged_model():
    peft = pytest.importorskip("peft")
    model, processor = models.llava15()
    plain = probe.measure(probe.load(model, processor=processor), *ASKED)
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False
    )
    wrapped = peft.get_peft_model(model, config, adapter_name="cats").eval()
    adapted = probe.load(wrapped.get_base_model(), processor=processor)
    assert adapted.provenance()["adapters"] == "cats"
    record = probe.measure(adapted, *ASKED)
    merged_model = copy.deepcopy(wrapped).merge_and_unload().eval()
    merged = probe.load(merged_model, processor=processor)
    assert_same_numbers(record, probe.measure(merged, *ASKED))
    assert abs(record["llm"]["mass"] - plain["llm"]["mass"]).max() > 1e-2, "the adapter acts"
    with wrapped.disable_adapter():
        assert adapted.provenance()["adapters"] == ""
        assert_same_numbers(probe.measure(adapted, *ASKED), plain)
    with pytest.raises(ProbeError, match=r"got Linear in \w+; merge the adapter"):
        probe.measure(adapted, *ASKED, contribution=True)
    assert probe.measure(merged, *ASKED, contribution=True)["llm"]["contribution"].max() > 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"load_in_8bit": True}, "bitsandbytes 8-bit"),
        (
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_compute_dtype": torch.float32,
            },
            "bitsandbytes 4-bit nf4",
        ),
    ],
)
def test_weights_of_few_bits_are_measured_on_a_cpu(tmp_path, options, name):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model, processor = models.llava15(**WIDE)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(llm_int8_skip_modules=LEFT_PLAIN, **options)
    subject = probe.load(str(tmp_path), device="cpu", quantization_config=config)
    assert subject.provenance()["quantization"] == name
    ids = torch.arange(5, 9)
    inputs = with_response(subject.encode(*ASKED[:2]), ids)
    layers = range(3)
    with torch.no_grad():
        subject.model(**inputs)  # bitsandbytes packs its weights anew in the first forward
        before = subject.model(**inputs).logits
        assert probe.measure(subject, *ASKED)["llm"]["mass"].notnull().any()
        assert torch.equal(subject.model(**inputs).logits, before)
        with probe.drop_vision(subject.model, layers, "remove"):
            removed = subject.model(**inputs).logits[0, -5:]
        if "8-bit" in name:  # a row above the threshold changes the precision of all rows
            with (
                pytest.raises(ProbeError, match=r"got 8-bit layers with llm_int8_threshold=6"),
                probe.drop_vision(subject.model, layers, "mask_frozen"),
            ):
                raise AssertionError("entered")
        else:
            with probe.drop_vision(subject.model, layers, "mask_frozen"):
                frozen = subject.model(**inputs).logits[0, -5:]
            torch.testing.assert_close(removed, frozen, atol=1e-4, rtol=1e-4)
        assert torch.equal(subject.model(**inputs).logits, before)
    for stack in ("vision", "llm"):
        assert largest_difference(subject, inputs, stack) < 1e-5
    with pytest.raises(ProbeError, match=r"got Linear\w+ in LlamaAttention; merge the adapter, or"):
        probe.measure(subject, *ASKED, contribution=True)


def test_eight_bits_without_a_threshold_hide_vision(tmp_path):
    pytest.importorskip("bitsandbytes")
    model, processor = models.llava15(**WIDE)
    model.save_pretrained(tmp_path)
    options = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    subject = probe.load(
        str(tmp_path), processor=processor, device="cpu", quantization_config=options
    )
    answers = []
    with torch.no_grad(), probe.drop_vision(subject, range(3), "mask"):
        for seed in (0, 1):
            inputs = subject.encode(models.picture(seed), "what is it?")
            answers.append(subject.model(**inputs).logits[0, -1])
    assert torch.equal(*answers)
