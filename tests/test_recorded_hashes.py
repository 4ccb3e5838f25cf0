"""What is recorded in this repository was made by the weights that are shipped in it."""

import json
import re
from pathlib import Path

import pytest

import probe
from probe.models.tiny import FOLDERS
from probe.subject.weights_hash import weights_hash

REPOSITORY = Path(__file__).parents[1]
ANALYSES, NOTEBOOKS = REPOSITORY / "analyses", REPOSITORY / "notebooks"
HASH = re.compile(r"\b(?:sha256|config):[0-9a-f]{16}\b")
# Results that were measured on the shipped weights, so that each must say on which.
EXPECTED = [
    *sorted(NOTEBOOKS.glob("*.ipynb")),
    *(ANALYSES / folder / "README.md" for folder in ("attention", "drop", "llava_mini", "meaning")),
    *(ANALYSES / folder / "README.md" for folder in ("reducers", "tiny", "reliability", "causal")),
    ANALYSES / "reducers" / "accuracy.csv",
]


@pytest.fixture(scope="module")
def shipped():
    """What provenance may say of a shipped model: the hash of its weights, and of its config."""
    subjects = {name: probe.load(name) for name in FOLDERS}
    return {name: {weights_hash(s.model), s.revision} for name, s in subjects.items()}


def recorded(path: Path) -> set[str]:
    """The hashes in a text; of a notebook, in what its cells have printed or shown."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        outputs = [cell.get("outputs", []) for cell in json.loads(text)["cells"]]
        text = re.sub(r'"image/png": "[^"]*"', "", json.dumps(outputs))
    return set(HASH.findall(text))


def misplaced(paths: list[Path], expected: list[Path], known: set[str]) -> list[str]:
    """What is wrong, a line a file: hashes of other weights, and none where one is expected."""
    found = {path: recorded(path) for path in paths}
    wrong = [f"{path.name}: {hashes - known}" for path, hashes in found.items() if hashes - known]
    return wrong + [f"{path.name}: none" for path in expected if not found.get(path)]


def test_recorded_hashes_are_those_of_the_shipped_weights(shipped):
    kinds = ("*.md", "*.csv", "*.json")
    paths = [path for kind in kinds for path in sorted(ANALYSES.rglob(kind))]
    paths += [REPOSITORY / "README.md", *sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert misplaced(paths, EXPECTED, set().union(*shipped.values())) == []


def test_other_hashes_and_missing_ones_are_found(tmp_path):
    ours, theirs = "sha256:0123456789abcdef", "sha256:fedcba9876543210"
    notebook, table = tmp_path / "a.ipynb", tmp_path / "b.csv"
    cell = {"outputs": [{"text": [f"on tiny-llava ({ours})"]}], "source": [theirs]}
    notebook.write_text(json.dumps({"cells": [cell]}))
    table.write_text(f"weights\n{theirs}\n")
    assert misplaced([notebook, table], [notebook, table], {ours}) == [f"b.csv: {{{theirs!r}}}"]
    notebook.write_text(json.dumps({"cells": []}))
    assert misplaced([notebook], [notebook], {ours}) == ["a.ipynb: none"]


def test_executed_notebooks_show_their_figures():
    """A backend that draws for files only, while a notebook is executed, would leave none."""
    shown = {path.stem: '"image/png"' in path.read_text() for path in NOTEBOOKS.glob("*.ipynb")}
    assert len(shown) == 7
    assert all(shown.values()), shown
