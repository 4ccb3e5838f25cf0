"""LLaVA-Mini in the record: its four stacks against the authors' maps, whole maps, decoding, and
one by one.
"""

from typing import Any

import models
import numpy as np
import pytest
import torch
from golden_cases import COPIES, Case
from PIL import Image

import probe
from probe.data.image import Video
from probe.data.patch_grid import PatchGrid
from probe.data.sample import Sample
from probe.data.token_types import FINE, INSTRUCTION, LAST, label
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from probe.measures.attention.measure import measure, measure_samples
from probe.measures.attention.passes import forward
from probe.measures.attention.reference import difference, plain_table
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.verify import _exact, state, verify
from probe.models.llava_mini.vision import join_tiles, with_whole
from probe.records import node, validate
from probe.subject.encoding import PromptEncoder
from probe.subject.inputs import Inputs, TokenizerInfo, collate, with_response
from probe.subject.loading import load
from probe.subject.subject import Subject
from probe.subject.token_grid import encoder_grid, joined, vision_grid

GOLDEN = COPIES / "llava_mini"
TOLERANCE = 1e-5
QUESTION = "what is in the picture?"
NAMES = ("mass", "share", "lift", "entropy", "head_entropy", "received")
TWO = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}],
    }
]


def subject_of(**options) -> Subject:
    model, processor = models.llava_mini(**options)
    return load(model, processor=processor)


@pytest.fixture(scope="module")
def subject():
    return subject_of(frames_per_chunk=2)


@pytest.fixture(scope="module")
def hd():
    return subject_of(ratio=2, llama3=True)


def image(seed=0, width=70, height=50):
    return models.picture(seed, width, height)


def tables(measured, names=NAMES):
    """The table of each layer of one sample's node."""
    for layer in range(measured.sizes["layer"]):
        yield {name: measured[name].isel(layer=layer).values for name in names}


# ------------------------------------------------------------------------------------------------
# the authors' maps


@pytest.fixture(scope="module")
def golden():
    """The authors' probe case as a subject and inputs: it has ids and pixels, but neither words nor
    an image.
    """
    case = Case(GOLDEN / "std_c1_p4_llama3.json")
    subject = Subject(case.model, None, "authors", "golden", "crop")
    ids = case.inputs["input_ids"][0].numpy()
    role = np.full(len(ids), INSTRUCTION)
    role[-1] = LAST
    side = case.model.config.patches_per_side
    row, col = (axis.ravel() for axis in np.indices((side, side)))
    patches = PatchGrid(
        0 * row, 0 * row, row, col, np.stack([col, row, col + 1, row + 1], -1) / side
    )
    zero = np.zeros(1, int)
    cell = PatchGrid(zero, zero, zero, zero, np.array([[0.0, 0.0, 1.0, 1.0]]))
    types = label(role, 0 * role, ids == case.model.config.image_token_id)
    vocabulary = TokenizerInfo(None, (), 0, (case.model.config.image_token_id,), 128)
    inputs = Inputs(
        dict(case.inputs),
        types=types,
        grid=[cell],
        encoder_grid=[patches],
        images=[()],
        frames=[(1,)],
        prompt=[""],
        response=[""],
        vocabulary=vocabulary,
    )
    return case.tensors, subject, inputs


@pytest.mark.parametrize("stack", ["compressor", "prefusion", "llm"])
def test_the_record_equals_the_authors_maps(golden, stack):
    tensors, subject, inputs = golden
    (nodes,), _ = forward(subject, inputs, stacks(subject.model))
    measured = nodes[stack]
    patches, words = 16, inputs["input_ids"].shape[1]
    if stack == "compressor":
        ids, names, visible = (
            np.ones(patches, int),
            ("compressed", "vision"),
            torch.ones(1, patches).bool(),
        )
        plain = [
            plain_table(
                tensors["attn.compressor_per_head"][0],
                visible,
                names,
                ids,
                np.zeros(1, int),
                ids == 1,
            )
        ]
        plain = [
            {
                name: t[..., :1, :] if name == "received" else t[..., :1, 1:]
                for name, t in plain[0].items()
            }
        ]
        expected = tensors["enc0.compressor_attn_headmean"][0, 0].numpy()
        np.testing.assert_allclose(measured["received"][0, 0, 0], expected, atol=TOLERANCE)
    elif stack == "llm":
        types, visible = inputs.types, torch.ones(words, words).tril().bool()
        plain = [
            plain_table(
                tensors[f"attn.llm_layer{layer}"][0],
                visible,
                types.names,
                types.ids[0],
                types.ids[0],
                types.vision[0],
            )
            for layer in range(3)
        ]
    else:
        names = tuple(measured["query_type"])
        vision = np.arange(patches + 1 + words) < patches
        ids = np.where(vision, names.index("vision"), names.index("instruction"))
        ids[patches] = names.index("compressed")
        ids[~tensors["enc0.prefusion_key_mask"][0].bool().numpy()] = -1  # the placeholder
        assert (ids == -1).sum() == 1
        visible = tensors["enc0.prefusion_visible_4d"][0, 0].bool()
        asked = [
            ids,
            ids,
            ids,
            np.where(vision, -1, ids),
        ]  # vision rows of the last layer are never computed
        plain = [
            plain_table(
                tensors[f"attn.prefusion_layer{layer}_attn"][0],
                visible,
                names,
                ids,
                asked[layer],
                vision,
            )
            for layer in range(4)
        ]
    got = [{name: measured[name][0, layer] for name in plain[0]} for layer in range(len(plain))]
    assert max(difference(a, b) for a, b in zip(got, plain, strict=True)) < TOLERANCE


def test_hd_of_64_queries_equals_the_authors_compression_map():
    case = Case(GOLDEN / "hd_c8_p1_vicuna.json")
    ((name, module),) = stacks(case.model)["compressor"].attention.items()
    seen: list[Any] = []
    with torch.no_grad(), tap({name: module}, seen.append):
        case.model(**case.inputs)
    sizes = [(56, 56)] * len(case.inputs["pixel_values"])
    grid = encoder_grid(case.model, models.llava_mini(ratio=2)[1], sizes, "crop")
    inputs = Inputs(
        {**case.inputs, "input_ids": case.inputs["input_ids"][:, :1]},  # types of one token
        types=label(np.array([LAST]), np.array([0]), np.array([False])),
        grid=[grid],
        encoder_grid=[grid],
        images=[()],
        frames=[(1,) * len(sizes)],
        prompt=[""],
        response=[""],
        vocabulary=TokenizerInfo(None, (), 0, (0,), 0),
    )
    counted = stack_statistics(Subject(case.model, None, "", "", "crop"), inputs, ["compressor"])[
        "compressor"
    ]
    counted.statistic(seen[0])
    expected = case.tensors["enc0.compressor_attn_headmean"][0].numpy()
    assert expected.shape == (64, 64)
    np.testing.assert_allclose(counted.statistic.table(name, [0])["maps"], expected, atol=TOLERANCE)


# --------------------------------------------------------------------------------------------------
# promises


@pytest.mark.parametrize("options", [{"ratio": 2}, {"compressor_size": 5}], ids=str)
def test_promises_are_kept(options):
    """C = 5 has more queries than there are patches."""
    report = verify(subject_of(**options), image(), "what?")
    assert report.passed, report.appendix
    assert {"statistic of pre-fusion against whole maps"} <= {check.name for check in report.checks}


def test_logits_are_bit_identical_and_the_model_is_restored(hd):
    inputs = hd.encode(image(), QUESTION, "a red circle")
    with torch.no_grad():
        response = inputs["input_ids"].shape[1] - int(inputs.types.prompt_length[0])
        kept = response + 1  # logits that predict the answer, and the last
        plain = hd.model(**inputs, use_cache=False, logits_to_keep=kept).logits
    before, found = state(hd.model), stacks(hd.model)
    seen = []
    handle = hd.model.register_forward_hook(lambda module, args, output: seen.append(output.logits))
    record = measure(
        hd, image(), QUESTION, "a red circle", maps="heads", contribution=True, received_head=True
    )
    handle.remove()
    assert torch.equal(seen[-1], plain) and state(hd.model) == before
    assert validate(record) is record and set(record.children) == set(found)
    assert node(record, "compressor")["maps"].shape == (1, 1, 8, 4, 64), (
        "(sample, layer, head, query, patch)"
    )


def test_whole_maps_of_two_images_in_a_padded_batch(subject):
    rows = [
        with_response(subject.encode([image(1), image(2)], TWO), [9, 8, 7]),
        with_response(subject.encode(image(3), QUESTION), [9]),
    ]
    for side in ("left", "right"):
        batch = collate(rows, side=side)
        for stack in ("vision", "compressor", "prefusion", "llm"):
            assert _exact(subject, batch, stack).passed, (side, stack)


# --------------------------------------------------------------------------------------------------
# responses


def test_response_rows_equal_cached_decoding():
    """The model's own generate, step by step, from the maps that it returns; and it needs the fuse
    mask for that.
    """
    subject = subject_of(attn="eager")
    prompt = subject.encode(image(), QUESTION)
    generate: Any = subject.model.generate
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    steps = generate(**prompt, **options, output_attentions=True, return_dict_in_generate=True)
    ids = steps.sequences[0, prompt["input_ids"].shape[1] :]
    inputs = with_response(prompt, ids)
    types = np.append(prompt.types.ids[0], [2] * 6)

    def off(inputs: Inputs) -> float:
        (nodes,), _ = forward(subject, inputs, {"llm": stacks(subject.model)["llm"]})
        worst = []
        for layer in range(3):
            rows = [step[layer][0, :, 0].double().numpy() for step in steps.attentions[1:]]
            mass = np.mean(
                [[row[:, types[: row.shape[-1]] == b].sum(-1) for b in range(3)] for row in rows], 0
            )
            worst.append(np.abs(np.nan_to_num(nodes["llm"]["mass"][0, layer, :, 2]) - mass.T).max())
        return max(worst)

    assert inputs["fuse_mask"][0].tolist() == [True] * len(prompt.types.ids[0]) + [False] * 6
    assert off(inputs) < TOLERANCE
    fused = inputs.having({name: tensor for name, tensor in inputs.items() if name != "fuse_mask"})
    assert off(fused) > 100 * TOLERANCE


def test_a_response_of_words_is_hidden_like_one_of_ids(subject):
    words = subject.encode(image(), QUESTION, "a red circle")
    length = subject.encode(image(), QUESTION)["input_ids"].shape[1]
    assert words["fuse_mask"][0].tolist() == [
        i < length for i in range(words["input_ids"].shape[1])
    ]
    record = measure(subject, image(), QUESTION, "a red circle")
    assert (
        "response" not in node(record, "prefusion")["key_type"]
        and "response" in node(record, "llm")["key_type"]
    )


# -------------------------------------------------------------------------------------------------
# what is counted


def test_pre_fusion_counts_what_it_reads(subject):
    record = measure(subject, image(), QUESTION, "a red circle")
    measured, words = node(record, "prefusion").isel(sample=0), subject.encode(image(), QUESTION)
    count = dict(zip(measured["key_type"].values, measured["key_count"].values, strict=True))
    assert count == {"instruction": int((~words.types.vision).sum()), "vision": 16, "compressed": 4}
    queries = measured["query_count"].max("key_type")
    assert queries.sel(query_type="vision").values.tolist() == [16, 0], (
        "the last layer never computes those rows"
    )
    assert queries.sel(query_type="instruction").values.tolist() == [count["instruction"]] * 2
    assert measured["mass"].sel(query_type="vision", layer=1).isnull().all()
    assert measured["received"].sizes["key"] == 16


def test_hidden_words_are_no_keys(subject):
    inputs = subject.encode(image(), QUESTION)
    ids = inputs["input_ids"].clone()
    ids[0, -2] = 0  # never fused, whatever it means
    hidden = inputs.having({**inputs, "input_ids": ids})
    found = {"prefusion": stacks(subject.model)["prefusion"]}
    counts = [
        forward(subject, one, found)[0][0]["prefusion"]["key_count"][0].tolist()
        for one in (inputs, hidden)
    ]
    assert counts[1] == [counts[0][0] - 1, *counts[0][1:]]
    assert _exact(subject, hidden, "prefusion").passed


def test_fine_types_and_types_of_ones_own(subject):
    fine = node(measure(subject, image(), QUESTION, "a", types="fine"), "prefusion")
    assert fine["key_type"].values.tolist() == [
        *(name for name in FINE if name != "response"),
        "compressed",
    ]
    assert int(fine["query_count"].sel(query_type="last").max()) == 1
    prompt = subject.encode(image(), QUESTION)
    word = np.arange(prompt["input_ids"].shape[1]) == prompt["input_ids"].shape[1] - 2
    own = node(measure(subject, image(), QUESTION, "a", types={"word": word}), "prefusion")
    assert int(own["key_count"].sel(key_type="word").item()) == 1


def test_a_batch_equals_one_by_one_and_words_alone_are_not_fused(subject):
    """With a text-only sample, and two images in a prompt; three frames to a batch of chunks of
    two.
    """
    samples = [
        Sample("one", image(), QUESTION),
        Sample("two", (image(1), image(2)), TWO),
        Sample("none", None, "where is it?"),
        Sample("three", image(3), "and what about this?"),
    ]
    together = measure_samples(subject, samples, max_new_tokens=3, batch_tokens=10**6)
    for i, sample in enumerate(samples):
        alone = measure_samples(subject, [sample], max_new_tokens=3)
        assert (
            alone.to_dataset()["response"].values[0] == together.to_dataset()["response"].values[i]
        )
        for stack in alone.children:
            one, many = node(alone, stack).isel(sample=0), node(together, stack).isel(sample=i)
            keys = one.sizes.get("key", 0)
            many = many.isel(key=slice(0, keys))
            for a, b in zip(tables(one), tables(many), strict=True):
                assert difference(a, b) < TOLERANCE, (sample.id, stack)
    assert node(together, "prefusion")["mass"].isel(sample=2).isnull().all()
    both = node(together, "prefusion").isel(sample=1)
    words = int(both["key_count"].sel(key_type="instruction"))
    assert (
        both["query_count"].sel(query_type="instruction", key_type="vision", layer=0) == 2 * words
    ), "read twice"
    assert (both["key_image"].values[:32] == [0] * 16 + [1] * 16).all()


def test_frames_of_a_video_are_pooled(subject):
    """Three frames in chunks of two: as the images alone, on average; the LLM has cells of each."""
    frames = tuple(image(seed, 32, 32) for seed in range(3))
    inputs = subject.encode(Video(frames), QUESTION)
    assert (
        len(inputs.grid[0]) == 12 and inputs.grid[0].image.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    assert (
        len(inputs.encoder_grid[0]) == 16
        and inputs.grid[0].box[4:8].tolist() == inputs.grid[0].box[:4].tolist()
    )
    record = measure(subject, Video(frames), QUESTION, "a")
    alone = [measure(subject, frame, QUESTION, "a") for frame in frames]
    for stack in ("vision", "compressor", "prefusion"):
        for name in (
            "mass",
            "lift",
            "entropy",
            "received",
            *(["maps"] if stack == "compressor" else []),
        ):
            expected = np.mean([node(one, stack)[name].values for one in alone], 0)
            np.testing.assert_allclose(
                node(record, stack)[name].values, expected, atol=TOLERANCE, err_msg=name
            )
    words = int(node(record, "prefusion")["key_count"].sel(key_type="instruction").item())
    assert (
        node(record, "prefusion")["query_count"]
        .sel(query_type="instruction", key_type="vision")
        .max()
        == 3 * words
    )
    both = collate([inputs, subject.encode(Video(frames[:2]), "where?")])
    assert _exact(subject, both, "llm").passed
    rows = stack_statistics(subject, both, ["prefusion"])["prefusion"]
    assert (rows.rows, rows.statistic.order) == ([[0], [1]], [0, 0, 0, 1, 1])
    plain, processor = models.llava15()
    with pytest.raises(ProbeError, match="model that takes videos"):
        load(plain, processor=processor).encode(Video(frames), QUESTION)
    with pytest.raises(ProbeError, match="at least one frame"):
        subject.encode(Video(()), QUESTION)


def test_variants(tmp_path):
    for options, expected in (
        ({"compressor_size": 0}, {"llm", "prefusion", "vision"}),
        ({"num_prefusion_layers": 0}, {"llm", "compressor", "vision"}),
        ({"fusion": "paper"}, {"llm", "compressor", "prefusion", "vision"}),
        ({"compression": "none", "ratio": 2}, {"llm", "prefusion", "vision"}),
    ):
        subject, samples = (
            subject_of(**options),
            [Sample("a", image(), QUESTION), Sample("b", None, "what?")],
        )
        record = measure_samples(subject, samples, response="a")
        assert set(record.children) == expected
        if "prefusion" in expected:
            assert _exact(subject, subject.encode(image(), QUESTION), "prefusion").passed
    probe.save_record(record, tmp_path / "record.zarr.zip")
    assert probe.open_record(tmp_path / "record.zarr.zip").identical(record)
    assert len(probe.to_dataframe(record)) > 0


def test_fusion_inside_the_llm_is_refused_in_one_line():
    """The LLM's first layers read another sequence than the others; what comes before it is
    measured as ever.
    """
    subject = subject_of(fusion="in_llm")
    with pytest.raises(
        ProbeError, match=r"the \d+ tokens that were encoded, got \d+ keys in .*layers.0.self_attn"
    ):
        measure(subject, image(), QUESTION, "a")
    record = measure(subject, image(), QUESTION, "a", stacks=["vision", "compressor"])
    assert set(record.children) == {"vision", "compressor"}
    with pytest.raises(ProbeError, match="stacks of vision, compressor, llm, got prefusion"):
        measure(subject, image(), QUESTION, stacks=["prefusion"])


# --------------------------------------------------------------------------------------------------
# the image


@pytest.mark.parametrize(
    ("ours", "theirs"), [("crop", "square"), ("pad", "pad"), ("pad", "square")]
)
@pytest.mark.parametrize("size", [(320, 200), (97, 401)])
def test_painting_inside_a_box_changes_that_patch_most(ours, theirs, size):
    """Padded view by view by the processor, or ("pad", "square") by ourselves before the image is
    split.
    """
    model, processor = models.llava_mini(ratio=2, aspect=theirs)
    subject = load(model, processor=processor, aspect=ours)

    encoder = PromptEncoder(model, processor, subject.aspect, subject.exif, subject.vocabulary)

    def pixels(shown: Image.Image) -> torch.Tensor:
        return processor.pixels(encoder._padded(shown))

    grid, blank = encoder_grid(model, processor, [size], ours), Image.new("RGB", size, "black")
    assert grid.tile[::16].tolist() == [1, 2, 3, 4, 0]
    before, boxes = pixels(blank), grid.box.clip(0, 1)
    area = (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)
    visible = np.flatnonzero(
        area > 0.4 * area[16 * np.arange(5).repeat(16) + 5]
    )  # of a patch in the same view
    for key in np.random.default_rng(0).permutation(visible)[:16]:
        left, top, right, bottom = np.round(boxes[key] * [*size, *size]).astype(int).tolist()
        painted = blank.copy()
        painted.paste("white", (left, top, max(right, left + 1), max(bottom, top + 1)))
        changed = (pixels(painted) - before)[key // 16].abs().sum(0).reshape(4, 8, 4, 8).sum((1, 3))
        assert divmod(int(changed.argmax()), 4) == (grid.row[key], grid.col[key])


def test_patches_are_in_the_order_in_which_the_model_reads_them():
    model, processor = models.llava_mini(ratio=2, compression="none")
    sizes = [(70, 50), (30, 60)]
    patches = encoder_grid(model, processor, sizes, "crop")
    coordinates = torch.tensor(patches.box).reshape(2, 5, 16, 4)
    expected = with_whole(join_tiles(coordinates), coordinates).reshape(-1, 4)
    np.testing.assert_array_equal(joined(patches).box, expected)
    np.testing.assert_array_equal(vision_grid(model, processor, sizes, "crop").box, expected)


def test_compressed_tokens_are_cells_of_what_is_compressed(hd):
    grid = vision_grid(hd.model, hd.processor, [(100, 50)], "crop")
    assert (grid.row.tolist(), grid.col.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])
    np.testing.assert_allclose(
        grid.box[0], [0.125, 0, 0.5, 0.5]
    )  # tiles of 50 x 25: their middle 25 x 25
    none = models.llava_mini(compressor_size=0)
    assert len(vision_grid(*none, [(100, 50)], "crop")) == 0


def test_a_image_too_small_to_split_is_refused_in_one_line(hd):
    with pytest.raises(ProbeError, match="at least 2 x 2 pixels"):
        hd.encode(image(0, 1, 30), QUESTION)


def test_words_are_tokenized_piece_by_piece(hd):
    """The placeholder's id is no id of the tokenizer, and text behind it begins like a new text."""
    inputs = hd.encode(image(), QUESTION, types="fine")
    assert (
        hd.processor.image_token_id
        == len(hd.processor.tokenizer)
        == hd.model.config.text_config.vocab_size
    )
    names = np.array(inputs.types.names)[inputs.types.ids[0]]
    assert names[0] == "bos" and names[-1] == "last" and (names == "vision").sum() == 4
    words = [
        token for token, name in zip(inputs.tokens[0], names, strict=True) if name == "instruction"
    ]
    assert QUESTION in "".join(words)


# --------------------------------------------------------------------------------------------------
# figures


def test_the_compression_map(hd, subject):
    record = measure(hd, image(), QUESTION, "a")
    figure = probe.plots.compression(record)
    original, *maps, _ = figure.axes
    assert len(maps) == 5 and original.get_title() == "image"
    drawn = maps[0].collections[0].get_array()
    assert drawn.shape == (64,) and float(drawn.sum()) == pytest.approx(1, abs=1e-5), (
        "sub-images together"
    )
    assert figure.texts or figure._suptitle
    assert [axis.get_title() for axis in maps[:2]] == ["mean of 4 queries", "row 1, column 1"]
    two = measure_samples(subject, [Sample("two", (image(1), image(2)), TWO)], response="a")
    # of each image the image itself, the mean and four queries; and the colour bar
    assert len(probe.plots.compression(two).axes) == 2 * 6 + 1
    assert len(probe.plots.compression(two, image=1).axes) == 6 + 1
    alone = measure(hd, image(), QUESTION, "a", stacks=["compressor"])
    assert list(probe.plots.figures(alone)) == ["compressor-compression"]
    with pytest.raises(ProbeError, match="stack of llm, got 'compressor'"):
        probe.plots.compression(measure(hd, image(), QUESTION, "a", stacks=["llm"]))
