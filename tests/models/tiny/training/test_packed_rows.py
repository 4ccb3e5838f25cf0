"""A packed row gives the logits that its questions give alone, by the processor and the plain
forward.
"""

import pytest
import torch
from prompts import turns_of

from probe.models.tiny.processor import build_processor
from probe.models.tiny.scenes import draw, sample_scene, stream
from probe.models.tiny.training.architecture import build_model, pixels
from probe.models.tiny.training.packed_rows import Packer, answer_logits
from probe.models.tiny.training.recipe import Recipe
from probe.models.tiny.training.stages import conversations


@pytest.fixture(scope="module")
def subject():
    processor = build_processor()
    return build_model(
        Recipe(layers=3, initializer_range=0.2), processor.tokenizer
    ).eval(), processor


def plain_logits(model, processor, scene, conversation):
    """Logits of every answer token of a conversation, from one ordinary forward."""
    turns = turns_of(conversation)
    rendered = processor.apply_chat_template(turns)
    inputs = processor(images=draw(scene), text=rendered, return_tensors="pt")
    logits, ids = model(**inputs).logits[0], inputs.input_ids[0].tolist()
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    starts = [i + 1 for i in range(1, len(words)) if words[i - 1 : i + 1] == ["assistant", ":"]]
    ends = [words.index("</s>", start) for start in starts]
    rows = [row for start, end in zip(starts, ends, strict=True) for row in range(start - 1, end)]
    return logits[rows], [ids[row + 1] for row in rows]


@torch.no_grad()
def test_packed_equals_plain(subject):
    model, processor = subject
    recipe = Recipe(questions=4, second_turn=0.5)
    rng = stream("sample", 5)
    scenes = [sample_scene(rng) for _ in range(3)]
    talks = [conversations(scene, recipe, rng) for scene in scenes]
    packed = Packer(processor).pack(talks)
    logits = answer_logits(model, pixels(scenes), packed)

    alone = [
        plain_logits(model, processor, s, t)
        for s, row in zip(scenes, talks, strict=True)
        for t in row
    ]
    assert any(len(talk) == 2 for row in talks for talk in row)
    assert packed.labels[packed.labels >= 0].tolist() == [
        label for _, labels in alone for label in labels
    ]
    torch.testing.assert_close(logits, torch.cat([rows for rows, _ in alone]), atol=1e-5, rtol=1e-5)


def test_pixels_are_what_the_processor_makes(subject):
    scene = sample_scene(stream("sample", 6))
    made = subject[1].image_processor(draw(scene), return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels([scene]), made, atol=1e-6, rtol=0)
