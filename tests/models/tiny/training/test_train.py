"""Training is a function of the seed: stopped and resumed equals never stopped. Other recipes are
refused.
"""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from probe.errors import ProbeError
from probe.models.tiny.scenes import sample_scene, stream
from probe.models.tiny.training import stages
from probe.models.tiny.training import train as training
from probe.models.tiny.training.patch_pretraining import GROUPS, patch_labels
from probe.models.tiny.training.recipe import Recipe
from probe.models.tiny.training.stages import conversations
from probe.models.tiny.training.train import train

SMALL = Recipe(
    hidden=16,
    intermediate=16,
    layers=1,
    heads=2,
    vision_hidden=16,
    vision_intermediate=16,
    vision_layers=1,
    vision_heads=2,
    vision_steps=2,
    vision_batch=4,
    batch=2,
    questions=2,
    steps=6,
    warmup=1,
    decay=2,
)


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_resuming_changes_nothing(tmp_path):
    whole = train(tmp_path / "whole", recipe=SMALL, progress=False)
    for steps in (1, 2, 5, None):  # within stage 0, between the stages, within stage 1, to the end
        parts = train(tmp_path / "parts", recipe=SMALL, steps=steps, progress=False)
    assert same(whole, parts)
    other = train(tmp_path / "other", recipe=replace(SMALL, seed=1), progress=False)
    assert not same(whole, other)


def test_what_is_written_loads(tmp_path):
    model = train(tmp_path, recipe=SMALL, steps=3, progress=False)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert loaded.config.probe_toy is True
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight, atol=1e-3, rtol=1e-3)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.eos_token == "</s>"


def test_the_vision_encoder_is_frozen_in_stage_1(tmp_path):
    before = train(tmp_path, recipe=SMALL, steps=2, progress=False).state_dict()
    after = train(tmp_path, recipe=SMALL, progress=False).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("projector" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


def test_the_mix_of_questions_changes_once():
    def captions(step):
        scene = sample_scene(stream("sample", 9))
        talks = [conversations(scene, SMALL, stream("sample", seed), step) for seed in range(40)]
        return sum(talk[0].kind == "caption" for row in talks for talk in row)

    assert captions(SMALL.later - 1) == 40
    assert 5 < captions(SMALL.later) < 30


def test_another_recipe_is_refused_and_a_longer_one_is_not(tmp_path):
    train(tmp_path, recipe=SMALL, steps=4, progress=False)
    with pytest.raises(
        ProbeError, match=r"train: expected the recipe that .* got another layers; train"
    ):
        train(tmp_path, recipe=replace(SMALL, layers=2), progress=False)
    train(tmp_path, recipe=replace(SMALL, steps=8), steps=9, progress=False)
    with pytest.raises(ProbeError, match="another steps"):  # the decay has begun
        train(tmp_path, recipe=replace(SMALL, steps=12), progress=False)


def test_a_run_that_is_lengthened_before_its_decay_is_the_longer_run(tmp_path):
    train(tmp_path / "a", recipe=SMALL, steps=4, progress=False)
    lengthened = train(tmp_path / "a", recipe=replace(SMALL, steps=8), progress=False)
    assert same(lengthened, train(tmp_path / "b", recipe=replace(SMALL, steps=8), progress=False))


def test_the_learning_curve_has_a_line_for_each_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    monkeypatch.setattr(stages, "VALIDATION", 4)
    train(tmp_path, recipe=SMALL, steps=4, progress=False)
    with (tmp_path / "log.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["step"], first["stage"], second["step"], second["stage"]) == ("2", "0", "4", "1")
    assert first["patch colour"]
    assert not first["caption"]
    assert second["caption"]


def test_patch_labels_say_what_is_in_the_cell():
    scene = sample_scene(stream("sample", 7), things=(3, 9))
    labels = patch_labels(scene).reshape(6, 6, 4)
    words = np.array(
        [[[GROUPS[g][labels[r, c, g]] for g in range(4)] for c in range(6)] for r in range(6)]
    )
    for colour, shape, row, column in scene.layout:
        expected = [
            colour,
            shape,
            ("top", "middle", "bottom")[row],
            ("left", "center", "right")[column],
        ]
        assert (words[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] == expected).all()
    assert (words[..., 0] != "nothing").sum() == 4 * len(scene.things)
