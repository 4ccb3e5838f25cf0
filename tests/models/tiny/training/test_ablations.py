"""The ablations in small: what differs between trainings, what the paper prints beside it, and
tables of those that are finished.
"""

import importlib.util
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from probe.models.tiny.training.mini_recipe import MiniRecipe, starting_model
from probe.models.tiny.training.train import LOG

SCRIPT = Path(__file__).parents[4] / "analyses" / "llava_mini" / "ablations.py"


@pytest.fixture(scope="module")
def ablations():
    spec = importlib.util.spec_from_file_location("ablations", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trainings_differ_in_what_their_names_say_and_in_nothing_else(ablations):
    own = asdict(ablations.recipe_of(ablations.OWN, 1, 40, 4))
    changed = {"compressor_size", "prefusion_layers", "compression", "fusion"}
    for name in ablations.VARIANTS:
        recipe = asdict(ablations.recipe_of(name, 1, 40, 4))
        assert {field for field in own if own[field] != recipe[field]} <= changed
    assert {name for names in ablations.TABLES.values() for name in names} == {*ablations.VARIANTS}
    model = starting_model(MiniRecipe(fusion="in_llm"))
    assert len(model.model.prefusion.layers) == 0


def test_what_the_paper_prints_is_of_the_same_setting(ablations):
    def printed(table, name, tokens):
        return ablations._printed(table, ablations.recipe_of(name, 0, 1, 1), tokens)

    assert printed(6, "query, 9 tokens, 0 layers", 9)["paper_vqav2"] == 76.9  # 144 of 576
    assert printed(8, "average, 4 tokens, 4 layers", 4)["paper_gqa"] == 60.3  # 4 tokens
    assert printed(12, "in the LLM, 1 token, 4 layers", 1)["paper_mmb"] == 64.5
    assert printed(7, "query, 9 tokens, 4 layers", 9) == {}


def test_a_table_is_written_once_its_trainings_are_finished(ablations, tmp_path):
    rights = {ablations.OWN: (0.5, 0.6), "none, 36 tokens, 4 layers": (0.7, 0.9)}
    for name, values in rights.items():
        for seed, value in enumerate(values):
            recipe = ablations.recipe_of(name, seed, 40, 4)
            folder = ablations.folder_of(tmp_path, name, recipe)
            folder.mkdir(parents=True)
            (folder / LOG).write_text(f"step,all\n40,{value}\n")
    found = ablations.results(tmp_path, range(2), 40, 4)
    assert found["table"].tolist() == [11, 11]
    assert found["right"].tolist() == pytest.approx([55, 80])
    assert found["difference"].tolist() == pytest.approx([0, 25])
    half = 12.706 * np.std([20, 30], ddof=1) / np.sqrt(2)
    assert found["difference_low"].tolist() == pytest.approx([0, 25 - half])
    assert np.isnan(ablations.interval(np.array([3.0]))[1])
