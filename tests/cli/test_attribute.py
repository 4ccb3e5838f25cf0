"""`probe attribute`: what it writes and prints, and that mistakes are one line."""

import pytest

import probe


@pytest.mark.parametrize(
    "extra", [(), ("--no-ceiling", "--no-control", "--baseline", "hidden", "--over", "grid")]
)
def test_it_writes_datasets_figures_and_a_table(run, tmp_path, extra):
    code, said, _ = run("attribute", "--max-new-tokens", "3", *extra)
    assert code == 0, said
    folder = tmp_path / "probe-out" / "attribute"
    names = {path.name for path in folder.iterdir()}
    assert {
        "ablation.zarr.zip",
        "curves.zarr.zip",
        "attribution.csv",
        "attribution.png",
        "agreement.svg",
    } <= names
    assert ("control.zarr.zip" in names) == (not extra)
    assert "attention says the same" in said and "what the answer owes most to" in said
    assert probe.open_record(folder / "ablation.zarr.zip").attrs["method"] == "ablation"


@pytest.mark.parametrize(
    "words", [("--baseline", "black"), ("--image", "missing.jpg"), ("--response", "")]
)
def test_mistakes_are_one_line(run, words):
    code, _, error = run("attribute", *words)
    assert code == 2 and error.splitlines()[-1].startswith("probe: ")


def test_words_alone_need_no_attention_to_regions(run, tmp_path):
    code, said, _ = run("attribute", "--over", "words", "--max-new-tokens", "2")
    assert code == 0 and "attention says" not in said
    assert not (tmp_path / "probe-out" / "attribute" / "agreement.png").exists()


def test_a_flow_alone_is_not_compared_with_the_attention_it_is_made_of(run, tmp_path):
    words = "--method", "rollout", "--over", "grid", "--no-control", "--no-ceiling"
    code, said, _ = run("attribute", "--baseline", "hidden", "--max-new-tokens", "2", *words)
    assert code == 0 and "attention says the same" not in said and "fraction" in said
    folder = tmp_path / "probe-out" / "attribute"
    assert probe.open_record(folder / "rollout.zarr.zip").attrs["method"] == "rollout"
    assert not (folder / "agreement.png").exists()


@pytest.mark.wide
def test_flows_are_compared_with_ablation(run, tmp_path):
    words = "--method", "gradient_rollout", "--over", "grid", "--no-control"
    code, said, _ = run("attribute", "--baseline", "hidden", "--max-new-tokens", "2", *words)
    assert code == 0 and "attention says the same" in said and "relevance" in said
    folder = tmp_path / "probe-out" / "attribute"
    curves = probe.open_record(folder / "curves.zarr.zip")
    assert {"gradient_rollout", "ablation"} <= set(curves["score"].values.tolist())
