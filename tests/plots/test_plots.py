"""What is drawn is what the record says: lines are head means, patches lie where they belong."""

# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (xarray types tree["a"]["b"] as a tree or an array)

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageColor
from planted_records import planted_record

from probe import plots
from probe.errors import ProbeError
from probe.plots.sample_mean import average, mean_and_band
from probe.plots.style import line_style, styled
from probe.records import assemble, entropy_ratio, to_dataframe
from probe.records.sample_images import images

TYPES = ("instruction", "vision", "response")
FINE = ("bos", "system", "vision", "instruction", "last", "response")


@pytest.fixture(scope="module")
def record():
    return planted_record(3, optional=True)


@pytest.fixture(autouse=True)
def clean():
    """Every test ends with matplotlib's settings as they were."""
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def test_a_backend_that_becomes_interactive_meanwhile_stays_so():
    """As that of a notebook does with its first figure; no later one would be shown."""
    with styled():
        assert matplotlib.rcParams["lines.markersize"] == 4.5
        matplotlib.rcParams["interactive"] = True
    assert matplotlib.rcParams["interactive"] is True
    matplotlib.rcParams["interactive"] = False


def lines(axis):
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


def texts(axis):
    figure = axis.figure
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def panels(figure, views=1):
    """The panels of heat maps, a row a view, without those of the image itself."""
    drawn = [axis for axis in figure.axes if "layer" in axis.get_title()]
    return np.array(drawn, dtype=object).reshape(views, -1)


def without(record, *, root=(), **variables):
    """A copy that lacks some variables: without(record, llm=["received"])."""
    nodes = {
        name: node.to_dataset(inherit=False).drop_vars(variables.get(name, []))
        for name, node in record.children.items()
    }
    return xr.DataTree.from_dict({"/": record.to_dataset().drop_vars(root), **nodes})


# lines


@pytest.mark.parametrize("value", ["mass", "share", "lift", "contribution"])
def test_lines_are_head_means_over_layers_from_one(record, value):
    drawn = lines(plots.mass(record, value=value))
    expected = record["llm"][value].mean("head").mean("sample")
    for name, line in drawn.items():
        query, key = name.split(" → ")
        np.testing.assert_allclose(
            line.get_ydata(), expected.sel(query_type=query, key_type=key), rtol=1e-6
        )
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
    assert len(drawn) == 7  # of 9 pairs, those that causality lets see


def test_pairs_that_cannot_attend_are_not_drawn(record):
    assert "vision → response" not in lines(plots.mass(record))
    assert "response → response" in lines(plots.mass(record))


def test_entropy_shows_pooled_and_per_head_beside_each_other(record):
    pooled, single = plots.entropy(record).axes
    for axis, name in [(pooled, "entropy"), (single, "head_entropy")]:
        array = record["llm"][name].sel(query_type="response", key_type="vision").mean("sample")
        array = array.mean("head") if "head" in array.dims else array
        np.testing.assert_allclose(lines(axis)["response → vision"].get_ydata(), array, rtol=1e-6)
        assert "(nat)" in axis.get_ylabel()
    assert pooled.get_ylim() == single.get_ylim()
    assert "paper" in pooled.get_title(loc="left")
    (ratio,) = plots.entropy(record, which="pooled", ratio=True).axes
    expected = entropy_ratio(record).sel(query_type="response", key_type="vision").mean("sample")
    np.testing.assert_allclose(lines(ratio)["response → vision"].get_ydata(), expected, rtol=1e-6)
    assert "ln(visible keys)" in ratio.get_ylabel()
    assert [1, 1] in [list(line.get_ydata()) for line in ratio.lines], "a line at 1"
    assert ratio.get_ylim()[1] > 1, "an even spread is on the panel"


def test_a_line_means_what_its_weights_say(record):
    uneven = record.copy(deep=True)
    counts = uneven["llm"]["query_count"].sel(query_type="response", key_type="vision").values
    assert len(set(counts)) == 3
    values = uneven["llm"]["mass"].mean("head").sel(query_type="response", key_type="vision").values
    by_query = lines(plots.mass(uneven, weights="query_count"))["response → vision"].get_ydata()
    np.testing.assert_allclose(by_query, np.average(values, axis=0, weights=counts), rtol=1e-6)
    assert "weighted by their queries" in texts(plots.mass(uneven, weights="query_count"))
    assert "each counts once" in texts(plots.mass(uneven))


def test_bands_contain_the_mean_and_are_named(record):
    axis = plots.mass(record)
    for band, line in zip(axis.collections, lines(axis).values(), strict=True):
        edge = band.get_paths()[0].vertices
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            heights = edge[edge[:, 0] == x, 1]
            assert heights.min() <= y <= heights.max()
    assert "95 % bootstrap interval over 3 images" in texts(axis)


def test_questions_about_one_image_are_no_independent_evidence():
    axis = plots.mass(planted_record(3, stacks=["llm"], shared_image=True))
    assert not axis.collections
    assert "one image: no band" in texts(axis)
    assert not plots.mass(planted_record(1, stacks=["llm"])).collections


def test_a_caption_counts_the_samples_that_entered():
    record = planted_record(3)
    for name in ("mass", "share", "lift"):
        record["vision"][name].values[2] = np.nan  # as for a sample without an image
    assert "mean of 2 samples (each counts once); band: 95 % bootstrap interval over 2" in texts(
        plots.mass(record, "vision")
    )


def test_images_are_told_apart_by_hash_then_pixels_then_sample(record):
    assert images(record).tolist() == [0, 1, 2]
    assert images(planted_record(3, stacks=["llm"], shared_image=True)).tolist() == [0, 0, 0]
    assert images(without(record, root=["images", "image_size"])).tolist() == [0, 1, 2]
    hashed = record.copy()
    hashed["image_sha256"] = xr.DataArray(
        np.array([["a"], ["b"], ["a"]], object), dims=("sample", "image")
    )
    assert images(hashed).tolist() == [0, 1, 0]


def test_a_record_is_averaged_in_blocks_of_any_size(record, monkeypatch):
    whole = average(record, "llm", "head_entropy", weights="query_count")
    monkeypatch.setattr("probe.records.sample_blocks.BLOCK_BYTES", 1)
    pieces = average(record, "llm", "head_entropy", weights="query_count")
    for first, second in zip(whole, pieces, strict=True):
        xr.testing.assert_allclose(first, second, rtol=1e-12)


@given(st.integers(2, 6), st.integers(0, 3), st.data())
def test_the_bootstrap_redraws_whole_images(samples, seed, data):
    values = np.array(
        data.draw(st.lists(st.floats(0, 1, width=32), min_size=samples, max_size=samples))
    )
    shown = np.array(data.draw(st.lists(st.integers(0, 2), min_size=samples, max_size=samples)))
    shown = np.unique(shown, return_inverse=True)[1]
    mean, low, high = mean_and_band(values, np.ones(samples), shown, seed=seed)
    np.testing.assert_allclose(mean, values.mean())
    by_image = [values[shown == each].mean() for each in set(shown)]
    assert min(by_image) - 1e-9 <= low <= high <= max(by_image) + 1e-9
    again = mean_and_band(values, np.ones(samples), shown, seed=seed)
    assert (float(low), float(high)) == (float(again[1]), float(again[2]))


def test_a_missing_number_has_no_weight():
    mean, low, high = mean_and_band(
        np.array([[1.0, np.nan], [np.nan, np.nan]]), np.ones((2, 2)), np.array([0, 1])
    )
    np.testing.assert_array_equal([mean, low, high], [[1, np.nan]] * 3)


def test_types_can_be_chosen(record):
    assert set(lines(plots.mass(record, query_types="response", key_types=["vision"]))) == {
        "response → vision"
    }
    with pytest.raises(ProbeError, match="types of instruction, vision, response, got 'image'"):
        plots.mass(record, key_types="image")
    with pytest.raises(ProbeError, match="a pair of types that was measured"):
        plots.mass(record, query_types="vision", key_types="response")


@pytest.mark.parametrize(
    "types", [TYPES, FINE, ("cls", "vision"), ("cat", "dog", "vision", "instruction", "response")]
)
def test_lines_can_be_told_apart_in_grey(types):
    looks = [line_style(query, key, types, types) for query in types for key in types]
    grey = {(look["marker"], str(look["linestyle"])) for look in looks}
    assert len(grey) == len(types) ** 2
    colours = {ImageColor.getrgb(look["color"]) for look in looks}
    assert len(colours) == len(types)


def test_a_legend_of_many_pairs_names_types_instead():
    counts = np.tril(np.ones((6, 6)))
    mass = np.where(counts, 1 / counts.sum(1, keepdims=True), np.nan)
    node = {"query_type": FINE, "key_type": FINE, "mass": np.broadcast_to(mass, (1, 2, 3, 6, 6))}
    node |= {"query_count": counts[None], "key_count": np.ones((1, 6))}
    record = assemble({"sample": ["a"]}, {"llm": node}, {})
    axis = plots.mass(record, ax=plt.subplots()[1])
    assert len(lines(axis)) == 21
    entries = dict(zip(axis.get_legend().texts, axis.get_legend().legend_handles, strict=True))
    dashes = {str(one._dash_pattern) for text, one in entries.items() if text.get_text()[-1] == "→"}
    assert len(dashes) == len(FINE)
    named = [text.get_text() for text in entries]
    assert sorted(named) == sorted([f"→ {name}" for name in FINE] + [f"{name} →" for name in FINE])


def test_several_records_stand_side_by_side_on_one_scale(record):
    other = planted_record(2, aspect="crop", toy="false", seed=5)
    for draw in (plots.mass, plots.heads):
        axes = draw({"pad": record, "crop": other}).axes[:2]
        assert [axis.get_title(loc="left").split("\n")[-1] for axis in axes] == ["pad", "crop"]
    first, second = plots.mass([record, other], value="lift").axes
    assert [axis.get_title(loc="left") for axis in (first, second)] == [
        "pad",
        "crop",
    ]  # by what differs
    assert first.get_ylim() == second.get_ylim()
    assert len(plots.entropy([record, other]).axes) == 4
    assert "not a finding about LLaVA (pad)" in texts(plots.mass({"pad": record, "crop": other}))


def test_the_vision_stack_is_named(record):
    axis = plots.mass(record, "vision")
    assert axis.get_xlabel() == "vision encoder layer"
    assert set(lines(axis)) == {"cls → cls", "cls → vision", "vision → cls", "vision → vision"}
    assert plots.mass(record).get_xlabel() == "LLM layer"


def test_a_users_axes_are_drawn_on_and_returned(record):
    figure, axes = plt.subplots(2, 3)
    assert plots.mass(record, ax=axes[0, 0]) is axes[0, 0]
    assert plots.entropy(record, ax=axes[0, 1]) is axes[0, 1]
    assert plots.heads(record, ax=axes[0, 2]) is axes[0, 2]
    assert plots.heatmaps(record, layers=[0, 3], ax=axes[1, :2]) is figure
    assert [axis.get_title() for axis in axes[1]] == ["LLM layer 1", "LLM layer 4", ""]
    assert plt.get_fignums() == [figure.number]
    assert "toy model" in texts(axes[0, 0])
    with pytest.raises(ProbeError, match="ax= 2 Axes, got 3"):
        plots.entropy(record, ax=axes[1])


def test_names_with_dollars_are_no_formulas(record):
    plots.mass({"$5 off_$": record}).figure.canvas.draw()


# layer x head


def test_heads_shows_every_head_of_every_layer(record):
    axis = plots.heads(record, "response", "vision")
    image = axis.images[0]
    expected = record["llm"]["mass"].sel(query_type="response", key_type="vision").mean("sample")
    np.testing.assert_allclose(image.get_array(), expected, rtol=1e-6)
    assert tuple(image.get_extent()) == (0.5, 3.5, 4.5, 0.5)  # layer 1 on top
    lift = plots.heads(record, value="lift").images[0].norm
    assert lift.vmin * lift.vmax == pytest.approx(1)
    with pytest.raises(ProbeError, match="head_entropy"):
        plots.heads(record, value="entropy")


# heat maps


def patches(axis):
    """[(left top right bottom in pixels)], values: what is drawn on a panel."""
    drawn = axis.collections[0]
    corners = np.array([path.vertices[:4] for path in drawn.get_paths()])
    return np.concatenate([corners.min(1), corners.max(1)], 1), np.asarray(drawn.get_array())


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [
        ("crop", [12, 0, 60, 48]),  # the square in the middle of 72 x 48
        ("pad", [0, 0, 72, 48]),
        ("anyres", [0, 0, 72, 48]),
    ],
)
def test_patches_lie_where_they_are_in_the_image(aspect, expected):
    record = planted_record(1, stacks=["llm"], aspect=aspect)
    axis = panels(plots.heatmaps(record, layers=[2]))[0, 0]
    boxes, values = patches(axis)
    np.testing.assert_allclose([*boxes[:, :2].min(0), *boxes[:, 2:].max(0)], expected, atol=1e-5)
    keys = record["llm"].isel(sample=0)
    inside = np.clip(keys["key_box"].values, 0, 1)
    shown = (keys["key_tile"].values == 0) & (inside[:, 3] > inside[:, 1])
    np.testing.assert_allclose(boxes, inside[shown] * [72, 48, 72, 48], atol=1e-5)
    received = keys["received"].sel(query_type="response").values[2]
    np.testing.assert_allclose(values, received[shown])
    assert axis.get_xlim() == (0, 72)
    assert axis.get_ylim() == (48, 0)
    assert f"preprocessing: {aspect[:3]}" in texts(axis)


def test_patches_on_the_bars_of_a_padded_image_are_cut_off():
    tall = planted_record(1, stacks=["llm"], grid=8, aspect="pad")
    boxes, _ = patches(panels(plots.heatmaps(tall, layers=[0]))[0, 0])
    assert (
        len(boxes) == 8 * 6
    )  # the bars take the first and the last of the eight rows, patch rows are 1.5/8 high
    np.testing.assert_allclose(boxes[0], [0, 0, 9, 6], atol=1e-5)


def test_tiles_have_a_row_of_their_own_and_newlines_no_place():
    record = planted_record(1, stacks=["llm"], aspect="anyres", images=2)
    axes = panels(plots.heatmaps(record, layers=[0, 1, 2]), views=4)
    assert axes.shape == (4, 3)
    assert [len(patches(row[0])[0]) for row in axes] == [16, 32, 16, 32]
    assert panels(plots.heatmaps(record, tile=0, image=1)).shape == (1, 4)
    right, _ = patches(panels(plots.heatmaps(record, tile=2, image=0))[0, 0])
    assert right[:, 0].min() == 36
    with pytest.raises(ProbeError, match="tile 9"):
        plots.heatmaps(record, tile=9)


def test_one_logarithmic_scale_with_its_floor_stated(record):
    axes = panels(plots.heatmaps(record, sample="s1", floor=0.002))
    norms = [axis.collections[0].norm for axis in axes.flat]
    top = record["llm"]["received"].sel(sample="s1", query_type="response").max()
    assert {(norm.vmin, round(norm.vmax, 6)) for norm in norms} == {(0.002, round(float(top), 6))}
    assert all(isinstance(norm, matplotlib.colors.LogNorm) for norm in norms)
    assert "floor 0.002" in texts(axes[0, 0])
    assert "s1" in texts(axes[0, 0])
    assert norms[0](1e-9) == 0  # what is below looks like the floor
    with pytest.raises(ProbeError, match="a floor between"):
        plots.heatmaps(record, floor=2.0)


def test_panels_are_the_layers_asked_for(record):
    axes = panels(plots.heatmaps(record, layers=[3, 0]))
    assert [axis.get_title() for axis in axes[0]] == ["LLM layer 4", "LLM layer 1"]
    deep = panels(plots.heatmaps(planted_record(1, stacks=["llm"], layers=32)))
    assert [axis.get_title().split()[-1] for axis in deep[0]] == [
        "1",
        "5",
        "9",
        "13",
        "17",
        "20",
        "24",
        "28",
        "32",
    ]
    with pytest.raises(ProbeError, match=r"layers from 0 to 3, got \[4\]"):
        plots.heatmaps(record, layers=[4])


def test_one_layer_is_asked_for_by_its_number(record):
    (axis,) = panels(plots.heatmaps(record, layers=1))[0]
    assert axis.get_title() == "LLM layer 2"
    with pytest.raises(ProbeError, match=r"layers from 0 to 3, got \[9\]"):
        plots.heatmaps(record, layers=9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layers", [[], "2", 1.5, [1, None]])
def test_what_is_no_layer_is_told_in_a_line(record, layers):
    with pytest.raises(ProbeError, match="layers from 0 to 3, got") as error:
        plots.heatmaps(record, layers=layers)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("depths", [(3, 2), (2, 3), (2, 32)])
@pytest.mark.parametrize("own", [True, False])
def test_records_of_different_depth_each_show_their_own_layers(depths, own):
    one, two = (planted_record(1, stacks=["llm"], layers=depth) for depth in depths)
    columns = min(max(depths), 9)
    ax = None if own else plt.subplots(2, columns)[1]
    figure = plots.heatmaps({"one": one, "two": two}, ax=ax)
    figure.canvas.draw()
    axes = panels(figure)[0]
    for row, depth in zip(np.split(axes, [min(depths[0], 9)]), depths, strict=True):
        drawn = [axis.get_title() for axis in row]
        assert len(drawn) == min(depth, 9)
        assert (drawn[0], drawn[-1]) == ("LLM layer 1", f"LLM layer {depth}")


def test_the_map_of_one_token(record):
    axes = panels(plots.heatmaps(record, token=1, layers=[2]))
    assert "attention of the token, head mean" in texts(axes[0, 0])
    assert "attention received" not in texts(axes[0, 0])
    _, values = patches(axes[0, 0])
    expected = record["llm"]["maps"].values[0, 2, 1]
    assert set(values) <= set(expected)
    with pytest.raises(ProbeError, match="measure with maps"):
        plots.heatmaps(without(record, llm=["maps"]), token=0)


def test_single_heads_and_lifts_on_the_image(record):
    (axis,) = panels(plots.heatmaps(record, layers=2, head=1))[0]
    assert "attention received, head 2\n(fraction" in texts(axis)
    of_head = record["llm"]["received_head"].sel(sample="s0", query_type="response")
    assert set(patches(axis)[1]) <= set(of_head.values[2, 1])
    (axis,) = panels(plots.heatmaps(record, layers=2, value="lift"))[0]
    received = record["llm"]["received"].sel(sample="s0", query_type="response").values[2]
    lifts = received / np.nanmean(received)
    np.testing.assert_allclose(np.sort(patches(axis)[1]), np.sort(lifts[~np.isnan(lifts)]))
    with pytest.raises(ProbeError, match="a head from 0 to 2, got 3"):
        plots.heatmaps(record, head=3)
    with pytest.raises(ProbeError, match="received_head=True"):
        plots.heatmaps(without(record, llm=["received_head"]), head=0)
    with pytest.raises(ProbeError, match='maps="heads"'):
        plots.heatmaps(record, head=0, token=0)


def test_without_pixels_patches_are_drawn_on_a_blank_square(record):
    axes = panels(plots.heatmaps(without(record, root=["images", "image_size"]), layers=[0]))
    assert axes[0, 0].get_xlim() == (0, 1)
    assert "holds no pixels" in texts(axes[0, 0])


# all of them


def test_figures_gives_every_figure_the_record_can_make(record):
    drawn = plots.figures(record)
    kinds = (
        "mass",
        "share",
        "lift",
        "contribution",
        "entropy",
        "entropy-ratio",
        "heads",
        "heatmaps",
    )
    expected = {f"{stack}-{kind}" for stack in ("llm", "vision") for kind in kinds}
    assert set(drawn) == expected - {"vision-share"}  # all queries see the image: it is the mass
    assert all("toy model: not a finding about LLaVA" in texts(f.axes[0]) for f in drawn.values())
    assert not plt.get_fignums()
    ratios = ["entropy_ratio", "head_entropy_ratio"]
    less = without(planted_record(1, stacks=["llm"]), llm=["received", "head_entropy", *ratios])
    assert set(plots.figures(less)) == {"llm-mass", "llm-share", "llm-lift", "llm-heads"}


def test_there_is_no_figure_of_heads_without_a_number():
    """Words that read the image by cross-attention give no vision token attention in the LLM."""
    record = planted_record(1, stacks=["llm"])
    measured = record["llm"].to_dataset()
    others = measured["key_type"] != "vision"
    record["llm"] = xr.DataTree(measured.assign(mass=measured["mass"].where(others)))
    assert "llm-heads" not in plots.figures(record) and "llm-mass" in plots.figures(record)


def test_the_main_figures_are_four_and_the_overview_shows_the_rest(record):
    main, drawn = plots.main_figures(record), plots.figures(record)
    assert list(main) == ["llm-mass", "llm-entropy", "llm-heatmaps", "overview"]
    shown = {axis.get_title(loc="left") for axis in main["overview"].axes if axis.images}
    assert shown == set(drawn) - set(main)
    assert "tiny-llava" in main["overview"].get_suptitle()
    assert not plt.get_fignums()
    less = without(planted_record(1, stacks=["llm"]), llm=["received", "head_entropy"])
    assert list(plots.main_figures(less)) == ["llm-mass", "overview"]


def overlapping(figure):
    """Pairs of texts of a figure whose boxes overlap, as drawn."""
    figure.canvas.draw()
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible()]
    boxes = [(text, box) for text, box in boxes if box.width and box.height]
    return [
        (first, second)
        for index, (first, one) in enumerate(boxes)
        for second, other in boxes[index + 1 :]
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]


@pytest.mark.parametrize("size", [(1280, 200), (64, 48)])
def test_the_texts_of_heat_maps_do_not_overlap_even_on_a_panorama(size):
    wide = planted_record(1, stacks=["llm"], layers=8)
    pixels = np.zeros((1, 1, size[1], size[0], 3), np.uint8)
    root = wide.to_dataset().drop_vars(["images", "image_size"]).drop_dims("y", errors="ignore")
    root = root.assign(
        images=(("sample", "image", "y", "x", "channel"), pixels),
        image_size=(("sample", "image", "side"), np.array([[[size[1], size[0]]]])),
    )
    figure = plots.heatmaps(xr.DataTree.from_dict({"/": root, "/llm": wide["llm"].to_dataset()}))
    assert overlapping(figure) == []
    assert figure.get_suptitle() == "What response tokens look at · tiny-llava"


def test_colours_of_patches_are_those_of_the_colour_bar(record):
    axis = panels(plots.heatmaps(record, layers=[0]))[0, 0]
    drawn = axis.collections[0]
    assert drawn.get_alpha() is None
    axis.figure.canvas.draw()
    np.testing.assert_allclose(drawn.get_facecolor(), drawn.to_rgba(drawn.get_array()))


def test_a_padded_image_says_how_much_attention_lies_on_the_bars():
    tall = planted_record(1, stacks=["llm"], grid=8, aspect="pad")
    figure = plots.heatmaps(tall)
    keys = tall["llm"].isel(sample=0)
    received = keys["received"].sel(query_type="response").values
    inside = np.clip(keys["key_box"].values, 0, 1)
    bars = inside[:, 3] <= inside[:, 1]
    percent = 100 * received[:, bars].sum(1) / received.sum(1)
    told = f"{percent.min():.0f} to {percent.max():.0f} % of the attention on patches"
    assert told in " ".join(texts(figure.axes[0]).split())
    assert f"({bars.sum()} of 64 patches)" in " ".join(texts(figure.axes[0]).split())


def test_a_line_that_ends_early_says_why_and_special_tokens_are_explained(record):
    early = record.copy(deep=True)
    early["llm"]["mass"].loc[{"layer": 3, "query_type": "vision"}] = np.nan
    note = " ".join(texts(plots.mass(early)).split())
    assert "vision → vision ends at layer 3: later layers compute no vision query" in note
    assert "ends at layer" not in texts(plots.mass(record))
    assert "cls: the class token of the vision encoder" in texts(plots.mass(record, "vision"))


def test_what_the_record_lacks_is_told_in_a_line(record):
    less = without(record, llm=["received", "contribution"])
    for draw, complaint in [
        (
            lambda: plots.mass(less, value="contribution"),
            r"that the record holds \(mass, share, lift, entropy",
        ),
        (lambda: plots.heatmaps(less), "expected a record with 'received'"),
        (lambda: plots.mass(less, value="entropy"), "value of mass, share"),
        (lambda: plots.mass(less, "encoder"), "a stack of llm, vision, got 'encoder'"),
        (lambda: plots.mass(less, weights="layer"), "weights of sample, query_count"),
        (lambda: plots.entropy(less, "llm", "heads"), "which of pooled, head, both"),
        (lambda: plots.heatmaps(record, sample=9), r"one of 3 samples \(s0, s1, s2\), got 9"),
        (lambda: plots.heatmaps(record, sample="dog"), "got 'dog'"),
        (
            lambda: plots.heads(record, "answer"),
            "types of instruction, vision, response, got 'answer'",
        ),
    ]:
        with pytest.raises(ProbeError, match=complaint) as error:
            draw()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "thing", [None, 3, "record.zarr.zip", [], {}, [3], {"a": None}, xr.DataTree(), xr.Dataset()]
)
@pytest.mark.parametrize("draw", [plots.mass, plots.entropy, plots.heatmaps, plots.heads])
def test_what_is_no_record_is_told_in_a_line(draw, thing):
    with pytest.raises(
        ProbeError, match=f"plots.{draw.__name__}: expected a record, a list of records or"
    ):
        draw(thing)


def test_the_table_and_the_figure_agree(record):
    table = to_dataframe(record).query("stack == 'llm' and variable == 'mass'")
    means = table.groupby(["query_type", "key_type", "layer"])["value"].mean()
    for name, line in lines(plots.mass(record)).items():
        np.testing.assert_allclose(
            line.get_ydata(), means.loc[tuple(name.split(" → "))].to_numpy(), rtol=1e-5
        )
