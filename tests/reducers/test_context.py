"""`probe.reduced`: fewer tokens in a whole model, for all that can be done with it, and none of it
left afterwards.
"""

import inspect
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import llava15, llava_next_vicuna, picture
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

import probe
from probe.data.sample import Sample
from probe.hooks.model_structure import vision_positions
from probe.interventions.sweep import windows
from probe.reducers import (
    CDPruner,
    ContextualOnly,
    DivPrune,
    DominantOnly,
    DownSample,
    FastV,
    Grid,
    HiPrune,
    HoloV,
    PruMerge,
    Random,
    VisionZip,
    VisPruner,
    VScan,
    encode,
)
from probe.subject.inputs import collate

QUESTION = "what is in the picture ?"
ZIP = VisionZip(5, 3)
EACH = [
    *(ZIP, PruMerge(), PruMerge(plus=True), PruMerge(0.25), Random(4), Grid(0.5)),
    *(VisPruner(6), HoloV(5), HiPrune(7, alpha=0.8), VScan(8), DivPrune(6), DownSample(9)),
]


def subject(make=llava15, **options):
    return probe.load(*make(**options))


def logits(of, inputs):
    with torch.no_grad():
        return of.model(**inputs).logits


def refuses(model, *reducers):
    with pytest.raises(probe.ProbeError) as error, probe.reduced(model, *reducers):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("reducer", EACH, ids=repr)
def test_the_llm_reads_the_projected_tokens_and_nothing_else_changes(reducer):
    """Against a model put together by hand, from `encode`, the projector and the language model."""
    ours = subject()
    model = ours.model
    with probe.reduced(ours, reducer):
        inputs = ours.encode(picture(), QUESTION)
        found = logits(ours, inputs)
    with torch.no_grad():
        projector = model.model.multi_modal_projector
        reduction = encode(
            model.model.vision_tower, inputs["pixel_values"], reducer, projector=projector
        )
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        vision = vision_positions(model, inputs["input_ids"])
        tokens = reduction.tokens[0]
        embeds[vision] = tokens if reduction.is_projected else projector(tokens)
        expected = model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state)
    assert int(vision.sum()) == reduction.count[0] < 16 + 2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [llava15, llava_next_vicuna])
@pytest.mark.parametrize("reducer", EACH, ids=repr)
def test_inputs_from_outside_lose_their_surplus_placeholders(make, reducer):
    ours = subject(make)
    outside = [
        ours.encode(picture(), QUESTION),
        ours.encode([picture(1, 20, 60), picture(2)], "is it red ?"),
    ]
    with probe.reduced(ours, reducer):
        inside = [
            ours.encode(picture(), QUESTION),
            ours.encode([picture(1, 20, 60), picture(2)], "is it red ?"),
        ]
        for one, other in zip(outside, inside, strict=True):
            assert torch.equal(logits(ours, one), logits(ours, other))
        torch.testing.assert_close(logits(ours, collate(outside)), logits(ours, collate(inside)))


@pytest.mark.parametrize("make", [llava15, llava_next_vicuna])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "reducer", [ZIP, PruMerge(plus=True), VScan(8), DownSample(24, budget="image")], ids=repr
)
def test_a_padded_row_is_what_it_is_alone(make, side, reducer):
    ours = subject(make)
    with probe.reduced(ours, reducer):
        rows = [
            ours.encode(picture(), QUESTION),
            ours.encode([picture(1, 20, 60), picture(2)], "is it red ?"),
        ]
        together = logits(ours, collate(rows, side=side))
        for row, alone in zip(together, rows, strict=True):
            width = alone["input_ids"].shape[1]
            own = row[-width:] if side == "left" else row[:width]
            torch.testing.assert_close(own, logits(ours, alone)[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("make", [llava15, llava_next_vicuna])
def test_generate_answers_as_the_forward_does_with_beams_too(make):
    ours = subject(make)
    outside = ours.encode(picture(), QUESTION)
    with probe.reduced(ours, ZIP):
        rows = [ours.encode(picture(), QUESTION), ours.encode(picture(1, 20, 60), "is it red ?")]
        answers = [ours.generate_ids(row, 4)[0].tolist() for row in rows]
        assert [ids.tolist() for ids in ours.generate_ids(collate(rows), 4)] == answers
        assert answers[0][0] == logits(ours, rows[0])[0, -1].argmax()
        beams = [ours.generate_ids(row, 4, num_beams=2)[0].tolist() for row in rows]
        assert [ids.tolist() for ids in ours.generate_ids(collate(rows), 4, num_beams=2)] == beams
        with pytest.raises(
            probe.ProbeError, match=r"placeholders, as many as vision tokens.*inside the block"
        ):
            ours.generate_ids(outside, 4)


def test_grids_say_where_the_tokens_come_from():
    ours = subject()
    with probe.reduced(ours, ZIP):
        inputs = ours.encode([picture(0), picture(1)], "which is red ?")
    patches, grid = inputs.encoder_grid[0], inputs.grid[0]
    reduction = encode(ours.model.model.vision_tower, inputs["pixel_values"], ZIP)
    for number in (0, 1):
        own = grid.image == number
        expected = reduction.source[number].numpy() - 1 + 16 * number
        assert np.isnan(grid.box[own][0]).all()  # the class token
        np.testing.assert_array_equal(grid.box[own][1:], patches.box[expected[1:]])
        np.testing.assert_array_equal(grid.row[own][1:] * 4 + grid.col[own][1:], expected[1:] % 16)


@pytest.mark.parametrize("make", [llava15, llava_next_vicuna])
def test_records_say_which_token_each_patch_went_into(make):
    """The one patch that lies where its token does is the token's own; all patches of VisionZip are
    in some token.
    """
    ours = subject(make)
    images = [picture(1, 20, 60), picture(2)]
    with probe.reduced(ours, ZIP):
        record = probe.measure(ours, images, QUESTION, "red", stacks=["llm"], rows="text")
    llm = record["llm"].isel(sample=0)
    token, places = llm["patch_token"].values, llm["key_box"].values
    same_image = llm["key_image"].values[token] == llm["patch_image"].values
    assert same_image.all() and (token >= 0).all()
    is_own = np.isclose(places[token], llm["patch_box"].values, atol=1e-6).all(-1)
    with_place = np.flatnonzero(~np.isnan(places).any(-1))
    assert sorted(token[is_own]) == with_place.tolist()
    assert "patch_token" not in probe.measure(ours, images, QUESTION, "red", stacks=["llm"])["llm"]


def test_everything_else_works_inside():
    ours = subject()
    with probe.reduced(ours, ZIP):
        record = probe.measure(ours, picture(), QUESTION, max_new_tokens=3)
        assert record.attrs["reducer"] == repr(ZIP)
        assert record["llm"]["key_count"].sel(key_type="vision").item() == 8
        assert record["vision"]["key_count"].sel(key_type="vision").item() == 16
        inputs = ours.encode(picture(), QUESTION)
        with probe.swap_vision(ours, [1], picture(5)):
            swapped = logits(ours, inputs)
        assert not torch.equal(swapped, logits(ours, inputs))
        with probe.drop_vision(ours, [1, 2]):
            dropped = logits(ours, inputs)
    with probe.drop_vision(ours, [1, 2]), probe.reduced(ours, ZIP):  # in the other order
        assert torch.equal(logits(ours, inputs), dropped)
        assert torch.equal(logits(ours, subject().encode(picture(), QUESTION)), dropped)
    assert probe.measure(ours, picture(), QUESTION, max_new_tokens=0).attrs["reducer"] == ""


def test_a_sweep_is_each_case_alone():
    ours = subject()
    samples = [Sample(str(i), picture(i), QUESTION, answer="red") for i in range(2)]
    with probe.reduced(ours, ZIP):
        table = probe.drop_sweep(ours, samples, windows(1), max_new_tokens=2, progress=False)
        for sample in samples:
            inputs = ours.encode(sample.image, QUESTION, "red")
            places = np.flatnonzero(inputs.types.mask("response")[0])
            for case in table["case"].values:
                layers = np.flatnonzero(table["dropped"].sel(case=case)).tolist()
                with ExitStack() as dropped:
                    if layers:
                        dropped.enter_context(probe.drop_vision(ours, layers))
                    said = logits(ours, inputs)[0, places - 1].log_softmax(-1)
                alone = said.gather(1, inputs["input_ids"][0, places][:, None]).sum().item()
                if case != "another image":
                    assert (
                        abs(table["gold_logprob"].sel(sample=sample.id, case=case).item() - alone)
                        < 1e-5
                    )


def test_two_models_in_one_process():
    ours, other = subject(), subject(seed=1)
    row, before = other.encode(picture(), QUESTION), {}
    before["other"], before["ours"] = logits(other, row), logits(ours, row)
    with probe.reduced(ours, ZIP):
        assert torch.equal(logits(other, row), before["other"])
        assert other.encode(picture(), QUESTION)["input_ids"].shape == row["input_ids"].shape
        with probe.reduced(other, Random(4)):
            assert logits(other, row).shape[1] == row["input_ids"].shape[1] - 12
            assert logits(ours, row).shape[1] == row["input_ids"].shape[1] - 8
    assert torch.equal(logits(other, row), before["other"])
    assert torch.equal(logits(ours, row), before["ours"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_exception_the_model_is_what_it_was(error):
    ours = subject()
    row = ours.encode(picture(), QUESTION)
    before = logits(ours, row)

    def hooks():
        return [
            (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            for module in ours.model.modules()
        ]

    there = hooks()

    def fail(*_):
        raise error

    def interrupted():
        with probe.reduced(ours, ZIP), ExitStack() as undo:
            undo.callback(ours.model.model.multi_modal_projector.register_forward_hook(fail).remove)
            logits(ours, row)

    with pytest.raises(error):
        interrupted()
    assert hooks() == there
    assert torch.equal(logits(ours, row), before)
    assert ours.encode(picture(), QUESTION)["input_ids"].shape == row["input_ids"].shape
    assert ours.provenance()["reducer"] == ""


def test_blocks_nest_with_one_reducer_before_the_llm():
    ours, inside = subject(), FastV(1, 0.5)
    with probe.reduced(ours, ZIP, inside):
        row = ours.encode(picture(), QUESTION)
        both = logits(ours, row)
        assert ours.provenance()["reducer"] == f"{ZIP!r}; {inside!r}"
    with probe.reduced(ours, inside), probe.reduced(ours, ZIP):
        assert torch.equal(logits(ours, row), both)
    with probe.reduced(ours, ZIP):
        assert not torch.equal(logits(ours, row), both)
        assert "one reducer of the encoder's output at a time" in refuses(ours, Random(3))
        assert logits(ours, row).shape == both.shape


def test_a_reducer_is_called_with_what_it_reduces():
    ours = subject()
    for reducer in (ZIP, FastV(1, 0.5)):
        with probe.reduced(ours, reducer):
            inputs = ours.encode(picture(), QUESTION)
            expected = logits(ours, inputs)
        for model in (ours, ours.model):
            with reducer(model) as stages:
                assert ours.provenance()["reducer"] == repr(reducer)
                assert torch.equal(logits(ours, ours.encode(picture(), QUESTION)), expected)
                assert len(stages) == isinstance(reducer, FastV)
    assert ours.provenance()["reducer"] == ""


def test_features_are_reduced_where_the_models_own_method_is_called():
    """As versions of transformers do whose forward takes no encoder outputs."""
    for make in (llava15, llava_next_vicuna):
        ours = subject(make)
        inputs = ours.encode(picture(1, 20, 60), QUESTION)
        given = {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}
        methods = dict(vars(ours.model.model))
        with torch.no_grad(), probe.reduced(ours, ZIP):
            found = ours.model.get_image_features(**given)
            left = int(ours.encode(picture(1, 20, 60), QUESTION).types.vision.sum())
            assert sum(len(image) for image in found.pooler_output) == left == found.left[0]
            assert found.full[0] == int(inputs.types.vision.sum())
        assert {*vars(ours.model.model)} == {*methods}


def test_the_projector_can_be_trained_under_a_reducer():
    ours = subject()
    with probe.reduced(ours, ZIP):
        row = ours.encode(picture(), QUESTION)
        ours.model(**row, labels=row["input_ids"]).loss.backward()
    gradient = ours.model.model.multi_modal_projector.linear_1.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_a_text_without_images_passes():
    ours = subject()
    row = ours.encode(None, "is it red ?")
    with probe.reduced(ours, ZIP):
        assert torch.equal(logits(ours, ours.encode(None, "is it red ?")), logits(ours, row))


VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
IMAGE, VIDEO = 90, 91


def prompt(count, token):
    return torch.tensor([[1, 5, *[token] * count, 7, 8]])


def test_video_llava_is_reduced_frame_by_frame():
    torch.manual_seed(0)
    vision, text = {"model_type": "clip_vision_model", **VISION}, LlamaConfig(**TEXT)
    tokens = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    config = VideoLlavaConfig(vision_config=vision, text_config=text, **tokens)
    model = VideoLlavaForConditionalGeneration(config).eval()
    frames = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad(), probe.reduced(model, ZIP):
        full = torch.cat([prompt(4 * 17, VIDEO)] * 2)
        both = model(input_ids=full, pixel_values_videos=frames).logits
        fitting = model(input_ids=prompt(4 * 8, VIDEO), pixel_values_videos=frames[:1]).logits
        assert both.shape[1] == 4 + 4 * 8
        torch.testing.assert_close(both[:1], fitting, atol=1e-4, rtol=1e-5)
        image = next(iter(inspect.signature(model.model.get_image_features).parameters))
        found = model(input_ids=prompt(16, IMAGE), **{image: frames[0, :1]})
        assert found.logits.shape[1] == 4 + 8
        model.generate(
            input_ids=prompt(32, VIDEO),
            pixel_values_videos=frames[:1],
            max_new_tokens=2,
            do_sample=False,
        )
        features = model.model.get_video_features(frames[:1]).pooler_output
    with torch.no_grad():
        tokens = encode(model.model.video_tower, frames[0], ZIP).tokens
        torch.testing.assert_close(
            features, model.model.multi_modal_projector(tokens), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((64, 64), (2, 2)), ((30, 64), (1, 2)), ((64, 30), (2, 1)), ((128, 160), (4, 5))],
)
def test_onevision_orders_tiles_as_they_lie(size, tiles):
    """SigLIP, no class token; the largest image is one that the model shrinks to nine tiles' worth
    of tokens.
    """
    torch.manual_seed(0)
    pinpoints = [[32 * rows, 32 * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (4, 5))]
    vision, text = SiglipVisionConfig(**VISION), Qwen2Config(**TEXT, num_key_value_heads=2)
    tokens = {
        "image_token_index": IMAGE,
        "video_token_index": VIDEO,
        "image_grid_pinpoints": pinpoints,
    }
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, **tokens)
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    views = 1 + tiles[0] * tiles[1]
    pixels, sizes = torch.randn(1, views, 3, 32, 32), torch.tensor([size])
    with torch.no_grad(), probe.reduced(model, VisionZip(4, 2)):
        found = model.model.get_image_features(pixels, sizes)
        reduction = encode(model.model.vision_tower, pixels, VisionZip(4, 2), layer=-1)
        kept = [(reduction.kept[view] + 16 * view).tolist() for view in range(views)]
        places = [
            (
                tile // tiles[1] * 4 + patch // 4,
                tile % tiles[1] * 4 + patch % 4,
                patch + 16 * (tile + 1),
            )
            for tile in range(views - 1)
            for patch in reduction.kept[tile + 1].tolist()
        ]
        merged = [(reduction.source[view, 4:] + 16 * view).tolist() for view in range(views)]
        expected = (
            kept[0]
            + merged[0]
            + [patch for *_, patch in sorted(places)]
            + [p for own in merged[1:] for p in own]
        )
        assert found.patches[0].tolist() == expected
        assert len(found.pooler_output[0]) == 6 * views
        full = prompt(found.full[0], IMAGE)
        assert (
            model(input_ids=full, pixel_values=pixels, image_sizes=sizes).logits.shape[1]
            == 4 + 6 * views
        )
        with pytest.raises(probe.ProbeError, match="this model averages what it sees of frames"):
            model(input_ids=prompt(17, VIDEO), pixel_values_videos=torch.randn(1, 4, 3, 32, 32))
        with pytest.raises(probe.ProbeError, match="this model averages what it sees of frames"):
            model.model.get_video_features(torch.randn(1, 4, 3, 32, 32))


def test_mistakes_are_one_line(unchecked):
    ours = subject()
    assert "at least one reducer, got none" in refuses(ours)
    assert "got <class 'probe.reducers.visionzip.VisionZip'>" in refuses(ours, VisionZip)
    assert "one reducer of the encoder's output" in refuses(ours, ZIP, Random(3))
    assert "a transformers model or a Subject, got 'tiny-llava'" in refuses("tiny-llava", ZIP)
    assert "a LLaVA-like model" in refuses(ours.model.model.language_model, ZIP)
    compiled = subject().model
    compiled._compiled_call_impl = print  # what Module.compile sets
    assert "not compiled" in refuses(compiled, ZIP)
    row = ours.encode(picture(), QUESTION)
    first = int(row.types.vision[0].argmax()) + 1
    cut = {**row, **{name: row[name][:, first:] for name in ("input_ids", "attention_mask")}}
    with probe.reduced(ours, ZIP), pytest.raises(probe.ProbeError, match=r"8 placeholders.*got 15"):
        logits(ours, cut)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP whose vision tower has the width of `llava15`'s, with a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("clip")
    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "is", "it", "red", "blue", "?"])}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]"
    )
    tokenizer.save_pretrained(folder)
    vision = llava15()[0].config.vision_config.to_dict()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = small | {"vocab_size": 8, "max_position_embeddings": 6, "num_attention_heads": 2}
    torch.manual_seed(5)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    return str(folder)


def test_cdpruner_compares_patches_with_the_question(clip_folder):
    ours = subject()
    kept = {}
    for text in ("is it red ?", "blue blue blue", "is it red ? is it blue ? is it red ?"):
        with probe.reduced(ours, CDPruner(5, clip=clip_folder, text=text)):
            inputs = ours.encode(picture(), text)
        assert int(inputs.types.vision.sum()) == 5
        kept[text] = inputs.grid[0].box.tolist()
    assert kept["is it red ?"] != kept["blue blue blue"]


def test_cdpruner_needs_the_models_own_clip(clip_folder, tmp_path):
    with pytest.raises(probe.ProbeError, match="clip: the name of a CLIP model"):
        CDPruner(5, clip="", text="is it red ?")
    message = refused_while_encoding(CDPruner(5, clip=str(tmp_path), text="is it red ?"))
    assert "CLIP model with its tokenizer" in message
    narrow = llava15()[0].config.vision_config.hidden_size
    assert narrow == CLIPModel.from_pretrained(clip_folder).visual_projection.in_features


def refused_while_encoding(reducer):
    ours = subject()
    with pytest.raises(probe.ProbeError) as error, probe.reduced(ours, reducer):
        ours.encode(picture(), QUESTION)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_layer_that_the_encoder_does_not_have_is_refused_before_anything_runs():
    assert "layers of the encoder, 0 to 2" in refuses(subject(), VScan(8, shallow_layer=3))


OF_THE_IMAGE = [
    *(VisionZip(23, 7, budget="image"), VisPruner(30, budget="image")),
    *(HoloV(30, budget="image"), HiPrune(30, budget="image"), VScan(30, budget="image")),
    *(DivPrune(30, budget="image"), Random(30, budget="image"), Grid(30, budget="image")),
    *(DominantOnly(30, budget="image"), ContextualOnly(30, budget="image")),
]


@pytest.mark.parametrize("reducer", OF_THE_IMAGE, ids=repr)
def test_a_budget_is_for_all_tiles_of_an_image(reducer):
    ours = subject(llava_next_vicuna)
    with probe.reduced(ours, reducer):
        inputs = ours.encode(picture(), QUESTION)
    views = inputs["pixel_values"].shape[1]
    assert views > 1
    assert int(inputs.types.vision.sum()) == 30 // views * views


@pytest.mark.parametrize(
    "reducer", [VisionZip(5, 3, budget="image"), DownSample(9, budget="image")], ids=repr
)
def test_an_image_of_one_view_has_the_whole_budget(reducer):
    ours = subject()
    of_each_view = replace(reducer, budget="view")
    with probe.reduced(ours, reducer):
        found = logits(ours, ours.encode(picture(), QUESTION))
    with probe.reduced(ours, of_each_view):
        assert torch.equal(logits(ours, ours.encode(picture(), QUESTION)), found)


def test_views_have_outliers_of_their_own():
    towers = subject().model.model.vision_tower
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = encode(towers, pixels, PruMerge(budget="view"))
        alone = [encode(towers, view[None], PruMerge()) for view in pixels]
    assert found.count == tuple(one.count[0] for one in alone)


def test_a_shrunk_image_keeps_the_encoder_and_its_positions():
    """The encoder is run on fewer patches, with its position embeddings interpolated by itself."""
    ours = subject()
    pixels = ours.encode(picture(), QUESTION)["pixel_values"]
    tower, reducer = ours.model.model.vision_tower, DownSample(4)
    reduction = encode(tower, pixels, reducer)
    small = reducer.shrunk(pixels, tower.config.patch_size)
    assert small.shape[-1] == 2 * tower.config.patch_size
    with torch.no_grad():
        states = tower(small, output_hidden_states=True, interpolate_pos_encoding=True)
    assert torch.equal(reduction.tokens, states.hidden_states[-2][:, 1:])
    assert (reduction.source - 1).tolist() == [[5, 7, 13, 15]]
    assert (reduction.merged_into[0, 1:].view(4, 4)[:2, :2] == 0).all()


def test_all_patches_of_tiles_are_not_a_reduction_though_newlines_are_left_out():
    model, processor = llava_next_vicuna()
    subject = probe.load(model, processor=processor)
    image = picture(0, 60, 60)
    whole = int(subject.encode(image, "what?").types.vision.sum())
    with pytest.warns(UserWarning, match="nothing is reduced"), probe.reduced(subject, Random(16)):
        assert int(subject.encode(image, "what?").types.vision.sum()) < whole


def test_a_shrunk_image_is_a_reduction(recwarn):
    ours = subject(llava_next_vicuna)
    whole = int(ours.encode(picture(), QUESTION).types.vision.sum())
    with probe.reduced(ours, DownSample(4)):
        assert int(ours.encode(picture(), QUESTION).types.vision.sum()) < whole
    assert not recwarn.list
