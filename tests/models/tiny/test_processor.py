"""What a user types becomes the words the model knows, and the template says who speaks."""

import pytest
from transformers import AutoProcessor

from probe.models.tiny import FOLDERS
from probe.models.tiny.processor import SYSTEM_PROMPT, build_processor
from probe.models.tiny.questions import QUESTION_KINDS, ask
from probe.models.tiny.scenes import draw, sample_scene, stream

IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


def test_every_question_and_answer_is_in_the_vocabulary_and_comes_back(tokenizer):
    for number in range(200):
        rng = stream("sample", 4, number)
        scene = sample_scene(rng)
        for kind in QUESTION_KINDS:
            asked = ask(scene, kind, rng)
            ids = tokenizer(asked.question, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids
            answer = tokenizer(asked.answer, add_special_tokens=False).input_ids
            assert tokenizer.decode(answer) == asked.answer


def test_ordinary_text_and_special_tokens(tokenizer):
    assert tokenizer.tokenize("WHAT colour's it?") == ["what", "colour", "'", "<unk>", "it", "?"]
    assert tokenizer.tokenize("a<image>circle</s>") == ["a", "<image>", "circle", "</s>"]
    assert tokenizer("circle").input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("conversation", "text"),
    [
        (
            [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}]}],
            f"{SYSTEM_PROMPT} USER: <image>\nWhat? ASSISTANT:",
        ),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            "Be brief. USER: Hello ASSISTANT:",
        ),
        (
            [
                {"role": "user", "content": [{"type": "text", "text": "This? "}, IMAGE, IMAGE]},
                {"role": "assistant", "content": [{"type": "text", "text": "it is red"}]},
                {"role": "user", "content": "And now?"},
            ],
            f"{SYSTEM_PROMPT} USER: This? <image>\n<image>\n ASSISTANT: it is red</s> "
            "USER: And now? ASSISTANT:",
        ),
    ],
)
def test_chat_template(processor, conversation, text):
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == text
    assert processor.apply_chat_template(conversation) == text.removesuffix(" ASSISTANT:")


def test_a_image_becomes_36_placeholders(processor):
    pictures = [
        draw(sample_scene(stream("sample", seed)), size) for seed, size in [(0, 60), (1, 480)]
    ]
    inputs = processor(images=pictures, text="<image> and <image>", return_tensors="pt")
    assert (inputs.input_ids == processor.image_token_id).sum() == 2 * 36
    assert inputs.pixel_values.shape == (2, 3, 60, 60)


def test_the_shipped_processor_is_this_one(processor):
    shipped = AutoProcessor.from_pretrained(FOLDERS["tiny-llava"])
    assert shipped.chat_template == processor.chat_template
    assert shipped.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    text = f"{SYSTEM_PROMPT} USER: <image>\nWhere is the red ring? ASSISTANT:"
    assert shipped.tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    assert shipped.image_processor.to_dict() == processor.image_processor.to_dict()
