"""`probe heads` and `probe patch`: what they write, that they go on, mistakes in one line."""

import pandas as pd
import pytest
import xarray as xr

from probe.evaluation.causal_runs import pairs_task

WHOLE = pytest.param((), marks=pytest.mark.wide)


@pytest.mark.parametrize("options", [("--no-attention", "--no-control"), WHOLE])
def test_heads_ranks_and_goes_on_for_nothing(run, tmp_path, monkeypatch, options):
    quick = ("heads", "--limit", "1", "--mode", "no_vision", *options)
    code, said, error = run(*quick)
    assert code == 0, error
    folder = tmp_path / "probe-out" / "heads"
    table = pd.read_csv(folder / "heads.csv")
    assert len(table) == 32 and table["effect"].is_monotonic_decreasing
    dataset = xr.open_zarr(folder / "final.zarr", consolidated=False)
    assert {"gold_logprob", "another_image", "gold"} <= set(dataset)
    assert ("mass" in dataset and "contribution" in dataset) == (not options)
    assert dataset.attrs["sharing"] == "exact" and (folder / "heads.png").exists()
    assert "layer" in said and "of the picture" in said

    def no_work(*_, **__):
        raise AssertionError("something was computed")

    from probe.measures.causal.head_sweep import HeadSweep

    monkeypatch.setattr(HeadSweep, "__call__", no_work)
    assert run(*quick)[0] == 0


def test_patch_draws_pairs_and_says_what_comes_back(run, tmp_path):
    code, _, error = run("patch", "--limit", "1", "--site", "mlp", "--direction", "noise")
    assert code == 0, error
    folder = tmp_path / "probe-out" / "patch"
    table = pd.read_csv(folder / "patches.csv")
    assert set(table["group"]) == {"bos", "system", "vision", "instruction", "last"}
    assert sorted(set(table["layer"])) == list(range(8)) and (folder / "patches.svg").exists()
    dataset = xr.open_zarr(folder / "final.zarr", consolidated=False)
    assert dataset["kind"].values.tolist() == ["colour"]
    kinds = [sample.meta["kind"] for sample in pairs_task("all", 4).samples]
    assert sorted(kinds) == ["colour", "colour", "object", "position"]
    code, _, error = run("patch", "--limit", "3", "--site", "norm")
    assert code == 2 and error.count("\n") == 1
