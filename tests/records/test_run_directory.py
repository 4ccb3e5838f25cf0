"""A run keeps what is finished, does nothing twice, and refuses to become another run."""

# Fields of a sample and results of a run are unions; a test knows which it has.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportIndexIssue=false

import errno
import importlib.util
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from running_mean import RunningMean

from probe.data.sample import Sample
from probe.errors import ProbeError, RunWarning
from probe.records.concat import join, select
from probe.records.io import save_merged
from probe.records.part_files import read_ids, read_part, read_part_header, write_part
from probe.records.provenance import RunFingerprint, hash_files
from probe.records.run_directory import STALE_SECONDS, RunDirectory
from probe.records.run_settings import library_versions
from probe.records.run_work import Writer, run_samples

ROOT = Path(__file__).parents[2]
SAME = RunFingerprint(
    model="tiny-llava",
    revision="1",
    dtype="float32",
    kernel="sdpa",
    prompt="vicuna",
    plan={"how": "mask", "windows": [[0, 1], [2, 3]]},
    data={"questions.json": "abc"},
    generation={"max_new_tokens": 8},
)
SAMPLES = [Sample(f"q{number:02d}", None, "?") for number in range(10)]
IDS = [sample.id for sample in SAMPLES]


def dataset(group: list[Sample]) -> xr.Dataset:
    """Numbers that follow from the id; as many tokens as the id's last digit says."""
    digits = [int(sample.id[-1]) for sample in group]
    values = np.full((len(group), 3), np.nan)
    for row, digit in enumerate(digits):
        values[row] = [digit, digit / 3, np.nan if digit % 2 else 1.0]
    ids = np.array([sample.id for sample in group], dtype=object)
    return xr.Dataset(
        {
            "value": (("sample", "case"), values, {"units": "1"}),
            "answer": ("sample", np.array([f"é{digit}" for digit in digits], dtype=object)),
            "tokens": (
                ("sample", "position"),
                ragged(["x"] * digit for digit in digits).astype(object),
            ),
            "right": ("sample", np.array([digit > 4 for digit in digits])),
        },
        coords={"sample": ids, "case": [0, 1, 2]},
        attrs={"model": "tiny-llava"},
    )


def tree(group: list[Sample]) -> xr.DataTree:
    digits = [int(sample.id[-1]) for sample in group]
    llm = xr.Dataset(
        {
            "mass": (
                ("sample", "layer"),
                np.array([[digit, -digit] for digit in digits], dtype=np.float32),
            ),
            "received": (("sample", "key"), ragged([0.5] * (1 + digit) for digit in digits)),
            "key_row": (("sample", "key"), ragged([3] * (1 + digit) for digit in digits)),
        },
        coords={"layer": [0, 1]},
    )
    return xr.DataTree.from_dict({"/": dataset(group), "/llm": llm})


def ragged(rows: Iterable[list]) -> np.ndarray:
    rows = list(rows)
    longest = max(rows, key=len)
    filler = {float: np.nan, int: -1, str: ""}[type(longest[0]) if longest else str]
    return np.array([row + [filler] * (len(longest) - len(row)) for row in rows])


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(tmp_path / "run", SAME)


@pytest.mark.parametrize("measure", [dataset, tree])
def test_what_was_collected_is_what_was_measured(run, measure):
    run_samples(run, SAMPLES, measure, batch=3, size=4)
    found = run.load(IDS)
    assert type(found) is type(measure(SAMPLES))
    assert found.identical(join([measure([sample]) for sample in SAMPLES]))
    assert list(found["answer"].values[:2]) == ["é0", "é1"]
    assert not list((run.folder / "parts").glob("*.tmp"))


def test_a_second_command_computes_only_what_is_missing(run):
    asked = []

    def measure(group):
        asked.extend(sample.id for sample in group)
        return dataset(group)

    run_samples(run, SAMPLES[:4], measure)
    run_samples(RunDirectory.open(run.folder, SAME), SAMPLES, measure)
    assert asked == IDS
    assert run.done() == set(IDS)


def test_ctrl_c_keeps_everything_finished(run):
    def measure(group):
        if group[0].id == "q06":
            raise KeyboardInterrupt
        return dataset(group)

    with pytest.raises(KeyboardInterrupt):
        run_samples(run, SAMPLES, measure)
    assert run.done() == set(IDS[:6])
    assert not run.failures()
    run_samples(run, SAMPLES, dataset)
    assert run.load(IDS).identical(dataset_one_by_one())


def dataset_one_by_one():
    return join([dataset([sample]) for sample in SAMPLES])


def test_an_interrupt_while_a_part_is_written_loses_nothing(run, monkeypatch):
    replaced, interrupts = os.replace, iter([True])

    def interrupted(*names):
        if next(interrupts, False):
            raise KeyboardInterrupt
        replaced(*names)

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_samples(run, SAMPLES, dataset, size=4)
    assert run.done() == set(IDS[:4])
    assert not list((run.folder / "parts").glob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"model": "llava-1.5"}, "model = 'tiny-llava'"),
        ({"kernel": "eager"}, "kernel = 'sdpa'"),
        ({"plan": {"how": "remove", "windows": [[0, 1], [2, 3]]}}, "plan.how = 'mask'"),
        ({"data": {"questions.json": "abd"}}, "data.questions.json = 'abc'"),
        ({"generation": {"max_new_tokens": 8, "num_beams": 2}}, "generation.num_beams = None"),
        ({"schema": 2}, "schema = 1"),
    ],
)
def test_another_run_is_refused_and_the_field_named(run, change, name):
    with pytest.raises(ProbeError, match="expected " + name.replace(".", r"\.")):
        RunDirectory.open(run.folder, replace(SAME, **change))


def test_a_fingerprint_survives_json(tmp_path):
    plan = {
        "layers": range(3),
        "kinds": {"b", "a"},
        "share": np.float64(0.5),
        "path": Path("x"),
        "cases": ((1, 2),),
    }
    RunDirectory.open(tmp_path, replace(SAME, plan=plan))
    assert RunDirectory.open(tmp_path, replace(SAME, plan=plan)).fingerprint()["plan"][
        "layers"
    ] == [0, 1, 2]
    with pytest.raises(ProbeError, match="plain values"):
        RunDirectory.open(tmp_path, replace(SAME, plan=object()))


def test_hashes_follow_the_content(tmp_path):
    (tmp_path / "a.json").write_text("1")
    first = hash_files([tmp_path / "a.json"])
    (tmp_path / "a.json").write_text("2")
    assert first.keys() == {"a.json"}
    assert hash_files([tmp_path / "a.json"]) != first


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(ProbeError, match="a run directory with"):
        RunDirectory(tmp_path).fingerprint()
    (tmp_path / "run.json").write_text('{"finger')
    with pytest.raises(ProbeError, match="a run directory with"):
        RunDirectory.open(tmp_path, SAME)


def test_a_failure_is_listed_retried_and_given_up(run):
    tries = []

    def measure(group):
        tries.append([sample.id for sample in group])
        if any(sample.id == "q03" for sample in group):
            raise ValueError("no image\nin it")
        return dataset(group)

    for _ in range(3):
        run_samples(RunDirectory.open(run.folder, SAME), SAMPLES, measure, batch=5)
    assert tries == [IDS[:5], *[[name] for name in IDS[:5]], IDS[5:], ["q03"]]
    assert [(f.id, f.attempt, f.reason) for f in run.failures()] == [
        ("q03", 2, "ValueError: no image in it")
    ]
    assert run.done() == set(IDS) - {"q03"}


def test_a_failure_that_succeeds_later_is_none(run):
    run.fail("q00", ValueError("once"))
    with (run.folder / "failures" / "0.jsonl").open("a") as file:
        file.write('{"id": "q0')  # its writer was killed here
    run.fail("q00", ValueError("twice"))
    assert [(failure.attempt, failure.reason) for failure in run.failures()] == [
        (2, "ValueError: twice")
    ]
    run_samples(run, SAMPLES, dataset, attempts=3)
    assert run.failures() == []


def test_a_run_stops_when_it_is_not_the_samples(run):
    samples = [Sample(f"s{number}", None, "?") for number in range(100)]
    with pytest.raises(ProbeError, match="20 failures in a row, the last out of memory"):
        run_samples(run, samples, lambda group: (_ for _ in ()).throw(MemoryError("out of memory")))
    assert len(run.failures()) == 20


def test_results_for_other_samples_are_refused(run):
    run_samples(run, SAMPLES[:1], lambda group: dataset(SAMPLES[1:2]))
    assert "expected results for ['q00'], got ['q01']" in run.failures()[0].reason
    with pytest.raises(ProbeError, match="a coordinate 'sample'"):
        Writer(run).add(xr.Dataset({"x": 1}))
    with pytest.raises(ProbeError, match="'q01' twice"):
        Writer(run).add(dataset([SAMPLES[1], SAMPLES[1]]))


def test_workers_share_a_directory_and_a_sample_done_twice_counts_once(run):
    other = RunDirectory.open(run.folder, SAME, worker="1")
    with Writer(run) as mine, Writer(other) as theirs:
        mine.add(dataset(SAMPLES[:6]))
        theirs.add(dataset(SAMPLES[4:]))
    assert {path.name.split("-")[1] for path in run.parts()} == {"0", "1"}
    assert run.load(IDS).sizes["sample"] == 10
    assert sum(part.sizes["sample"] for part in run.stream()) == 10


def test_unfinished_parts_are_ignored_and_old_ones_removed(run, monkeypatch):
    def killed(*_):
        raise SystemExit

    monkeypatch.setattr("os.replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # nor was there time to clean up
    for _ in range(2):
        with pytest.raises(SystemExit):
            run.write(dataset(SAMPLES[:2]))
    monkeypatch.undo()
    old, young = (path for path in (run.folder / "parts").iterdir() if path.suffix == ".tmp")
    half = run.folder / f"final-{run.token}0123abcd.tmp"  # of a compaction
    (half / "llm").mkdir(parents=True)
    long_ago = time.time() - STALE_SECONDS - 60
    RunDirectory.open(run.folder, SAME)
    assert young.exists()
    assert half.exists()
    for path in (old, half):
        os.utime(path, (long_ago, long_ago))
    RunDirectory.open(run.folder, SAME)
    assert not old.exists()
    assert not half.exists()
    assert run.done() == set()


def test_files_of_a_user_stay(run):
    token = run.token.rstrip("-")
    names = [
        "mydata.tmp",
        "final-1.tmp",
        "final-0123abcd.tmp",
        f"final-{'0' * 16}-0123abcd.tmp",
        f"final-{token}-0123abcd.tmp.tmp",
        f"mine-final-{token}-0123abcd.tmp",
        ".part-0-1-x.zarr.zip.0123abcd.tmp",
        f".part-0-1-x.zarr.zip.{token}-0123abcd.tmp",  # our name, not in our folder
        "run.json.0123abcd.tmp",
    ]
    files = [run.folder / name for name in names]
    files += [run.folder / "parts" / name for name in names[:-2]]
    folders = [file.with_name(f"folder-{file.name}") for file in files]
    target = run.folder.parent / "elsewhere"
    target.mkdir()
    link = run.folder / f"final-{token}-89abcdef.tmp"
    link.symlink_to(target)
    for file in files:
        file.write_text("mine")
    for folder in folders:
        folder.mkdir()
        (folder / "mine").write_text("mine")
    long_ago = time.time() - 100 * STALE_SECONDS
    for path in (*files, *folders, target):
        os.utime(path, (long_ago, long_ago))
    run_samples(RunDirectory.open(run.folder, SAME), SAMPLES, dataset)
    run.compact()
    assert all(file.read_text() == "mine" for file in files)
    assert all((folder / "mine").exists() for folder in folders)
    assert link.is_symlink()
    assert target.is_dir()


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling"])
def test_what_lies_at_final_zarr_is_kept(run, kind):
    run_samples(run, SAMPLES, dataset)
    final, target = run.folder / "final.zarr", run.folder.parent / "elsewhere"
    target.mkdir()
    (target / "mine").write_text("mine")
    if kind == "folder":
        target.rename(final)
    elif kind == "file":
        final.write_text("mine")
    else:
        final.symlink_to(target if kind == "link" else run.folder / "nowhere")
    with pytest.warns(RunWarning, match=r"not written by this run: renamed to final\.zarr\.kept-"):
        run.compact()
    (kept,) = run.folder.glob("final.zarr.kept-*")
    assert kept.is_symlink() == (kind in ("link", "dangling"))
    if kind != "dangling":
        assert (kept if kind == "file" else kept / "mine").read_text() == "mine"
    assert run.compact().is_dir()  # its own is replaced
    assert not final.is_symlink()
    assert len(list(run.folder.glob("final*"))) == 2


def damage(content: bytes, how: str) -> bytes:
    flipped = bytearray(content)
    if how == "flip in a value":
        flipped[len(content) // 2] ^= 4
        return bytes(flipped)
    if how == "flip in a name":
        flipped[content.rindex(b"value/c/0/0") + 6] ^= 1
        return bytes(flipped)
    if how == "a chunk is missing":
        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
            for name in old.namelist():
                if name != "value/c/0/0":
                    new.writestr(name, old.read(name))
        return packed.getvalue()
    if how == "an empty zip":
        packed = io.BytesIO()
        zipfile.ZipFile(packed, "w").close()
        return packed.getvalue()
    return {"no bytes": b"", "half": content[: len(content) // 2], "text": b"PK half"}[how]


DAMAGE = ["flip in a value", "flip in a name", "a chunk is missing", "an empty zip"]
DAMAGE += ["no bytes", "half", "text"]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_part_is_named_set_aside_and_computed_again(run, how):
    run_samples(run, SAMPLES, dataset, size=4)
    expected, part = run.load(IDS), run.parts()[1]
    content = damage(part.read_bytes(), how)
    part.write_bytes(content)
    with pytest.raises(ProbeError, match=f"a whole part in .*{part.name}.*damaged") as error:
        run.load(IDS)
    assert "\n" not in str(error.value)
    asked = []

    def measure(group):
        asked.extend(sample.id for sample in group)
        return dataset(group)

    with pytest.warns(RunWarning, match=rf"{part.name} is damaged .*: renamed to") as noted:
        run_samples(RunDirectory.open(run.folder, SAME), SAMPLES, measure)
    assert len(noted) == 1
    assert "\n" not in str(noted[0].message)
    assert asked == IDS[4:8]
    assert run.load(IDS).identical(expected)
    assert part.with_name(f"{part.name}.damaged").read_bytes() == content


def test_a_part_that_cannot_be_read_is_not_called_damaged(run, monkeypatch):
    run_samples(run, SAMPLES, dataset)

    def failing(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("probe.records.part_files.read_archive", failing)
    os.utime(run.parts()[0])  # so that it is read again
    with pytest.raises(ProbeError, match=r"can be read in .*Input/output error"):
        run.done()
    assert len(run.parts()) == 1


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"plan": {"how": "zero"}}])
def test_parts_are_tied_to_their_run(run, change):
    run_samples(run, SAMPLES[:2], dataset)
    (run.folder / "run.json").unlink()
    other, name = replace(SAME, **change), next(iter(change))
    with pytest.raises(ProbeError, match=rf"expected {name}.*with which .*part-0-.* was computed"):
        RunDirectory.open(run.folder, other)
    assert not (run.folder / "run.json").exists()
    assert RunDirectory.open(run.folder, SAME).done() == set(IDS[:2])


def test_a_part_of_another_run_is_refused(run, tmp_path):
    run_samples(run, SAMPLES[:2], dataset)
    other = RunDirectory.open(tmp_path / "other", replace(SAME, revision="2"))
    run_samples(other, SAMPLES[2:3], dataset)
    (part,) = other.parts()
    part.rename(run.folder / "parts" / part.name)
    with pytest.raises(ProbeError, match=f"expected revision = '2', with which .*{part.name}"):
        RunDirectory.open(run.folder, SAME)


def test_parts_from_before_they_carried_settings_go_on_with_their_run_json(run):
    write_part(dataset(SAMPLES[:2]), run.folder / "parts")
    assert RunDirectory.open(run.folder, SAME).done() == set(IDS[:2])
    (run.folder / "run.json").unlink()
    with pytest.raises(ProbeError, match="which holds parts, got none"):
        RunDirectory.open(run.folder, SAME)


@pytest.mark.parametrize("library", ["torch", "transformers", "probe"])
def test_other_versions_are_reported_or_refused(run, library, monkeypatch):
    run_samples(run, SAMPLES[:2], dataset)
    versions = run.settings()["versions"]
    assert versions == library_versions()
    newer = versions | {library: "99.1"}
    monkeypatch.setattr("probe.records.run_settings.library_versions", lambda: newer)
    told = rf"made with {library} {re.escape(versions[library])}, .*goes on with .*{library} 99\.1"
    with pytest.warns(RunWarning, match=told):
        RunDirectory.open(run.folder, SAME)
    with pytest.raises(ProbeError, match=r"99\.1.*strict_versions"):
        RunDirectory.open(run.folder, SAME, strict_versions=True)
    with pytest.warns(RunWarning):
        run_samples(RunDirectory.open(run.folder, SAME), SAMPLES, dataset)
    headers = [read_part_header(part)[1]["versions"] for part in run.parts()]
    assert headers == [versions, newer]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"finger',
        b"[]",
        b"null",
        b"3",
        b'{"fingerprint": null}',
        b'{"fingerprint": []}',
        b"[" * 100_000,
        b"1" * 5_000_000,
        b"\xff\xfe\x00",
    ],
    ids=range(10),
)
def test_a_damaged_run_json_is_told_in_a_line(run, content):
    (run.folder / "run.json").write_bytes(content)
    with pytest.raises(ProbeError, match=r"with run\.json in .* got a damaged one \(.*\)") as error:
        RunDirectory.open(run.folder, SAME)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    (run.folder / "run.json").unlink()  # as the message says
    RunDirectory.open(run.folder, SAME)


def test_failures_that_cannot_be_read_are_left_out(run):
    lines = [b"\xff\xfe", b"[" * 100_000, b"1" * 5_000_000, b"[]", b"3", b'{"id": ["x"]}']
    lines += [
        b'{"id": 3, "attempt": 1, "reason": ""}',
        b'{"id": "q01", "attempt": 1, "reason": "x"}',
    ]
    (run.folder / "failures" / "1.jsonl").write_bytes(b"\n".join(lines))
    assert [failure.id for failure in RunDirectory.open(run.folder, SAME).failures()] == ["q01"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ENOENT])
def test_a_disk_that_fails_in_the_middle_is_told_in_a_line(run, code, monkeypatch):
    replaced, calls = os.replace, []

    def failing(*names):
        calls.append(names)
        if len(calls) > 1:
            raise OSError(code, os.strerror(code))
        replaced(*names)

    monkeypatch.setattr("os.replace", failing)
    with pytest.raises(ProbeError, match=os.strerror(code)) as error:
        run_samples(run, SAMPLES, dataset, size=4)
    assert "what is finished is kept" in str(error.value)
    monkeypatch.undo()
    assert run.done() == set(IDS[:4])
    monkeypatch.setattr("zarr.consolidate_metadata", lambda *_: failing())
    with pytest.raises(ProbeError, match=os.strerror(code)):
        run.compact()
    assert not list(run.folder.glob("final*"))


def test_a_folder_that_vanishes_is_told_in_a_line(run):
    def measure(group):
        shutil.rmtree(run.folder)
        return dataset(group)

    with pytest.raises(ProbeError, match="run"):
        run_samples(run, SAMPLES[:1], measure)
    (run.folder.parent / "file").write_text("")
    with pytest.raises(ProbeError, match=r"can be written, got .*file"):
        RunDirectory.open(run.folder.parent / "file" / "run", SAME)


def test_a_finished_run_in_a_read_only_place_can_be_looked_at(run, monkeypatch):
    run_samples(run, SAMPLES, dataset)
    expected = run.load(IDS)

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("os.replace", "os.rename", "os.unlink", "os.link", "shutil.rmtree"):
        monkeypatch.setattr(name, read_only)
    opened = Path.open

    def only_reading(path, mode="r", *rest, **more):
        return opened(path, mode, *rest, **more) if mode in ("r", "rb") else read_only()

    monkeypatch.setattr(Path, "open", only_reading)
    again = RunDirectory.open(run.folder, SAME)
    run_samples(again, SAMPLES, dataset)
    assert again.load(IDS).identical(expected)


@pytest.mark.parametrize("measure", [dataset, tree])
def test_compaction_equals_loading_and_restores_the_order(run, measure):
    run_samples(run, [*SAMPLES[7:], *SAMPLES[:7]], measure, size=3)
    final = run.compact(IDS, block=4)
    found = xr.open_datatree(final, engine="zarr", chunks=None).load()
    expected = run.load(IDS)
    assert list(found["sample"].values) == IDS
    for node in expected.subtree if isinstance(expected, xr.DataTree) else [expected]:
        path = getattr(node, "path", "/")
        for name in node.data_vars:
            np.testing.assert_array_equal(found[path][name].values, node[name].values)
    assert found["value"].attrs == {"units": "1"}
    assert run.compact(IDS) == final  # again: the old one is replaced
    assert [path.name for path in run.folder.iterdir() if "tmp" in path.name] == []


def test_merged_samples_stay_on_the_disk_and_are_those_that_are_loaded(run, tmp_path):
    run_samples(run, SAMPLES, tree, size=3)
    loaded = run.load(IDS)
    assert run.merged(IDS).identical(loaded)  # in memory, as there is no final.zarr yet
    run.compact(IDS, block=4)
    merged = run.merged()
    assert merged["sample"].values.tolist() == IDS
    for path, node in loaded.subtree_with_keys:
        for name, variable in node.variables.items():
            left = merged[path].dataset.variables[name]
            kept = "sample" in variable.dims and name not in node.coords
            assert left._in_memory is not kept
            np.testing.assert_array_equal(np.asarray(left.values, variable.dtype), variable.values)
    run_samples(run, [*SAMPLES, Sample("q42", None, "?")], tree)
    assert set(run.merged()["sample"].values.tolist()) == {*IDS, "q42"}, "of all parts"


def test_merged_samples_as_one_file_are_those_of_the_folder(run, tmp_path):
    run_samples(run, SAMPLES, tree, size=3)
    save_merged(run.compact(IDS, block=4), tmp_path / "one.zarr.zip")
    saved = read_part(tmp_path / "one.zarr.zip")
    loaded = run.load(IDS)
    for path, node in loaded.subtree_with_keys:
        for name, variable in node.variables.items():
            values = saved[path].dataset.variables[name].values
            np.testing.assert_array_equal(values.astype(variable.dtype), variable.values)


def test_a_block_has_as_many_samples_as_fit(run, monkeypatch):
    run_samples(run, SAMPLES, tree, size=3)
    loaded = run.load(IDS)
    monkeypatch.setattr("probe.records.run_merge.BLOCK_BYTES", 1000)
    final = run.compact(IDS)
    chunks = zarr.open_array(final / "llm" / "mass", mode="r").chunks
    assert 1 <= chunks[0] < len(IDS)
    assert run.load(IDS).identical(loaded)


def test_a_run_without_results_cannot_be_loaded(run):
    with pytest.raises(ProbeError, match="at least one finished sample"):
        run.load()


def test_samples_that_were_not_asked_for_come_last(run):
    run_samples(run, SAMPLES[:4], dataset)
    assert list(run.load(["q03", "unknown"])["sample"].values) == ["q03", "q00", "q01", "q02"]


def test_ragged_dimensions_are_filled_up(tmp_path):
    joined = join([tree(SAMPLES[1:2]), tree(SAMPLES[3:4])])
    assert isinstance(joined, xr.DataTree)
    assert np.isnan(joined["llm"]["received"].values[0]).tolist() == [False, False, True, True]
    assert joined["llm"]["key_row"].values[0].tolist() == [3, 3, -1, -1]
    assert joined["tokens"].values[0].tolist() == ["x", "", ""]
    path = write_part(joined, tmp_path)
    assert read_ids(path) == ["q01", "q03"]
    assert read_part(path).identical(joined)
    assert list(select(joined, [1])["sample"].values) == ["q03"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda ds: ds.drop_vars("right"), "right only in some"),
        (lambda ds: ds.assign_coords(case=[0, 1, 9]), "'case' alike in all parts"),
        (
            lambda ds: xr.DataTree.from_dict({"/": ds, "/vision": xr.Dataset()}),
            "parts with the nodes",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, complaint):
    with pytest.raises(ProbeError, match=complaint):
        join([dataset(SAMPLES[:2]), change(dataset(SAMPLES[2:4]))])


def values(rows: np.ndarray) -> xr.DataArray:
    return xr.DataArray(rows, dims=("sample", "layer"), name="mass", attrs={"units": "1"})


def test_a_running_mean_leaves_out_what_is_missing():
    rows = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    mean = RunningMean()
    mean.add(values(rows))
    np.testing.assert_array_equal(mean.result(), [2.0, 5.0, np.nan])
    np.testing.assert_array_equal(mean.weight(), [2, 1, 0])
    assert mean.result().attrs == {"units": "1"}
    weighted = RunningMean()
    weighted.add(values(rows), xr.DataArray([3.0, 1.0], dims="sample"))
    np.testing.assert_array_equal(weighted.result(), [1.5, 5.0, np.nan])
    with pytest.raises(ProbeError, match=r"parts with {'layer': 3}, got {'layer': 2}"):
        mean.add(values(rows[:, :2]))
    with pytest.raises(ProbeError, match="at least one sample"):
        RunningMean().result()


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 29), max_size=4))
def test_a_running_mean_has_the_same_bits_however_it_is_split(seed, cuts):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((30, 2)) * 10.0 ** rng.integers(-12, 12, (30, 1))
    weights = xr.DataArray(rng.integers(0, 50, 30).astype(float), dims="sample")
    whole, split = RunningMean(), RunningMean()
    whole.add(values(rows), weights)
    shuffled = rng.permutation(30)
    for piece in np.split(shuffled, sorted(cuts)):
        worker = RunningMean()
        worker.add(values(rows[piece]), weights.isel(sample=piece))
        split.merge(worker)
    np.testing.assert_array_equal(whole.result(), split.result())
    np.testing.assert_allclose(whole.result(), np.average(rows, axis=0, weights=weights), rtol=1e-9)


def test_three_kills_lose_nothing(tmp_path):
    script = ROOT / "analyses" / "crash" / "kill_test.py"
    spec = importlib.util.spec_from_file_location("kill_test", script)
    kill_test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill_test)
    kill_test.work(tmp_path / "calm", 48)
    hit = kill_test.disturbed(tmp_path / "rough", 48, kills=3, seconds=1.0)
    assert hit >= 1
    assert kill_test.differences(tmp_path / "calm", tmp_path / "rough", 48) == []
    assert (
        json.loads((tmp_path / "rough" / "run.json").read_text())["fingerprint"]["model"] == "none"
    )
