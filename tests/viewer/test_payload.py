"""What a page holds of a record: levels that give back its numbers, one file, and no surprise in
texts.
"""

import base64
import gzip
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_records import planted_record

from probe.errors import ProbeError
from probe.viewer import page_size, view
from probe.viewer.record_payload import payload
from probe.viewer.typed_arrays import LEVELS, MISSING, largest_places, quantised

TYPES = {"u1": np.uint8, "u2": np.uint16, "i4": np.int32, "f4": np.float32}


@pytest.fixture(scope="module")
def record():
    return planted_record(2, optional=True)


def parts_of(html: str) -> tuple[dict, bytes]:
    """Header and numbers of a page, as a browser reads them."""
    header = re.search(r'id="header">(.*?)</script>', html, re.S)
    numbers = re.search(r'id="numbers">(.*?)</script>', html, re.S)
    assert header and numbers
    return json.loads(header[1]), gzip.decompress(base64.b64decode(numbers[1]))


def array_of(reference: dict, content: bytes) -> np.ndarray:
    dtype = TYPES[reference["array"]]
    count = int(np.prod(reference["shape"]))
    return np.frombuffer(content, dtype, count, reference["offset"]).reshape(reference["shape"])


def values_of(entry: dict, content: bytes) -> np.ndarray:
    levels = array_of(entry["levels"], content)
    values = levels / LEVELS * array_of(entry["peak"], content)[..., None]
    values = np.where(levels == MISSING, np.nan, values)
    if "places" not in entry:
        return values
    whole = np.zeros((*values.shape[:-1], entry["keys"]))
    np.put_along_axis(whole, array_of(entry["places"], content).astype(int), values, -1)
    return whole


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1/255 of the largest value of each row, and missing in the same places."""
    assert found.shape == expected.shape
    assert (np.isnan(found) == np.isnan(expected)).all()
    largest = np.nan_to_num(expected).max(-1, keepdims=True)
    assert (np.nan_to_num(np.abs(found - expected)) <= largest / 255 + 1e-12).all()


@given(st.lists(st.floats(0, 1, width=32) | st.just(np.nan), min_size=1, max_size=40))
def test_levels_give_back_values_to_one_of_255(row):
    values = np.array([row], np.float32)
    levels, peak = quantised(values)
    found = np.where(levels == MISSING, np.nan, levels / LEVELS * peak[:, None])
    assert_close(found, values)


def test_the_page_holds_the_numbers_of_the_record(record):
    header, content = parts_of(view(record, sample=1, heads="all").to_html())
    measured = record["llm"].isel(sample=1)
    stack = header["records"][0]["stacks"]["llm"]
    assert_close(values_of(stack["received"], content), measured["received"].values)
    assert_close(values_of(stack["received_head"], content), measured["received_head"].values)
    maps = measured["maps"].isel(token=measured["map_position"].values >= 0)
    mean = maps.mean("head") if "head" in maps.dims else maps
    assert_close(values_of(stack["maps"], content), mean.values)
    mass = array_of(stack["statistics"]["mass"]["values"], content)
    np.testing.assert_array_equal(mass, measured["mass"].sel(key_type="vision").values)
    assert len(stack["words"]) == mean.sizes["token"]


def test_words_are_those_that_the_rows_predict(record):
    named = record.copy(deep=True)
    tokens = np.array([[f"▁t{i}" for i in range(record.sizes["position"])]] * 2, object)
    named.dataset = named.dataset.assign(tokens=(("sample", "position"), tokens))
    header, _ = parts_of(view(named, sample=1).to_html())
    words = header["records"][0]["stacks"]["llm"]["words"]
    positions = record["llm"]["map_position"].values[1]
    assert [word["text"] for word in words] == [f"t{position + 1}" for position in positions]


def test_heads_are_left_out_unless_asked_for_and_top_keeps_the_largest(record):
    stack = payload([record], ["a"])[0]["records"][0]["stacks"]["llm"]
    assert "received_head" not in stack and stack["chosen"] == []
    header, content = parts_of(view(record, heads=[2], top_k=3).to_html())
    stack = header["records"][0]["stacks"]["llm"]
    found = values_of(stack["received_head"], content)
    expected = record["llm"]["received_head"].isel(sample=0, head=[2]).values
    assert stack["chosen"] == [2]
    assert ((found > 0).sum(-1) <= 3).all()
    np.testing.assert_allclose(
        np.nanmax(found, -1), np.nan_to_num(expected).max(-1), rtol=1e-6, atol=0
    )


def test_the_largest_places_skip_nan():
    values = np.array([[0.3, np.nan, 0.1, 0.2], [np.nan, 0.4, 0.5, 0.0]])
    assert largest_places(values, 2).tolist() == [[0, 3], [1, 2]]


def test_two_records_are_matched_patch_by_patch():
    first, second = planted_record(1, grid=4), planted_record(1, grid=2)
    header, content = parts_of(view(first, second, labels=["a", "b"]).to_html())
    assert set(array_of(header["match"]["llm"], content)) == {-1}
    header, content = parts_of(view(first, first, labels=["a", "b"]).to_html())
    assert array_of(header["match"]["llm"], content).tolist() == list(range(16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [7]}, "expected heads from 0 to 2, got 7"),
        ({"heads": "some"}, 'expected heads as numbers, or "all"'),
        ({"sample": 9}, "expected one of 2 samples"),
        ({"sample": "x"}, "expected one of 2 samples"),
    ],
)
def test_mistakes_are_told_in_one_line(record, options, message):
    with pytest.raises(ProbeError, match=re.escape(message)):
        view(record, **options)


def test_single_heads_that_were_not_kept_are_not_promised():
    with pytest.raises(ProbeError, match="a record with single heads, got means only"):
        view(planted_record(1), heads="all")


def test_what_is_no_record_is_refused(record):
    with pytest.raises(ProbeError, match="expected a record"):
        view(record["llm"])


def test_a_page_that_is_too_large_says_how_large_and_what_to_do(record, monkeypatch):
    monkeypatch.setattr(page_size, "LIMIT", 1000)
    with pytest.raises(ProbeError, match=r"got about .* MB; take fewer heads"):
        view(record, heads="all")


def test_texts_stay_in_their_element_whatever_they_say(record):
    nasty = "</script><script>alert(1)</script>\x00\u202e{{numbers}}<!--"
    hostile = record.copy(deep=True)
    hostile.dataset = hostile.dataset.assign(question=("sample", np.array([nasty] * 2, object)))
    html = view(hostile, labels=[nasty]).to_html()
    header, _ = parts_of(html)
    assert header["records"][0]["question"] == nasty
    assert "alert(1)</script>" not in html


def test_a_notebook_gets_a_frame_and_a_picture(record):
    bundle = record.probe.view()._repr_mimebundle_()
    png = bundle["image/png"]
    assert png.startswith(b"\x89PNG")
    picture, frame = bundle["text/html"].split("<iframe srcdoc=")
    assert base64.b64encode(png).decode() in picture
    assert "sandbox=" in frame


def test_equal_records_give_equal_pages(record):
    assert view(record).to_html() == view(record.copy(deep=True)).to_html()
