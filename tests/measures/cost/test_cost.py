"""Counts against formulas by hand, against what real models run, and against what the LLaVA-Mini
paper prints.
"""

import importlib.util
import math
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from golden_cases import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llava15, llava_next_vicuna, picture
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
)

import probe
from probe.errors import ProbeError
from probe.measures.cost import cost, flop_count, formula_flops, join, read, table, write
from probe.measures.cost.prompt_shape import prompt_of
from probe.measures.cost.timing import inputs_of
from probe.models.llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from probe.models.tiny import FOLDERS
from probe.subject.loading import load

WORDS = 7


def vision(**fields) -> CLIPVisionConfig:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return CLIPVisionConfig(
        **{**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 16, **fields}
    )


def text(**fields) -> LlamaConfig:
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    return LlamaConfig(**{**sizes, "num_key_value_heads": 2, "vocab_size": 90, **fields})


def llava(**fields) -> LlavaConfig:
    return LlavaConfig(vision_config=vision(), text_config=text(**fields), image_token_index=89)


def mini(**fields) -> LlavaMiniConfig:
    made = {"compressor_size": 2, "num_prefusion_layers": 2, **fields}
    return LlavaMiniConfig(vision_config=vision(), text_config=text(), **made)


def llm_layer(config: LlamaConfig, rows: int) -> tuple[int, int]:
    """Operations of one decoder layer by hand: with weights, and queries with keys and values."""
    d, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    each = d // heads
    weights = 2 * heads * each * d + 2 * groups * each * d + 3 * d * config.intermediate_size
    return 2 * rows * weights, 4 * rows**2 * heads * each


def encoder(config: CLIPVisionConfig) -> tuple[int, int]:
    d, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
    rows = patches + 1
    linear = 2 * patches * 3 * config.patch_size**2 * d
    linear += config.num_hidden_layers * 2 * rows * (4 * d * d + 2 * d * config.intermediate_size)
    return linear, config.num_hidden_layers * 4 * rows**2 * d


def by_hand(llm: LlamaConfig, rows: list[int]) -> tuple[int, int]:
    """The LLM with so many rows in each layer, and its head on all rows of the last."""
    layers = [llm_layer(llm, n) for n in rows]
    head = 2 * rows[-1] * llm.hidden_size * llm.vocab_size
    return sum(linear for linear, _ in layers) + head, sum(attention for _, attention in layers)


def counted(costs: xr.Dataset, component: str) -> tuple[float, float]:
    linear, attention = costs["flops"].sel(component=component).values[0]
    return linear, attention


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    return np.array_equal(a["flops"].values, b["flops"].values)


# Formulas by hand


@settings(max_examples=8)
@given(
    depth=st.integers(1, 4),
    heads=st.integers(1, 3),
    groups=st.booleans(),
    width=st.sampled_from([24, 48]),
    inner=st.integers(8, 80),
    words=st.integers(0, 60),
    side=st.sampled_from([16, 32]),
    kept=st.integers(1, 4),
)
def test_a_llava_of_any_shape_costs_what_its_formula_says(
    depth, heads, groups, width, inner, words, side, kept
):
    llm = text(
        num_hidden_layers=depth,
        hidden_size=width,
        num_attention_heads=2 * heads if width % (2 * heads) == 0 else 2,
        num_key_value_heads=1 if groups else None,
        intermediate_size=inner,
    )
    clip = vision(image_size=side, num_hidden_layers=depth)
    config = LlavaConfig(vision_config=clip, text_config=llm)
    costs = cost(config, kept, words)
    assert counted(costs, "vision_encoder") == encoder(clip)
    assert counted(costs, "projector") == (2 * kept * (32 * width + width * width), 0)
    assert counted(costs, "llm") == by_hand(config.text_config, [kept + words] * depth)
    assert not costs["flops"].sel(component=["compressor", "prefusion"]).any()


@pytest.mark.parametrize(
    ("size", "layers", "views"), [(1, 1, 1), (2, 3, 1), (3, 2, 5), (0, 1, 1), (2, 0, 1)]
)
def test_a_llava_mini_costs_what_its_formula_says(size, layers, views):
    config = mini(compressor_size=size, num_prefusion_layers=layers)
    costs = cost(config, text_tokens=WORDS, resolution=32 if views == 1 else 64)
    llm, tokens = config.text_config, size**2
    grid = 16 * max(1, views - 1)
    linear, attention = encoder(config.vision_config)
    assert counted(costs, "vision_encoder") == (views * linear, views * attention)
    assert counted(costs, "projector") == ((16 * views + tokens) * 2 * (32 * 48 + 48 * 48), 0)
    expected = (2 * 32 * 32 * (2 * tokens + 2 * grid), 4 * tokens * grid * 32) if size else (0, 0)
    assert counted(costs, "compressor") == expected
    rows = 16 * views + tokens + WORDS
    assert counted(costs, "prefusion") == tuple(layers * one for one in llm_layer(llm, rows))
    assert counted(costs, "llm") == by_hand(llm, [tokens + WORDS] * 3)


def test_variants_of_llava_mini():
    plain = cost(mini(), text_tokens=WORDS)
    average = cost(mini(compression="average"), text_tokens=WORDS)
    paper = cost(mini(fusion="paper"), text_tokens=WORDS)
    everything = cost(mini(compression="none"), text_tokens=WORDS)
    inside = cost(mini(fusion="in_llm", num_prefusion_layers=1), text_tokens=WORDS)
    llm = mini().text_config
    assert counted(average, "compressor") == (0, 0) and counted(average, "llm") == counted(
        plain, "llm"
    )
    assert counted(paper, "prefusion") == tuple(2 * one for one in llm_layer(llm, 16 + WORDS))
    assert counted(everything, "llm") == by_hand(llm, [16 + WORDS] * 3)
    assert counted(inside, "llm") == by_hand(llm, [16 + 4 + WORDS, 4 + WORDS, 4 + WORDS])
    assert counted(inside, "prefusion") == (0, 0)
    assert counted(inside, "compressor")[0] == 2 * 48 * 48 * (2 * 4 + 2 * 16)


def test_a_video_costs_its_frames_and_the_llm_their_tokens():
    one, many = cost(mini(), text_tokens=WORDS), cost(mini(), text_tokens=WORDS, frames=5)
    for component in ("vision_encoder", "projector", "compressor", "prefusion"):
        assert counted(many, component) == tuple(5 * part for part in counted(one, component))
    assert counted(many, "llm") == by_hand(mini().text_config, [5 * 4 + WORDS] * 3)
    assert many["frames"] == 5 and many["vision_tokens"] == 20


def test_each_llm_layer_may_have_tokens_of_its_own():
    config = llava()
    costs = cost(config, [16, 16, 4], WORDS)
    assert counted(costs, "llm") == by_hand(config.text_config, [23, 23, 11])
    assert costs["llm_tokens"].values.tolist() == [[23, 23, 11]]
    assert costs["vision_tokens"] == 12
    assert costs["formula_flops"] == formula_flops([23, 23, 11], 48, 64)
    assert costs["kv_cache"].sel(token_type="vision") == 2 * 2 * 2 * 12 * (16 + 16 + 4)


def test_more_vision_tokens_than_a_view_has_take_more_views():
    config = llava()
    larger = cost(config, resolution=64)
    assert larger["vision_tokens"] == 5 * 16 and larger["views"] == 5
    assert same(cost(config, 80), larger)


# Real models


def run_on_cpu(model, inputs) -> dict[str, float]:
    """What torch counts of a real forward: products with weights, and of queries, keys and
    values.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    found = {"linear": 0, "attention": 0}
    for operator, flops in counter.get_flop_counts()["Global"].items():
        kind = (
            "linear"
            if str(operator) in ("aten.mm", "aten.addmm", "aten.convolution")
            else "attention"
        )
        found[kind] += flops
    return found


@pytest.mark.parametrize("rows", ["all", "needed"])
def test_the_count_is_that_of_a_real_forward(rows):
    model, _ = llava15(attn="eager", layers=2)
    costs = cost(model, text_tokens=WORDS, rows=rows).sum("component")["flops"].isel(case=0)
    inputs = inputs_of(model, prompt_of(model.config, None, WORDS, None, None), 16)
    real = run_on_cpu(model, {**inputs, "logits_to_keep": 0 if rows == "all" else 1})
    assert {kind: float(costs.sel(operation=kind)) for kind in real} == real


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"fusion": "paper"},
        {"compression": "none"},
        {"compressor_size": 0},
        {"fusion": "in_llm", "num_prefusion_layers": 1},
    ],
)
def test_the_rows_that_are_needed_are_those_that_llava_mini_runs(fields):
    config = mini(**fields)
    model = LlavaMiniForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    ).eval()
    costs = cost(model, text_tokens=WORDS, rows="needed")
    prompt = prompt_of(config, None, WORDS, None, None)
    real = run_on_cpu(
        model, {**inputs_of(model, prompt, config.image_seq_length), "logits_to_keep": 1}
    )
    assert {kind: float(costs["flops"].sel(operation=kind).sum()) for kind in real} == real
    assert costs["flops"].sum() <= cost(model, text_tokens=WORDS)["flops"].sum()


def test_the_cache_is_that_of_a_real_forward():
    model, _ = llava15(num_key_value_heads=2)
    inputs = inputs_of(model, prompt_of(model.config, None, WORDS, None, None), 16)
    with torch.no_grad():
        kept = model(**inputs, use_cache=True).past_key_values.layers
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept)
    costs = cost(model, text_tokens=WORDS)
    assert costs["kv_cache"].sum() == real
    assert costs["kv_cache"].sel(token_type="vision").item() == pytest.approx(
        real * 16 / (16 + WORDS)
    )
    assert costs["weights"].sum() == sum(p.nbytes for p in model.parameters())
    assert cost(model, text_tokens=WORDS, dtype="bfloat16")["kv_cache"].sum() == real / 2


def test_the_image_that_later_questions_reuse_is_that_of_encode_image():
    model = LlavaMiniForConditionalGeneration._from_config(mini()).eval()
    seen = model.encode_image(torch.randn(1, 3, 32, 32)).seen[0]
    real = sum(key.nbytes + value.nbytes for key, value in seen.prefix)
    assert cost(model)["prefix_cache"] == real


@pytest.mark.parametrize("size", [(64, 64), (32, 90), (50, 70)])
def test_tiles_make_as_many_tokens_as_the_processor_says(size):
    model, processor = llava_next_vicuna()
    height, width = size
    inputs = load(model, processor).encode(picture(width=width, height=height), "what is it?")
    costs = cost(model, resolution=size)
    assert (
        costs["vision_tokens"] == (inputs["input_ids"] == model.config.image_token_id).sum().item()
    )
    assert costs["views"] == inputs["pixel_values"].shape[1]


def test_frames_are_images_in_tiles_where_a_model_takes_no_video():
    """LLaVA-NeXT: the default `probe cost --model` ended in a refusal at its videos."""
    model, _ = llava_next_vicuna()
    image = cost(model.config)
    frames = cost(model.config, frames=3)
    assert frames["views"] == image["views"] > 1
    assert frames["vision_tokens"] == 3 * image["vision_tokens"]
    encoder = frames["flops"].sel(component="vision_encoder").sum()
    assert encoder == 3 * image["flops"].sel(component="vision_encoder").sum()


def onevision() -> LlavaOnevisionConfig:
    qwen = Qwen2Config(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=90,
    )
    siglip = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return LlavaOnevisionConfig(
        vision_config=siglip, text_config=qwen, image_grid_pinpoints=[[32, 64], [64, 64]]
    )


def test_models_that_read_videos():
    image, video = cost(onevision()), cost(onevision(), frames=6)
    assert image["views"] == 5
    assert video["vision_tokens"] == 6 * 4 + 1  # pooled to a quarter, and a newline
    assert counted(video, "vision_encoder")[1] == 6 / 5 * counted(image, "vision_encoder")[1]
    both = VideoLlavaConfig(vision_config=vision(), text_config=text())
    linear, attention = encoder(both.vision_config)
    assert cost(both, frames=3)["vision_tokens"] == 3 * 17
    assert counted(cost(both, frames=3), "vision_encoder") == (3 * linear, 3 * attention)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (llava(), {"frames": 40}),
        (llava(sliding_window=32), {"resolution": 200}),
        (llava(), {"vision_tokens": [300, 16, 300]}),
        (llava(), {"frames": 9, "resolution": 64}),
        (mini(), {"frames": 40}),
        (mini(), {"frames": 40, "rows": "needed"}),
        (mini(fusion="in_llm", num_prefusion_layers=1), {"frames": 40}),
        (onevision(), {"frames": 40}),
        (VideoLlavaConfig(vision_config=vision(), text_config=text()), {"frames": 40}),
    ],
)
def test_what_follows_from_fewer_is_what_all_of_them_cost(monkeypatch, config, options):
    all_of_them = cost(config, **options)
    monkeypatch.setattr(flop_count, "MOST_IMAGES", 3)
    monkeypatch.setattr(flop_count, "MOST_TOKENS", 128)
    xr.testing.assert_allclose(cost(config, **options), all_of_them, rtol=1e-12)


def test_any_number_of_tokens_is_counted_by_shape():
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    number = 10**9
    costs = cost(llava(), vision_tokens=number)
    assert costs["vision_tokens"] == number
    by_hands = np.array(by_hand(text(), [number + costs["text_tokens"].item()] * 3), float)
    np.testing.assert_allclose(counted(costs, "llm"), by_hands, rtol=1e-12)
    views = math.ceil(number / 16)
    of_views = views * np.array(encoder(vision()), float)
    np.testing.assert_allclose(counted(costs, "vision_encoder"), of_views, rtol=1e-12)
    assert time.monotonic() - started < 60
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < 500e3  # kB
    cost(mini(), frames=number)


# Measured


@pytest.mark.parametrize("options", [{}, {"resolution": 64}, {"frames": 3}])
def test_a_measurement_stands_beside_the_count(options):
    costs = cost(mini(), text_tokens=WORDS, measure=2, dtype="float32", **options)
    assert costs["latency"].shape == (1, 2) and (costs["latency"] > 0).all()
    assert costs["memory"].sel(moment="peak") >= costs["memory"].sel(moment="before")
    assert str(costs["device"].item()).startswith(("cpu", "cuda"))
    assert same(costs, cost(mini(), text_tokens=WORDS, **options))


def test_names_models_and_subjects_are_the_same_thing():
    subject = load("tiny-llava")
    by_name = cost("tiny-llava")
    for source in (subject, FOLDERS["tiny-llava"], subject.model, subject.model.config):
        assert same(cost(source), by_name)
    assert by_name["revision"] == subject.revision
    assert probe.cost("tiny-llava", measure=1)["device"] == "cpu" or torch.cuda.is_available()


# The dataset


def test_cases_side_by_side_and_in_a_file(tmp_path):
    config = llava()
    deeper = llava(num_hidden_layers=5)
    cases = [cost(config, name="a", measure=2, dtype="float32"), cost(deeper, 4, name="b")]
    costs = join(cases)
    assert costs["case"].values.tolist() == ["a", "b"]
    assert costs["component"].values.tolist() == cases[0]["component"].values.tolist()
    assert np.isnan(costs["llm_tokens"].sel(case="a").values[3:]).all()
    assert np.isnan(costs["latency"].sel(case="b")).all()
    assert all("units" in costs[name].attrs for name in costs.data_vars)
    rows = table(costs)
    assert rows["total (TFLOP)"].tolist() == pytest.approx(
        costs["flops"].sum(["component", "operation"]) / 1e12
    )
    write(costs, tmp_path / "costs.json")
    xr.testing.assert_equal(read(tmp_path / "costs.json"), costs)
    with pytest.raises(ProbeError, match=r"cost\.read"):
        read(tmp_path / "none.json")


# The formula of the reducers' papers


@pytest.mark.parametrize(("words", "percent"), [(0, [32.7, 21.7, 10.8]), (64, [39.2, 29.3, 19.5])])
def test_the_formula_gives_the_shares_that_follow_from_it(words, percent):
    full = formula_flops([576 + words] * 32, 4096, 11008)
    left = [100 * formula_flops([n + words] * 32, 4096, 11008) / full for n in (192, 128, 64)]
    assert [round(one, 1) for one in left] == percent
    half = formula_flops([576 + words] * 2 + [288 + words] * 30, 4096, 11008)
    assert round(100 * (1 - half / full), 1) == {0: 47.6, 64: 42.9}[words]


# Mistakes


def asked(**options):
    return lambda: cost(llava(), **options)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (asked(vision_tokens=-1), "0 or more"),
        (asked(vision_tokens=1.5), "one number"),
        (asked(vision_tokens=[1, 2]), "each of 3 LLM layers, got [1, 2]"),
        (asked(vision_tokens=20, resolution=32), "0 to 16 vision tokens"),
        (asked(vision_tokens=0, text_tokens=0), "at least one token"),
        (asked(text_tokens=-3), "text_tokens of 0 or more"),
        (asked(frames=0), "frames of 1 or more"),
        (asked(resolution=0), "resolution in pixels"),
        (asked(resolution=(32,)), "resolution in pixels"),
        (asked(rows="some"), "rows all, needed, got 'some'"),
        (asked(measure=-1), "number of repeats"),
        (asked(vision_tokens=4, measure=1), "leave measure= out"),
        (asked(dtype="float7"), "a dtype of"),
        (lambda: cost(text()), "vision-language model"),
        (lambda: cost(3), "a name, a subject"),
        (lambda: cost("tiny-lava"), "tiny-llava"),
        (lambda: cost(mini(), vision_tokens=5), "C x C"),
        (lambda: cost(mini(), vision_tokens=4, frames=2), "each of 2 frames"),
        (lambda: join([]), "at least one cost"),
    ],
)
def test_mistakes_are_one_line(unchecked, call, told):
    with pytest.raises(ProbeError) as error:
        call()
    assert told in str(error.value) and "\n" not in str(error.value)


# The paper


@pytest.fixture(scope="module")
def analysis():
    path = ROOT / "analyses" / "cost" / "cost.py"
    spec = importlib.util.spec_from_file_location("analyses_cost", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def teraflops(costs) -> float:
    """As the paper counts: without attention's own products."""
    return float(costs["flops"].sel(operation="linear").sum()) / 1e12


def test_the_papers_numbers_follow_from_the_configs(analysis):
    assert teraflops(cost(analysis.llava(), text_tokens=43)) == pytest.approx(8.55, abs=0.01)
    whole = cost(analysis.mini(), text_tokens=43)
    assert teraflops(whole) == pytest.approx(1.96, abs=0.01)
    assert float(whole["flops"].sel(component="compressor").sum()) == pytest.approx(
        2.42e9, abs=0.01e9
    )


def test_no_number_of_the_paper_is_in_the_package(analysis):
    printed = [
        line.split(",")[4]
        for line in (analysis.HERE / "published.csv").read_text().splitlines()[1:]
    ]
    printed += re.findall(r"\d+\.\d{3}", (analysis.HERE / "components.csv").read_text())
    assert len(printed) > 25 and not any(math.isnan(float(number)) for number in printed)
    for file in (Path(probe.__file__).parent / "measures" / "cost").glob("*.py"):
        for number in printed:
            assert not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", file.read_text()), (
                file,
                number,
            )
