"""README keeps its word: short, its example runs, its tree and links lead to files, a command is
one line.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language; of none by `""`."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for of, text in fenced if of == language]


def tree() -> list[str]:
    """Paths of the annotated tree: two spaces of indentation a level. A file may be named in
    another one's line.
    """
    paths, folder = [], ""
    for line in blocks("")[-1].splitlines():
        name, *words = line.split()
        inside = line.startswith("  ")
        paths.append(folder + name if inside else name)
        if name.endswith("/") and not inside:
            folder = name
        paths += [
            folder + file
            for word in words
            if inside
            for file in re.findall(r"\b(?<!<)[a-z_]+\.py\b", word)
        ]
    return paths


def test_it_is_short():
    assert len(README.splitlines()) <= 120


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    exec(compile(example, "README.md", "exec"), {})
    assert {path.name for path in tmp_path.iterdir()} == {"record.zarr.zip", "mass.png"}
    assert "vision" in capsys.readouterr().out


@pytest.mark.parametrize("path", tree())
def test_the_tree_names_what_is_there(path):
    assert (ROOT / path).exists()


def test_the_tree_names_every_file_behind_the_public_names():
    code = (
        "import sys, probe; [getattr(probe, name) for name in probe.__all__]; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = {name for name in loaded.stdout.split() if re.fullmatch(r"probe\.[a-z_]+", name)} - {
        "probe.models"
    }
    named = {path.rstrip("/").removesuffix(".py").replace("/", ".") for path in tree()}
    assert modules <= named


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?://)([^)#]+)", README))))
def test_its_links_lead_to_files(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("ending", ["probe attention", "pytest"])
def test_each_command_is_one_line_from_nothing_to_done(ending):
    lines = "".join(blocks("bash")).splitlines()
    (line,) = [line for line in lines if line.endswith(f".venv/bin/{ending}")]
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
