"""Figures of attribution, logit lens and conventions hold the numbers that they were given, and say
what they are.
"""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from planted_records import planted_record

import probe
from probe import plots
from probe.errors import ProbeError
from probe.measures.attribution.weight_randomisation import randomised
from probe.models.planted import planted
from probe.plots.conventions import survey, trend


@pytest.fixture(scope="module")
def known():
    return planted((2, 4), (14, 15))


@pytest.fixture(scope="module")
def subject(known):
    return probe.load(known.model, processor=known.processor)


@pytest.fixture(scope="module")
def found(known, subject):
    return probe.attribute(subject, known.image("red", 1), known.question, progress=False)


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


def test_a_map_has_a_colour_for_each_patch_and_a_bar_for_each_word(found):
    row = plots.attribution(found).axes
    np.testing.assert_array_equal(row[0].collections[0].get_array(), found["attribution"][:36])
    assert [bar.get_width() for bar in row[1].patches] == found["attribution"].values[36:].tolist()
    assert "baseline mean" in texts(row[0].figure)


def test_attributions_share_one_scale_and_noise_is_not_drawn_as_signal(found):
    faint = found.assign(attribution=found["attribution"] * 1e-5)
    both = plots.attribution({"strong": found, "faint": faint})
    said = " ".join(both._supxlabel.get_text().split())
    assert "strong: answer" in said and "faint: answer" in said
    axes = both.axes[:4]
    scales = {axis.collections[0].norm.vmax for axis in (axes[0], axes[2])}
    assert scales == {np.abs(found["attribution"].values[:36]).max()}
    assert axes[1].get_xlim() == axes[3].get_xlim()
    assert "the longest bar is" in axes[3].texts[0].get_text()
    even = plots.attribution(found.assign(attribution=found["attribution"] * 0 + 1)).axes
    assert not even[1].texts
    alone = plots.attribution(faint).axes  # the answer's own change sets the least scale
    least = 0.01 * abs(float(found["logprob"] - found["logprob_without"]))
    assert alone[0].collections[0].norm.vmax == pytest.approx(least)
    assert max(np.abs(alone[1].get_xlim())) == pytest.approx(1.05 * least)
    assert f"at least to {least:.2g} nat" in " ".join(texts(alone[0].figure).split())


def test_the_agreement_figure_says_what_it_found(known, subject, found):
    other = probe.attribute(
        subject,
        known.image("red", 1),
        known.question,
        method="gradient_x_attention",
        progress=False,
    )
    said = found["token_id"].values.tolist()
    curves = probe.deletion_curves(
        subject,
        known.image("red", 1),
        known.question,
        {"ablation": found["attribution"]},
        said,
        baseline="mean",
        points=4,
    )
    control = probe.attribute(
        randomised(subject), known.image("red", 1), known.question, said, progress=False
    )
    figure = plots.agreement({"ablation": found, "gradient": other}, curves=curves, control=control)
    told = texts(figure)
    axes = np.array(figure.axes[:6]).reshape(2, 3)
    for words in (
        "Yes in layers 3, 5",
        "ceiling",
        "floor",
        "weights shuffled",
        "random",
        "rank correlation",
    ):
        assert words in told
    (line,) = [line for line in axes[0, 2].lines if str(line.get_label()).startswith("mass")]
    assert np.flatnonzero(~np.isnan(line.get_ydata())).tolist() == [2, 4]
    assert len(plots.agreement(found).axes[:6]) == 6


def test_deletion_of_the_planted_patches_is_enough(known, subject, found):
    curves = probe.deletion_curves(
        subject,
        known.image("red", 1),
        known.question,
        {"ablation": found["attribution"]},
        baseline="mean",
        points=18,
    )
    deletion, insertion = (
        curves["logprob"].sel(score="ablation", direction=name)
        for name in ("deletion", "insertion")
    )
    assert curves["fraction"][1] == pytest.approx(2 / 36)
    assert float(deletion[0]) > -0.1 > -5 > float(deletion[1]) and float(
        insertion[0]
    ) < -5 < -0.1 < float(insertion[1])
    whole, nothing = float(deletion[0]), float(deletion[-1])
    assert float(insertion[-1]) == pytest.approx(whole, abs=1e-4) and float(
        insertion[0]
    ) == pytest.approx(nothing)
    with pytest.raises(ProbeError, match="a score for each of 36 regions"):
        probe.deletion_curves(subject, known.image("red", 1), known.question, {"a": [1, 2]})


def test_the_lens_writes_words_on_patches_and_a_line_for_each_token(known, subject):
    lens = probe.logit_lens(subject, known.image("red", 1), known.question)
    *axes, _ = plots.lens(lens, [0, 5]).axes
    assert len(axes) == 2 and len(axes[0].texts) == 36
    assert min(text.get_fontsize() for text in axes[0].texts) >= 8
    *answer, bar = plots.lens(lens, [5], value="answer").axes
    says = lens["says_answer"].values[5, lens["row_key"].values >= 0]
    np.testing.assert_allclose(answer[0].collections[0].get_array(), says)
    assert answer[0].texts[0].get_text() == f"{100 * says[0]:.0f} %"
    assert "answer" in bar.get_ylabel()
    np.testing.assert_allclose(
        axes[1].collections[0].get_array(), lens["probability"][5, lens["row_key"] >= 0]
    )
    axis = plots.lens_curves(lens)
    assert axis.lines[0].get_ydata().tolist() == lens["next"].values[:, 0].tolist()
    with pytest.raises(ProbeError, match="layers from 0 to 5"):
        plots.lens(lens, 6)


@pytest.mark.parametrize(
    "draw", [plots.attribution, plots.agreement, plots.lens, plots.lens_curves]
)
def test_what_is_none_is_refused_in_a_line(draw):
    with pytest.raises(ProbeError, match="expected"):
        draw(planted_record())


def test_conventions_are_counted_and_fading_is_found():
    record = planted_record(samples=2, layers=6, optional=True)  # vision is planted to fade
    figure = plots.conventions(record)
    assert len(figure.axes) == 4 * 2
    assert "Under 8 of 8 conventions" in figure.get_suptitle()
    one_sample = survey(record.isel(sample=[0]))
    mass = record["llm"]["mass"].isel(sample=0).sel(query_type="response", key_type="vision")
    by_hand = next(
        curve for way, curve in one_sample.items() if way.value == "mass" and "answer" in way.rows
    )
    np.testing.assert_allclose(by_hand, mass, rtol=1e-6)
    assert trend(np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)


def test_the_first_token_can_be_left_out_where_the_record_knows_it(known, subject):
    record = probe.measure(
        subject, known.image("red"), known.question, types="fine", contribution=True
    )
    figure = plots.conventions(record)
    assert len(figure.axes) == 4 * 4
    assert "first token out" in texts(figure)
    with pytest.raises(ProbeError, match="one record"):
        plots.conventions([record, record])
