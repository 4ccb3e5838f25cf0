"""The page of a run in a real browser: rows that sort, filter and scroll, ten thousand of them."""

import numpy as np
import pytest
import xarray as xr
from chromium import chromium, serious_faults
from PIL import Image
from planted_records import planted_record
from planted_sweeps import planted_sweep

from probe.data.image import Video
from probe.errors import ProbeError
from probe.viewer.page import page
from probe.viewer.picture_sheets import SIDE, write_sheets
from probe.viewer.run_payload import run_payload

NASTY = "</script><img src=x onerror=alert(1)>\u202e"
TEXTS = "return [...document.querySelectorAll('.row')].map((row) => row.innerText)"


@pytest.fixture(scope="module")
def browser():
    with chromium() as window:
        yield window


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of results; at the end the console is empty."""

    def open_page(results, state="", **options):
        header, packed = run_payload(results, **options)
        path = tmp_path / "index.html"
        path.write_text(page("run.html", "a run", header, packed), encoding="utf-8")
        browser.resize(1280)
        browser.open(f"{path.as_uri()}?{len(state)}#{state}")
        return browser

    browser.errors()
    yield open_page
    assert browser.errors() == []


def with_question(sweep, text="what is it?"):
    questions = np.array([f"{text} {i}" for i in range(sweep.sizes["sample"])], object)
    return sweep.assign(question=("sample", questions))


def test_ten_thousand_rows_scroll_sort_and_filter(opened):
    sweep = with_question(planted_sweep(images=5000, layers=2))
    browser = opened(sweep)
    rows = "return document.querySelectorAll('.row').length"
    assert 5 < browser.run(rows) < 60
    browser.run("document.getElementById('view').scrollTop = 9000 * 56")
    browser.wait("return document.querySelector('.row').id === 'row-8996'")
    assert browser.run(rows) < 60
    browser.run("change({filter: 'wrong now, right before', sort: 'number', down: true})")
    wrong = np.flatnonzero(sweep["correct"].sel(case="no vision").values == 0)
    assert browser.run("return [rows.length, rows[0]]") == [len(wrong), wrong[-1]]
    browser.run("change({filter: 'all', text: 'it? 777'})")
    assert browser.run("return rows") == [*range(7779, 7769, -1), 777]


def test_arrow_keys_walk_through_the_samples(opened):
    browser = opened(with_question(planted_sweep(images=40)))
    for _ in range(30):
        browser.press("\ue015")
    assert browser.run("return location.hash") == "#sample=s30"
    assert "what is it? 30" in browser.run("return document.getElementById('one').innerText")
    selected = "return document.querySelector('.row[aria-selected=true]').id"
    assert browser.run(selected) == "row-30"


def test_a_link_gives_the_same_rows_and_a_wrong_one_the_beginning(opened):
    sweep = with_question(planted_sweep(images=4))
    browser = opened(sweep, "now=2&filter=right+now&sort=answer&down=true&sample=s3")
    assert browser.run("return [state.now, rows.length]") == ["2", 2]
    browser = opened(sweep, "now=x&filter=constructor&sort=__proto__&sample=no")
    assert browser.run("return [state.now, state.filter, state.sort, state.sample]") == [
        "no vision",
        "all",
        "number",
        "s0",
    ]


def test_records_have_their_numbers_and_given_scores(opened):
    record = planted_record(3)
    correct = {"s0": 0.5, "s1": 0.4}  # as everywhere, half a score is right
    browser = opened(record, gold={"s1": "blue"}, correct=correct)
    measured = record["llm"]["mass"].sel(query_type="response", key_type="vision")
    expected = measured.mean(("head", "layer")).values
    found = browser.run("return rows.map((sample) => COLUMNS.mass(sample))")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert browser.run("return rows.map((sample) => verdict(sample, 'answer')[1])") == [
        "✓",
        "✗",
        "",
    ]
    assert browser.run("return textOf('gold', 1)") == "blue"


def test_a_run_without_answers_is_refused():
    sweep = xr.Dataset({"gold_logprob": ("sample", [-1.0])}, attrs={"kind": "head_sweep"})
    with pytest.raises(ProbeError, match=r"a run with answers, .* got one of head sweep"):
        run_payload(sweep)


def test_hostile_texts_do_nothing(opened):
    browser = opened(with_question(planted_sweep(images=2), NASTY))
    assert any(NASTY in text for text in browser.run(TEXTS))
    assert browser.run("return document.querySelectorAll('img').length") == 0


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_no_serious_fault_for_screen_readers(opened, width, theme):
    browser = opened(planted_record(3), correct={"s0": 1.0})
    assert serious_faults(browser, width, theme) == []
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_pictures_lie_in_raster_order_and_unreadable_ones_stay_black(tmp_path):
    colours = [(10 + i, 200 - i, 100) for i in range(66)]
    images = [Image.new("RGB", (40, 20), colour) for colour in colours]
    images[64] = Video([Image.new("RGB", (40, 20)), images[64], images[65]])
    names = write_sheets([*images[:65], "missing.jpg"], tmp_path)
    assert names == ["pictures-000.jpg", "pictures-001.jpg"]
    first, second = (Image.open(tmp_path / name) for name in names)
    middle = SIDE // 2
    np.testing.assert_allclose(first.getpixel((SIDE + middle, middle)), colours[1], atol=4)
    np.testing.assert_allclose(second.getpixel((middle, middle)), colours[64], atol=4)
    assert second.getpixel((SIDE + middle, middle)) == (0, 0, 0)


def test_results_without_answers_are_refused():
    with pytest.raises(ProbeError, match="drop_sweep"):
        run_payload(planted_record(1).drop_nodes("vision")["llm"])
