"""`probe cost` and its figures: what is written, what is drawn, and that mistakes are one line."""

import numpy as np
import pytest
from matplotlib import pyplot
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from probe import load, plots
from probe.cli.cost import cases_of, with_unit
from probe.cli.options import several_numbers
from probe.errors import ProbeError
from probe.measures.cost import cost, join, read, table
from tests.families.models import FAMILIES


@pytest.fixture(scope="module")
def costs():
    """Two models over three of everything; counts only."""
    clip = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        projection_dim=8,
    )
    cases = []
    for name, width in (("small", 16), ("wide", 32)):
        llm = LlamaConfig(
            hidden_size=width,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=50,
        )
        config = LlavaConfig(vision_config=clip, text_config=llm)
        asked = [{}, {"vision_tokens": 4}, {"resolution": 32}, {"frames": 4}, {"frames": 64}]
        cases += [
            cost(config, name=f"{name} {n}", **one).assign_coords(model=("case", [name]))
            for n, one in enumerate(asked)
        ]
    return join(cases)


def test_one_command_writes_a_table_figures_and_the_numbers(run, tmp_path):
    words = ["--vision-tokens", "1,9", "--frames", "4", "--measure", "2", "--model", "tiny-llava"]
    code, said, error = run("cost", *words)
    assert code == 0, error
    folder = tmp_path / "probe-out" / "cost"
    there = {path.name for path in folder.iterdir()}
    assert {"costs.csv", "costs.json", "flops.png", "latency.svg", "flops-frames.png"} <= there
    written = read(folder / "costs.json")
    assert written["vision_tokens"].values.tolist() == [36, 1, 9, 4 * 36]
    measured = written["latency"].notnull().all("repeat").values.tolist()
    assert measured == [True, False, False, True]  # fewer tokens would need a reducer
    total = float(written["flops"].isel(case=0).sum())
    assert with_unit(total, "FLOP") in said and "tiny-llava, frames 4" in said


@pytest.mark.parametrize(
    ("family", "changed"),
    [("qwen2_vl", {"vision_tokens", "height"}), ("mllama", {"height"}), ("idefics3", {"height"})],
)
def test_a_model_that_only_its_processor_explains_is_counted_by_default(family, changed):
    """`probe cost --model` of Qwen-VL ended in a TypeError; of Mllama in a number of vision tokens
    that it does not have; of Idefics3 in a prompt of 1000 images.
    """
    subject = load(*FAMILIES[family]())
    counted = join(cases_of(family, subject, {"vision_tokens": None}, {}, measure=0))
    first = counted.isel(case=0)
    differ = {
        name
        for name in ("vision_tokens", "height", "frames")
        if (counted[name] != first[name]).any()
    }
    assert changed <= differ and "frames" not in differ
    assert (counted["flops"].sel(component="llm").sum("operation") > 0).all()


def test_a_line_that_hardly_rises_is_not_on_the_edge(costs):
    """And there are no fractions of tokens."""
    axis = plots.memory(costs.isel(case=[0, 1]), against="vision_tokens")
    highest = max(line.get_ydata().max() for line in axis.lines)
    assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] == pytest.approx(1.05 * highest)
    assert all(tick == round(tick) for tick in axis.get_xticks())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--vision-tokens", "a"], "numbers with commas"),
        (["--frames", "0"], "frames of 1 or more"),
        (
            [
                "--vision-tokens",
                "37",
                "--resolution",
                "60",
                "--measure",
                "0",
                "--model",
                "tiny-lava",
            ],
            "tiny-llava",
        ),
        (["--text-tokens", "-1"], "--text-tokens"),
        (["--out", "file"], "folder that can be written"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, words, told):
    (tmp_path / "file").write_text("")
    code, _, error = run("cost", *(() if "--model" in words else ("--measure", "0")), *words)
    assert code == 2 and told in error and error.count("\n") == 1


def test_numbers_of_an_option():
    assert (
        several_numbers("--frames", "1, 10") == [1, 10]
        and several_numbers("--frames", None) is None
    )
    with pytest.raises(ProbeError, match="--frames"):
        several_numbers("--frames", "1;2")


def test_bars_are_as_long_as_the_costs(costs):
    axis = plots.flops(costs)
    ends: dict[float, float] = {}
    for bar in axis.patches:
        middle = bar.get_y() + bar.get_height() / 2
        ends[middle] = ends.get(middle, 0) + bar.get_width()
    expected = costs["flops"].sum(["component", "operation"]).values
    scale = expected[0] / ends[min(ends)]
    np.testing.assert_allclose([scale * ends[y] for y in sorted(ends)], expected)
    assert np.log10(scale) % 3 == pytest.approx(0)
    names = {text.get_text() for text in axis.get_legend().get_texts()}
    assert "LLM" in names and "pre-fusion" not in names  # nothing of it
    pyplot.close(axis.figure)


@pytest.mark.parametrize(
    ("against", "x"), [("vision_tokens", [4, 16]), ("height", [16, 32]), ("frames", [1, 4, 64])]
)
def test_lines_have_what_differs_in_nothing_else(costs, against, x):
    axis = plots.flops(costs, against)
    lines = [line for line in axis.get_lines() if len(line.get_xdata()) > 1]
    assert [line.get_xdata().tolist() for line in lines] == [x, x]
    assert all(np.diff(line.get_ydata()).min() > 0 for line in lines)
    pyplot.close(axis.figure)


def test_memory_has_a_limit_and_weights_or_not(costs):
    with_weights, cache = (
        plots.memory(costs, "frames", limit=1e6),
        plots.memory(costs, "frames", weights=False),
    )
    assert any("MB" in text.get_text() or "kB" in text.get_text() for text in with_weights.texts)
    first = costs.isel(case=0)
    low = cache.get_lines()[0].get_ydata()[0]
    assert float(first["kv_cache"].sum()) / low in (1.0, 1e3, 1e6)
    for axis in (with_weights, cache):
        pyplot.close(axis.figure)


def test_every_figure_there_are_numbers_for(unchecked, costs):
    drawn = plots.cost_figures(costs)
    assert set(drawn) == {
        "flops",
        *(
            f"{what}-{axis}"
            for what in ("flops", "memory")
            for axis in ("vision_tokens", "height", "frames")
        ),
    }
    with pytest.raises(ProbeError, match="with a measurement"):
        plots.latency(costs)
    with pytest.raises(ProbeError, match="against vision_tokens"):
        plots.flops(costs, "colour")
    with pytest.raises(ProbeError, match=r"probe\.cost"):
        plots.flops(table(costs))
