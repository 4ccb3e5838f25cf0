"""tiny-llava-mini: packed rows are exact, training is a function of the seed, and what is shipped
is as good.
"""

import csv
import json
from dataclasses import asdict, replace

import pytest
import torch
from prompts import turns_of
from transformers import AutoModelForImageTextToText, AutoProcessor

from probe.errors import ProbeError
from probe.models.llava_mini import LlavaMiniForConditionalGeneration
from probe.models.tiny import FOLDERS
from probe.models.tiny.scenes import draw, sample_scene, stream
from probe.models.tiny.training import train_mini as mini_training
from probe.models.tiny.training.architecture import pixels
from probe.models.tiny.training.evaluate import evaluate, frozen, summary
from probe.models.tiny.training.mini_recipe import MiniRecipe, mini_processor, starting_model
from probe.models.tiny.training.packed_rows import Packer, fused_logits
from probe.models.tiny.training.recipe import Recipe
from probe.models.tiny.training.stages import conversations
from probe.models.tiny.training.train_mini import train_mini

FOLDER = FOLDERS["tiny-llava-mini"]
SMALL = MiniRecipe(prefusion_layers=1, steps=4, warmup=1, batch=2)


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(mini_training, "VALIDATION", 2)


def plain_logits(model, processor, scene, conversation):
    """Logits of every answer token of a conversation, from one ordinary forward with labels."""
    turns = turns_of(conversation)
    example = {name: torch.tensor([row]) for name, row in processor.training_example(turns).items()}
    logits = model(**example, pixel_values=processor(images=draw(scene))["pixel_values"]).logits[0]
    learned = example["labels"][0, 1:] >= 0
    return logits[:-1][learned], example["labels"][0, 1:][learned].tolist()


@pytest.mark.parametrize(
    "fields",
    [
        *({}, {"compressor_size": 2}, {"prefusion_layers": 0}, {"extra_layers": 2}),
        *({"compression": "average", "compressor_size": 2}, {"compression": "none"}),
        *({"fusion": "in_llm", "compressor_size": 2}, {"fusion": "paper"}),
    ],
)
@torch.no_grad()
def test_packed_equals_plain(fields):
    made = MiniRecipe(**fields)
    model, processor = starting_model(made).eval(), mini_processor(made)
    recipe, rng = Recipe(questions=4, second_turn=0.5), stream("sample", 5)
    scenes = [sample_scene(rng) for _ in range(3)]
    talks = [conversations(scene, recipe, rng) for scene in scenes]
    packed = Packer(processor, model.config.image_seq_length).pack(talks)
    logits = fused_logits(model, pixels(scenes), packed)

    alone = [
        plain_logits(model, processor, s, t)
        for s, row in zip(scenes, talks, strict=True)
        for t in row
    ]
    assert any(len(talk) == 2 for row in talks for talk in row)
    assert packed.labels[packed.labels >= 0].tolist() == [
        label for _, labels in alone for label in labels
    ]
    torch.testing.assert_close(logits, torch.cat([rows for rows, _ in alone]), atol=2e-5, rtol=1e-5)


def test_extra_layers_are_the_first_ones_again_in_front():
    model = starting_model(MiniRecipe(prefusion_layers=0, extra_layers=2))
    layers = model.model.language_model.layers
    assert len(layers) == model.config.text_config.num_hidden_layers == 10
    weights = [layer.mlp.up_proj.weight for layer in layers]
    assert [
        any(torch.equal(weights[i], weights[j]) for j in range(10) if j != i) for i in range(5)
    ] == [True] * 4 + [False]
    assert torch.equal(weights[0], weights[2]) and weights[0] is not weights[2]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(10))


def test_resuming_changes_nothing_and_a_run_has_a_curve(tmp_path, few_images):
    whole = train_mini(tmp_path / "whole", recipe=SMALL, progress=False, every=2)
    train_mini(tmp_path / "parts", recipe=SMALL, steps=3, progress=False, every=2)
    parts = train_mini(tmp_path / "parts", recipe=SMALL, progress=False, every=2)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True)
    )
    again = train_mini(
        tmp_path / "whole", recipe=SMALL, steps=2, progress=False, every=2
    )  # there is nothing to do
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )
    with (tmp_path / "whole" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]
    with pytest.raises(
        ProbeError, match=r"train: expected the recipe that .* got another seed; train into another"
    ):
        train_mini(tmp_path / "whole", recipe=replace(SMALL, seed=1), progress=False)


# ---------------------------------------------------------------------------------------------- the
# shipped weights


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForImageTextToText.from_pretrained(
        FOLDER
    ).eval(), AutoProcessor.from_pretrained(FOLDER)


def answer(subject, image, question):
    model, processor = subject
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=image, text=prompt)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 1
    written = model.generate(**inputs, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(written, skip_special_tokens=True)


def test_it_is_a_llava_mini_from_the_default_recipe(shipped):
    assert type(shipped[0]) is LlavaMiniForConditionalGeneration
    assert shipped[0].config.probe_toy is True
    assert json.loads((FOLDER / "recipe.json").read_text()) == json.loads(
        json.dumps(asdict(MiniRecipe()))
    )
    assert (
        sum(file.stat().st_size for folder in FOLDERS.values() for file in folder.iterdir()) < 12e6
    )
    start = starting_model(MiniRecipe()).state_dict()
    tower = {
        name: tensor for name, tensor in shipped[0].state_dict().items() if "vision_tower" in name
    }
    assert all(torch.equal(tensor, start[name]) for name, tensor in tower.items())


def test_with_one_vision_token_it_is_as_good_as_tiny_llava(shipped):
    whole = FOLDERS["tiny-llava"]
    llava = (
        AutoModelForImageTextToText.from_pretrained(whole).eval(),
        AutoProcessor.from_pretrained(whole),
    )
    theirs = summary(evaluate(*llava, 64), "kind")["right"]
    ours = summary(evaluate(*shipped, 64, logits=fused_logits), "kind")["right"]
    assert ours.mean() > theirs.mean() - 0.06
    assert (ours > theirs - 0.15).all(), "64 questions a kind: analyses/llava_mini has 2,000"


def test_it_looks_at_the_image(shipped, monkeypatch):
    monkeypatch.setattr(
        "probe.models.tiny.training.evaluate.blind_answers", dict
    )  # 20,000 scenes: not here
    swapped = summary(evaluate(*shipped, 64, controls=True, logits=fused_logits), "kind")[
        "swapped"
    ].to_dict()
    assert {
        kind: swapped[kind]
        for kind in swapped
        if swapped[kind] > (0.65 if kind == "exist" else 0.45)
    } == {}


def test_generation_writes_what_exact_match_counts(shipped):
    frame = evaluate(*shipped, images=4, logits=fused_logits)
    for number in range(4):
        scene, questions = frozen(number)
        written = [answer(shipped, draw(scene), question.question) for question in questions]
        right = [text == question.answer for text, question in zip(written, questions, strict=True)]
        assert right == frame[frame.image == number].right.tolist()
