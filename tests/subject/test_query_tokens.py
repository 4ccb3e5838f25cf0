"""transformers' own processors of models that read an image by queries, or outside of the LLM:
BLIP-2, InstructBLIP, Idefics.
"""

import pytest
import torch
import transformers
from transformers import Blip2Processor, IdeficsProcessor, InstructBlipProcessor

import probe
from probe.errors import ProbeError
from probe.subject.inputs import collate
from tests.families.checks import QUESTION, RESPONSE, picture
from tests.families.models import FAMILIES
from tests.families.processors import IMAGE, SPECIAL, TEMPLATE, word_tokenizer

QUERIES = 6
BESIDE_THE_WORDS = TEMPLATE.replace("<image>", "")  # the processor puts them in front
BLIP = {"blip2": Blip2Processor, "instructblip": InstructBlipProcessor}


def blip(name, template=BESIDE_THE_WORDS):
    model, _ = FAMILIES[name]()
    images = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    tokenizers = [word_tokenizer()] * (1 if name == "blip2" else 2)
    processor = BLIP[name](images, *tokenizers, num_query_tokens=QUERIES)
    processor.chat_template = template
    return probe.load(model, processor=processor)


@pytest.mark.parametrize("name", BLIP)
def test_blips_own_processor_names_its_placeholder_by_a_token_and_no_word(name):
    subject = blip(name)
    assert not isinstance(subject.processor.image_token, str)
    inputs = subject.encode(picture(0), QUESTION)
    assert inputs["input_ids"][0, :QUERIES].tolist() == [IMAGE] * QUERIES
    assert inputs.types.vision.sum() == QUERIES == len(inputs.grid[0])
    record = probe.measure(subject, picture(0), QUESTION, [*RESPONSE])
    assert {"vision", "compressor", "llm"} == {*record.children}
    assert subject.chat(picture(0)).ask(QUESTION, 2) == subject.answer(picture(0), QUESTION, 2)
    with pytest.raises(ProbeError, match="words without <image>"):
        subject.encode(picture(0), "is <image> red ?")


@pytest.mark.parametrize("name", BLIP)
def test_a_processor_that_makes_room_for_one_image_is_given_one(name):
    """The model would read the first one alone, and not say so."""
    expected = r"expected 12 placeholders \(6 an image\), got 6; ask about one image at a time"
    with pytest.raises(ProbeError, match=expected):
        blip(name).encode([picture(0), picture(1)], QUESTION)


@pytest.mark.parametrize("name", BLIP)
def test_a_template_with_a_placeholder_beside_those_of_the_processor_is_refused(name):
    with pytest.raises(ProbeError, match=r"expected 6 .* got 7; take the image out of the chat"):
        blip(name, TEMPLATE).encode(picture(0), QUESTION)


def test_a_q_former_reads_the_question_beside_each_image():
    subject = probe.load(*FAMILIES["instructblip"]())
    images = [picture(0), picture(1)]
    both = subject.encode(images, QUESTION)
    assert len(both["qformer_input_ids"]) == len(both["pixel_values"]) == 2
    alone = subject.encode(picture(1), QUESTION)
    with torch.no_grad():
        read, of_second = (
            subject.model.get_image_features(
                row["pixel_values"], qformer_input_ids=row["qformer_input_ids"]
            ).pooler_output
            for row in (both, alone)
        )
        batch = subject.model(**collate([alone, both], side="left")).logits[:, -1]
        rows = [subject.model(**row).logits[0, -1] for row in (alone, both)]
    torch.testing.assert_close(read[1:], of_second)
    torch.testing.assert_close(batch, torch.stack(rows), atol=1e-4, rtol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 1e-3
    answered = subject.encode(images, QUESTION, [*RESPONSE])
    assert len(answered["qformer_input_ids"]) == 2
    record = probe.measure(subject, images, QUESTION, [*RESPONSE])
    assert record["llm"]["key_count"].sel(key_type="vision").max() == 2 * QUERIES


def test_idefics_own_processor_names_an_id_and_no_word():
    model, _ = FAMILIES["idefics"]()
    words = [{"<end>": "<fake_token_around_image>"}.get(word, word) for word in SPECIAL]
    images = transformers.IdeficsImageProcessorPil(image_size=32)
    processor = IdeficsProcessor(images, word_tokenizer(words))
    processor.chat_template = BESIDE_THE_WORDS  # it puts them behind the words
    assert not hasattr(processor, "image_token")
    subject = probe.load(model, processor=processor)
    inputs = subject.encode([picture(0), picture(1)], QUESTION)
    assert (inputs["input_ids"] == IMAGE).sum() == 2
    assert inputs["image_attention_mask"].shape[-1] == 2
    record = probe.measure(subject, picture(0), QUESTION, [*RESPONSE])
    assert "cross" in record.children


def test_a_fault_in_a_processors_code_is_one_line():
    subject = blip("blip2")
    subject.processor.image_processor.image_mean = "half"
    with pytest.raises(ProbeError, match=r"expected an image that it takes, got \w+") as caught:
        subject.encode(picture(0), QUESTION)
    assert "\n" not in str(caught.value)
