"""A folder of results: replaced as a whole, and nothing of its user's is lost."""

import errno
import json
import os
import signal
import tempfile

import pytest

from probe.cli import Terminated, main
from probe.cli.result_folder import MANIFEST, results
from probe.errors import ProbeError


def write(out, verb="cost", **files):
    with results(verb, out) as folder:
        for name, text in files.items():
            folder.file(f"{name}.csv").write_text(text)


def contents(out):
    return {path.name: path.read_text() for path in out.iterdir() if path.name != MANIFEST}


def test_a_users_file_of_the_same_name_is_renamed_and_said(tmp_path, capsys):
    (tmp_path / "costs.csv").write_text("a user's")
    write(tmp_path, costs="new")
    (kept,) = tmp_path.glob("costs.kept-*.csv")
    assert contents(tmp_path) == {"costs.csv": "new", kept.name: "a user's"}
    assert kept.name in capsys.readouterr().out
    write(tmp_path, costs="newer")
    assert contents(tmp_path) == {"costs.csv": "newer", kept.name: "a user's"}


def test_what_its_user_changed_is_kept(tmp_path):
    write(tmp_path, costs="new", more="other")
    (tmp_path / "costs.csv").write_text("new, with notes")
    (tmp_path / "more.csv").write_text("other, with notes")
    write(tmp_path, costs="newer")
    assert sorted(contents(tmp_path).values()) == ["new, with notes", "newer", "other, with notes"]


@pytest.mark.parametrize("text", ["{}", "", "[" * 10**5, '{"accuracy": 3}', "\0", '{"files": 3}'])
def test_a_file_that_is_named_like_the_manifest_is_kept(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    write(tmp_path, costs="new")
    assert json.loads((tmp_path / MANIFEST).read_text())["verb"] == "cost"
    (kept,) = tmp_path.glob("results.kept-*.json")
    assert kept.read_text() == text


@pytest.mark.parametrize("name", ["..", "../costs.csv", "/etc/hostname", "a\0b", "x" * 5000, ""])
def test_a_manifest_that_names_other_files_removes_none(tmp_path, name):
    out = tmp_path / "out"
    write(out, costs="old")
    (tmp_path / "costs.csv").write_text("outside")
    (out / MANIFEST).write_text(json.dumps({"verb": "cost", "files": {name: "0" * 64}}))
    write(out, more="new")
    assert (tmp_path / "costs.csv").read_text() == "outside"
    assert contents(out) == {"costs.csv": "old", "more.csv": "new"}


def test_a_link_goes_and_what_it_names_stays(tmp_path):
    (tmp_path / "elsewhere.csv").write_text("elsewhere")
    out = tmp_path / "out"
    out.mkdir()
    (out / "costs.csv").symlink_to(tmp_path / "elsewhere.csv")
    write(out, costs="new")
    assert (tmp_path / "elsewhere.csv").read_text() == "elsewhere"
    assert not (out / "costs.csv").is_symlink()


def test_a_run_of_another_verb_that_is_not_finished_is_refused(tmp_path):
    run = {"fingerprint": {"plan": {"verb": "drop"}}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(ProbeError, match="results of `probe drop`"):
        write(tmp_path, "cost", costs="new")
    write(tmp_path, "drop", accuracy="new")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_all_files_are_moved(tmp_path, monkeypatch, number):
    def terminate(*_):
        raise Terminated

    before, replaced = signal.signal(signal.SIGTERM, terminate), os.replace

    def replace(source, target):
        signal.raise_signal(number)
        replaced(source, target)

    write(tmp_path, one="1", two="2")
    monkeypatch.setattr(os, "replace", replace)
    try:
        with pytest.raises((KeyboardInterrupt, Terminated)):
            write(tmp_path, one="one", two="two")
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)
    assert contents(tmp_path) == {"one.csv": "one", "two.csv": "two"}


@pytest.fixture
def unwritable(monkeypatch, tmp_path):
    """Makes a folder refuse to be written."""
    folders = []
    usual = tempfile.TemporaryFile

    def temporary(*rest, dir=None, **more):
        if dir in folders:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return usual(*rest, dir=dir, **more)

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    return folders.append


def test_finished_results_in_a_read_only_place_are_shown(run, tmp_path, unwritable, monkeypatch):
    quick = ("drop", "--limit", "2", "--mode", "mask", "--windows", "4", "--no-attention")
    assert run(*quick)[0] == 0
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "probe-out" / "drop"
    unwritable(out.relative_to(tmp_path))

    def state():
        return {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    before = state()
    code, said, error = run(*quick)
    assert code == 0, error
    assert "shapes with vision tokens dropped" in said and "1-4" in said
    assert "nothing in it was changed" in said
    assert state() == before
    for more in (("--limit", "3"), ("--export",)):
        code, said, error = run(*quick, *more)
        assert code == 2 and "expected a folder that can be written" in error
    assert state() == before


def test_without_results_a_read_only_place_is_one_line(run, tmp_path, unwritable, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    unwritable(out)
    with pytest.raises(ProbeError, match=r"can be written, got .*Read-only"):
        write(out, costs="new")
    with (
        pytest.raises(ProbeError, match="can be written"),
        results("drop", out, shows_finished=True),
    ):
        pass
    with pytest.raises(SystemExit):
        main(["cost", "--out", str(out / "a\0b")])
