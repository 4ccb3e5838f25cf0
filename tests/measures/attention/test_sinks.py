"""Planted sinks are found, all of them and nothing else; a model without has none."""

import matplotlib.pyplot as plt
import models
import numpy as np
import pytest
from planted_sinks import with_sinks

import probe
from probe.errors import ProbeError
from probe.measures.attention.sinks import (
    ATTENTION,
    NORM,
    SINK_MODES,
    find_sinks,
    is_sink,
    norms_and_attention,
)
from probe.models.planted import planted
from probe.subject.inputs import collate


def subject_of(known):
    return probe.load(known.model, processor=known.processor)


@pytest.mark.parametrize(("patches", "bos"), [((5,), True), ((0, 7), False), ((35, 17), True)])
def test_planted_sinks_are_found_and_nothing_else(patches, bos):
    known = with_sinks(planted(), patches, bos)
    found = find_sinks(subject_of(known), known.image("red", 1), known.question)
    sinks = found["sink"].any("layer").values
    assert sorted(
        found["row_key"].values[sinks & (found["row_key"].values >= 0)].tolist()
    ) == sorted(patches)
    assert np.flatnonzero(sinks & (found["row_key"].values < 0)).tolist() == [0] * bos
    assert subject_of(known).answer(known.image("red", 1), known.question) == "red"


def test_a_model_without_has_none():
    known = planted()
    assert not find_sinks(subject_of(known), known.image("red", 1), known.question)["sink"].any()
    for factory in models.FACTORIES:
        model, processor = factory(side=16)
        assert not find_sinks(
            probe.load(model, processor=processor), models.picture(), "where?", "a circle"
        )["sink"].any()


def test_outlying_norm_alone_or_attention_alone_is_no_sink():
    """The planted model looks at its patches and at the first token with all its weight: that is no
    sink.
    """
    known = planted()
    found = find_sinks(subject_of(known), known.image("red", 1), known.question)
    assert float(found["drawn"].max()) > ATTENTION
    assert not is_sink(np.full((1, 1, 1), NORM), np.ones((1, 1, 1))).any()


def test_padding_and_batches_change_nothing():
    known = with_sinks(planted(), (5,))
    subject = subject_of(known)
    rows = [
        subject.encode(known.image("red"), known.question),
        subject.encode(known.image("blue"), "what ?"),
    ]
    for side in ("left", "right"):
        norm, drawn = norms_and_attention(subject, collate(rows, side=side))
        for row, alone in enumerate(rows):
            width = alone["input_ids"].shape[1]
            place = slice(-width, None) if side == "left" else slice(width)
            own = norms_and_attention(subject, alone)
            np.testing.assert_allclose(norm[row, :, place], own[0][0], rtol=1e-4)
            np.testing.assert_allclose(drawn[row, :, place], own[1][0], rtol=1e-4)


def test_a_record_marks_them_and_counts_them_as_it_is_told(tmp_path):
    known = with_sinks(planted(), (5,))
    subject, image = subject_of(known), known.image("red", 1)
    records = {
        how: probe.measure(subject, image, known.question, sinks=how, stacks=["llm"])
        for how in SINK_MODES
    }
    alone = find_sinks(subject, image, known.question)
    for record in records.values():
        marked = record["llm"]["key_sink"].isel(sample=0).values
        assert np.flatnonzero(marked.any(0)).tolist() == [5]
    np.testing.assert_array_equal(marked, alone["sink"].values[:, alone["row_key"] >= 0])
    keep, drop, split = (
        records[how]["llm"]["mass"].isel(sample=0).sel(query_type="response") for how in SINK_MODES
    )
    np.testing.assert_allclose(split.sum("key_type"), 1, atol=1e-5)
    np.testing.assert_allclose(drop.sum("key_type") + split.sel(key_type="sink"), 1, atol=1e-5)
    np.testing.assert_allclose(drop.sel(key_type="vision"), split.sel(key_type="vision"), atol=1e-6)
    assert float(keep.sel(key_type="vision")[0, 1]) > float(drop.sel(key_type="vision")[0, 1]) + 0.3
    assert (
        probe.open_record(probe.save_record(records["drop"], tmp_path / "drop")).attrs["sinks"]
        == "drop"
    )


@pytest.mark.parametrize("how", SINK_MODES)
def test_heat_maps_mark_them(how):
    known = with_sinks(planted(), (5,))
    record = probe.measure(subject_of(known), known.image("red", 1), known.question, stacks=["llm"])
    _, axis, *_ = probe.plots.heatmaps(record, layers=[1, 2], sinks=how).axes
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    middle = ((left + right) * 5.5 / 6, (top + bottom) * 0.5 / 6)
    if how == "split":
        assert "×" in axis.texts[0].get_text() and axis.texts[0].get_position() == pytest.approx(
            middle
        )
    else:
        assert (axis.lines[0].get_xdata()[0], axis.lines[0].get_ydata()[0]) == pytest.approx(middle)
    assert len(axis.collections[0].get_array()) == (36 if how == "keep" else 35)
    assert "attention sink" in " ".join(
        text.get_text() for text in axis.figure.findobj(type(axis.title))
    )
    plt.close(axis.figure)


def test_another_way_is_told_in_one_line():
    known = planted()
    with pytest.raises(ProbeError, match="sinks of keep"):
        probe.measure(subject_of(known), known.image("red"), known.question, sinks="hide")
