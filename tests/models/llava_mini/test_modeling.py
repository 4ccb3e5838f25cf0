"""LLaVA-Mini against itself: every shortcut equals the plain way, every batch equals its rows,
every variant runs.
"""

import gc
import warnings
import weakref
from contextlib import contextmanager

import pytest
import torch
from llava_mini_models import IMAGE, batch, build, ids, pixels
from torch import nn
from torch.func import functional_call
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForImageTextToText
from transformers.masking_utils import flash_attention_mask

from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks, vision_positions
from probe.models.llava_mini.compressor import sincos_table
from probe.models.llava_mini.vision import join_tiles

VARIANTS = [
    {"compressor_size": 0},
    {"num_prefusion_layers": 0},
    {"compression": "average"},
    {"compression": "none"},
    {"fusion": "in_llm"},
    {"fusion": "in_llm", "compression": "average"},
    {"fusion": "paper"},
    {"compression": "none", "fusion": "paper"},
    {"compressor_size": 4},
]


@pytest.fixture(scope="module")
def model():
    return build()


@torch.no_grad()
def logits(model, **inputs):
    return model(**inputs).logits


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max().item() <= tolerance


# ------------------------------------------------------------------------------------------
# shortcuts are exact


@pytest.mark.parametrize("views", [1, 5])
@pytest.mark.parametrize("variant", [{}, {"compression": "none"}, {"fusion": "paper"}])
def test_vision_rows_as_a_prefix_equal_all_rows(views, variant):
    model = build(**variant)
    row = torch.tensor([[1, 5, 6, *[IMAGE] * model.config.tokens_per_frame(views), 7, 8]])
    fast = logits(model, input_ids=row, pixel_values=pixels(1, views))
    model.train().gradient_checkpointing_enable()  # computes all rows of all layers
    close(fast, logits(model, input_ids=row, pixel_values=pixels(1, views)))


def test_an_encoded_image_serves_many_questions(model):
    image, other = pixels(2, 5)
    encoded = [model.encode_image(image), model.encode_image(other)]
    assert encoded[0].num_tokens == 4
    rows = ids(1, 5, "image", 6), ids(1, "image", 7, 8, 9, 10), ids(1, 4, 4)
    for row in rows[:2]:
        close(
            logits(model, input_ids=row, vision=encoded[:1]),
            logits(model, input_ids=row, pixel_values=image[None]),
        )
    both = batch(*rows)
    close(
        logits(model, **both, vision=encoded),
        logits(model, **both, pixel_values=torch.stack([image, other])),
    )
    generated = [
        model.generate(**both, **given, max_new_tokens=4)
        for given in ({"vision": encoded}, {"pixel_values": torch.stack([image, other])})
    ]
    assert torch.equal(*generated)


def test_a_single_view_may_leave_its_axis_out(model):
    row, image = ids(1, 5, "image", 6), pixels(1, 1)
    expected = logits(model, input_ids=row, pixel_values=image)
    assert torch.equal(expected, logits(model, input_ids=row, pixel_values=image[:, 0]))
    for given in (image[0], image[0, 0], iter([image[0, 0]])):
        close(logits(model, input_ids=row, vision=[model.encode_image(given)]), expected)


def test_frames_of_a_long_video_are_let_go(model):
    """However many there are, only two chunks of frames are alive at a time."""
    alive, most = set(), []

    def frames(count):
        for values in pixels(count, 1):
            owner = values.clone()
            alive.add(id(owner))
            weakref.finalize(owner, alive.discard, id(owner))
            most.append(len(alive))
            yield owner
            del owner

    peaks = {}
    for count in (40, 80):
        most.clear()
        model.encode_image(frames(count), input_ids=ids(1, 5, "image", 6), keep_frames=4)
        peaks[count] = max(most)
    assert peaks[80] == peaks[40] <= 2 * model.config.frames_per_chunk + 1


def test_a_long_video_keeps_only_its_tokens(model):
    frames, row = pixels(11, 1), ids(1, 5, ("video", 11), 6, 7)
    expected = logits(model, input_ids=row, pixel_values_videos=frames[None])
    prompt = torch.tensor([1, 5, IMAGE, 6, 7])
    encoded = model.encode_image(iter(frames), input_ids=prompt, keep_frames=2)
    assert not encoded.seen and encoded.num_tokens == 44
    close(logits(model, input_ids=row, vision=[encoded]), expected)
    answer = model.generate(input_ids=row, vision=[encoded], max_new_tokens=3)
    assert torch.equal(
        answer, model.generate(input_ids=row, pixel_values_videos=frames[None], max_new_tokens=3)
    )
    longer = torch.cat([row, torch.tensor([[8, 9]])], 1)
    hide = torch.ones_like(row)
    close(
        logits(model, input_ids=longer, vision=[encoded], fuse_mask=hide),
        logits(model, input_ids=longer, pixel_values_videos=frames[None], fuse_mask=hide),
    )
    with pytest.raises(ValueError, match="expected the prompt that a long video was encoded with"):
        logits(model, input_ids=ids(1, 9, ("video", 11), 6), vision=[encoded])
    kept = model.encode_image(iter(frames))
    close(logits(model, input_ids=row, vision=[kept]), expected)


def test_memory_grows_by_one_token_a_frame(model):
    """Three hours at a frame a second are 10,800 frames; what is alive is measured on the way
    through a few hundred.
    """
    row, alive = torch.tensor([1, 5, IMAGE, 6]), {}

    def frames(count):
        for i in range(count):
            if i in (100, 300):
                alive[i] = tensor_memory()
            yield pixels(1, seed=i)

    encoded = model.encode_image(frames(301), input_ids=row)
    assert encoded.tokens.shape == (301, 4, 48)
    assert (alive[300] - alive[100]) / 200 == pytest.approx(
        4 * 48 * 4, rel=0.02
    )  # bytes of a frame's four tokens


def tensor_memory():
    """Bytes of all tensors that are alive, whoever holds them."""
    gc.collect()
    with warnings.catch_warnings(action="ignore"):  # some modules warn when they are looked at
        storages = [
            x.untyped_storage()
            for x in gc.get_objects()
            if isinstance(x, torch.Tensor) and not x.is_meta
        ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("size", [0, 2])
def test_a_video_of_no_frame_and_of_one(size):
    model = build(compressor_size=size)
    with pytest.raises(ValueError, match="at least one frame"):
        model.encode_image(iter([]))
    with pytest.raises(ValueError, match="videos of at least one frame, got none"):
        model(input_ids=ids(1, 6), pixel_values_videos=pixels(1, 0, 1))
    row = ids(1, "image", 6, model=model)
    close(
        logits(model, input_ids=row, pixel_values_videos=pixels(1, 1, 1)),
        logits(model, input_ids=row, pixel_values=pixels(1, 1)),
    )


# ------------------------------------------------------------------------------------------
# batches and rows


@pytest.mark.parametrize("fusion", ["released", "in_llm"])
def test_a_batch_equals_its_rows_on_either_side(fusion):
    model = build(fusion=fusion)
    rows, images = (ids(1, 5, "image", 6), ids(1, "image", 7, 8, 9, 10)), pixels(2, 1)
    for left in (True, False):
        both = batch(*rows, left=left)
        together = logits(model, **both, pixel_values=images)
        answers = model.generate(**both, pixel_values=images, max_new_tokens=4, min_new_tokens=4)[
            :, both["input_ids"].shape[1] :
        ]
        for i, row in enumerate(rows):
            alone = logits(model, input_ids=row, pixel_values=images[i : i + 1])[0]
            close(together[i][both["attention_mask"][i].bool()], alone)
            answer = model.generate(
                input_ids=row, pixel_values=images[i : i + 1], max_new_tokens=4, min_new_tokens=4
            )
            assert torch.equal(answers[i], answer[0, row.shape[1] :])


def test_a_static_cache_generates_the_same(model):
    both, images = batch(ids(1, 5, "image", 6), ids(1, "image", 7, 8, 9, 10)), pixels(2, 1)
    options = {**both, "pixel_values": images, "max_new_tokens": 4, "min_new_tokens": 4}
    assert torch.equal(
        model.generate(**options), model.generate(**options, cache_implementation="static")
    )


def test_images_videos_and_words_in_one_batch(model):
    image, videos = pixels(1, 1), pixels(2, 3, 1, seed=1)
    rows = ids(1, ("video", 2), 6), ids(1, "image", 7, 8), ids(1, 9, 9), ids(1, 3, ("video", 3), 4)
    both = batch(*rows)
    together = logits(model, **both, pixel_values=image, pixel_values_videos=videos)
    changed = videos.clone()
    changed[0, 2] = 9.0  # padding: the first video has two frames
    assert torch.equal(
        together, logits(model, **both, pixel_values=image, pixel_values_videos=changed)
    )
    inputs = [
        {"pixel_values_videos": videos[:1, :2]},
        {"pixel_values": image},
        None,
        {"pixel_values_videos": videos[1:]},
    ]
    for i, (row, given) in enumerate(zip(rows, inputs, strict=True)):
        if (
            given is None
        ):  # words among images are fused with an all-zero image; the model needs one to do so
            other = batch(row, ids(1, "image", 5))
            alone = logits(model, **other, pixel_values=image)[0][other["attention_mask"][0].bool()]
        else:
            alone = logits(model, input_ids=row, **given)[0]
        close(together[i][both["attention_mask"][i].bool()], alone)


def test_words_without_any_image_are_the_plain_llm(model):
    row = ids(1, 5, 6)
    embeds = model.get_input_embeddings()(row)
    assert torch.equal(logits(model, input_ids=row), logits(model, inputs_embeds=embeds))


def test_several_images_in_a_prompt_are_averaged(model):
    images, row = pixels(2, 1), ids(1, 5, "image", 6, "image", 7)
    merged, tokens = model.model.merge(row, images)
    alone = [model.model.merge(ids(1, 5, "image", 6, 7), image[None]) for image in images]
    words = [0, 1, 6, 11]
    close(merged[0, words], (alone[0][0] + alone[1][0])[0, [0, 1, 6, 7]] / 2)
    close(tokens, torch.cat([alone[0][1], alone[1][1]]))
    beams = model.generate(
        **batch(row, ids(1, "image", 3)), pixel_values=pixels(3, 1), num_beams=2, max_new_tokens=3
    )
    single = model.generate(
        input_ids=row, pixel_values=pixels(3, 1)[:2], num_beams=2, max_new_tokens=3
    )
    assert torch.equal(beams[0], single[0])


# ------------------------------------------------------------------------------------------
# responses


def test_a_hidden_response_equals_decoding(model):
    row, image = ids(1, 5, "image", 6, 7), pixels(1, 1)
    out = model.generate(
        input_ids=row,
        pixel_values=image,
        max_new_tokens=5,
        output_logits=True,
        return_dict_in_generate=True,
    )
    forced = logits(
        model, input_ids=out.sequences, pixel_values=image, fuse_mask=torch.ones_like(row)
    )
    close(forced[0, row.shape[1] - 1 : -1], torch.stack(out.logits, 1)[0])
    slow = model.generate(input_ids=row, pixel_values=image, max_new_tokens=5, use_cache=False)
    assert torch.equal(slow, out.sequences)
    fused = logits(model, input_ids=out.sequences, pixel_values=image)
    assert (fused - forced).abs().max() > 1e-3


def test_labels_hide_what_they_teach_and_placeholders_teach_nothing(model):
    row = ids(1, 5, "image", 6, 7, 8)
    labels = torch.full_like(row, -100)
    labels[0, -2:] = row[0, -2:]
    out = model(input_ids=row, pixel_values=pixels(1, 1), labels=labels)
    forced = logits(model, input_ids=row, pixel_values=pixels(1, 1), fuse_mask=labels == -100)
    close(out.logits.detach(), forced)
    expected = torch.nn.functional.cross_entropy(forced[0, -3:-1], row[0, -2:])
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("video", [False, True])
def test_gradients_reach_everything(video, checkpointing):
    model = build()
    if checkpointing:
        model.train().gradient_checkpointing_enable()
    row = ids(1, 5, ("video", 3) if video else "image", 6, 7)
    images = {"pixel_values_videos": pixels(1, 3, 1)} if video else {"pixel_values": pixels(1, 1)}
    labels = torch.where(torch.arange(row.shape[1]) == row.shape[1] - 1, row, -100)
    model(input_ids=row, labels=labels, **images).loss.backward()
    unused = ("vision_tower.post_layernorm", "vision_tower.encoder.layers.2", "k_proj.bias")
    dead = [
        name
        for name, p in model.named_parameters()
        if not any(part in name for part in unused) and (p.grad is None or not p.grad.any())
    ]
    assert not dead
    reference = build()
    reference(input_ids=row, labels=labels, **images).loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-5), name


# ------------------------------------------------------------------------------------------
# variants


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variants_run_generate_and_reload(tmp_path, variant):
    model = build(**variant)
    tokens = model.config.image_seq_length
    row = ids(1, 5, "image", 6, tokens=tokens)
    first = logits(model, input_ids=row, pixel_values=pixels(1, 1))
    assert (
        first - logits(model, input_ids=row, pixel_values=pixels(1, 1, seed=5))
    ).abs().max() > 1e-4  # it looks
    if model.config.fusion != "in_llm":
        close(first, logits(model, input_ids=row, vision=[model.encode_image(pixels(1))]))
    out = model.generate(input_ids=row, pixel_values=pixels(1, 1), max_new_tokens=3)
    assert torch.equal(
        out,
        model.generate(input_ids=row, pixel_values=pixels(1, 1), max_new_tokens=3, use_cache=False),
    )
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(first, logits(again, input_ids=row, pixel_values=pixels(1, 1)))


@pytest.mark.parametrize("variant", [{}, *VARIANTS], ids=str)
def test_padded_videos_in_hd_equal_each_alone(variant):
    """Whatever the variant: rows padded on either side, sub-images, and a video shorter than the
    other.
    """
    model = build(**variant)
    tokens, videos = model.config.tokens_per_frame(views=5), pixels(2, 3, 5)
    frames = (
        (2, 3) if tokens else (3, 3)
    )  # without tokens nothing in the prompt says how many frames are padding
    rows = [
        ids(1, ("video", frames[0]), 6, tokens=tokens),
        ids(1, 7, ("video", 3), 8, 9, tokens=tokens),
    ]
    for left in (True, False):
        both = batch(*rows, left=left)
        together = logits(model, **both, pixel_values_videos=videos)
        for i, row in enumerate(rows):
            alone = logits(
                model, input_ids=row, pixel_values_videos=videos[i : i + 1, : frames[i]]
            )[0]
            close(together[i][both["attention_mask"][i].bool()], alone, 2e-5)


@pytest.mark.parametrize("variant", [{}, *VARIANTS], ids=str)
def test_no_module_reaches_for_the_weights_of_another(variant):
    """Weights on no device but while their own module runs: what an offloading device_map does to a
    model.
    """
    model, image = build(**variant), pixels(1, 1)
    row = ids(1, 5, "image", 6, model=model)
    expected = logits(model, input_ids=row, pixel_values=image)
    answer = model.generate(input_ids=row, pixel_values=image, max_new_tokens=3)
    with offloaded(model):
        assert torch.equal(logits(model, input_ids=row, pixel_values=image), expected)
        assert torch.equal(
            model.generate(input_ids=row, pixel_values=image, max_new_tokens=3), answer
        )
        if model.config.fusion != "in_llm":
            encoded = model.encode_image(image[0], input_ids=row[0])
            close(logits(model, input_ids=row, vision=[encoded]), expected)


@contextmanager
def offloaded(model):
    """Every module's own weights are on the meta device until it is called, and empty inputs of
    Linear are refused.
    """
    weights, plain = dict(model.named_parameters()), {}

    def called(name, module):
        own = {
            part: weights[f"{name}.{part}"] for part, _ in module.named_parameters(recurse=False)
        }

        def forward(*args, **kwargs):
            assert (
                not isinstance(module, nn.Linear) or args[0].numel()
            )  # kernels of quantized layers crash
            module.forward = plain[module]
            try:
                return functional_call(module, own, args, kwargs)
            finally:
                module.forward = forward

        return forward

    owners = [
        (n, m) for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))
    ]
    try:
        for name, module in owners:
            plain[module] = module.forward
            module.forward = called(name, module)
            for part, weight in list(module.named_parameters(recurse=False)):
                setattr(module, part, nn.Parameter(weight.to("meta")))
        yield
    finally:
        for name, module in owners:
            del module.forward
            for part in [part for part, _ in module.named_parameters(recurse=False)]:
                setattr(module, part, weights[f"{name}.{part}"])


def test_inside_the_llm_a_video_in_hd_and_its_decoding():
    model = build(fusion="in_llm")
    row = ids(1, 5, ("video", 2), 6)
    out = model.generate(
        input_ids=row,
        pixel_values_videos=pixels(1, 2, 5),
        max_new_tokens=4,
        min_new_tokens=4,
        output_logits=True,
        return_dict_in_generate=True,
    )
    forced = logits(model, input_ids=out.sequences, pixel_values_videos=pixels(1, 2, 5))
    close(forced[0, row.shape[1] - 1 : -1], torch.stack(out.logits, 1)[0])
    close(
        logits(model, input_ids=ids(1, 5, 6)),
        logits(model, inputs_embeds=model.get_input_embeddings()(ids(1, 5, 6))),
    )


def test_kernels_agree(model):
    row = ids(1, 5, "image", 0, 6)
    sdpa = logits(model, input_ids=row, pixel_values=pixels(1, 5))
    model.set_attn_implementation("eager")
    kernels = {
        m.config._attn_implementation
        for m in model.modules()
        if hasattr(m, "config") and hasattr(m, "head_dim")
    }
    assert kernels == {"eager"}
    close(sdpa, logits(model, input_ids=row, pixel_values=pixels(1, 5)))
    model.set_attn_implementation("sdpa")


def flash(module, query, key, value, attention_mask, scaling=None, is_causal=None, **options):
    """As flash attention does it: rows without their padding, causality counted from the last of
    what is left.
    """
    assert attention_mask is None or attention_mask.ndim == 2
    causal = module.is_causal if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = torch.zeros_like(query)
    for row in range(len(query)):
        kept = (
            torch.ones(key.shape[2])
            if attention_mask is None
            else attention_mask[row, -key.shape[2] :]
        )
        keys = kept.bool().nonzero()[:, 0]
        asked = (
            kept[-query.shape[2] :].bool()
            if len(kept) >= query.shape[2]
            else torch.ones(query.shape[2]).bool()
        )
        q, k, v = query[row, :, asked], key[row, :, keys], value[row, :, keys]
        seen = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool() | (
            not causal
        )
        scores = (q @ k.transpose(1, 2) * scaling).masked_fill(~seen, -torch.inf)
        out[row, :, asked] = scores.softmax(-1) @ v
    return out.transpose(1, 2), None


@pytest.mark.parametrize("variant", [{}, {"fusion": "in_llm"}, {"compression": "none"}], ids=str)
def test_flash_attention_agrees_where_it_takes_masks_over_keys_only(variant):
    """Hidden words are holes in the middle of its keys, and padding at their ends."""
    AttentionInterface.register("flash_double", flash)
    AttentionMaskInterface.register("flash_double", flash_attention_mask)
    found, model = [], build(**variant)
    tokens, images = model.config.tokens_per_frame(views=5), pixels(2, 5)
    rows = [
        ids(1, 5, "image", 0, 6, tokens=tokens),
        ids(1, "image", 7, 8, 9, 10, 11, tokens=tokens),
    ]
    for kernel in ("sdpa", "flash_double"):
        model.set_attn_implementation({"text_config": kernel, "vision_config": kernel})
        for left in (True, False):
            both = batch(*rows, left=left)
            hide = both["input_ids"] != 9
            full = logits(model, **both, pixel_values=images, fuse_mask=hide)[
                both["attention_mask"].bool()
            ]
            answers = model.generate(
                **both, pixel_values=images, max_new_tokens=3, min_new_tokens=3, do_sample=False
            )
            found.append((kernel, full, answers))
    close(found[0][1], found[2][1], 2e-5)
    close(found[1][1], found[3][1], 2e-5)
    assert torch.equal(found[0][2], found[2][2]) and torch.equal(found[1][2], found[3][2])


def test_pre_fusion_can_start_from_the_llm():
    model = build()
    model.model.copy_llm_to_prefusion()
    ours, theirs = (
        model.model.prefusion.layers[1].state_dict(),
        model.model.language_model.layers[1].state_dict(),
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_position_table_starts_as_sines(model):
    assert torch.equal(model.model.compressor.pos_embed.detach(), sincos_table(32, 2))


def test_tiles_are_joined_to_one_grid():
    whole = torch.arange(16.0).reshape(4, 4)
    tiles = torch.stack(
        [whole[r : r + 2, c : c + 2].reshape(4) for r in (0, 2) for c in (0, 2)] + [torch.zeros(4)]
    )
    assert torch.equal(join_tiles(tiles[None, ..., None])[0, :, 0], whole.flatten())
    with pytest.raises(ValueError, match="5, 10, 17"):
        join_tiles(torch.zeros(1, 4, 4, 1))


# ------------------------------------------------------------------------------------------
# probing


def test_compressor_and_pre_fusion_can_be_tapped(model):
    row, image = ids(1, 5, "image", 6), pixels(1, 5)
    before, calls = logits(model, input_ids=row, pixel_values=image), []
    layers = enumerate(model.model.prefusion.layers)
    modules = {"compressor": model.model.compressor.attention} | {
        f"prefusion.{i}": x.self_attn for i, x in layers
    }
    with tap(modules, calls.append):
        after = logits(model, input_ids=row, pixel_values=image)
    assert torch.equal(before, after)
    shapes = [(call.name, call.query_count, call.key_count) for call in calls]
    assert shapes == [
        ("compressor", 4, 64),
        ("prefusion.0", 80, 80),
        ("prefusion.0", 7, 87),
        ("prefusion.1", 7, 87),
    ]
    positions = model.model.prefusion_positions(row, views=5)[0].tolist()
    assert positions == [-1] * 80 + [-2] * 4 + [0, 1, 6]
    assert {"vision", "llm"} <= stacks(model).keys()
    assert vision_positions(model, row).sum() == 4


def test_mistakes_are_told_in_one_line(model):
    image = pixels(1, 1)
    for inputs, told in [
        ({"input_ids": ids(1, "image", 2)}, "expected pixel_values"),
        (
            {"input_ids": torch.tensor([[1, IMAGE, 2]]), "pixel_values": image},
            "4 image placeholders for each of 1",
        ),
        ({"input_ids": ids(1, "image", 2), "pixel_values": pixels(2, 1)}, "each of 2 images"),
        ({"input_ids": ids(1, "image", 2), "pixel_values": pixels(1, 4)}, "N x N sub-images"),
        (
            {"input_ids": ids(1, ("video", 3), 2), "pixel_values_videos": pixels(1, 2, 1)},
            "up to 2 frames",
        ),
        (
            {
                "input_ids": ids(1, ("video", 1), 2, "image"),
                "pixel_values": image,
                "pixel_values_videos": image[None],
            },
            "a video of one frame as an image",
        ),
        (
            {"input_ids": ids(1, 2), "vision": [model.encode_image(image[0])]},
            "for the encoded images",
        ),
    ]:
        with pytest.raises(ValueError, match=told) as error:
            model(**inputs)
        assert "\n" not in str(error.value)
