"""`probe view`: records and attributions become one page; mistakes end in one line."""

import numpy as np
import pytest
from official_files import gqa
from planted_records import planted_record
from planted_sweeps import planted_sweep

from probe.measures.attribution.dataset import SCHEMA
from probe.records import save_record
from probe.records.provenance import RunFingerprint
from probe.records.run_directory import RunDirectory
from probe.records.schema import dataset


@pytest.fixture
def records(tmp_path):
    paths = []
    for name in ("a", "b"):
        record = planted_record(2, optional=True, seed=len(paths))
        paths.append(str(save_record(record, tmp_path / name)))
    return paths


@pytest.fixture
def attribution(tmp_path):
    """An effect of each of 16 regions on an answer of two tokens."""
    boxes = planted_record(1)["llm"]["key_box"].values[0]
    count = len(boxes)
    places = {f"patch_{name}": np.zeros(count) for name in ("image", "tile", "row", "col")}
    values = {
        "attribution": np.linspace(-1, 1, count),
        "token_attribution": np.ones((2, count)),
        "token_text": np.array(["a", "b"], object),
        "feature_kind": np.array(["region"] * count, object),
        "patch_feature": np.arange(count),
        "patch_box": boxes,
        **places,
    }
    names = [f"region {i}" for i in range(count)]
    attrs = {"kind": "attribution", "model": "tiny-llava", "method": "gradients"}
    made = dataset("attribute", values, SCHEMA, {"feature": names}, attrs)
    return str(save_record(made, tmp_path / "effect"))


def test_two_records_and_an_attribution_become_one_page(run, records, attribution, tmp_path):
    out = tmp_path / "out"
    words = ("--sample", "s1", "--heads", "0,2", "--top-k", "4", "--out", str(out))
    code, said, error = run("view", *records, attribution, *words)
    assert code == 0, error
    assert "view.html" in said
    page = (out / "view.html").read_text()
    assert '"label": "effect"' in page and ".sel(sample=['s1'])" in page
    assert f"probe.open_record({attribution!r})" in page


def test_a_folder_of_results_stands_for_its_record(run, tmp_path):
    save_record(planted_record(1, seed=0), tmp_path / "results" / "record")
    code, said, error = run("view", str(tmp_path / "results"), "--out", str(tmp_path / "out"))
    assert (code, error) == (0, "") and "view.html" in said


def test_mistakes_are_told_in_one_line(run, records, attribution, tmp_path):
    for words, told in [
        ((attribution,), "one record or two"),
        ((*records, records[0]), "two different ones"),
        ((records[0], "--sample", "9"), "one of 2 samples"),
        ((records[0], "--heads", "x"), "numbers with commas"),
        ((records[0], "--heads", "7"), "heads from 0 to 2"),
        ((str(tmp_path / "missing.zarr.zip"),), "a record (.zarr.zip)"),
    ]:
        code, said, error = run("view", *words, "--out", str(tmp_path / "out"))
        assert (code, said) == (2, ""), (words, error)
        assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def planted_run(folder):
    """A run over three questions of GQA."""
    plan = {"verb": "reduce"}
    asked = {"benchmark": "gqa", "split": "testdev_balanced"}
    same = RunFingerprint("tiny-llava", "1", "float32", "sdpa", "vicuna", plan, asked)
    sweep = planted_sweep(images=3).isel(sample=slice(3))
    run = RunDirectory.open(folder, same)
    run.write(sweep.assign_coords(sample=["q0", "q1", "q2"]))
    return run


def test_a_run_becomes_a_folder_with_a_table(run, tmp_path):
    planted_run(tmp_path / "run")
    code, said, error = run("view", str(tmp_path / "run"), "--out", str(tmp_path / "page"))
    assert code == 0, error
    assert "without pictures" in said
    text = (tmp_path / "page" / "index.html").read_text()
    assert '"no vision"' in text and '"note": "Without pictures' in text
    code, _, error = run("view", str(tmp_path / "run"), "other", "--out", str(tmp_path / "two"))
    assert code == 2 and "the folder of one run" in error


def test_a_run_finds_its_pictures_where_it_read_them(run, tmp_path):
    gqa(tmp_path / "gqa")
    planted_run(tmp_path / "run").note(data=str(tmp_path / "gqa"))
    words = ("view", str(tmp_path / "run"), "--out", str(tmp_path / "page"))
    code, said, error = run(*words)
    assert code == 0, error
    assert "without pictures" not in said
    assert (tmp_path / "page/pictures-000.jpg").is_file()
    (tmp_path / "gqa").rename(tmp_path / "moved")
    code, said, error = run(*words)
    assert code == 0 and "without pictures" in said and "gqa" in said, (said, error)
    assert not (tmp_path / "page/pictures-000.jpg").exists()
