"""Dropping vision in LLaVA-Mini: in its pre-fusion against layers written out by hand, and in its
LLM.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false,
# reportArgumentType=false

import pytest
import torch
from llava_mini_models import IMAGE, batch, build, ids, pixels

from probe.data.token_types import INSTRUCTION, RESPONSE, label, stack
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import stacks
from probe.interventions import drop_vision, knockout, swap_vision

QUERIES = [("text",), ("compressed",), ("text", "compressed")]
SENSES = {"mask": {}, "mask_frozen": {"mode": "mask_frozen"}, "zero": {"mode": "zero"}}


@pytest.fixture(scope="module")
def model():
    return build(num_prefusion_layers=3)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def prompt(kind="one"):
    """ "one": a row; "batch": a row with two images, a row with one, words alone; "video"; "hd"."""
    if kind == "one":
        return {"input_ids": ids(1, 5, "image", 6, 7), "pixel_values": pixels(1, 1)}
    if kind == "hd":
        return {"input_ids": ids(1, 5, "image", 6, 7), "pixel_values": pixels(1, 5)}
    if kind == "video":
        return {"input_ids": ids(1, ("video", 3), 6, 7), "pixel_values_videos": pixels(1, 3, 1)}
    rows = ids(1, 5, "image", 6, "image", 7), ids(1, "image", 9, 8, 4, 3), ids(1, 4, 4)
    return batch(*rows, left=kind != "right") | {"pixel_values": pixels(3, 1)}


def dropped(model, inputs, layers=range(3), run=logits, **mode):
    with drop_vision(model, layers, **({"stack": "prefusion"} | mode)):
        return run(model, inputs)


def generated(model, inputs, **options):
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False} | options
    return model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)


def said(model, inputs, **options):
    return torch.stack(generated(model, inputs, **options).logits)


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance * max(1.0, b.abs().max().item()), rtol=0)


# ------------------------------------------------------------------------------------- pre-fusion,
# written out by hand


def rotated(x, position, base=10000.0):
    half = x.shape[-1] // 2
    angle = position[:, None] * base ** (-torch.arange(half) / half)
    angle = torch.cat([angle, angle], -1)
    return x * angle.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angle.sin()


def one_layer(layer, hidden, position, seen, zeroed):
    """A decoder layer of one frame; `zeroed` (query, key): the value of the key counts as
    nothing.
    """
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)

    def heads(x):
        return x.view(len(x), -1, attention.head_dim).transpose(0, 1)

    q, k, v = (
        heads(each(normed)) for each in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = rotated(q, position), rotated(k, position)
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    weights = torch.softmax(
        (q @ k.mT * attention.head_dim**-0.5).masked_fill(~seen, -torch.inf), -1
    )
    mixed = (weights.masked_fill(zeroed, 0) @ v).transpose(0, 1).flatten(1)
    hidden = hidden + attention.o_proj(mixed)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


@torch.no_grad()
def by_hand(model, inputs, layers, queries=("text", "compressed"), mode="mask"):
    """Logits of one row with one image, all its rows through every pre-fusion layer."""
    inner, row = model.model, inputs["input_ids"][0]
    words = row != IMAGE
    vision, tokens = inner.look(inputs["pixel_values"])
    text = inner.get_input_embeddings()(row[words])
    hidden = torch.cat([vision[0], tokens[0], text])
    patches, compressed = vision.shape[1], tokens.shape[1]
    kind = torch.tensor([0] * patches + [1] * compressed + [2] * len(text))
    position = torch.arange(len(hidden)).float()
    causal = torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril()
    numbers = torch.tensor([{"compressed": 1, "text": 2}[name] for name in queries])
    cut = torch.isin(kind, numbers)[:, None] & (kind == 0)
    for number, layer in enumerate(inner.prefusion.layers):
        chosen = cut if number in layers else torch.zeros_like(cut)
        before = hidden
        hidden = one_layer(
            layer,
            hidden,
            position,
            causal & ~(chosen & mode.startswith("mask")),
            chosen & (mode == "zero"),
        )
        if mode == "mask_frozen" and number in layers:
            hidden = torch.where((kind == 0)[:, None], before, hidden)
    embeds = torch.empty(len(row), hidden.shape[1])
    embeds[words], embeds[~words] = hidden[kind == 2], hidden[kind == 1]
    return model(inputs_embeds=embeds[None]).logits


@pytest.mark.parametrize("kind", ["one", "hd"])
@pytest.mark.parametrize("queries", QUERIES, ids="+".join)
@pytest.mark.parametrize("sense", SENSES)
def test_dropping_is_what_the_layers_give_without_those_keys(model, sense, queries, kind):
    inputs = prompt(kind)
    close(by_hand(model, inputs, ()), logits(model, inputs))
    for layers in ((0, 1, 2), (0, 2)) if kind == "one" else ((1,),):
        expected = by_hand(model, inputs, layers, queries, **SENSES[sense])
        close(dropped(model, inputs, layers, queries=queries, **SENSES[sense]), expected)
        assert (expected - logits(model, inputs)).abs().max() > 1e-3, (
            "what does nothing proves nothing"
        )


def test_by_default_everybody_is_cut_off(model):
    inputs = prompt("batch")
    assert torch.equal(
        dropped(model, inputs), dropped(model, inputs, queries=("text", "compressed"))
    )


@pytest.mark.parametrize("sense", SENSES)
def test_a_row_of_a_batch_is_the_row_alone(model, sense):
    images = pixels(3, 1)
    rows = [
        ({"input_ids": ids(1, 5, "image", 6, "image", 7)}, images[:2]),
        ({"input_ids": ids(1, "image", 9, 8, 4, 3)}, images[2:]),
    ]
    both = prompt("batch")
    together, answers = (
        dropped(model, both, (0, 2), run, **SENSES[sense]) for run in (logits, said)
    )
    for i, (row, image) in enumerate(rows):
        alone = row | {"pixel_values": image}
        close(
            together[i][both["attention_mask"][i].bool()],
            dropped(model, alone, (0, 2), **SENSES[sense])[0],
        )
        close(answers[:, i], dropped(model, alone, (0, 2), said, **SENSES[sense])[:, 0])


@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize("kind", ["video", "right"])
def test_in_chunks_of_frames_it_is_the_same(model, sense, kind):
    inputs = prompt(kind)
    expected = dropped(model, inputs, (0, 2), **SENSES[sense])
    small = build(num_prefusion_layers=3, frames_per_chunk=1)
    close(dropped(small, inputs, (0, 2), **SENSES[sense]), expected)


@pytest.mark.parametrize("mode", ["mask", "zero"])
def test_an_encoded_image_is_dropped_as_its_pixels_are(model, mode):
    images, both = pixels(3, 1), prompt("batch")
    encoded = [model.encode_image(image) for image in images]
    given = {name: both[name] for name in ("input_ids", "attention_mask")} | {"vision": encoded}
    for run in (logits, said):
        close(
            dropped(model, given, (0, 2), run, mode=mode),
            dropped(model, both, (0, 2), run, mode=mode),
        )


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_what_is_decoded_is_what_a_forward_predicts(model, options):
    inputs = prompt()
    with drop_vision(model, (0, 2), stack="prefusion"):
        out = generated(model, inputs, **options)
        given = inputs | {
            "input_ids": out.sequences,
            "fuse_mask": torch.ones_like(inputs["input_ids"]),
        }
        forced = logits(model, given)[0, inputs["input_ids"].shape[1] - 1 : -1]
    steps = torch.stack(out.logits)[:, 0]
    close(forced.where(steps.isfinite(), steps), steps)


@pytest.mark.parametrize(
    "variant",
    [
        {"compressor_size": 0},
        {"compression": "average"},
        {"compression": "none"},
        {"fusion": "paper"},
    ],
    ids=str,
)
def test_variants(variant):
    model = build(**variant)
    inputs = {"input_ids": ids(1, 5, "image", 6, 7, model=model), "pixel_values": pixels(1, 1)}
    untouched = logits(model, inputs)
    for sense in SENSES.values():
        assert (dropped(model, inputs, (0, 1), **sense) - untouched).abs().max() > 1e-3
    assert torch.equal(logits(model, inputs), untouched)
    if variant.get("compression") == "average":
        close(dropped(model, inputs, (0, 1)), by_hand(model, inputs, (0, 1)))
    else:
        with pytest.raises(ProbeError, match="queries of 'text' in prefusion"):
            dropped(model, inputs, 0, queries="compressed")


# -------------------------------------------------------------------------------------------------
# nothing stays behind


@pytest.mark.parametrize("sense", SENSES)
def test_no_layer_no_image_and_what_runs_elsewhere_are_untouched(model, sense):
    inputs, words = prompt("batch"), {"input_ids": ids(1, 5, 6)}
    assert torch.equal(dropped(model, inputs, (), **SENSES[sense]), logits(model, inputs))
    assert torch.equal(dropped(model, words, **SENSES[sense]), logits(model, words))
    embeds = {"inputs_embeds": model.get_input_embeddings()(words["input_ids"])}
    assert torch.equal(dropped(model, embeds, **SENSES[sense]), logits(model, embeds))


@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_undone_on_any_exit(model, sense, error):
    inputs = prompt("batch")
    before, config = logits(model, inputs), model.model.prefusion.layers[1].self_attn.config
    dropped(model, inputs, **SENSES[sense])

    def interrupt(module, args):
        raise error

    hook = model.model.prefusion.layers[1].self_attn.o_proj.register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        dropped(model, inputs, **SENSES[sense])
    hook.remove()
    assert torch.equal(logits(model, inputs), before)
    assert model.model.prefusion.layers[1].self_attn.config is config
    assert active_interventions(model) == ""
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_attention_shows_no_mass_on_vision_where_it_is_dropped(model):
    inputs, calls = prompt("hd"), []
    with (
        drop_vision(model, (0, 2), stack="prefusion"),
        tap(stacks(model)["prefusion"].attention, calls.append),
    ):
        bare = logits(model, inputs)
        words = [call for call in calls if call.query_count < call.key_count]
    assert torch.equal(bare, dropped(model, inputs, (0, 2)))
    assert [call.name.split(".")[-2] for call in words] == ["0", "1", "2"]
    for call, is_dropped in zip(words, (True, False, True), strict=True):
        k = call.key.repeat_interleave(call.query.shape[1] // call.key.shape[1], 1)
        scores = (call.query @ k.mT) * call.scaling
        weights = torch.softmax(scores.masked_fill(~call.effective_mask, -torch.inf), -1)
        on_vision = weights[..., : call.key_count - call.query_count].sum(-1)
        assert (on_vision == 0).all() if is_dropped else (on_vision > 0).all()
        assert call.model_mask.sum() > call.effective_mask.sum() or not is_dropped


def test_it_composes_with_dropping_in_the_llm(model):
    inputs = prompt("batch")
    alone = [dropped(model, inputs, (0, 1), run) for run in (logits, said)]
    with drop_vision(model, (1, 2), mode="remove"):
        removed = [dropped(model, inputs, (0, 1), run) for run in (logits, said)]
        name = "drop_vision(layers=1-2, mode=remove)"
        with drop_vision(model, 0, stack="prefusion", queries="text"):
            assert (
                active_interventions(model)
                == f"{name}; drop_vision(layers=0, mode=mask, queries=text, stack=prefusion)"
            )
    with (
        drop_vision(model, (0, 1), stack="prefusion"),
        drop_vision(model, (1, 2), mode="mask_frozen"),
    ):
        real = inputs["attention_mask"].bool()
        close(logits(model, inputs)[real], removed[0][real])
        close(said(model, inputs), removed[1])
    assert (removed[0] - alone[0]).abs().max() > 1e-3


# --------------------------------------------------------------------------------------------------
# knockout


def types_of(inputs, response=0):
    """Paper types of one row: placeholders are vision, the last words response."""
    row = inputs["input_ids"][0].numpy()
    role = torch.full((len(row),), INSTRUCTION).numpy()
    role[len(row) - response :] = RESPONSE
    return label(role, role * 0, row == IMAGE)


def test_knocking_out_is_dropping_where_it_says_the_same(model):
    inputs = prompt("batch")
    for queries in QUERIES:
        with knockout(model, queries, "vision", (0, 2), stack="prefusion"):
            close(logits(model, inputs), dropped(model, inputs, (0, 2), queries=queries))


def test_words_of_a_type_and_the_compressed_tokens(model):
    """Hidden from some words only: those before them are as they were."""
    inputs = prompt()
    types = types_of(inputs).as_types({"last two": inputs["input_ids"][0].numpy() == 7})
    with knockout(
        model, "last two", ("vision", "compressed"), range(3), types=types, stack="prefusion"
    ):
        found = logits(model, inputs)
    expected = logits(model, inputs)
    close(found[:, :-1], expected[:, :-1])
    assert (found[:, -1] - expected[:, -1]).abs().max() > 1e-3


def test_words_that_see_neither_patches_nor_compressed_tokens_are_blind(model):
    """What reaches the LLM as text is then the same for every image; else it is not."""
    one, other = prompt(), prompt() | {"pixel_values": pixels(1, 1, seed=9)}
    assert (fused(model, one) - fused(model, other)).abs().max() > 1e-2
    for queries, keys, blind in (
        ("text", ("compressed", "vision"), True),
        ("text", "vision", False),
    ):
        with knockout(model, queries, keys, range(3), stack="prefusion"):
            difference = (fused(model, one) - fused(model, other)).abs().max()
        assert (difference == 0) == blind


def fused(model, inputs):
    """The words as the LLM gets them."""
    given = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda m, a, kwargs: given.append(kwargs), with_kwargs=True
    )
    logits(model, inputs)
    hook.remove()
    return given[0]["inputs_embeds"][inputs["input_ids"] != IMAGE]


def test_types_find_the_words_of_each_row():
    """In a batch that mixes numbers of images, frame by frame, while beams and moved padding move
    rows.
    """
    model = build(num_prefusion_layers=2, frames_per_chunk=1)
    images = pixels(3, 1)
    rows = [
        ({"input_ids": ids(1, 5, "image", 6, "image", 7)}, images[:2]),
        ({"input_ids": ids(1, "image", 9, 8, 4, 3)}, images[2:]),
    ]
    types = [
        types_of(row).as_types(
            {"marked": (row["input_ids"][0] > 5).numpy() & (row["input_ids"][0] < 90).numpy()}
        )
        for row, _ in rows
    ]

    def found(inputs, types, run):
        with knockout(model, "marked", "vision", (0, 1), types=types, stack="prefusion"):
            return run(model, inputs)

    def beams(model, inputs):
        return model.generate(
            **inputs, num_beams=2, max_new_tokens=4, min_new_tokens=4, do_sample=False
        )[:, -4:]

    both = batch(*(row["input_ids"] for row, _ in rows), left=False) | {"pixel_values": images}
    together = [found(both, stack(types, "right"), run) for run in (logits, said, beams)]
    for i, (row, image) in enumerate(rows):
        alone = row | {"pixel_values": image}
        expected = [found(alone, types[i], run) for run in (logits, said, beams)]
        close(together[0][i][both["attention_mask"][i].bool()], expected[0][0])
        close(together[1][:, i], expected[1][:, 0])
        assert torch.equal(together[2][i], expected[2][0])
        assert (expected[0] - logits(model, alone)).abs().max() > 1e-3


@pytest.mark.parametrize("stack_name", ["prefusion", "llm"])
@pytest.mark.parametrize("kind", ["one", "video"])
def test_types_hold_without_a_cache(model, kind, stack_name):
    """Every step brings the whole prompt again, and what was generated is no part of it."""
    inputs = prompt(kind)
    types = types_of(inputs).as_types({"marked": inputs["input_ids"][0].numpy() == 6})
    found = []
    for use_cache in (True, False):
        with knockout(model, "marked", "vision", (0, 1), types=types, stack=stack_name):
            found.append(said(model, inputs, use_cache=use_cache))
    close(*found)
    assert (found[0] - said(model, inputs)).abs().max() > 1e-3


def test_padding_that_generate_moves_does_not_move_types_in_the_llm(model):
    images, rows = (
        pixels(2, 1),
        [{"input_ids": ids(1, 5, "image", 6)}, {"input_ids": ids(1, "image", 9, 8, 4, 3)}],
    )
    types = [
        types_of(row).as_types({"marked": row["input_ids"][0].numpy() % 2 == 1}) for row in rows
    ]
    both = batch(*(row["input_ids"] for row in rows), left=False) | {"pixel_values": images}
    with knockout(model, "marked", "vision", (0, 1), types=stack(types, "right")):
        together = said(model, both)
    for i, row in enumerate(rows):
        with knockout(model, "marked", "vision", (0, 1), types=types[i]):
            close(together[:, i], said(model, row | {"pixel_values": images[i : i + 1]})[:, 0])


# --------------------------------------------------------------------------------- in the LLM it is
# as in any other one


LLM = {
    "mask": {},
    "mask_frozen": {"mode": "mask_frozen"},
    "remove": {"mode": "remove"},
    "zero": {"mode": "zero"},
    "remove_for_good": {"mode": "remove_for_good"},
}


@pytest.mark.parametrize("sense", LLM)
def test_senses_agree_in_the_llm(model, sense):
    inputs = prompt("batch")
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    same = {"mask_frozen": "remove", "remove": "mask_frozen"}.get(sense, sense)
    for layers in ((0, 1, 2), (1,)):
        found = dropped(model, inputs, layers, stack="llm", **LLM[sense])[real]
        close(found, dropped(model, inputs, layers, stack="llm", **LLM[same])[real])
        assert (found - logits(model, inputs)[real]).abs().max() > 1e-3
    steps = dropped(model, inputs, (0, 2), said, stack="llm", **LLM[sense])
    close(steps, dropped(model, inputs, (0, 2), said, stack="llm", **LLM[same]))
    assert torch.equal(dropped(model, inputs, (), stack="llm", **LLM[sense]), logits(model, inputs))


def test_dropping_in_the_llm_leaves_what_the_text_was_fused_with(model):
    """In every layer: the LLM over the fused words alone, at their places."""
    inputs = prompt()
    words = (inputs["input_ids"] != IMAGE)[0]
    place = words.nonzero()[:, 0][None]
    expected = model(inputs_embeds=fused(model, inputs)[None], position_ids=place).logits
    close(dropped(model, inputs, stack="llm")[:, words], expected)


def test_swapping_in_the_llm_reads_the_other_image_s_tokens(model):
    one, other = prompt(), {"input_ids": ids(1, "image", 9), "pixel_values": pixels(1, 1, seed=9)}
    given = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda m, a, kwargs: given.append(kwargs), with_kwargs=True
    )
    for inputs in (one, other):
        logits(model, inputs)
    hook.remove()
    embeds = given[0]["inputs_embeds"].clone()
    vision = one["input_ids"][0] == IMAGE
    embeds[0, vision] = given[1]["inputs_embeds"][0, other["input_ids"][0] == IMAGE]
    expected = model(inputs_embeds=embeds).logits
    with swap_vision(model, range(3), other):
        close(logits(model, one)[:, ~vision], expected[:, ~vision])
        steps = said(model, one)
    close(steps[0, 0], expected[0, -1])
    with swap_vision(model, (), other):
        assert torch.equal(logits(model, one), logits(model, one))


# -------------------------------------------------------------------------------------------------
# what cannot be done


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"layers": 3}, "layers from 0 to 2, got 3"),
        ({"mode": "remove"}, "use mode='mask_frozen'"),
        ({"queries": "vision"}, "queries of 'text' and 'compressed' in prefusion, got 'vision'"),
        ({"queries": ()}, "queries of 'text' and 'compressed'"),
        ({"stack": "llm", "queries": "compressed"}, "queries of 'text' in llm, got 'compressed'"),
        (
            {"stack": "compressor"},
            "stack='llm' or 'prefusion', whose tokens are text and vision, got 'compressor'",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(model, given, told):
    with (
        pytest.raises(ProbeError) as error,
        drop_vision(model, **({"layers": 1, "stack": "prefusion"} | given)),
    ):
        pass
    assert told in str(error.value) and "\n" not in str(error.value)


def test_names_that_a_stack_has_not(model):
    with (
        pytest.raises(
            ProbeError, match="one of vision, compressed, text, got 'response'; pass types="
        ),
        knockout(model, "response", "vision", 1, stack="prefusion"),
    ):
        pass
    with (
        pytest.raises(ProbeError, match="one of vision, text, got 'compressed'"),
        knockout(model, "compressed", "vision", 1),
    ):
        pass
    with (
        knockout(model, "instruction", "vision", 1, types=types_of(prompt()), stack="prefusion"),
        pytest.raises(ProbeError, match="as types="),
    ):
        logits(model, prompt("batch"))


def test_images_that_were_read_before_are_refused_where_their_rows_count(model):
    inputs = {"input_ids": prompt()["input_ids"], "vision": [model.encode_image(pixels(1))]}
    with pytest.raises(ProbeError, match="pixels, whose vision rows run in the block"):
        dropped(model, inputs, mode="mask_frozen")
    with (
        drop_vision(model, 1, stack="prefusion"),
        pytest.raises(ProbeError, match="call encode_image before"),
    ):
        model.encode_image(pixels(1))
    video = model.encode_image(
        iter(pixels(5, 1)), input_ids=torch.tensor([[1, 5, IMAGE, 6]]), keep_frames=2
    )
    with pytest.raises(ProbeError, match="let go of them"):
        dropped(model, {"input_ids": ids(1, 5, ("video", 5), 6), "vision": [video]})


def test_an_llm_that_fuses_by_itself_is_refused_before_any_layer_runs():
    model, ran = build(fusion="in_llm"), []
    hook = (
        model.get_decoder().layers[0].self_attn.register_forward_pre_hook(lambda *_: ran.append(1))
    )
    with pytest.raises(
        ProbeError, match="a row for each token of input_ids, got 24 rows for 8 tokens"
    ):
        dropped(model, prompt(), 1, stack="llm")
    with pytest.raises(ProbeError, match="stack='llm', whose tokens"):
        dropped(model, prompt(), 1)
    with (
        pytest.raises(ProbeError, match="gets all its tokens at once"),
        swap_vision(model, 1, prompt()),
    ):
        pass
    hook.remove()
    assert len(ran) <= 1
