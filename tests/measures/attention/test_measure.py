"""Every number of the record against a plain computation from eager maps, on the shapes of real
checkpoints.
"""

from typing import Any

import models
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

import probe
import probe.measures.attention.measure
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.interventions import drop_vision
from probe.measures.attention.measure import measure, measure_samples
from probe.measures.attention.passes import forward
from probe.measures.attention.reference import difference, plain_table
from probe.records import merge, save_record
from probe.records import node as node_of
from probe.records import open_record as open_record
from probe.subject.inputs import collate, with_response
from probe.subject.loading import load

TOLERANCE = 1e-5
QUESTION = "what is in the picture?"
TWO_IMAGES = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "compare"}, {"type": "image"}, {"type": "image"}],
    },
]
TURNS = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "how many circles are there?"}],
    },
    {"role": "assistant", "content": "there are three circles"},
    {"role": "user", "content": "and where is the red square?"},
]


def subject_of(factory, **options):
    model, processor = factory(**options)
    return load(model, processor=processor)


@pytest.fixture(scope="module", params=models.FACTORIES, ids=lambda factory: factory.__name__)
def each(request):
    return subject_of(request.param, attn="eager")


@pytest.fixture(scope="module")
def subject():
    return subject_of(models.llava15, attn="eager")


def samples():
    """One image, two images, several turns, and none."""
    return [
        Sample("one", models.picture(0, 70, 50), QUESTION),
        Sample("two", (models.picture(1), models.picture(2, 30, 60)), TWO_IMAGES),
        Sample("turns", models.picture(3, 33, 33), TURNS),
        Sample("none", None, "where is the red square?"),
    ]


def plain_tables(subject, inputs, row=0):
    """The table of every LLM layer, from maps that the model returns itself."""
    with torch.no_grad():
        maps = subject.model(**inputs, output_attentions=True, use_cache=False).attentions
    types, real = inputs.types, inputs.types.ids[row] >= 0
    position = np.arange(len(real))
    visible = (position <= position[:, None]) & real
    window = getattr(subject.model.config.get_text_config(), "sliding_window", None)
    if window:
        visible &= position > position[:, None] - window
    layout = types.ids[row], np.where(types.is_query, types.ids, -1)[row], types.vision[row]
    return [plain_table(layer[row], torch.tensor(visible), types.names, *layout) for layer in maps]


def tables(record, sample, stack="llm"):
    """The same, from a record; ragged ends are cut off."""
    node = node_of(record, stack).isel(sample=sample)
    keys = int((node["key_image"].values >= 0).sum()) or int(
        node["key_count"].sel(key_type="vision")
    )
    names = ("mass", "share", "lift", "entropy", "head_entropy", "received")
    names += ("entropy_ratio", "head_entropy_ratio")
    return [
        {
            name: node[name].isel(layer=layer).values[..., : keys if name == "received" else None]
            for name in names
        }
        for layer in range(node.sizes["layer"])
    ]


@pytest.mark.parametrize(("types", "turns"), [("paper", "last"), ("fine", "all")])
def test_every_number_equals_eager_maps(each, types, turns):
    subject = each
    for sample in samples():
        inputs = subject.encode(
            list(sample.images) or None, sample.question, "a red circle", types=types, turns=turns
        )
        record = measure_samples(
            subject, [sample], response="a red circle", types=types, turns=turns
        )
        for got, expected in zip(tables(record, 0), plain_tables(subject, inputs), strict=True):
            assert difference(got, expected) < TOLERANCE, sample.id


@pytest.mark.parametrize("factory", [models.llava15, models.llava_next_mistral])
def test_a_padded_batch_equals_one_by_one(factory):
    subject = subject_of(factory)
    together = measure_samples(subject, samples(), batch_tokens=10**6, max_new_tokens=5)
    for i, sample in enumerate(samples()):
        alone = measure_samples(subject, [sample], max_new_tokens=5)
        assert alone["response"].values[0] == together["response"].values[i]
        for stack in ("llm", "vision") if sample.images else ("llm",):
            for got, expected in zip(
                tables(together, i, stack), tables(alone, 0, stack), strict=True
            ):
                assert difference(got, expected) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(each, side):
    """The statistic of a batch that is padded by hand."""
    subject = each
    rows = [
        with_response(subject.encode(list(s.images) or None, s.question), [9, 8, 7])
        for s in samples()[:2]
    ]
    batch = collate(rows, side=side)
    stack = {"llm": probe.measures.attention.measure.find_stacks(subject.model)["llm"]}
    nodes, _ = forward(subject, batch, stack)
    for row, inputs in enumerate(rows):
        for layer, expected in enumerate(plain_tables(subject, inputs)):
            got = {name: nodes[row]["llm"][name][0, layer] for name in expected}
            assert difference(got, expected) < TOLERANCE


@pytest.mark.parametrize("factory", [models.llava15, models.llava_next_vicuna])
def test_the_encoder_is_measured_the_same_way(factory):
    subject = subject_of(factory, attn="eager")
    sample = samples()[1]
    record = measure_samples(subject, [sample], response="a red circle", stacks=["vision"])
    inputs = subject.encode(list(sample.images), sample.question)
    pixels = inputs["pixel_values"]
    tiles = len(set(zip(inputs.encoder_grid[0].image, inputs.encoder_grid[0].tile, strict=True)))
    if (
        pixels.ndim == 5
    ):  # (image, tile, channel, y, x), with empty tiles behind those of an image with fewer
        grid = inputs.encoder_grid[0]
        count = [len(set(grid.tile[grid.image == image])) for image in range(len(pixels))]
        pixels = torch.cat([tile[:n] for tile, n in zip(pixels, count, strict=True)])
    assert len(pixels) == tiles
    encoder = probe.measures.attention.measure.find_stacks(subject.model)["vision"]
    with torch.no_grad():
        maps = subject.model.get_encoder(modality="image")(
            pixels, output_attentions=True
        ).attentions
    node = node_of(record, "vision").isel(sample=0)
    assert len(maps) == len(encoder.layers) == node.sizes["layer"]
    ids = np.array([0] + [1] * (maps[0].shape[-1] - 1))
    visible = torch.ones(maps[0].shape[-1], maps[0].shape[-1], dtype=torch.bool)
    for layer, batch in enumerate(maps):
        each = [plain_table(tile, visible, ("cls", "vision"), ids, ids, ids == 1) for tile in batch]
        for name in (
            "mass",
            "share",
            "lift",
            "entropy",
            "head_entropy",
            "entropy_ratio",
            "head_entropy_ratio",
        ):  # as many queries in every tile
            expected = np.mean([table[name] for table in each], 0)
            np.testing.assert_allclose(node[name].values[layer], expected, atol=TOLERANCE)
        expected = np.concatenate([table["received"] for table in each], -1)
        np.testing.assert_allclose(node["received"].values[layer], expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("factory", "stacks"),
    [
        (models.llava_next_mistral, ("vision", "llm")),
        (models.llava_mini, ("vision", "compressor", "prefusion", "llm")),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_an_even_spread_has_a_ratio_of_one_in_every_stack(factory, stacks):
    """Keys of 0 give every visible key the same score; samples of different lengths in a batch."""
    model, processor = factory()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "k_proj" in name:
                parameter.zero_()
    asked = [sample for sample in samples() if len(sample.images) <= 1]
    record = measure_samples(load(model, processor=processor), asked, response="a red circle")
    assert set(record.children) == set(stacks)
    for stack in stacks:
        node = node_of(record, stack)
        for name in ("entropy", "head_entropy"):
            spread = node[f"{name}_count"].values > 0
            ratio = node[f"{name}_ratio"].values
            assert ratio[spread] == pytest.approx(1, abs=2e-6)
            assert spread.any() and np.isnan(ratio[~spread]).all()


@pytest.mark.parametrize("factory", models.FACTORIES)
def test_response_rows_equal_cached_decoding(factory):
    """The model's own generate, step by step, from the maps that it returns."""
    subject = subject_of(factory, attn="eager")
    prompt = subject.encode(models.picture(0, 70, 50), QUESTION)
    generate: Any = subject.model.generate
    steps = generate(
        **prompt,
        max_new_tokens=6,
        do_sample=False,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    record = measure(subject, models.picture(0, 70, 50), QUESTION, max_new_tokens=6)
    types = np.append(prompt.types.ids[0], [2] * 6)
    for layer in range(3):
        rows = [
            step[layer][0, :, 0].double().numpy() for step in steps.attentions[1:]
        ]  # (head, key) of each
        known = [
            types[width - row.shape[-1] : width]
            for row, width in zip(
                rows, range(prompt["input_ids"].shape[1] + 1, 10**6), strict=False
            )
        ]
        mass = np.mean(
            [
                [row[:, ids == b].sum(-1) for b in range(3)]
                for row, ids in zip(rows, known, strict=True)
            ],
            0,
        )
        got = (
            node_of(record, "llm")["mass"]
            .isel(sample=0, layer=layer)
            .sel(query_type="response")
            .values
        )
        np.testing.assert_allclose(np.nan_to_num(got), mass.T, atol=TOLERANCE)


def test_logits_are_bit_identical_while_measuring(subject, monkeypatch):
    seen = []
    handle = subject.model.register_forward_hook(
        lambda module, args, output: seen.append(output.logits)
    )
    image = models.picture(0, 70, 50)
    record = measure(
        subject, image, QUESTION, response="a red circle", maps=True, contribution=True
    )
    handle.remove()
    inputs = subject.encode(models.picture(0, 70, 50), QUESTION, "a red circle")
    with torch.no_grad():
        kept = seen[-1].shape[1]  # logits that predict the answer, and the last
        plain = subject.model(**inputs, use_cache=False, logits_to_keep=kept).logits
    assert torch.equal(seen[-1], plain) and record["response"].item() == "a red circle"


# Options


def test_rows_of_text_only(subject):
    whole = node_of(measure(subject, models.picture(), QUESTION, response="a red circle"), "llm")
    text = node_of(
        measure(subject, models.picture(), QUESTION, response="a red circle", rows="text"), "llm"
    )
    assert np.isnan(text["mass"].sel(query_type="vision")).all()
    for name in ("mass", "share", "lift", "entropy", "head_entropy", "received"):
        asked = {"query_type": ["instruction", "response"]}
        np.testing.assert_allclose(text[name].sel(asked), whole[name].sel(asked), atol=1e-6)


def test_own_types_keep_the_rest(subject):
    inputs = subject.encode(models.picture(), QUESTION, "a red circle")
    mask = inputs.types.vision[0] & (np.cumsum(inputs.types.vision[0]) <= 3)
    node = node_of(
        measure(
            subject, models.picture(), QUESTION, response="a red circle", types={"corner": mask}
        ),
        "llm",
    )
    assert list(node["key_type"].values) == ["corner", "instruction", "vision", "response"]
    assert int(node["key_count"].sel(key_type="corner").item()) == 3
    whole = node_of(measure(subject, models.picture(), QUESTION, response="a red circle"), "llm")[
        "mass"
    ]
    both = node["mass"].sel(query_type="response", key_type=["corner", "vision"]).sum("key_type")
    np.testing.assert_allclose(both, whole.sel(query_type="response", key_type="vision"), atol=1e-6)
    assert node["received"].sizes["key"] == len(inputs.grid[0]), (
        "the corner's patches are still vision keys"
    )


def test_maps_are_the_rows_that_predict_the_response(subject):
    inputs = subject.encode(models.picture(), QUESTION, "a red circle")
    record = measure(subject, models.picture(), QUESTION, response="a red circle", maps="heads")
    node = node_of(record, "llm").isel(sample=0)
    with torch.no_grad():
        maps = subject.model(**inputs, output_attentions=True).attentions
    positions = node["map_position"].values
    last = inputs.types.prompt_length[0] - 1
    assert positions.tolist() == list(range(last, inputs["input_ids"].shape[1] - 1))
    for layer in range(3):
        expected = maps[layer][0].numpy()[:, positions][..., inputs.types.vision[0]]
        np.testing.assert_allclose(node["maps"].values[layer], expected, atol=TOLERANCE)


def test_a_response_taken_from_another_record(subject):
    first = measure_samples(subject, samples(), max_new_tokens=4)
    again = measure_samples(subject, samples(), response=first)
    np.testing.assert_array_equal(again["response_ids"], first["response_ids"])
    np.testing.assert_allclose(again["llm"]["mass"], first["llm"]["mass"], atol=1e-6)


def test_samples_without_images_among_others(subject):
    """Whether or not they share a batch with one that has an image."""
    together, apart = (
        measure_samples(subject, samples(), response="a", batch_tokens=tokens)
        for tokens in (10**6, 1)
    )
    for stack in ("llm", "vision"):
        for name, values in node_of(apart, stack).data_vars.items():
            np.testing.assert_allclose(
                values.values, node_of(together, stack)[name].values, atol=TOLERANCE
            )
    assert node_of(apart, "vision")["mass"].isel(sample=3).isnull().all()


def test_an_empty_response_is_a_response(subject):
    """Given or taken over, it is not replaced by one of the model's own."""
    record = measure(subject, models.picture(), QUESTION, response=[])
    assert record["response_ids"].size == 0
    assert measure(subject, models.picture(), QUESTION, response=record)["response_ids"].size == 0
    assert node_of(record, "llm")["query_count"].sel(query_type="response").sum() == 0


def test_contribution_needs_a_plain_projection():
    subject = subject_of(models.llava15)
    module = subject.model.get_decoder().layers[0].self_attn
    module.o_proj = torch.nn.Sequential(module.o_proj).eval()
    with pytest.raises(
        ProbeError, match="plain linear output projection, got Sequential in LlamaAttention"
    ):
        measure(subject, models.picture(), QUESTION, response="a", contribution=True)


def test_saved_and_opened(subject, tmp_path):
    record = measure_samples(subject, samples(), max_new_tokens=3, maps=True)
    save_record(record, tmp_path / "record.zarr.zip")
    assert open_record(tmp_path / "record.zarr.zip").identical(record)


# Layers that differ


def mixed(**options):
    """LLaVA over Qwen2, whose second layer sees six tokens back and the others everything."""
    model, processor = models.llava15()
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    text = models._text(
        Qwen2Config,
        processor.tokenizer,
        3,
        512,
        layer_types=kinds,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=0,
    )
    config = LlavaConfig(
        vision_config=model.config.vision_config,
        text_config=text,
        image_seq_length=16,
        image_token_index=model.config.image_token_index,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    ).eval(), processor


def test_counts_have_layers_where_layers_differ(tmp_path):
    subject = subject_of(mixed)
    record = measure_samples(subject, samples()[:2], response="a red circle", stacks=["llm"])
    node = node_of(record, "llm")
    assert node["query_count"].dims == ("sample", "layer", "query_type", "key_type")
    assert node["share_count"].dims == ("sample", "layer", "query_type")
    counts = node["query_count"].isel(sample=0).sel(query_type="response", key_type="vision").values
    assert counts[0] == counts[2] > counts[1] == 0, "six tokens back there is no image"
    inputs = subject.encode(samples()[0].images[0], QUESTION, "a red circle")
    with torch.no_grad():
        maps = subject.model(**inputs, output_attentions=True, use_cache=False).attentions
    types, position = inputs.types, np.arange(inputs["input_ids"].shape[1])
    alone = tables(measure_samples(subject, samples()[:1], response="a red circle"), 0)
    for layer, got in enumerate(alone):
        visible = position <= position[:, None]
        visible = visible & (position > position[:, None] - 6) if layer == 1 else visible
        layout = types.ids[0], np.where(types.is_query, types.ids, -1)[0], types.vision[0]
        assert (
            difference(
                got, plain_table(maps[layer][0], torch.tensor(visible), types.names, *layout)
            )
            < TOLERANCE
        )
    save_record(record, tmp_path / "record.zarr.zip")
    assert open_record(tmp_path / "record.zarr.zip").identical(record)
    for weights in ("sample", "query_count"):
        assert len(probe.plots.mass(record, weights=weights).lines) and probe.plots.heads(
            record, weights=weights
        )
    frame = probe.to_dataframe(record, "query_count")
    assert set(frame["layer"]) == {0, 1, 2} and frame["value"].min() >= 0


@pytest.mark.parametrize("layers", [[0], [1], [1, 2], [0, 1, 2]])
def test_a_layer_without_vision_counts_the_queries_of_its_own_window(layers):
    """As without a drop, in a forward and while answering, together and merged: layers of another
    kind see other keys.
    """
    subject = subject_of(mixed)
    asked = samples()[:2]
    for answer in ({"response": "a red circle"}, {"max_new_tokens": 3, "min_new_tokens": 3}):
        options = {**answer, "stacks": ["llm"]}
        whole = node_of(measure_samples(subject, asked, **options), "llm")
        with drop_vision(subject, layers, mode="remove"):
            together = measure_samples(subject, asked, **options)
            apart = merge([measure_samples(subject, [sample], **options) for sample in asked])
        for record in (together, apart):
            node = node_of(record, "llm")
            assert (node["query_count"] == whole["query_count"]).all()
            assert (node["share_count"] == whole["share_count"]).all()
        assert (apart["llm"]["query_count"].sel(query_type="vision") > 0).any()


def test_a_record_whose_layers_agree_merges_with_one_whose_layers_differ():
    """A short text stays within the window."""
    subject = subject_of(mixed)
    short = measure_samples(subject, [Sample("short", None, "a")], response=[], stacks=["llm"])
    assert node_of(short, "llm")["share_count"].dims == ("sample", "query_type")
    imaged = measure_samples(subject, samples()[:1], response="a red circle", stacks=["llm"])
    both = node_of(merge([short, imaged]), "llm")
    assert both["query_count"].dims == ("sample", "layer", "query_type", "key_type")
    expected = node_of(short, "llm")["query_count"].values[0]
    assert (both["query_count"].values[0] == expected).all() and both[
        "query_count"
    ].dtype == np.int32


# Memory


class Allocations(TorchDispatchMode):
    """The largest tensor that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor):
                self.largest = max(
                    self.largest, tensor.untyped_storage().nbytes() // tensor.element_size()
                )
        return out


@pytest.mark.parametrize(
    "options", [{}, {"maps": "heads", "contribution": True, "received_head": True}]
)
def test_no_map_is_ever_allocated(options):
    """Nothing of head·S·S/4 elements or more, of encoder or LLM, exists at any time."""
    subject = subject_of(
        models.llava15,
        side=96,
        patch=4,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    inputs = subject.encode(models.picture(), QUESTION, "a red circle")
    size = inputs["input_ids"].shape[1]
    with Allocations() as watch:
        measure(subject, models.picture(), QUESTION, response="a red circle", **options)
    assert size > 500 and watch.largest < 8 * size * size // 4
    eager = subject_of(
        models.llava15,
        side=96,
        patch=4,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=8,
        num_key_value_heads=8,
        attn="eager",
    )
    with Allocations() as watch:
        measure(eager, models.picture(), QUESTION, response="a red circle")
    assert watch.largest >= 8 * size * size // 4, "the watch can fail"


# Mistakes


def test_mistakes_are_one_line(subject):
    image = models.picture()
    with pytest.raises(ProbeError, match="stacks of vision, llm, got prefusion"):
        measure(subject, image, QUESTION, stacks=["prefusion"])
    with pytest.raises(ProbeError, match="rows of all, text, got 'vision'"):
        measure(subject, image, QUESTION, rows="vision")
    with pytest.raises(ProbeError, match="expected samples"):
        probe.measures.attention.measure._as_samples(image)
    with pytest.raises(ProbeError, match="at least one Sample"):
        measure_samples(subject, [])
    with pytest.raises(ProbeError, match="different ids, got 'one' 2 times"):
        measure_samples(subject, samples()[:1] * 2)
    with pytest.raises(ProbeError, match="maps of False, True, heads, got 'head'"):
        measure(subject, image, QUESTION, maps="head")
    with pytest.raises(ProbeError, match="0 or more"):
        measure(subject, image, QUESTION, max_new_tokens=-1)
    with pytest.raises(ProbeError, match="at least one stack"):
        measure(subject, None, QUESTION, stacks="vision")
    with pytest.raises(ProbeError, match="2 responses"):
        measure_samples(subject, samples()[:2], response=["a"])
    subject.model.get_decoder().train()
    with pytest.raises(ProbeError, match="eval mode"):
        measure(subject, image, QUESTION)
    subject.model.eval()
    compiled = subject_of(models.llava15)
    compiled.model.get_decoder().layers[1].compile()
    with pytest.raises(ProbeError, match="not compiled"):
        measure(compiled, image, QUESTION)


def test_maps_above_the_limit_are_refused_with_the_number(subject, monkeypatch):
    monkeypatch.setattr(probe.measures.attention.memory_plan, "MAPS_LIMIT", 100)
    with pytest.raises(ProbeError, match=r"maps of at most 0 MB, got \d+ MB for 1 samples"):
        measure(subject, models.picture(), QUESTION, response="a red circle", maps=True)
