"""From tables of a sweep to numbers: which cases are windows, and what they do to the answers."""

# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

import numpy as np
import pytest
import xarray as xr
from planted_sweeps import planted_run, planted_sweep

from probe.errors import ProbeError
from probe.evaluation.drop_effects import (
    effects,
    from_cases,
    has_scores,
    kinds_of,
    mode_of,
    of_kind,
    tables_of,
    until_cases,
    values_of,
    window_cases,
)


def test_windows_and_ends_are_found_among_other_cases():
    table = planted_sweep(layers=4)
    assert window_cases(table) == window_cases(table, 1) == ["1", "2", "3", "4"]
    assert window_cases(table, 2) == ["1-2", "3-4"]
    assert window_cases(table, 3) == ["1-3", "4"]  # the last may be shorter
    assert from_cases(table) == {0: "1-4", 1: "2-4", 2: "3-4", 3: "4"}
    assert until_cases(table) == {0: "1", 1: "1-2", 2: "1-3", 3: "1-4"}
    odd = planted_sweep(cases=[[0, 2]])
    assert (window_cases(odd), from_cases(odd), until_cases(odd)) == ([], {}, {})


def test_accuracy_is_percent_and_differences_are_paired():
    rows = effects(planted_sweep(needed=(1,)))
    of_all = rows[rows.kind == "all"].set_index("case")
    assert of_all.loc["untouched", "accuracy"] == 100
    assert of_all.loc["2", ["accuracy", "difference"]].tolist() == [25, -75]
    assert of_all.loc["2", "difference_low"] < -75 < of_all.loc["2", "difference_high"] < 0
    assert of_all.loc["3", ["difference_low", "difference_high"]].tolist() == [0, 0]
    assert of_all.loc["2-4", "layers"] == "2 3 4"
    assert (of_all["questions"] == 16).all() and (of_all["images"] == 8).all()
    assert set(rows.kind) == {"all", "colour", "count"}


def test_a_run_has_a_table_for_each_mode_and_attention_is_none():
    run = planted_run()
    tables = tables_of(run)
    assert list(tables) == ["mask", "zero", "swap"]
    assert all("image" in table and "kind" in table for table in tables.values())
    rows = effects(run)
    assert rows[rows["mode"] == "swap"]["donor_answer_given"].notna().all()


@pytest.mark.parametrize(
    ("attrs", "name"),
    [
        ({"mode": "remove_for_good"}, "remove_for_good"),
        ({"mode": "zero"}, "zero"),
        ({}, "dropped"),
    ],
)
def test_a_table_is_called_by_its_mode(attrs, name):
    assert mode_of(xr.Dataset(attrs=attrs)) == name


def test_a_table_without_images_and_kinds_counts_each_sample_alone():
    table = tables_of(planted_sweep().drop_vars(["image", "kind"]))["mask"]
    assert len(np.unique(table["image"])) == table.sizes["sample"]
    assert kinds_of(table) == []
    assert of_kind(table, "all") is table


def test_without_scores_other_values_are_left():
    table = planted_sweep()
    table["correct"][:] = np.nan
    assert not has_scores(table)
    assert effects(table)["accuracy"].isna().all()
    assert effects(table)["kl"].notna().all()


@pytest.mark.parametrize("wrong", [None, 3, {}, {"a": 1}, xr.Dataset()])
def test_what_is_no_result_is_told(wrong):
    with pytest.raises(ProbeError, match="drop_sweep"):
        tables_of(wrong)
    with pytest.raises(ProbeError, match="a value of"):
        values_of(planted_sweep(), "luck")
