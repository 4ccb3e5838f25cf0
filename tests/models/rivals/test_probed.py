"""The rivals as subjects: what is done with a LLaVA is done with them, by the same calls."""

import numpy as np
import pytest
import rival_models
import torch
from PIL import Image

import probe
from probe.data.image import Video
from probe.data.sample import Sample
from probe.hooks.model_structure import stacks
from probe.measures.attention.reference import largest_difference
from probe.subject.inputs import collate

KINDS = ("mqt_few", "tokenpacker", "tokenpacker_hd", "voco", "llama_vid", "llama_vid_clip")
WIDE = ("tokenpacker", "llama_vid_clip")
IMAGE = Image.effect_noise((60, 40), 80).convert("RGB")
OTHER = Image.effect_noise((60, 40), 30).convert("RGB")


wide = pytest.mark.wide


@pytest.fixture(params=[pytest.param(kind, marks=wide if kind in WIDE else ()) for kind in KINDS])
def subject(request):
    return rival_models.subject(request.param)


def layers(subject):
    return range(len(stacks(subject.model)["llm"].layers))


@torch.no_grad()
def logits(subject, inputs):
    return subject.model(**inputs).logits


def test_what_each_measures():
    """Stacks, the types of their keys, and where the LLM's vision tokens lie."""
    found = {}
    for name in KINDS:
        subject = rival_models.subject(name)
        record = probe.measure(subject, IMAGE, "what is red?", max_new_tokens=2)
        compressor = record.get("compressor")
        boxes = record["llm"]["key_box"].isel(sample=0).values
        found[name] = (
            None if compressor is None else compressor.sizes["layer"],
            None if compressor is None else tuple(compressor["key_type"].values),
            tuple(record["llm"]["key_type"].values[:-2]),
            int(np.isfinite(boxes).all(-1).sum()),
            len(boxes),
        )
        assert record.attrs["compression"]
        probe.plots.compression(record)
        probe.plots.mass(record)
    assert found == {
        "mqt_few": (1, ("vision",), ("instruction",), 0, 9),
        "tokenpacker": (1, ("vision",), ("instruction",), 4, 4),
        "tokenpacker_hd": (1, ("vision",), ("instruction",), 112, 112),
        "voco": (None, None, ("voco", "instruction"), 36, 36),
        "llama_vid": (5, ("cls", "vision"), ("instruction",), 4, 5),
        "llama_vid_clip": (5, ("vision",), ("instruction",), 1, 2),
    }


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=wide if n.startswith(("tok", "mqt")) else ()) for n in KINDS]
)
def test_looking_changes_nothing_and_numbers_are_those_of_whole_maps(name):
    subject = rival_models.subject(name)
    report = probe.verify(subject, IMAGE, "what is red?")
    assert report.passed, [check for check in report.checks if not check.passed]
    if "compressor" in stacks(subject.model):
        inputs = subject.encode([IMAGE, OTHER], "what is red?")
        assert largest_difference(subject, inputs, "compressor") < 1e-5


@pytest.mark.parametrize(
    "mode",
    [
        "mask",
        "remove",
        pytest.param("mask_frozen", marks=wide),
        pytest.param("remove_for_good", marks=wide),
    ],
)
def test_without_vision_the_answer_does_not_depend_on_the_image(subject, mode):
    inputs = [subject.encode(image, "what is red?", response=[5, 6]) for image in (IMAGE, OTHER)]
    before = logits(subject, inputs[0])
    with probe.drop_vision(subject, layers(subject), mode):
        first, second = (logits(subject, each)[:, -3:] for each in inputs)
        assert subject.answer(IMAGE, "what?", 4) == subject.answer(OTHER, "what?", 4)
    assert torch.equal(first, second)
    assert torch.equal(logits(subject, inputs[0]), before)
    assert not torch.equal(first, before[:, -3:])


def test_skipped_vision_is_removed_vision(subject):
    inputs = subject.encode(IMAGE, "what is red?")
    found = []
    for mode in ("mask_frozen", "remove"):
        with probe.drop_vision(subject, [0], mode):
            found.append(logits(subject, inputs)[:, -1])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_a_padded_row_is_the_row_alone(subject):
    short = subject.encode(IMAGE, "what?")
    longer = subject.encode(OTHER, "how many red circles are there in the picture?")
    for side in ("left", "right"):
        batch = collate([short, longer], side=side)
        together = logits(subject, batch)
        for row, alone in enumerate((short, longer)):
            expected = logits(subject, alone)[0]
            real = batch["attention_mask"][row].bool()
            torch.testing.assert_close(together[row][real], expected, atol=1e-4, rtol=1e-4)


def test_a_sweep_is_each_case_alone(subject):
    sample = Sample("a", image=IMAGE, question="what is red?", answer="red")
    table = probe.drop_sweep(subject, sample, [(0,)], max_new_tokens=3, progress=False)
    with probe.drop_vision(subject, [0], "mask"):
        alone = subject.answer(IMAGE, "what is red?", max_new_tokens=3)
    case = next(c for c in table["case"].values if table["dropped"].sel(case=c).sum() == 1)
    assert table["answer"].sel(case=case).item() == alone


def test_cost_counts_its_parts(subject):
    flops = probe.cost(subject)["flops"].sum("operation").squeeze()
    assert all(flops.sel(component=part) > 0 for part in ("vision_encoder", "llm"))
    between = flops.sel(component=["compressor", "projector"]).sum()
    assert between > 0


def test_after_an_exception_nothing_has_changed_also_beside_another_model():
    """Two models in one process, one of them in the middle of everything."""
    first, second = rival_models.subject("voco"), rival_models.subject("mqt_few")
    prompts = [each.encode(IMAGE, "what is red?") for each in (first, second)]
    before = [logits(first, prompts[0]), logits(second, prompts[1])]

    def interrupted():
        with probe.drop_vision(first, [0], "remove"), probe.knockout(first, "text", "vision", [1]):
            assert torch.equal(logits(second, prompts[1]), before[1])
            logits(first, prompts[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(logits(first, prompts[0]), before[0])
    assert torch.equal(logits(second, prompts[1]), before[1])


def test_mqt_attends_alike_to_every_image_and_its_figure_says_so():
    subject = rival_models.subject("mqt_few")
    shown = {"a": IMAGE, "b": OTHER}
    samples = [Sample(name, image=image, question="what?") for name, image in shown.items()]
    record = probe.measure_samples(subject, samples, max_new_tokens=2, progress=False)
    received = record["compressor"]["received"]
    np.testing.assert_allclose(received[0], received[1], atol=1e-7)
    figure = probe.plots.compression(record)
    words = " ".join(text.get_text() for text in figure.texts)
    assert "the same for every image" in " ".join(words.split())


def test_mqt_makes_as_many_tokens_as_its_prompt_has_places_for():
    subject = rival_models.subject("mqt_few")
    inputs = subject.encode([IMAGE, OTHER], "what?")
    assert subject.processor.tokens_per_image == 9 and inputs.types.vision.sum() == 18
    tokens = subject.model.vision_tokens(inputs["pixel_values"], num_visual_tokens=9)
    output = subject.model(**inputs).image_hidden_states
    torch.testing.assert_close(output, tokens.flatten(0, 1))
    assert float(probe.cost(subject, vision_tokens=4)["flops"].sum()) < float(
        probe.cost(subject, vision_tokens=64)["flops"].sum()
    )


def test_a_region_reads_its_own_patches():
    """Every patch of an image is a key of one query; the map is not one of all patches."""
    subject = rival_models.subject("tokenpacker")
    record = probe.measure(subject, IMAGE, "what?", max_new_tokens=2)
    compressor = record["compressor"].isel(sample=0)
    received = compressor["received"].squeeze().values
    assert compressor["key_count"].item() == 16 and len(received) == 64
    regions = list(
        zip(compressor["key_row"].values // 4, compressor["key_col"].values // 4, strict=True)
    )
    sums = dict.fromkeys(regions, 0.0)
    for region, value in zip(regions, received, strict=True):
        sums[region] += value
    np.testing.assert_allclose(list(sums.values()), 1, atol=1e-5)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_text_reads_the_voco_tokens_and_never_the_image(attn, tmp_path):
    """In every kernel, forward and while it answers."""
    subject = probe.load(rival_models.folder("voco", tmp_path / "voco"), attn_implementation=attn)
    record = probe.measure(subject, IMAGE, "what is red?", max_new_tokens=3, types="fine")
    mass, count = record["llm"]["mass"].isel(sample=0), record["llm"]["query_count"].isel(sample=0)
    assert count.sel(query_type="response", key_type=["vision", "bos"]).sum() == 0
    assert mass.sel(query_type="voco", key_type="vision").min() > 0
    assert mass.sel(query_type="response", key_type="voco").min() > 0
    inputs = subject.encode(IMAGE, "what is red?")
    assert inputs.types.mask("voco").sum() == 2
    # the newline between image and VoCo tokens reads the image too, and they read it
    first_phase = ("voco", "instruction")
    with probe.knockout(subject, first_phase, "vision", layers(subject), types=inputs.types):
        first = logits(subject, inputs)[:, -1]
    other = subject.encode(OTHER, "what is red?")
    with probe.knockout(subject, first_phase, "vision", layers(subject), types=other.types):
        torch.testing.assert_close(first, logits(subject, other)[:, -1])


def test_voco_prompts_are_the_authors():
    subject = rival_models.subject("voco")
    prompt = subject.encode(IMAGE, "what is red?\nred\nblue").prompt[0]
    assert prompt.startswith("<image>\n<voco><voco>\nA chat between a curious user and")
    assert prompt.endswith("USER: what is red?redblue ASSISTANT:")


def test_the_question_asks_the_frame():
    """LLaMA-VID's context token follows the question, its content tokens do not."""
    subject = rival_models.subject("llama_vid")
    prompts = [subject.encode(IMAGE, question) for question in ("what is red?", "how many?")]
    assert "".join(subject.processor.question_tokenizer.decode(prompts[0]["query_ids"][0])) == (
        "[CLS] what is red ? [SEP]"
    )
    first, second = (
        subject.model.model.vision_tokens(p["pixel_values"], p["query_ids"], p["query_mask"])[0]
        for p in prompts
    )
    assert not torch.allclose(first[0], second[0])
    torch.testing.assert_close(first[1:], second[1:])


def test_an_image_in_tiles_has_words_between_them():
    subject = rival_models.subject("tokenpacker_hd")
    comma, newline = subject.processor.separator_ids
    ids = subject.processor.tile_ids(2, 3)
    image = subject.processor.image_token_id
    per_tile = subject.processor.tokens_per_image
    words = [id for id in ids if id != image]
    assert words == [comma, comma, newline, comma, comma, newline, newline]
    assert ids.count(image) == 7 * per_tile
    assert subject.processor.cut(IMAGE, 2, 3).shape == (7, 3, 32, 32)
    inputs = subject.encode(IMAGE, "what?").as_types("fine")
    assert inputs.types.mask("marker").sum() > 0


def test_a_video_is_frames_that_the_question_asks_one_by_one():
    subject = rival_models.subject("llama_vid")
    frames = [Image.effect_noise((60, 40), 80 - 20 * i).convert("RGB") for i in range(3)]
    inputs = subject.encode(Video(frames), "what is red?")
    assert inputs["frames"].tolist() == [3] and inputs.types.vision.sum() == 3 * 5
    assert inputs.grid[0].frame.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    record = probe.measure(subject, Video(frames), "what is red?", max_new_tokens=2)
    assert record["compressor"].sizes["key"] == 16  # the mean over frames
    alone = subject.encode(frames[1], "what is red?")
    cropped = subject.processor.pixels([frames[1]], crop=True)
    asked = {name: alone[name] for name in ("query_ids", "query_mask")}
    (tokens,) = subject.model.vision_tokens(cropped, **asked)
    output = subject.model(**inputs).image_hidden_states
    torch.testing.assert_close(output[5:10], tokens)
    with probe.drop_vision(subject, layers(subject), "remove"):
        first, second = (subject.answer(Video(x), "what?", 3) for x in (frames, frames[::-1]))
    assert first == second


def test_questions_about_an_image_share_its_prefix_where_it_does_not_follow_the_question():
    shared = {}
    for name in ("mqt_few", "llama_vid"):
        subject = rival_models.subject(name)
        asked = {"a": "what is red?", "b": "how many?"}
        samples = [Sample(key, image=IMAGE, question=q) for key, q in asked.items()]
        record = probe.measure_samples(subject, samples, max_new_tokens=2, progress=False)
        alone = probe.measure_samples(
            subject, samples, max_new_tokens=2, progress=False, share=False
        )
        shared[name] = record.attrs["prefix"]
        for stack in ("vision", "compressor", "llm"):
            difference = np.abs(record[stack]["mass"] - alone[stack]["mass"]).max().item()
            assert difference < 1e-5
    assert shared["mqt_few"] == "shared by the questions about an image"
    assert "the text reads the image before the LLM" in shared["llama_vid"]
