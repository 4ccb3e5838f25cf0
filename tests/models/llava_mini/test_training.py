"""Training LLaVA-Mini: what learns in which stage and from what; and that it begins as the LLaVA it
is made of.
"""

import copy
import shutil
from functools import cache

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from probe.models.llava_mini import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.chat_templates import chat_template
from probe.models.llava_mini.from_llava import from_llava, processor_for
from probe.models.llava_mini.training import STAGES, Rates, TrainingStage, parameter_groups, train
from probe.models.llava_mini.training_data import Collator, Instruction, VisualSource
from probe.models.tiny import FOLDERS
from probe.models.tiny.questions import ask
from probe.models.tiny.scenes import draw, sample_scene, stream

FOLDER = FOLDERS["tiny-llava"]


@cache
def shipped():
    return AutoModelForImageTextToText.from_pretrained(FOLDER).eval()


def llava():
    return copy.deepcopy(shipped())


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


def mini(**fields):
    return from_llava(
        llava(),
        **{"compressor_size": 1, "num_prefusion_layers": 2, "compressor_num_heads": 4} | fields,
    )


def said(*turns, images=0):
    """Messages, the user's first; with image parts in the first of them."""
    parts = [
        [{"type": "image"}] * (images if i == 0 else 0) + [{"type": "text", "text": text}]
        for i, text in enumerate(turns)
    ]
    return [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(parts)
    ]


def image(seed):
    return draw(sample_scene(stream("sample", 100 + seed)), 60)


def about_a_image(seed):
    scene = sample_scene(stream("sample", 100 + seed))
    asked = ask(scene, "colour", stream("sample", 200 + seed))
    return Instruction(
        said(asked.question, asked.answer, images=1), (VisualSource("image", draw(scene)),)
    )


def about_a_video(frames):
    visual = VisualSource("video", [image(seed) for seed in range(frames)])
    return Instruction(said("What do you see in the image?", "a red ring", images=1), (visual,))


IMAGES = [about_a_image(seed) for seed in range(3)]
VIDEOS = [about_a_video(3), about_a_video(2)]
MIXED = [VIDEOS[0], IMAGES[0], Instruction(said("What is it?", "nothing")), about_a_video(1)]


# --------------------------------------------------------------------------------- a LLaVA-Mini
# made of a LLaVA


def test_without_compression_and_prefusion_it_is_the_llava(processor):
    model = llava()
    text = processor.apply_chat_template(
        said("What can you see?", images=1), add_generation_prompt=True
    )
    theirs = processor(images=image(0), text=text, return_tensors="pt")
    with torch.no_grad():
        expected = model(**theirs).logits
        plain = STAGES[1].prepare(model)
        ours = processor_for(plain, processor)(images=image(0), text=text)
        assert ours["input_ids"].shape == expected.shape[:2]
        torch.testing.assert_close(plain(**ours).logits, expected, atol=1e-5, rtol=1e-5)


def test_prefusion_begins_as_the_llms_first_layers_or_at_random():
    copied, drawn, other, again = (
        mini(),
        mini(copy_prefusion=False),
        mini(copy_prefusion=False, seed=1),
        mini(),
    )
    first = [model.model.prefusion.layers[1].mlp.up_proj.weight for model in (copied, drawn, other)]
    assert torch.equal(first[0], copied.model.language_model.layers[1].mlp.up_proj.weight)
    assert first[0] is not copied.model.language_model.layers[1].mlp.up_proj.weight
    assert not torch.equal(first[0], first[1])
    assert 0.045 < first[1].std() < 0.055  # the config's initializer_range
    assert not torch.equal(first[1], first[2])
    assert all(
        torch.equal(a, b) for a, b in zip(copied.parameters(), again.parameters(), strict=True)
    )
    assert not any(parameter.is_meta for parameter in [*drawn.parameters(), *drawn.buffers()])
    with pytest.raises(
        ValueError, match="num_prefusion_layers of at most 8, the LLM's layers, got 9"
    ):
        mini(num_prefusion_layers=9)


def test_an_llm_that_prefusion_cannot_be_like_is_refused():
    model = llava()
    model.model.language_model.layers[0].__class__ = type("OtherLayer", (torch.nn.Module,), {})
    with pytest.raises(ValueError, match="expected an LLM with Llama's layers, got OtherLayer"):
        from_llava(model)


def test_making_one_leaves_the_global_seed_alone():
    model = llava()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    from_llava(model)
    assert torch.equal(before, torch.get_rng_state())


def test_a_stage_goes_on_with_a_model_that_fits_and_rebuilds_another():
    whole = mini()
    assert STAGES[2].prepare(whole) is whole
    plain = STAGES[1].prepare(whole)
    assert (plain.config.compression, len(plain.model.prefusion.layers)) == ("none", 0)
    again = STAGES[2].prepare(plain)
    assert (again.config.compression, len(again.model.prefusion.layers)) == ("query", 4)
    assert again.model.multi_modal_projector is whole.model.multi_modal_projector


def test_a_template_that_ends_no_answer_is_replaced(processor):
    whole, other = mini(), AutoProcessor.from_pretrained(FOLDER)
    assert processor_for(whole, other).chat_template == processor.chat_template
    other.chat_template = processor.chat_template.replace("</s>", "")
    assert processor_for(whole, other).chat_template == chat_template("v1")
    other.chat_template = None
    assert processor_for(whole, other).chat_template == chat_template("v1")


# ------------------------------------------------------------------------------------------
# batches


def test_only_answers_and_their_end_of_turn_are_learned(processor):
    collate = Collator(processor_for(mini(), processor))
    rows = [
        Instruction(said("What is it?", "a red ring", "Is there a cross?", "no")),
        IMAGES[0],
        VIDEOS[0],
    ]
    batch = collate(rows)
    words = processor.tokenizer
    learned = [words.convert_ids_to_tokens(row[row != -100].tolist()) for row in batch["labels"]]
    assert learned[0] == ["a", "red", "ring", "</s>", "no", "</s>"]
    assert learned[1][:2] == ["it", "is"] and learned[1][-1] == "</s>"
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert not kept[batch["attention_mask"] == 0].any()
    assert (batch["input_ids"] == collate.processor.image_token_id).sum(1).tolist() == [0, 1, 3]
    assert (batch["pixel_values"].shape[0], batch["pixel_values_videos"].shape[:2]) == (1, (1, 3))


def test_a_batch_gives_the_loss_of_its_rows(processor):
    model, collate = mini(), Collator(processor_for(mini(), processor))
    with torch.no_grad():
        alone = [collate([row]) for row in MIXED]
        counts = [(batch["labels"] != -100).sum() for batch in alone]
        each = sum(
            model(**batch).loss * count for batch, count in zip(alone, counts, strict=True)
        ) / sum(counts)
        together = model(**collate(MIXED)).loss
    torch.testing.assert_close(together, each, atol=1e-5, rtol=1e-5)


def test_words_alone_are_fused_with_an_all_zero_image(processor):
    model, collate = mini(), Collator(processor_for(mini(), processor))
    batch = collate([MIXED[2]])
    assert batch["pixel_values"].shape == (0, 1, 3, 60, 60)
    with torch.no_grad():
        embeds = [
            model.model.merge(x["input_ids"], x["pixel_values"], fuse_mask=x["labels"] == -100)[0]
            for x in (batch, collate([MIXED[2], IMAGES[0]]))
        ]
        torch.testing.assert_close(
            embeds[1][:1, : embeds[0].shape[1]], embeds[0], atol=1e-5, rtol=1e-5
        )
        assert not torch.equal(embeds[0], model.get_input_embeddings()(batch["input_ids"]))
    with pytest.raises(ValueError, match="expected rows with images or videos, got none"):
        train(STAGES[1].prepare(model), collate.processor, [MIXED[2]], "nowhere", STAGES[1])


def test_a_long_video_is_read_evenly_and_a_long_row_cut(processor):
    mini_processor = processor_for(mini(), processor)
    assert (
        Collator(mini_processor, max_frames=4)([about_a_video(9)])["pixel_values_videos"].shape[1]
        == 4
    )
    assert Collator(mini_processor, max_length=16)(IMAGES)["input_ids"].shape[1] == 16
    with pytest.raises(ValueError, match="within the first max_length=5 tokens, got a row of"):
        Collator(mini_processor, max_length=5)(IMAGES)
    with pytest.raises(ValueError, match="at least one frame"):
        Collator(mini_processor)(
            [Instruction(said("What?", "nothing", images=1), (VisualSource("video", []),))]
        )


def test_a_file_that_is_no_image_is_one_line(processor, tmp_path):
    (tmp_path / "a.png").write_text("none")
    row = Instruction(
        said("What?", "nothing", images=1), (VisualSource("image", tmp_path / "a.png"),)
    )
    with pytest.raises(ValueError, match=r"expected an image, got .*a\.png") as error:
        Collator(processor_for(mini(), processor))([row])
    assert "\n" not in str(error.value)
    Image.new("RGB", (90, 40)).save(tmp_path / "a.png")
    assert Collator(processor_for(mini(), processor))([row])["pixel_values"].shape == (
        1,
        1,
        3,
        60,
        60,
    )


# ------------------------------------------------------------------------------------------
# what learns


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rows", [IMAGES, VIDEOS, MIXED], ids=["images", "videos", "mixed"])
def test_gradients_reach_everything_but_the_vision_encoder(processor, rows):
    model = mini()
    batch = Collator(processor_for(model, processor))(rows)
    parameter_groups(model, STAGES[2].rates)
    found = gradients(model.train(), batch)
    assert not any("vision_tower" in name for name in found)
    for part in (
        "multi_modal_projector",
        "compressor.query",
        "compressor.attention.v_proj",
        "prefusion.layers.0",
        "prefusion.layers.1",
        "language_model.layers.0",
    ):
        named = [grad for name, grad in found.items() if part in name]
        assert named and all(grad.abs().max() > 0 for grad in named), part
    model.gradient_checkpointing_enable()
    again = gradients(model, batch)
    assert found.keys() == again.keys()
    for name, grad in found.items():
        torch.testing.assert_close(again[name], grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("rows", [IMAGES, VIDEOS], ids=["images", "videos"])
def test_words_of_the_question_learn_through_prefusion(processor, rows):
    """With the LLM's way to the embeddings cut, what is left has come through pre-fusion."""
    model = mini().train()
    batch = Collator(processor_for(model, processor))(rows)
    embed, fuse, reached = model.get_input_embeddings(), model.model.fuse, []

    def watched(*args):
        reading = fuse(*args)
        reading.text.register_hook(lambda grad: reached.append(grad.abs().max()))
        return reading

    model.model.fuse = watched
    model(**batch).loss.backward()
    assert reached and min(reached) > 0
    asked = batch["input_ids"][(batch["labels"] == -100) & (batch["attention_mask"] == 1)].unique()
    answered = set(batch["labels"].flatten().tolist())
    only_asked = [word for word in asked.tolist() if word not in answered and word != 4]
    assert (embed.weight.grad[only_asked].abs().amax(1) > 0).all()


@pytest.mark.parametrize("number", [1, 2])
def test_a_stage_changes_its_parts_and_no_other(processor, tmp_path, number):
    model = STAGES[number].prepare(llava())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = IMAGES if number == 1 else [*IMAGES, VIDEOS[0]]
    trained = train(
        model,
        processor_for(model, processor),
        rows,
        tmp_path,
        STAGES[number],
        2,
        max_steps=2,
        disable_tqdm=True,
        save_strategy="no",
    )
    changed = {
        name
        for name, tensor in trained.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    learned = {
        name
        for name in before
        if "vision_tower" not in name and (number == 2 or "projector" in name)
    }
    assert changed == learned
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, LlavaMiniForConditionalGeneration)
    assert all(
        torch.equal(tensor, loaded.state_dict()[name])
        for name, tensor in trained.state_dict().items()
    )
    assert AutoProcessor.from_pretrained(tmp_path).tokens_per_frame == (36, 1)[number - 1]
    assert not (tmp_path / "training_args.bin").exists()


def test_the_checkpoint_of_another_stage_is_refused(processor, tmp_path):
    first, second = STAGES[1].prepare(llava()), mini()
    train(
        first,
        processor_for(first, processor),
        IMAGES,
        tmp_path,
        STAGES[1],
        1,
        max_steps=1,
        disable_tqdm=True,
    )
    with pytest.raises(ValueError, match=r"got .*checkpoint-1 with another compression"):
        train(second, processor_for(second, processor), IMAGES, tmp_path, STAGES[2], 1, max_steps=1)


def test_stopped_and_resumed_is_never_stopped(processor, tmp_path):
    def trained():
        model = mini()
        return train(
            model,
            processor_for(model, processor),
            IMAGES,
            tmp_path,
            STAGES[2],
            1,
            max_steps=3,
            save_steps=1,
            save_total_limit=3,
            disable_tqdm=True,
        )

    whole = trained()
    for step in (2, 3):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    resumed = trained()
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


def test_each_part_has_its_own_rate_and_every_parameter_one_group():
    model = mini()
    groups = parameter_groups(
        model, Rates(projector=1.0, compressor=2.0, prefusion=3.0, llm=4.0), weight_decay=0.1
    )
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate)
    expected = {
        "multi_modal_projector": 1.0,
        "compressor": 2.0,
        "prefusion": 3.0,
        "language_model": 4.0,
        "lm_head": 4.0,
    }
    for name, parameter in model.named_parameters():
        part = next((part for part in expected if part in name), None)
        assert rate.get(id(parameter)) == expected.get(part or ""), name
        assert parameter.requires_grad == (part is not None)
    assert {group["weight_decay"] for group in groups for p in group["params"] if p.ndim == 1} == {
        0.0
    }
    assert parameter_groups(mini(num_prefusion_layers=0), Rates(prefusion=1.0)) == []


def test_rows_at_once_or_one_after_the_other_are_one_step(processor, tmp_path):
    """Answers of unequal length: the loss is a mean over the words of the whole batch."""
    stage = TrainingStage(Rates(projector=0.1, compressor=0.1, prefusion=0.1, llm=0.1), epochs=1)
    trained = []
    for at_once in (2, 1):
        model, rows = mini(), [IMAGES[0], VIDEOS[0]]
        train(
            model,
            processor_for(model, processor),
            rows,
            tmp_path / str(at_once),
            stage,
            2,
            max_steps=1,
            optim="sgd",
            per_device_train_batch_size=at_once,
            warmup_steps=0,
            disable_tqdm=True,
            save_strategy="no",
        )
        trained.append(model)
    start = mini()
    for a, b, old in zip(
        trained[0].parameters(), trained[1].parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(a - old, b - old, atol=2e-6, rtol=1e-3)
    assert not torch.equal(trained[0].lm_head.weight, start.lm_head.weight)


def test_rows_at_once_must_divide_a_batch(processor, tmp_path):
    model = mini()
    with pytest.raises(ValueError, match="expected a batch that 2 rows at once divide, got 3"):
        train(
            model,
            processor_for(model, processor),
            IMAGES,
            tmp_path,
            STAGES[2],
            3,
            per_device_train_batch_size=2,
        )
