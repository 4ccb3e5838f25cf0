"""A judge's scores find their cases, and what is no judge's file is told in a line."""

# pyright: reportArgumentType=false

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from planted_sweeps import planted_run

from probe.errors import ProbeError
from probe.evaluation.benchmarks import named
from probe.evaluation.drop_effects import tables_of
from probe.evaluation.headline import Headline
from probe.evaluation.judge_scores import check_judged, judged


def task_of(name):
    return SimpleNamespace(module=named(name), benchmark=SimpleNamespace(name=name))


@pytest.fixture
def found(unchecked):
    run = planted_run(images=2)
    tables = {name: node.to_dataset() for name, node in run.children.items()}
    for name in ("mask", "zero", "swap"):
        tables[name]["correct"][:] = np.nan
    return xr.DataTree.from_dict({"/": run.to_dataset(), **tables})


def write(path: Path, scores):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: {"score": score} for key, score in scores.items()}))
    return path


def test_a_folder_has_a_file_a_case_and_a_file_is_the_untouched_model_s(found, tmp_path):
    write(tmp_path / "mask" / "untouched" / "judged.json", {"s0": [1.0, 0.5], "s1": [0.0]})
    write(tmp_path / "mask" / "no-vision" / "judged.json", {"s0": [0.25]})
    tables = tables_of(judged(found, task_of("mm_vet"), tmp_path))
    assert tables["mask"]["correct"].sel(case="untouched").values[:3].tolist()[:2] == [0.75, 0.0]
    assert tables["mask"]["correct"].sel(case="no vision").values[0] == 0.25
    assert int(tables["mask"]["correct"].notnull().sum()) == 3
    assert tables["zero"]["correct"].isnull().all()
    file = write(tmp_path / "one.json", {"s3": [1.0]})
    tables = tables_of(judged(found, task_of("mm_vet"), file))
    assert [int(table["correct"].notnull().sum()) for table in tables.values()] == [1, 1, 1]
    assert "share" in judged(found, task_of("mm_vet"), file)["attention"]


def test_llava_bench_is_relative_to_gpt4(found, tmp_path):
    file = tmp_path / "mask" / "untouched" / "judged.jsonl"
    file.parent.mkdir(parents=True)
    rows = [("s0", [8, 6]), ("s1", [10, 3]), ("s2", [-1, -1])]
    file.write_text(
        "\n".join(json.dumps({"question_id": key, "tuple": pair}) for key, pair in rows)
    )
    scored = judged(found, task_of("llava_w"), tmp_path)
    scored.attrs["benchmark"] = "llava_w"
    table = tables_of(scored)["mask"]
    assert Headline(table)(np.ones(4, dtype=int))[0] == pytest.approx(100 * 9 / 18)


def test_mistakes(found, tmp_path):
    with pytest.raises(ProbeError, match="llava_w or mm_vet, got gqa"):
        check_judged(task_of("gqa"), tmp_path)
    with pytest.raises(ProbeError, match="a judge's file, or a folder"):
        check_judged(task_of("mm_vet"), tmp_path)
    with pytest.raises(ProbeError, match="numbers from 0 to 1"):
        judged(found, task_of("mm_vet"), write(tmp_path / "bad.json", {"s0": [7]}))
