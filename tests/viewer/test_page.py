"""The page in a real browser: what is on its canvas is what is in the record, and hostile texts do
nothing.
"""

import base64

import numpy as np
import pytest
import xarray as xr
from chromium import chromium, serious_faults
from planted_records import planted_record

from probe.measures.attribution.dataset import SCHEMA
from probe.records.schema import dataset
from probe.viewer import view
from probe.viewer.colour_tables import rising, signed
from probe.viewer.page import STATIC

# The middle of each patch on a canvas: [red, green, blue, alpha] a patch.
PIXELS = """
const heat = document.querySelectorAll('.heat')[arguments[0]];
const context = heat.getContext('2d');
const at = ([l, t, r, b]) => [(l + r) / 2 * heat.width, (t + b) / 2 * heat.height];
return arguments[1].map((box) => Array.from(context.getImageData(...at(box), 1, 1).data))
"""
HIGH = "return Number(document.querySelectorAll('.heat')[arguments[0]].dataset.high)"
GRID = ("key_image", "key_tile", "key_row", "key_col", "key_box")
NASTY = "</script><img src=x onerror=alert(1)><b>\u202e\x07{{x}}"


@pytest.fixture(scope="module")
def record():
    return planted_record(1, optional=True, aspect="crop")


@pytest.fixture(scope="module")
def browser():
    with chromium() as window:
        yield window


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a record and gives the browser back; at the end its console is empty."""

    def open_page(viewer, state=""):
        path = viewer.save(tmp_path / "page.html")
        browser.resize(1280)
        browser.open(f"{path.as_uri()}?{len(seen)}#{state}")
        seen.append(path.as_uri())
        return browser

    seen = []
    for forget in (browser.errors, browser.requests):
        forget()
    yield open_page
    assert browser.errors() == []
    assert {url.split("?")[0] for url in browser.requests()} <= set(seen)


def colours_on(browser, panel, boxes):
    return np.array(browser.run(PIXELS, panel, boxes.tolist()))


def values_on(browser, panel, boxes, table):
    """The values that the colours of a canvas stand for; NaN where it is transparent."""
    pixels = colours_on(browser, panel, boxes)
    place = {tuple(colour): index for index, colour in enumerate(table.tolist())}
    index = np.array([place.get(tuple(pixel[:3]), -1) for pixel in pixels.tolist()], float)
    is_drawn = pixels[:, 3] > 0
    assert (index[is_drawn] >= 0).all()
    part = index / 255 if table is RISING else 2 * index / 255 - 1
    return np.where(is_drawn, part * browser.run(HIGH, panel), np.nan)


RISING, SIGNED = rising(), signed()


def test_no_two_values_have_one_colour():
    assert len({*map(tuple, RISING.tolist())}) == len({*map(tuple, SIGNED.tolist())}) == 256


def test_the_canvas_shows_the_numbers_of_the_record(opened, record):
    measured = record["llm"].isel(sample=0)
    boxes = measured["key_box"].values
    browser = opened(view(record), "layer=2")
    received = measured["received"].sel(layer=2, query_type="response").values
    found = values_on(browser, 0, boxes, RISING)
    assert np.abs(found - received).max() <= received.max() / 255
    maps = measured["maps"].sel(layer=1).isel(token=1).values
    browser.run("change({layer: 1, word: 1})")
    assert np.abs(values_on(browser, 0, boxes, RISING) - maps).max() <= maps.max() / 255


def test_the_difference_of_two_records_is_on_its_canvas(opened, record):
    other = planted_record(1, optional=True, aspect="crop", seed=5)
    browser = opened(view(record, other, labels=["one", "two"]), "layer=3")
    first, second = (each["llm"].isel(sample=0) for each in (record, other))
    boxes = first["key_box"].values
    chosen = {"layer": 3, "query_type": "response"}
    before, after = (each["received"].sel(chosen).values for each in (first, second))
    found = values_on(browser, 2, boxes, SIGNED)
    largest = max(before.max(), after.max())
    assert np.abs(found - (after - before)).max() <= 2.1 * largest / 255


def test_words_are_walked_with_arrows_hovered_and_pinned(opened, record):
    browser = opened(view(record))
    browser.press("\ue014")  # right
    browser.press("\ue014")
    browser.press("\ue015")  # down
    assert browser.run("return [state.word, state.layer, location.hash]") == [
        1,
        3,
        "#layer=3&word=1",
    ]
    browser.run(
        "document.querySelectorAll('.word')[0].dispatchEvent(new PointerEvent('pointerenter'))"
    )
    assert browser.run("return document.querySelector('.word.current').textContent") == "re"
    browser.press("\ue00c")  # escape
    assert browser.run("return location.hash") == "#layer=3"


def test_a_dragged_box_ranks_words_layers_and_heads(opened, record):
    browser = opened(view(record, heads="all"))
    browser.drag(".frame", (0.17, 0.01), (0.51, 0.51))
    rows = browser.run(
        "return [...document.querySelectorAll('[data-rank]')].map((list) => [list.dataset.rank,"
        "[...list.querySelectorAll('button')].map((b) => [b.title, Number(b.dataset.value)])])"
    )
    measured = record["llm"].isel(sample=0)
    left, top, right, bottom = measured["key_box"].values.T
    inside = ((left + right) / 2 < 0.51) & ((top + bottom) / 2 < 0.51)
    heads = measured["received_head"].sel(query_type="response").values[..., inside].sum(-1)
    layers = measured["received"].sel(query_type="response").values[:, inside].sum(-1)
    found = dict(rows)
    best = np.unravel_index(heads.argmax(), heads.shape)
    assert found["heads"][0][0] == f"{best[0] + 1} · {best[1] + 1}"
    np.testing.assert_allclose(found["heads"][0][1], heads.max(), rtol=0.02)
    assert [name for name, _ in found["layers"]] == [
        f"layer {layer + 1}" for layer in np.argsort(-layers)
    ]
    maps = measured["maps"].values[..., inside].sum(-1).mean(0)
    np.testing.assert_allclose([value for _, value in found["words"]], -np.sort(-maps), rtol=0.02)


def test_a_link_gives_the_same_view_and_a_wrong_one_the_beginning(opened, record):
    link = "layer=1&word=1&quantity=lift&curve=root&light=80&box=0.1%2C0.2%2C0.5%2C0.6"
    browser = opened(view(record), link)
    assert browser.run(
        "return [state.layer, state.word, state.quantity, state.light, state.box]"
    ) == [1, 1, "lift", 80, [0.1, 0.2, 0.5, 0.6]]
    wrong = (
        "layer=99&word=x&stack=constructor&quantity=<b>&box=1,2&head=7&image=3&statistic=__proto__"
    )
    browser = opened(view(record), wrong)
    assert browser.run("return [state.layer, state.word, state.stack, state.box, state.head]") == [
        3,
        -1,
        "llm",
        None,
        "mean",
    ]


def test_an_attribution_is_shown_by_patch_and_by_word(opened, record):
    """Of both signs, on the encoder's own patches."""
    boxes = record["llm"]["key_box"].values[0]
    effect = np.linspace(-0.5, 1, len(boxes))
    places = {name.replace("key", "patch"): np.zeros(len(boxes)) for name in GRID[:-1]}
    values = {
        "attribution": effect,
        "token_attribution": np.stack([effect, -effect]),
        "token_text": np.array(["▁re", "re"], object),
        "feature_kind": np.array(["region"] * len(boxes), object),
        "patch_feature": np.arange(len(boxes)),
        "patch_box": boxes,
        **places,
    }
    names = {"feature": [f"region {i}" for i in range(len(boxes))]}
    attrs = {"kind": "attribution", "model": "tiny-llava", "method": "ablation"}
    made = dataset("attribute", values, SCHEMA, names, attrs)
    browser = opened(view(record, attributions=made), "quantity=effect-0")
    found = values_on(browser, 0, boxes, SIGNED)
    assert np.abs(found - effect).max() <= 1.01 / 255
    browser.run("change({word: 1})")
    assert np.abs(values_on(browser, 0, boxes, SIGNED) + effect).max() <= 1.01 / 255
    assert "the word “re”" in browser.run("return captionText()")
    assert browser.run("return panels[0].unit").startswith("nat")

    made["attribution"].attrs["units"] = "fraction"  # a flow map, of which one word is not known
    other = made.assign(token_text=("token", np.array(["re", "x"], object)))
    both = view(record, record, attributions=other)
    browser = opened(both, "quantity=effect-0&word=1")
    assert "the whole answer" in browser.run("return captionText()")
    sides = browser.run("return panels.map(({side, unit}) => [side, unit])")
    assert sides == [["A", "fraction"]]  # of the first record alone
    found = values_on(browser, 0, boxes, SIGNED)
    assert np.abs(found - effect).max() <= 1.01 / 255
    browser.run("change({side: 'B'})")
    assert browser.run("return state.quantity") == "attention"


def test_a_box_is_compared_with_what_lies_on_the_picture(opened):
    """Tokens without a place, as those that end a row of tiles, count nowhere."""
    record = planted_record(1, optional=True, aspect="anyres")
    measured = record["llm"].isel(sample=0)
    left, top, right, bottom = measured["key_box"].values.T
    is_placed = ~np.isnan(left)
    assert not is_placed.all()
    inside = ((left + right) / 2 < 0.51) & ((top + bottom) / 2 < 0.51)
    received = measured["received"].sel(query_type="response").values[0]
    part = received[inside].sum() / received[is_placed].sum()
    browser = opened(view(record), "box=0,0,0.51,0.51")
    times = "return ranks().layers.find(({label}) => label === 'layer 1').times"
    expected = part / (inside.sum() / is_placed.sum())
    np.testing.assert_allclose(browser.run(times), expected, rtol=0.02)


def test_a_notebook_s_widget_and_its_page_tell_each_other_what_is_shown(browser, record):
    source = base64.b64encode((STATIC / "widget.js").read_bytes()).decode()
    browser.open("about:blank", ready="return true")
    browser.run(
        "window.store = {page: arguments[0], height: 500, state: 'layer=1'};"
        "const model = {get: (name) => store[name], set: (name, to) => { store[name] = to; },"
        "save_changes() {}, on: (name, act) => { window.tell = act; }};"
        "return import('data:text/javascript;base64,' + arguments[1])"
        ".then((module) => { module.default.render({model, el: document.body}); })",
        view(record).to_html(),
        source,
    )
    browser.wait("return window.store.state === 'layer=1' && window.frames.length === 1")
    browser.run("addEventListener('message', ({data}) => { window.heard = data.probe; })")
    for state in ("layer=3", "layer=0&word=1"):
        browser.wait(
            f"store.state = '{state}'; tell(); return window.heard === '{state}'",
        )
    assert browser.errors() == []


def test_records_of_other_stacks_and_patches_are_compared_where_they_can_be(opened, record):
    other = planted_record(1, stacks=("llm",), grid=2, optional=True)
    browser = opened(view(record, other, labels=["one", "two"]), "stack=vision")
    assert browser.run("return [state.stack, panels.length]") == ["vision", 1]
    browser.run("change({side: 'B'})")
    assert browser.run("return [state.stack, panels.length]") == ["llm", 1]
    browser.run("change({side: 'A|B', range: 'layers', curve: 'root', sorted: true})")
    assert browser.run("return panels.map((panel) => panel.side)") == ["A", "B", "B − A"]
    assert browser.run("return panels[2].unit") == "difference of lifts"


def test_hostile_texts_do_nothing(opened, record):
    hostile = record.copy(deep=True)
    tokens = np.full_like(hostile["tokens"].values, NASTY)
    texts = {name: ("sample", np.array([NASTY], object)) for name in ("question", "response")}
    changed = hostile.dataset.assign(texts | {"tokens": (("sample", "position"), tokens)})
    hostile.dataset = changed
    browser = opened(view(hostile, labels=[NASTY]), "word=1")
    assert browser.run("return document.getElementById('question').textContent") == NASTY
    assert browser.run("return document.querySelector('.word').textContent") == NASTY
    assert browser.run("return document.querySelectorAll('img[src=x], main b').length") == 0


def test_what_no_query_sees_has_no_number(opened, record):
    unseen = record.copy(deep=True)
    llm = unseen["llm"].to_dataset()
    unseen["llm"] = xr.DataTree(llm.assign(lift=llm["lift"] * np.nan))
    labels = opened(view(unseen)).run(
        "return [...document.querySelectorAll('#curves svg')].map((svg) => svg.ariaLabel)"
    )
    assert labels[-1] == "lift of vision (ratio): – in this layer, at most –"


def test_merged_patches_are_shown_with_their_token(opened, record):
    """The last patch was merged into the token that lies at the first."""
    llm = record["llm"].to_dataset()
    kept = llm.isel(key=slice(0, 8))
    places = {name.replace("key", "patch"): llm[name].rename(key="patch") for name in GRID}
    token = np.minimum(np.arange(16), 7) * (np.arange(16) != 15)
    merged = kept.assign(
        places | {"patch_token": (("sample", "patch"), token[None].astype(np.int32))}
    )
    pruned = record.copy(deep=True)
    pruned["llm"] = xr.DataTree(merged)
    pruned.attrs["reducer"] = "VisionZip(8)"
    browser = opened(view(pruned))
    place = llm["key_box"].values[0, 15].reshape(2, 2).mean(0).tolist()
    assert browser.run("return keyAt(panels[0], arguments[0])", place) == 0
    browser.run("pointAt(panels[0].part, arguments[0])", place)
    assert "2 patches share" in browser.run("return document.getElementById('readout').innerText")
    dropped = "return getComputedStyle(document.querySelector('.dropped')).fill"
    assert "0.62" in browser.run(dropped)


@pytest.mark.parametrize("aspect", ["anyres", "pad"])
def test_tiles_and_several_images_have_views_of_their_own(opened, aspect):
    several = planted_record(1, aspect=aspect, images=2, optional=True)
    browser = opened(view(several), "image=1")
    assert browser.run("return panels.length") == (2 if aspect == "anyres" else 1)
    masses = browser.run(
        "return [...document.querySelectorAll('.frame-button')].map((f) => Number(f.dataset.value))"
    )
    measured = several["llm"].isel(sample=0, layer=2).sel(query_type="response")
    expected = measured["received"].groupby(measured["key_image"]).sum().values
    np.testing.assert_allclose(masses, expected, rtol=0.02)


def test_the_figure_is_taken_along_with_its_caption(opened, record):
    browser = opened(view(record), "layer=2&word=1")
    caption = browser.run("return captionText()")
    assert caption.startswith("tiny-llava · LLM layer 3 · mean over heads · the row that predicts")
    size = browser.run("return figureSvg().size")
    assert size > 5000
    assert browser.run("return figurePng().then((blob) => [blob.type, blob.size > 5000])") == [
        "image/png",
        True,
    ]
    nothing = "panels = []; document.getElementById('svg').click();"
    said = browser.run(nothing + "return document.getElementById('said').textContent")
    assert said == "This part of the record holds no picture."


def test_the_python_of_each_view_draws_it(opened, tmp_path, monkeypatch):
    """It is run as it stands; what it calls is checked where the page shows something else."""
    monkeypatch.chdir(tmp_path)
    several = planted_record(2, optional=True, aspect="crop")
    for name in ("it's a.zarr.zip", "b.zarr.zip"):
        several.probe.save(name)
    files = ["it's a.zarr.zip", "b.zarr.zip"]
    one = view(several, sample="s1", heads="all", files=files[:1])
    browser = opened(one, "layer=2&head=1&quantity=lift&query=instruction")
    script = browser.run("return pythonText(pictureCalls)")
    wanted = 'query_type="instruction", layers=[2], stack="llm", head=1, value="lift")'
    assert "it's a.zarr.zip\").sel(sample=['s1'])" in script and wanted in script
    exec(script, {})
    browser.run("change({quantity: 'attention', word: 0, head: 'mean'})")
    assert 'stack="llm", token=0).figure' in browser.run("return pythonText(pictureCalls)")
    two = view(several, several, labels=["x", "x"], files=files)
    exec(opened(two).run("return pythonText(curveCalls)"), {})
    heads = browser.run("change({statistic: 'lift'}); return pythonText(headCalls)")
    assert 'heads({"A: x": first, "B: x": second}, query_type="response", stack="llm"' in heads
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"heatmaps", "mass", "entropy", "lift"}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_fault_for_screen_readers(opened, record, width, theme):
    page = view(record, record.copy(deep=True), heads="all", labels=["one", "two"])
    browser = opened(page, "word=1&box=0.1,0.1,0.6,0.6")
    assert serious_faults(browser, width, theme) == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
