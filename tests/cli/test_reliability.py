"""`probe reliability`: what it writes of a run, and mistakes in one line."""

import pandas as pd
from planted_answers import planted_answers

import probe


def test_heads_that_tell_right_from_wrong_come_first(run, tmp_path):
    record = probe.save_record(planted_answers(20), tmp_path / "record")
    code, said, error = run("reliability", str(record))
    assert code == 0, error
    folder = tmp_path / "probe-out" / "reliability"
    table = pd.read_csv(folder / "reliability.csv")
    assert table["measure"][0] == "mass" and table["significant"][0]
    assert len(table) == 2 * 2 * 3 * 5  # outcomes, measures, layers, heads and their mean
    assert probe.open_record(folder / "reliability.zarr.zip").attrs["kind"] == "reliability"
    assert (folder / "correct.png").exists() and (folder / "confident.svg").exists()
    assert "log p of the answer" in said and "mass, layer 2, head 3" in said
    for given, told in ((tmp_path / "nothing", "No such file"), (folder, "attention --benchmark")):
        code, _, error = run("reliability", str(given))
        assert code == 2 and error.count("\n") == 1 and told in error
