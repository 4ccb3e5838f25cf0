"""Reports: what stands on the page, that every text is escaped, and what is refused."""

import json
import re
import shlex

import pytest
from chromium import chromium, serious_faults
from matplotlib.figure import Figure
from typer.testing import CliRunner

import probe
from probe.cli import _app
from probe.models.tiny.questions import sample_image
from probe.plots.all_figures import figures
from probe.viewer.report import _written_by, report
from probe.viewer.report_page import as_html, as_markdown, report_files
from probe.viewer.report_text import DEFINITIONS, definition_of, methods

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def record_file(tmp_path_factory):
    subject = probe.load("tiny-llava")
    image, _, _ = sample_image(seed=0)
    record = probe.measure(subject, image, "Is there a circle?", stacks=["llm"])
    record.attrs["model"] = EVIL
    return probe.save_record(record, tmp_path_factory.mktemp("record") / "mine")


@pytest.fixture(scope="module")
def parts(record_file):
    return report([record_file])


def test_a_record_gets_its_figures_definitions_and_methods(record_file, parts):
    (part,) = parts
    drawn = figures(probe.open_record(record_file))
    assert [figure.name for figure in part.figures] == list(drawn)
    assert all(figure.definition for figure in part.figures)
    assert part.made["attention kernel"] == "sdpa"
    assert part.made["samples"] == "1"
    assert probe.__version__ in part.methods
    assert "toy" in part.methods


def test_html_loads_nothing_and_escapes_everything(parts):
    page = as_html(parts, title=EVIL)
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "default-src 'none'" in page
    assert page.count("<figure>") == len(parts[0].figures)


def test_no_serious_fault_for_screen_readers(parts, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(as_html(parts), encoding="utf-8")
    with chromium() as browser:
        browser.open(path.as_uri(), "return document.readyState === 'complete'")
        for width, theme in ((1280, "light"), (390, "dark")):
            assert serious_faults(browser, width, theme) == []
            assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.errors() == []


def test_markdown_names_the_figures_that_lie_beside_it(parts):
    text, files = as_markdown(parts)
    assert re.findall(r"\]\(([^)]+)\)", text) == list(files)
    assert all(png.startswith(b"\x89PNG") for png in files.values())
    assert "<script" not in text.replace("\\<script", "")


def test_the_commands_draw_the_figures_and_measure_again(record_file, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (command,) = parts[0].commands
    script = shlex.split(command)[2]
    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, name: drawn.update({name: figure}))
    exec(script, {})
    assert list(drawn) == [f"{figure.name}.png" for figure in parts[0].figures]
    written = {"verb": "attention", "command": "probe attention", "files": [record_file.name]}
    manifest = record_file.parent / "results.json"
    manifest.write_text(json.dumps(written))
    assert _written_by(record_file) == ("probe attention",)
    manifest.unlink()


def test_a_command_makes_the_folder_of_a_report_again(parts, tmp_path, monkeypatch):
    """Of a folder, whose figures come in the order of the definitions."""
    monkeypatch.chdir(tmp_path)
    files = ["llm-entropy.png", "llm-mass.png", "own.png"]
    written = {"verb": "attention", "command": "probe attention", "files": files}
    (tmp_path / "results.json").write_text(json.dumps(written))
    for file in files:
        (tmp_path / file).write_bytes(parts[0].figures[0].png)
    run = CliRunner().invoke(_app(), ["report", str(tmp_path)])
    assert run.exit_code == 0, run.output
    page = (tmp_path / "probe-out/report/report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert re.findall(r"<strong>(.*?)</strong>", page) == ["llm-mass", "llm-entropy", "own"]
    manifest = json.loads((tmp_path / "probe-out/report/results.json").read_text())
    assert shlex.split(manifest["command"])[0] == "probe"


def test_a_folder_without_results_a_form_and_an_unknown_file_are_refused(parts, tmp_path):
    with pytest.raises(probe.ProbeError, match="finish the run"):
        report([tmp_path])
    with pytest.raises(probe.ProbeError, match="record"):
        report([tmp_path / "nothing"])
    with pytest.raises(probe.ProbeError, match="at least one"):
        report([])
    with pytest.raises(probe.ProbeError, match="html, markdown"):
        report_files(parts, "pdf")


def test_the_longest_name_defines_a_figure():
    assert definition_of("llm-entropy-ratio") == DEFINITIONS["entropy-ratio"]
    assert definition_of("something") == ""
    assert "against the frames" in definition_of("memory-frames")


@pytest.mark.parametrize(
    ("verb", "figure", "said"),
    [
        ("heads", "heads", "Each head of m (float32) was ablated (mode zero)"),
        ("patch", "patches", "Activations of m (float32) were patched"),
        ("reliability", "correct", "How well attention of m (float32) tells right"),
        ("convert", "2", "The results are those of convert on m (float32)"),
    ],
)
def test_a_folder_s_words_are_those_of_its_verb(tmp_path, verb, figure, said):
    """And not those of `probe attention`, whose figure may have the same name."""
    plan = {"mode": "zero"} if verb == "heads" else {}
    made = {"model": "m", "dtype": "float32", "plan": plan}
    written = {"verb": verb, "files": [f"{figure}.png"]}
    (tmp_path / "run.json").write_text(json.dumps({"fingerprint": made}))
    (tmp_path / "results.json").write_text(json.dumps(written))
    (tmp_path / f"{figure}.png").write_bytes(b"")
    (part,) = report([tmp_path])
    assert part.methods.startswith(said)
    assert "interval" not in part.methods  # nothing says that there are several samples
    (found,) = part.figures
    assert bool(found.definition) == (verb != "convert")
    assert found.definition != DEFINITIONS["heads"]


def test_a_flow_map_is_no_change_of_the_log_probability():
    told = methods({"kind": "attribution", "method": "rollout"}, {}, "attribution")
    assert "attention rollout" in told and "log-probability" not in told and "interval" not in told
    assert definition_of("attribution", method="rollout").endswith("attention rollout.")
    assert definition_of("attribution", method="ablation") == DEFINITIONS["attribution"]
