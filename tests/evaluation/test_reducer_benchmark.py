"""Reducers beside their controls, on planted answers: what is better, where, what is not shown."""

import numpy as np
import pytest
import xarray as xr

from probe import plots
from probe.errors import ProbeError
from probe.evaluation.reducer_benchmark import reducer_benchmark

HARD = 20  # of 40 questions, one an image: those that the smaller image gets wrong
CASES = {  # name: family, budget, score on the hard questions, on the others
    "all tokens": ("", 0, 1.0, 1.0),
    "good 9": ("good", 9, 1.0, 1.0),
    "same 9": ("same", 9, 0.5, 0.5),
    "random 9, seed 0": ("random", 9, 0.5, 0.5),
    "random 9, seed 1": ("random", 9, 0.0, 1.0),
    "smaller 9": ("down-sampling", 9, 0.0, 1.0),
    "good 4": ("good", 4, 0.0, 0.0),
}


def half(share):
    """0 and 1 in turn where the share is a half."""
    return np.arange(HARD) % 2 if share == 0.5 else np.full(HARD, share)


@pytest.fixture
def answers():
    correct = np.stack([np.r_[half(hard), half(rest)] for *_, hard, rest in CASES.values()], 1)
    names = np.array(list(CASES), dtype=object)
    families = np.array([family for family, *_ in CASES.values()], dtype=object)
    budgets = [budget for _, budget, *_ in CASES.values()]
    images = np.array([f"{number}.png" for number in range(2 * HARD)], dtype=object)
    return xr.Dataset(
        {
            "correct": (("sample", "case"), correct),
            "vision_tokens": (("sample", "case", "layer"), np.full((40, 7, 2), 9.0)),
            "image": ("sample", images),
        },
        {"case": names, "family": ("case", families), "budget": ("case", budgets)},
        {"model": "planted", "benchmark": "shapes"},
    )


@pytest.fixture
def costs():
    flops = np.array([8.0, 2, 2, 2, 2, 2, 1]).reshape(7, 1, 1)
    seconds = np.repeat([[4.0], [1], [5], [1], [3], [2], [1]], 6, axis=1)
    return xr.Dataset(
        {
            "flops": (("case", "component", "operation"), flops),
            "latency": (("case", "repeat"), seconds),
            "memory": (("case", "moment"), np.full((7, 2), 5.0)),
        },
        {"case": list(CASES), "moment": ["before", "peak"]},
    )


def test_methods_are_compared_with_the_controls_of_their_budget(answers, costs):
    table = reducer_benchmark(answers, costs).set_index("method")
    assert list(table.index)[3] == "random 9, mean of 2" and len(table) == 6
    good, same = table.loc["good 9"], table.loc["same 9"]
    assert (good["accuracy"], good["over_random"], good["over_smaller"]) == (100, 50, 50)
    assert (good["hard"], good["rest"], good["hard_questions"]) == (100, 100, HARD)
    assert good["verdict"] == ""
    assert same["over_random_low"] <= same["over_random"] == 0
    assert (same["hard"], same["rest"]) == (50, 50)
    told = "not better than random; not better than down-sampling; not faster"
    assert same["verdict"] == told
    assert (good["speed_up"], good["counted"]) == (pytest.approx(4), 4)
    random = table.loc["random 9, mean of 2"]
    assert (random["worst_over_mean"], random["best_over_mean"]) == (0, 0)
    assert random["speed_up"] == pytest.approx(2)
    assert (table.loc["smaller 9", "hard"], table.loc["smaller 9", "rest"]) == (0, 100)
    assert np.isnan(table.loc["good 4", "over_random"])  # no control has its budget
    assert np.isnan(table.loc["good 4", "hard"])


def test_without_a_clock_nothing_is_said_about_speed(answers, costs):
    table = reducer_benchmark(answers, costs.drop_vars("latency")).set_index("method")
    assert "speed_up" not in table and table.loc["good 9", "counted"] == 4
    assert "faster" not in " ".join(table["verdict"])
    assert "counted" not in reducer_benchmark(answers)


def test_the_figure_shows_what_is_not_better_as_hollow(answers, costs):
    figure = plots.reducer_benchmark(answers.isel(case=slice(6)), costs.isel(case=slice(6)))
    first, _, last = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert set(names) == {"good", "same", "random", "down-sampling"}
    for axis, mark in ((first, "same"), (last, "same")):
        hollow = {
            names[round(line.get_ydata()[0])]
            for line in axis.lines
            if len(line.get_ydata()) == 1 and line.get_markerfacecolor() == "white"
        }
        assert mark in hollow and "good" not in hollow
    assert len(plots.reducer_benchmark(answers.isel(case=slice(6))).axes) == 2


def test_answers_without_budgets_are_refused_in_a_line(answers):
    with pytest.raises(ProbeError, match=r"reducer_benchmark: expected .* budget"):
        reducer_benchmark(answers.drop_vars("budget"))
