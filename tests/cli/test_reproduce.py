"""`probe reproduce`: which figures a paper has, what is passed on, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

import probe
from probe.cli import _app
from probe.cli.engine import EngineOptions
from probe.cli.options import BenchmarkOptions, ModelOptions
from probe.cli.reproduce import FOLDERS, PAPERS, Request, _beside_published, _numbers, _table
from probe.errors import ProbeError
from probe.measures.cost import join, write


def request(**loading):
    return Request(
        ModelOptions(**loading),
        BenchmarkOptions(benchmark="gqa", limit=5),
        EngineOptions(workers=2),
        mini="tiny-llava-mini",
        max_new_tokens=8,
        images=(),
        question="what?",
    )


def test_every_figure_is_made_without_being_named_and_none_without_its_model():
    assert _numbers("llava-mini", None, "mini") == [
        "2",
        "3",
        "4",
        "5",
        "12",
        "7",
        "8",
        "9",
        "table 1",
    ]
    assert _numbers("llava-mini", None, None) == ["2", "3", "4", "5"]
    assert _numbers("visionzip", "2, table 1", None) == ["2", "table 1"]


@pytest.mark.parametrize(
    ("figure", "mini", "message"),
    [("6", "mini", "2, 3, 4, 5, 12"), ("12", None, "--mini"), (" , ", "mini", "numbers of")],
)
def test_another_figure_is_refused(figure, mini, message):
    with pytest.raises(ProbeError, match=message):
        _numbers("llava-mini", figure, mini)


def test_what_was_asked_for_is_passed_on_to_the_verbs():
    asked = request(model="somewhere/llava", dtype="bfloat16", quantization="4bit")
    assert asked.model()[:2] == ["--model", "somewhere/llava"]
    assert asked.model("mini")[:2] == ["--model", "mini"]
    assert {"bfloat16", "4bit"} <= set(asked.model("mini"))
    words = asked.samples()
    assert words[words.index("--benchmark") + 1] == "gqa"
    assert words[words.index("--workers") + 1] == "2"


def test_a_paper_does_not_replace_the_figures_of_another():
    assert FOLDERS.keys() == PAPERS.keys()
    assert len(set(FOLDERS.values())) == len(PAPERS)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_options_of_each_step_are_those_of_its_verb(paper):
    for step in PAPERS[paper]:
        words = [word for word in step.options(request()) if word.startswith("--")]
        shown = CliRunner().invoke(_app(), [step.verb, "--help"], env={"COLUMNS": "200"}).output
        assert [word for word in words if word not in shown] == [], step


def test_a_figure_is_copied_under_the_number_of_the_paper(tmp_path):
    command = ["reproduce", "llava-mini", "--figure", "4", "--limit", "6", "--out", str(tmp_path)]
    run = CliRunner().invoke(_app(), command)
    assert run.exit_code == 0, run.output
    assert {"4.png", "4.svg"} <= set(json.loads((tmp_path / "results.json").read_text())["files"])
    drawn = tmp_path / "example/llm-heatmaps.png"
    assert (tmp_path / "4.png").read_bytes() == drawn.read_bytes()


def test_costs_stand_beside_the_published_percentages(tmp_path):
    assert _beside_published(tmp_path) == {}
    costs = [probe.cost(model) for model in ("tiny-llava", "tiny-llava-mini")]
    write(join(costs), tmp_path / "costs.json")
    (figure,) = _beside_published(tmp_path).values()
    assert figure.axes[0].get_title(loc="left") == "Cost of tiny-llava-mini"


def test_a_table_stands_beside_the_published_one(tmp_path):
    task = type("Task", (), {"benchmark": type("Benchmark", (), {"name": "gqa"})})()
    assert _table("llava-mini", task, tmp_path) is None
    (tmp_path / "methods").mkdir()
    text = "method,vision_tokens,accuracy,official_accuracy\nall tokens,36,90.0,90.0\n"
    (tmp_path / "methods/reduce.csv").write_text(text)
    table = _table("llava-mini", task, tmp_path)
    assert table["source"].tolist()[:2] == ["this run", "published"]
    assert table.query("method == 'LLaVA-Mini'")["gqa"].notna().any()
