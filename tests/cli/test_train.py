"""`probe train`: which training it is that runs, one's own data end to end, and mistakes told
before any work.
"""

import json

import pytest
from PIL import Image

import probe
from probe.models.tiny.training.mini_recipe import MiniRecipe
from probe.models.tiny.training.recipe import Recipe


def no_work(*_, **__):
    raise AssertionError("something was loaded")


@pytest.fixture
def data(tmp_path):
    """Three rows that can be used and one that can't, and an image."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "images" / "a.jpg")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a ring"}]
    rows = [{"image": "a.jpg", "conversations": turns}] * 3 + [
        {"image": "../a.jpg", "conversations": turns}
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return "--data", str(tmp_path / "data.json"), "--images", str(tmp_path / "images")


def test_a_shipped_model_by_its_name(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "probe.models.tiny.training.train.train",
        lambda out, **given: asked.append((out.name, given)),
    )
    monkeypatch.setattr(
        "probe.models.tiny.training.train_mini.train_mini",
        lambda out, **given: asked.append((out.name, given)),
    )
    for words in (
        [],
        ["tiny-llava", "--steps", "3", "--out", "a"],
        ["tiny-llava-mini", "--seed", "7", "--out", "b"],
    ):
        assert run("train", *words)[0] == 0
    assert asked == [
        ("train", {"recipe": Recipe(), "steps": None}),
        ("a", {"recipe": Recipe(), "steps": 3}),
        ("b", {"recipe": MiniRecipe(seed=7), "steps": None}),
    ]


def test_another_training_into_the_same_folder_is_refused(run, monkeypatch):
    monkeypatch.setattr("probe.models.tiny.training.train.train", lambda out, **given: None)
    code, said, _ = run("train", "--steps", "1", "--out", "a")
    assert code == 0 and "written to" not in said and "stopped" in said
    code, said, error = run("train", "tiny-llava-mini", "--out", "a")
    assert (code, said) == (2, "") and "results of `probe train tiny-llava`" in error


def test_both_stages_on_ones_own_data(run, tmp_path, data):
    small = ("--batch", "2", "--at-once", "2", "--steps", "1")
    code, said, error = run("train", *data, "--stage", "1", *small, "--out", "one")
    assert code == 0, error
    assert "data.json, row 4: expected an image inside the data folder" in said
    assert "3 rows, 1 left out" in said
    code, _, error = run("train", *data, "--model", "one", *small, "--out", "two")
    assert code == 0, error
    first, second = (probe.load(tmp_path / name).model.config for name in ("one", "two"))
    assert (first.compression, first.num_prefusion_layers) == ("none", 0)
    assert (second.compression, second.compressor_size, second.num_prefusion_layers) == (
        "query",
        1,
        4,
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--data", "x.json"],
            "expected the name of a shipped model, or both --data and --images, got one of them",
        ),
        (["--images", "."], "got one of them"),
        (["tiny-llava", "--data", "x.json", "--images", "."], "got tiny-llava and --data"),
        (["--data", "x.json", "--images", "."], "a file that can be read"),
        (
            ["--data", "x.json", "--images", "nowhere"],
            "expected the folder with the images and videos",
        ),
        (["--data", "x.json", "--images", ".", "--stage", "3"], "--stage"),
        (["--data", "x.json", "--images", ".", "--batch", "0"], "--batch"),
        (["large-llava"], "tiny-llava-mini"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(run, monkeypatch, words, told):
    monkeypatch.setattr("probe.subject.loading.load", no_work)
    code, said, error = run("train", *words)
    assert (code, said) == (2, "")
    assert told in error and error.count("\n") == 1


def test_rows_at_once_that_divide_no_batch(run, data):
    code, _, error = run("train", *data, "--batch", "3", "--at-once", "2")
    assert (code, error.count("\n")) == (2, 1)
    assert "expected a batch that 2 rows at once divide, got 3" in error
