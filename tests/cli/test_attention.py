"""The command line: what it writes and prints, and that every mistake is one line with exit code
2.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import probe
from probe.cli import main
from probe.data.video import open_video
from probe.errors import ProbeError

ANY_SUBJECT = SimpleNamespace(exif="upright")
FIGURES = {"llm-mass", "llm-entropy", "llm-heatmaps", "overview"}


def one_line(error: str) -> str:
    """Without the lines on stages, which a slow machine has."""
    lines = error.splitlines(keepends=True)
    error = "".join(line for line in lines if not line.endswith(" ...\n"))
    assert error.startswith("probe: ")
    assert error.count("\n") == 1, error
    return error


def no_work(*_, **__):
    raise AssertionError("the model was loaded")


def interrupted(*_, **__):
    raise KeyboardInterrupt


# The real thing, end to end


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that a plain `probe attention`, in a process of its own, leaves; and what it
    printed.
    """
    folder = tmp_path_factory.mktemp("plain")
    environment = {**os.environ, "PYTHONPATH": str(Path(probe.__file__).parent.parent)}
    command = [sys.executable, "-m", "probe", "attention"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    stages = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert (done.returncode, stages) == (0, [])
    return folder / "probe-out" / "attention", done.stdout


def test_attention_alone_writes_record_figures_and_table(written):
    folder, _ = written
    names = {path.name for path in folder.iterdir()}
    assert {"record.zarr.zip", "attention.csv"} <= names
    assert {f"{figure}.{ending}" for figure in FIGURES for ending in ("png", "svg")} <= names
    assert not [name for name in names if name.startswith(".")], "nothing unfinished stays"
    assert all(path.stat().st_size > 0 for path in folder.iterdir())


def test_attention_prints_a_row_a_layer_counted_from_one(written):
    folder, said = written
    layers = probe.open_record(folder / "record.zarr.zip")["llm"].sizes["layer"]
    rows = [
        line.split() for line in said.splitlines() if line.split()[:1] and line.split()[0].isdigit()
    ]
    assert [int(row[0]) for row in rows] == list(range(1, layers + 1))
    assert all(len(row) == 1 + 3 + 3 for row in rows)
    assert "…" not in said
    for word in ("question", "answer", "image", "tiny-llava", "record.zarr.zip"):
        assert word in said


def test_its_numbers_are_the_records(written):
    folder, said = written
    mass = (
        probe.open_record(folder / "record.zarr.zip")["llm"]["mass"]
        .mean("head")
        .isel(sample=0, layer=0)
    )
    row = next(line.split() for line in said.splitlines() if line.split()[:1] == ["1"])
    np.testing.assert_allclose(
        [float(x) for x in row[1:4]], mass.sel(query_type="response"), atol=6e-4
    )


def test_all_options_together(run, tmp_path):
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (160, 90), "teal").save(tmp_path / name)
    code, said, error = run(
        *(
            "attention",
            "--image",
            "a.jpg",
            "--image",
            "b.png",
            "--question",
            "",
            "--response",
            "a red circle",
        ),
        *(
            "--types",
            "fine",
            "--maps",
            "--heads",
            "--aspect",
            "crop",
            "--dtype",
            "float32",
            "--device",
            "cpu",
        ),
        *("--attn", "eager", "--max-new-tokens", "3", "--out", "new/deep"),
    )
    assert code == 0, error
    assert "a red circle" in said
    record = probe.open_record(tmp_path / "new" / "deep" / "record.zarr.zip")
    assert record.attrs["aspect"] == "crop"
    assert "received_head" in record["llm"]
    assert "head" in record["llm"]["maps"].dims
    assert set(record["llm"].query_type.values) == {
        "bos",
        "system",
        "vision",
        "instruction",
        "last",
        "response",
    }


def test_no_figures_where_none_are_wanted(run, written, tmp_path, monkeypatch):
    record = _as_measured(monkeypatch, written)
    code, said, error = run("attention", "--figures", "none")
    assert code == 0, error
    names = {path.name for path in (tmp_path / "probe-out" / "attention").iterdir()}
    assert names == {"record.zarr.zip", "attention.csv", "results.json"}
    assert "figure" not in said and record is not None


def test_what_a_user_or_a_model_writes_is_printed_as_it_is(run, written, tmp_path, monkeypatch):
    record = _as_measured(monkeypatch, written)
    record["response"] = record["response"].astype(object)
    record["response"].values[0] = "a [bold]red[/] \x1b[31mcircle\x07"
    code, said, error = run("attention", "--figures", "none", "--out", "o[red]x\x1b[2J")
    assert code == 0, error
    assert "answer a [bold]red[/] \\x1b[31mcircle\\x07" in said
    assert "written to o[red]x\\x1b[2J/" in said
    assert "\x1b" not in said
    (tmp_path / "file").write_text("not a folder")
    code, said, error = run("attention", "--out", "file/\x1b[2J[red]")
    assert code == 2 and "\x1b" not in one_line(error) and "[2J[red]'" in error


def _as_measured(monkeypatch, written):
    """`probe attention` loads no model and measures this record."""
    record = probe.open_record(written[0] / "record.zarr.zip").load()
    monkeypatch.setattr("probe.subject.loading.load", lambda *_, **__: ANY_SUBJECT)
    monkeypatch.setattr("probe.measures.attention.measure.measure", lambda *_, **__: record)
    monkeypatch.setattr("probe.cli.attention._say_memory", lambda *_: None)
    return record


# Mistakes


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["atention"], "Did you mean 'attention'"),
        (["attention", "--modle", "x"], "--model"),
        (["attention", "--types", "coarse"], "'paper', 'fine'"),
        (["attention", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["attention", "--image"], "--image"),
        (["attention", "--out", "file/under/it"], "folder that can be written"),
        (["attention", "--out", "file"], "folder that can be written"),
        (["train", "--out", "file/under/it"], "folder that can be written"),
        (["attention", "--image", "file"], "whose content is not an image"),
        (["attribute", "--image", "missing.jpg"], "no such file"),
        (["attention", "photo.jpg"], "see `probe attention --help`"),
        (["train", "large-llava"], "tiny-llava"),
        (["train", "large-llava"], "'what': 'large-llava' is not one of"),
        (["verify", "--device"], "--device"),
    ],
)
def test_a_mistake_in_the_words_is_told_before_any_work(run, tmp_path, monkeypatch, words, told):
    monkeypatch.setattr("probe.subject.loading.load", no_work)
    (tmp_path / "file").write_text("not a folder")
    code, said, error = run(*words)
    assert (code, said) == (2, "")
    assert told in one_line(error)
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--image", "missing.jpg"], "missing.jpg"),
        (["--image", "text.jpg"], "text.jpg"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "."], "config.json"),
        (["--question", "<image> and <image> ?"], "<image>"),
    ],
)
def test_a_mistake_in_the_input_is_one_line_and_leaves_no_file(run, tmp_path, words, told):
    (tmp_path / "text.jpg").write_text("no image")
    code, said, error = run("attention", *words)
    assert (code, said) == (2, "")
    assert told in one_line(error)
    assert not (tmp_path / "probe-out").exists(), "no empty folder stays"


def test_debug_shows_where_a_mistake_was_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProbeError, match=r"missing\.jpg"):
        main(["attention", "--image", "missing.jpg", "--debug"])


def test_ctrl_c_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("probe.subject.loading.load", interrupted)
    code, said, error = run("attention")
    assert (code, said) == (130, "")
    assert "interrupted" in one_line(error)
    assert not (tmp_path / "probe-out").exists(), "no empty folder stays"


@pytest.mark.parametrize(
    ("trouble", "code"), [(OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)]
)
def test_trouble_while_writing_leaves_the_last_results_whole(
    run, written, tmp_path, monkeypatch, trouble, code
):
    def figures(_):
        raise trouble

    monkeypatch.setattr("probe.subject.loading.load", lambda *_, **__: ANY_SUBJECT)
    monkeypatch.setattr(
        "probe.measures.attention.measure.measure",
        lambda *_, **__: probe.open_record(written[0] / "record.zarr.zip"),
    )
    monkeypatch.setattr("probe.cli.attention._say_memory", lambda *_: None)
    monkeypatch.setattr("probe.plots.main_figures", figures)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "attention.csv").write_text("of the last run")
    exit_code, said, error = run("attention", "--out", "results")
    assert (exit_code, said) == (code, "")
    one_line(error)
    assert [path.name for path in folder.iterdir()] == ["attention.csv"]
    assert (folder / "attention.csv").read_text() == "of the last run"


def test_a_folder_named_like_a_result_is_told_before_any_file_is_moved(
    run, written, tmp_path, monkeypatch
):
    monkeypatch.setattr("probe.subject.loading.load", lambda *_, **__: ANY_SUBJECT)
    monkeypatch.setattr(
        "probe.measures.attention.measure.measure",
        lambda *_, **__: probe.open_record(written[0] / "record.zarr.zip"),
    )
    monkeypatch.setattr("probe.plots.main_figures", lambda _: {})
    folder = tmp_path / "results"
    (folder / "record.zarr.zip").mkdir(parents=True)
    (folder / "attention.csv").write_text("of the last run")
    code, said, error = run("attention", "--out", "results")
    assert (code, said) == (2, "")
    assert "got a folder 'results/record.zarr.zip'; move it away" in one_line(error)
    assert sorted(path.name for path in folder.iterdir()) == ["attention.csv", "record.zarr.zip"]
    assert (folder / "attention.csv").read_text() == "of the last run"


# The other verbs


def test_without_words_it_shows_help(run):
    code, said, error = run()
    assert (code, error) == (0, "")
    assert all(verb in said for verb in ("attention", "verify", "train"))


def test_version(run):
    assert run("--version") == (0, f"probe {probe.__version__}\n", "")


@pytest.mark.parametrize("kept", [True, False])
def test_verify_prints_each_promise_with_its_number_and_fails_with_one(run, monkeypatch, kept):
    check = SimpleNamespace(
        name="logits unchanged", value=0.0 if kept else 0.125, expected="0", passed=kept
    )
    report = SimpleNamespace(checks=[check], appendix="Measured with probe [v1].")
    monkeypatch.setattr("probe.subject.loading.load", lambda *_, **__: ANY_SUBJECT)
    monkeypatch.setattr("probe.measures.verify.verify", lambda _: report)
    code, said, _ = run("verify")
    assert code == (0 if kept else 1)
    assert "logits unchanged" in said
    assert ("0.125" in said) is not kept
    assert "Measured with probe [v1]." in said


def test_train_hands_its_words_to_the_recipe(run, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "probe.models.tiny.training.train.train",
        lambda out, **options: asked.update(options, out=out),
    )
    code, _, error = run("train", "tiny-llava", "--out", "made", "--steps", "3", "--seed", "7")
    assert code == 0, error
    assert (asked["out"].name, asked["steps"], asked["recipe"].seed) == ("made", 3, 7)


# What the shell does


def start(folder, *words, python=("-m", "probe"), **environment):
    package = str(Path(probe.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": package, **environment}
    return subprocess.Popen(
        [sys.executable, *python, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_leaves_no_unfinished_folder(tmp_path):
    process = start(tmp_path, "attribute", "--out", "new/deep")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("new/deep/.unfinished-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.terminate()
    said, error = process.communicate(timeout=120)
    assert (process.returncode, said) == (143, "")
    assert error.splitlines()[-1] == "probe: terminated; nothing was left half-written"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_output_that_cannot_be_written_is_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "probe", "--help"]
        environment = {**os.environ, "PYTHONPATH": str(Path(probe.__file__).parent.parent)}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "No space left on device" in one_line(done.stderr)


def test_a_terminal_without_utf_8_shows_what_it_can(tmp_path):
    code = (
        "import probe.cli as c; c._survive_narrow_terminals(); "
        "from probe.cli.output import say, show_table; "
        "say('answer', 'caf\\xe9'); show_table('t', {'\\u2192 vision': 'left'}, [['\\u4e2d']])"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start(tmp_path, python=("-c", code), **ascii_only)
    said, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "answer caf?" in said and "? vision" in said


def test_a_video_is_opened_once(tmp_path, monkeypatch, capsys):
    """For the check of the file, for what measuring will keep and for measuring."""
    opened = []

    def counted(video, exif):
        opened.append(str(video))
        return open_video(probe.Video(np.zeros((3, 32, 32, 3), np.uint8)), exif)

    monkeypatch.setattr("probe.data.video.open_video", counted)
    monkeypatch.setattr("probe.data.donors.open_video", counted)
    monkeypatch.setattr("probe.cli.attention.write_results", lambda *_: None)
    arguments = ["attention", "--model", "tiny-llava-mini", "--image", "clip.mp4", "--memory"]
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--max-new-tokens", "2", "--out", str(tmp_path)])
    assert opened == ["clip.mp4"]
    assert "memory" in capsys.readouterr().out
