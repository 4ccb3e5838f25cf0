"""`probe reduce`: what it writes, that it goes on, and that mistakes are one line."""

import warnings

import pandas as pd
import pytest
from models import picture

import probe
from probe.cli.reduce_methods import (
    BY_DEFAULT,
    budgets_of,
    check_benchmark,
    methods_named,
    methods_of,
    possible_methods,
)
from probe.evaluation.method_comparison import Comparison
from probe.reducers import METHODS, PyramidDrop, Random, SparseVLM, TokenBudget, VisionZip
from tests.families.models import FAMILIES

QUICK = (
    "--limit",
    "6",
    "--reducers",
    "visionzip,fastv",
    "--keep",
    "0.25",
    "--beside",
    "tiny-llava",
    "--repeats",
    "2",
)


@pytest.fixture(scope="module")
def subject():
    return probe.load("tiny-llava")


def test_it_writes_table_costs_and_figure_and_goes_on_for_nothing(run, tmp_path, monkeypatch):
    code, said, error = run("reduce", *QUICK)
    assert code == 0, error
    folder = tmp_path / "probe-out" / "reduce"
    made_files = {
        "run.json",
        "results.json",
        "parts",
        "claims",
        "index",
        "asked.json",
        "failures",
        "final.zarr",
        "problems.csv",
        "reduce.csv",
        "costs.json",
    }
    assert {path.name for path in folder.iterdir()} == made_files | {"reduce.png", "reduce.svg"}
    table = pd.read_csv(folder / "reduce.csv").set_index("method")
    assert list(table.index) == ["all tokens", "VisionZip 25 %", "FastV 25 %", "tiny-llava"]
    assert table["vision_tokens"].tolist() == [36, 9, (2 * 36 + 6 * 9) / 8, 36]
    assert table.loc["tiny-llava", "difference"] == 0
    assert table.loc["VisionZip 25 %", "total (TFLOP)"] < table.loc["all tokens", "total (TFLOP)"]
    assert "6 questions to 4 methods" in said and "1 figure (png, svg): reduce" in said

    def no_work(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(Comparison, "__call__", no_work)
    code, said, error = run("reduce", *QUICK, "--repeats", "0")
    assert code == 0, error
    assert "6 done" in said
    code, said, error = run("reduce", *QUICK, "--keep", "0.5")
    assert (code, said) == (2, "") and "plan.methods" in error and error.count("\n") == 1


def test_a_benchmark_compares_with_random_selection_and_a_smaller_image(run, tmp_path):
    asked = ("--reducers", "visionzip,random,downsample", "--keep", "0.25", "--seeds", "2")
    rest = ("--limit", "6", "--repeats", "1", "--published", "visionzip_llava15_7b")
    code, said, error = run("reduce", "--bench", *asked, *rest, "--beside", "tiny-llava")
    assert code == 0, error
    table = pd.read_csv(tmp_path / "probe-out" / "reduce" / "bench.csv").set_index("method")
    named = ["VisionZip 9 tokens", "random 9 tokens, mean of 2", "down-sampling 9 tokens"]
    assert list(table.index) == ["all tokens", *named, "tiny-llava"]
    assert table.loc["down-sampling 9 tokens", "hard"] == 0
    assert table.loc[named, "vision_tokens"].tolist() == [9, 9, 9]
    assert "2 figures (png, svg): bench, reduce" in said


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--reducers", "visionzap", "visionzip"),
        ("--keep", "64", "fractions between 0 and 1"),
        ("--keep", "a,b", "fractions between 0 and 1"),
        ("--beside", "no-such-model", "no-such-model"),
        ("--benchmark", "gqq", "gqa"),
        ("--split", "zzz", "zzz"),
        ("--data", "f.txt", "f.txt"),
        ("--published", "nope.csv", "'nope.csv' (No such file or directory)"),
        ("--published", "words.csv", "expected numbers in percent_of_vanilla, got ['most']"),
        ("--model", "tiny-llava-mini", "whose compressor reads the whole grid"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, option, value, told):
    words = "method,vision_tokens,percent_of_vanilla\nzip,64,most\n"
    (tmp_path / "words.csv").write_text(words)
    code, said, error = run("reduce", "--limit", "2", option, value)
    assert (code, said) == (2, "")
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "probe-out").exists()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_5", "gemma3"])
def test_methods_that_a_family_has_no_place_for_are_left_out_by_default(family, capsys):
    """And the advice to take one inside the LLM can be followed, at any resolution."""
    subject = probe.load(*FAMILIES[family]())
    (budget,) = budgets_of(subject, [0.25])
    kinds = possible_methods(subject, methods_named(BY_DEFAULT), budget)
    assert "fastv" in kinds and not {"visionzip", "prumerge", "random", "grid"} & set(kinds)
    (note, *_) = capsys.readouterr().out.split("\n\n")
    assert "left out: visionzip, prumerge, random, grid (expected" in " ".join(note.split())
    methods = methods_of(subject, kinds, [budget], [])
    assert [method.name for method in methods][:2] == ["all tokens", "FastV 25 %"]
    if family != "gemma3":
        with pytest.raises(probe.ProbeError, match="leave --bench out"):
            check_benchmark(subject)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("share", [0.9, 0.11, 0.01])
def test_every_name_works_for_every_share(kind, share, subject):
    reducer = METHODS[kind][1](TokenBudget.of(subject.model, share))
    with probe.reduced(subject, reducer):
        assert isinstance(subject.answer(picture(), "what is there ?", 3), str)


def test_a_reducer_that_leaves_all_tokens_says_so(subject):
    for reducer, left in ((VisionZip(100, 10), 37), (Random(1000), 36)):
        says_so = pytest.warns(UserWarning, match="nothing is reduced")
        with says_so as noted, probe.reduced(subject, reducer):
            subject.answer(picture(), "what is there ?", 2)
        (said,) = (str(warning.message) for warning in noted)  # encoded twice, said once
        assert f"leaves {left} vision tokens of 36" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with probe.reduced(subject, Random(9)):
            subject.encode(picture(), "what is there ?")


def test_a_model_that_reduces_itself_is_refused_before_any_question_is_asked(run, monkeypatch):
    def no_work(*_, **__):
        raise AssertionError("something was asked")

    monkeypatch.setattr(Comparison, "__call__", no_work)
    code, _, error = run(
        "reduce", "--limit", "2", "--model", "tiny-llava-mini", "--beside", "tiny-llava"
    )
    assert code == 2 and error.count("\n") == 1


def test_stages_are_spread_over_any_depth():
    assert PyramidDrop.at(0.25, 8) == PyramidDrop((2, 4, 6), (0.5, 0.25, 0.125))
    assert PyramidDrop.at(0.25, 2).layers == (1,)
    assert SparseVLM.at(192 / 576).tokens == (300, 200, 110)
    assert SparseVLM.at(1.0).tokens == (576, 576, 330)
