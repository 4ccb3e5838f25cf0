"""`probe average`: from folders of finished runs to the paper's average."""

import json

import pytest

from probe.evaluation.table_average import COLUMNS

LLAVA = {
    "vqav2": 78.5,
    "gqa": 62.0,
    "vizwiz": 50.0,
    "scienceqa": 66.8,
    "textvqa": 58.2,
    "pope": 85.9,
    "mme": 1510.7,
    "mmbench": 64.3,
    "seed": 58.6,
    "llava_w": 63.4,
    "mm_vet": 30.5,
}


@pytest.fixture
def runs(tmp_path):
    for name, number in LLAVA.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(
            json.dumps({"fingerprint": {"data": {"benchmark": name}}})
        )
        rows = [
            "mask,untouched,all,1," + str(number),
            "mask,1-4,all,1,10",
            "zero,untouched,all,1,3",
            "mask,untouched,x,1,",
        ]
        table = "\n".join([f"mode,case,kind,accuracy,official_{COLUMNS[name]}", *rows])
        (tmp_path / name / "accuracy.csv").write_text(table)
    return [str(tmp_path / name) for name in LLAVA]


def test_the_paper_s_average_and_the_rescaled_one(run, runs):
    code, said, error = run("average", *runs)
    assert code == 0, error
    assert "56.27" in said and "63.07" in said
    code, said, _ = run("average", *runs[:3])
    assert code == 0 and "56.27" not in said
    assert "no average without scienceqa, textvqa" in said


def test_mistakes_are_told_in_one_line(run, runs, tmp_path):
    for words, told in [
        ((runs[0], runs[0]), "two of vqav2"),
        ((str(tmp_path),), "has finished"),
        ((runs[0], "--mode", "swap"), "a mode of mask, zero"),
    ]:
        code, said, error = run("average", *words)
        assert (code, said) == (2, "")
        assert told in error and error.count("\n") == 1
