"""`probe drop` and `probe attention --benchmark`: what they write, that they go on, and that
mistakes are one line.
"""

# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

import csv
import json
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

import probe
from probe.cli.drop_cases import cases_of_modes
from probe.evaluation.drop_run import DropRun
from probe.interventions.sweep import Sweep
from tests.families.models import FAMILIES

QUICK = ("--limit", "6", "--mode", "mask", "--windows", "4", "--no-attention")
FIGURES = {f"{name}.{ending}" for name in ("dropped", "depth") for ending in ("png", "svg")}


def no_work(*_, **__):
    raise AssertionError("something was computed")


@pytest.fixture
def gqa(tmp_path):
    """Official files: three questions about two images, one row without an image, one image that is
    none.
    """
    folder = tmp_path / "gqa"
    (folder / "images").mkdir(parents=True)
    for name, colour in (("one", "red"), ("two", "blue")):
        Image.new("RGB", (60, 60), colour).save(folder / "images" / f"{name}.jpg")
    (folder / "images" / "bad.jpg").write_text("no image")
    usual = {
        "question": "What colour is it?",
        "answer": "red",
        "isBalanced": True,
        "types": {"structural": "query", "semantic": "attr", "detailed": "x"},
    }
    rows = {"1": "one", "2": "one", "3": "two", "4": "missing", "5": "bad"}
    questions = {key: usual | {"imageId": image} for key, image in rows.items()}
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    return folder


def test_a_damaged_part_is_one_line_and_is_computed_again(run, tmp_path):
    assert run("drop", *QUICK)[0] == 0
    folder = tmp_path / "probe-out" / "drop"
    table = (folder / "accuracy.csv").read_bytes()
    part = next((folder / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:-100])
    code, _, error = run("drop", *QUICK)
    assert code == 0
    (line,) = (line for line in error.splitlines() if part.name in line)
    assert line.startswith("probe: run: ")
    assert f"renamed to {part.name}.damaged" in line
    assert "RunWarning" not in error
    assert (folder / "accuracy.csv").read_bytes() == table
    assert not part.exists()


def test_it_writes_dataset_table_and_figures_and_goes_on_for_nothing(run, tmp_path, monkeypatch):
    code, said, error = run("drop", *QUICK)
    assert code == 0, error
    folder = tmp_path / "probe-out" / "drop"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "run.json",
        "results.json",
        "parts",
        "claims",
        "index",
        "asked.json",
        "failures",
        "final.zarr",
        "accuracy.csv",
        "problems.csv",
        *FIGURES,
    }
    for told in (
        "row-layers",
        "6 questions",
        "untouched",
        "no vision",
        "another image",
        "1-4",
        "5-8",
        "accuracy.csv",
    ):
        assert told in said, told
    drawn = said.split("figures (png, svg): ")[1].strip().split(", ")
    assert set(drawn) == {name.split(".")[0] for name in FIGURES}
    table = pd.read_csv(folder / "accuracy.csv")
    of_all = table[table["kind"] == "all"].set_index("case")
    assert {"untouched", "no vision", "another image", "1-4", "5-8", "1-8"} == set(of_all.index)
    assert (of_all["accuracy"] == of_all["official_accuracy"]).all()
    assert set(table["kind"]) > {"all", "colour", "count"}

    monkeypatch.setattr(DropRun, "__call__", no_work)
    code, said, error = run("drop", *QUICK)
    assert code == 0, error
    assert "6 done" in said
    code, said, error = run("drop", *QUICK[:-1])
    assert (code, said) == (2, "")
    assert "plan.attention" in error and error.count("\n") == 1


def test_ctrl_c_keeps_what_is_finished(run, tmp_path, monkeypatch):
    measured, asked = DropRun.__call__, []

    def interrupted(self, samples):
        asked.append(samples[0].id)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return measured(self, samples)

    monkeypatch.setattr(DropRun, "__call__", interrupted)
    code, _, error = run("drop", *QUICK)
    assert code == 130
    assert "interrupted" in error
    code, said, error = run("drop", *QUICK)
    assert code == 0, error
    assert "6 questions, 3 done" in said
    assert len(asked) == 4 + 3
    assert len(set(asked)) == 6


def test_llava_mini_in_its_pre_fusion(run, tmp_path):
    words = (
        "--limit",
        "2",
        "--mode",
        "mask",
        "--windows",
        "1",
        "--no-depth",
        "--max-new-tokens",
        "4",
    )
    code, said, error = run(
        "drop", "--model", "tiny-llava-mini", "--stack", "prefusion", "--queries", "text", *words
    )
    assert code == 0, error
    table = pd.read_csv(tmp_path / "probe-out" / "drop" / "accuracy.csv")
    assert {"untouched", "no vision", "another image", "1"} <= set(table["case"])
    assert "row-layers" in said
    code, said, error = run("drop", "--stack", "prefusion", *words)
    assert (code, said) == (2, "")
    assert "a stack of tiny-llava: llm, got prefusion" in error and error.count("\n") == 1


def test_only_a_judges_benchmark_is_judged(run, tmp_path, monkeypatch):
    monkeypatch.setattr("probe.subject.loading.load", no_work)
    code, said, error = run("drop", "--judged", "scores.json")
    assert (code, said) == (2, "")
    assert "llava_w or mm_vet, got shapes" in error and error.count("\n") == 1


def test_bad_rows_are_listed_and_answers_exported(run, gqa, tmp_path):
    words = (
        "--benchmark",
        "gqa",
        "--data",
        str(gqa),
        "--mode",
        "mask",
        "--no-depth",
        "--no-attention",
        "--export",
    )
    code, said, error = run("drop", *words, "--max-new-tokens", "4", "--out", "out")
    assert code == 0, error
    assert "1 bad rows left out, 1 samples failed" in said
    problems = list(csv.reader((tmp_path / "out" / "problems.csv").open()))
    assert [row[1] for row in problems] == ["row", "4", "5"]
    assert "bad.jpg" in problems[2][2]
    official = (
        tmp_path
        / "out"
        / json.loads((tmp_path / "out" / "predictions" / "index.json").read_text())["mask: 1-2"]
    )
    assert [row["questionId"] for row in json.loads(official.read_text())] == list("12345")
    assert pd.read_csv(tmp_path / "out" / "accuracy.csv")["questions"].iloc[0] == 3


def test_attention_over_a_benchmark_is_a_run_and_one_record(run, tmp_path, monkeypatch):
    monkeypatch.setattr("probe.plots.main_figures", lambda record: {})  # slow, and tested elsewhere
    monkeypatch.setattr("probe.cli.attention.FEW", 5)
    code, said, error = run("attention", "--benchmark", "shapes", "--limit", "6")
    assert code == 0, error
    assert "6 questions" in said
    folder = tmp_path / "probe-out" / "attention"
    record = probe.open_record(folder / "record.zarr.zip")
    assert record.sizes["sample"] == 6
    assert {"run.json", "parts", "problems.csv", "attention.csv"} <= {
        path.name for path in folder.iterdir()
    }
    means = pd.read_csv(folder / "attention.csv").query(
        "stack == 'llm' and value == 'share' and layer == 0"
    )
    of_one = means.query("query_type == 'response'")
    assert of_one["mean"].sum() == pytest.approx(1, abs=1e-4)
    assert (of_one["low"] <= of_one["mean"]).all()
    monkeypatch.setattr("probe.evaluation.attention_run.measure_samples", no_work)
    assert run("attention", "--benchmark", "shapes", "--limit", "6")[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["drop", "--benchmark", "nope"], "shapes, gqa"),
        (["drop", "--benchmark", "gqa"], "--data"),
        (["drop", "--benchmark", "gqa", "--data", "nowhere"], "no such folder"),
        (["drop", "--benchmark", "gqa", "--data", "file"], "a file"),
        (["drop", "--benchmark", "pope", "--data", "."], "pope"),
        (["drop", "--limit", "0"], "--limit"),
        (["drop", "--windows", "0"], "--windows"),
        (["drop", "--mode", "fog"], "mask"),
        (["drop", "--out", "file"], "folder that can be written"),
        (["attention", "--benchmark", "gqa"], "--data"),
        (["attention", "--limit", "3"], "--benchmark with --limit"),
        (["attention", "--benchmark", "shapes", "--question", "why?"], "--question"),
    ],
)
def test_a_mistake_is_told_before_any_model_is_loaded(run, tmp_path, monkeypatch, words, told):
    monkeypatch.setattr("probe.subject.loading.load", no_work)
    (tmp_path / "file").write_text("no folder")
    code, said, error = run(*words)
    assert (code, said) == (2, "")
    assert told in error
    assert error.startswith("probe: ") and error.count("\n") == 1


def test_a_window_of_more_layers_than_the_model_has(run):
    code, _, error = run("drop", "--windows", "9")
    assert code == 2
    assert "1 to 8" in error and error.count("\n") == 1


def test_a_truncated_file_is_one_line(run, gqa):
    file = gqa / "testdev_balanced_questions.json"
    file.write_text(file.read_text()[:-20])
    code, said, error = run("drop", "--benchmark", "gqa", "--data", str(gqa))
    assert (code, said) == (2, "")
    assert "testdev_balanced_questions.json" in error and error.count("\n") == 1


def test_swap_is_left_out_with_a_line_where_no_other_image_is_there(capsys):
    subject = probe.load("tiny-llava")
    cases = cases_of_modes(subject, SimpleNamespace(has_donors=False), None, "all", depth=False)
    assert "swap" not in cases and "mask" in cases
    assert "swap is left out: the questions are about one image" in capsys.readouterr().out
    cases = cases_of_modes(subject, SimpleNamespace(has_donors=True), None, "all", depth=False)
    assert "swap" in cases


def test_modes_that_a_model_refuses_are_left_out_with_their_reason(capsys):
    """Words of a hybrid read the image through a state: its default run failed at all samples."""
    subject = probe.load(*FAMILIES["qwen3_5"]())
    task = SimpleNamespace(has_donors=True)
    cases = cases_of_modes(subject, task, None, "all", depth=False)
    assert list(cases) == ["remove", "remove_for_good"]
    said = " ".join(capsys.readouterr().out.split())
    assert "left out: mask, mask_frozen, zero, swap (expected layers with softmax" in said
    with pytest.raises(probe.ProbeError, match="through its state"):  # before any sample is read
        Sweep(subject, probe.windows(1), "mask")
