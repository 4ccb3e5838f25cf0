"""Nothing in a figure overlaps, is cut off or lies on a curve, at the size of a notebook and on
both shipped models; and texts can be read whatever the user's own style is."""

import importlib.util
import warnings
from pathlib import Path

import figure_layout
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from planted_answers import planted_answers
from planted_records import planted_record
from planted_sweeps import planted_sweep

import probe
from probe import plots
from probe.plots.style import LOOKS, figure_of, looks
from probe.plots.sweep_curves import curve

SHEET = Path(__file__).parents[2] / "analyses" / "figures.py"
MODELS = ("tiny-llava", "tiny-llava-mini")


@pytest.fixture(scope="module")
def sheet():
    """`analyses/figures.py`, which draws every kind of figure."""
    spec = importlib.util.spec_from_file_location("contact_sheet", SHEET)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(sheet):
    """What was measured on each model, from small files (`python analyses/figures.py --test`)."""
    return {model: sheet.opened(model, sheet.OF_TEST) for model in MODELS}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def faults_of(drawn):
    """{name: what is wrong with the figure}, of those with faults."""
    found = {}
    for name, draw in drawn.items():
        figure = figure_of(draw())
        found[name] = figure_layout.faults(figure) + figure_layout.illegible(figure)
        plt.close(figure)
    return {name: faults for name, faults in found.items() if faults}


@pytest.mark.parametrize("model", MODELS)
def test_nothing_overlaps_and_nothing_is_cut_off(sheet, measured, model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # an empty legend, a layout that failed
        drawn = sheet.drawings(measured[model])
        if model == "tiny-llava":  # every plot with both models, variants of a plot with one
            drawn = {name: draw for name, draw in drawn.items() if "," not in name}
        assert faults_of(drawn) == {}


def test_figures_of_several_models_do_not_either(sheet, measured):
    told = probe.reliability(planted_answers(20), draws=20, progress=False)
    data = sheet.opened("compared", sheet.OF_TEST) | {"reliability": told}
    assert faults_of(sheet.comparisons(data, measured)) == {}


def test_every_public_plot_is_among_them(sheet, measured):
    drawn = {*sheet.comparisons({}, measured)}
    for data in measured.values():
        drawn |= {name.split(",")[0] for name in sheet.drawings(data)}
    pages = {"figures", "main_figures", "drop_figures", "cost_figures"}
    moving = {"animation"}  # a file of its own; `frames` is its still
    assert drawn == set(plots.__all__) - pages - moving
    for name in drawn:
        assert sheet.how_to_read(getattr(plots, name)).endswith((".", ")")), name


def record_of(width, height, **options):
    """A planted record whose images have this size."""
    record = planted_record(1, stacks=["llm"], layers=4, **options)
    root = record.to_dataset().drop_vars(["images", "image_size"]).drop_dims("y", errors="ignore")
    images = options.get("images", 1)
    root = root.assign(
        images=(
            ("sample", "image", "y", "x", "channel"),
            np.zeros((1, images, height, width, 3), np.uint8),
        ),
        image_size=(("sample", "image", "side"), np.full((1, images, 2), (height, width))),
    )
    return xr.DataTree.from_dict({"/": root, "/llm": record["llm"].to_dataset()})


@pytest.mark.parametrize(
    "record",
    [
        record_of(1280, 200),
        record_of(1280, 200, aspect="pad"),
        record_of(200, 1280, aspect="crop"),
        record_of(64, 48, images=3),
        planted_record(1, stacks=["llm"], aspect="anyres"),
    ],
    ids=["panorama", "padded panorama", "tower", "three images", "tiles"],
)
def test_images_of_any_shape_have_room(record):
    assert faults_of({"heatmaps": lambda: plots.heatmaps(record)}) == {}


@pytest.mark.parametrize("spread", [0.01, 0.2, 4.0])
def test_the_scale_of_one_layer_has_room(spread):
    """Whatever its range: its name is not cut off, and no ticks touch each other."""
    record = record_of(64, 48)
    received = record["llm"].to_dataset()["received"]
    random = np.random.default_rng(0).standard_normal(received.shape)
    record["llm"]["received"] = received.copy(data=0.1 * np.exp(spread * random).clip(0, 9))
    drawn = {
        f"{count} layers": lambda count=count: plots.heatmaps(record, layers=range(count))
        for count in (1, 2, 3)
    }
    assert faults_of(drawn) == {}


def test_long_names_have_room(measured):
    attribution = measured["tiny-llava"]["attribution"]
    names = attribution["feature"].values.astype(object)
    names[attribution["feature_kind"].values != "region"] = "a" * 40
    long = attribution.assign_coords(feature=names)
    record = measured["tiny-llava"]["record"].copy()
    record.attrs["model"] = "organisation/llava-onevision-qwen2-7b-ov-finetuned-on-everything"
    drawn = {
        "attribution": lambda: plots.attribution(long),
        "mass": lambda: plots.mass(record),
        "entropy": lambda: plots.entropy(record),
        "heatmaps": lambda: plots.heatmaps(record),
    }
    assert faults_of(drawn) == {}


def test_a_figure_is_a_light_page_whatever_style_the_user_has(sheet, measured):
    drawn = sheet.drawings(measured["tiny-llava"])
    some = ("heads", "heatmaps", "flops", "lens_curves")
    before = dict(matplotlib.rcParams)
    try:
        plt.style.use("dark_background")
        assert faults_of({name: drawn[name] for name in some}) == {}
        figure = figure_of(drawn["mass"]())
        assert figure.get_facecolor() == (1, 1, 1, 1)
    finally:
        matplotlib.rcParams.update(before)


def test_faults_are_found():
    figure, axis = plt.subplots(figsize=(3, 2))
    axis.plot([0, 1], [0, 1], label="curve")
    axis.legend(loc="center")
    axis.text(0.9, 0.1, "a text that does not end in the figure")
    axis.set_title("light", color="#dddddd")
    named = " | ".join(figure_layout.faults(figure))
    assert "legend ['curve'] lies on a curve" in named
    assert "'a text that does not end in the figure' is cut off" in named
    assert figure_layout.illegible(figure) == ["'light' (#dddddd)"]


def test_a_thing_has_one_colour_whatever_is_drawn_with_it():
    for names in (["swap", "mask"], ["grid", "random", "fastv"], ["where", "at"], ["vision"]):
        assert looks(names) == {name: LOOKS[name] for name in names}


def test_a_band_of_a_distance_does_not_go_below_zero():
    table = planted_sweep(images=4)
    table["kl"] = table["kl"] * (table["image"] == table["image"][0])  # on one image of four
    assert curve(table, "kl", [3], seed=0).low.min() < 0
    axis = plots.readings({"mask": table}, value="kl")
    bars = [bar for container in axis.containers for bar in container.lines[2]]
    heights = np.concatenate([part[:, 1] for bar in bars for part in bar.get_segments()])
    assert len(heights) and heights.min() >= 0


def test_fine_types_have_a_panel_for_each_key(measured):
    fine = measured["tiny-llava"]["fine"]
    axis = plots.mass(fine)
    titles = [one.get_title(loc="left") for one in axis.figure.axes]
    keys = ("bos", "system", "vision", "instruction", "last", "response")
    assert sorted(titles) == sorted(f"→ {key}" for key in keys)
    (vision,) = [one for one in axis.figure.axes if one.get_title(loc="left") == "→ vision"]
    for line in vision.lines:
        query = line.get_label().split(" → ")[0]
        assert line.get_color() == LOOKS[query].color
        values = fine["llm"]["mass"].sel(query_type=query, key_type="vision")
        np.testing.assert_allclose(line.get_ydata(), values.mean(["sample", "head"]), rtol=1e-6)


def test_a_concentration_is_a_small_file(measured, tmp_path):
    found = measured["tiny-llava"]["concentration"]
    back = probe.open_record(probe.save_record(found, tmp_path / "found"))
    xr.testing.assert_equal(back, found)
