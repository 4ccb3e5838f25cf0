"""README keeps its word: short, its example runs, its tree and links lead to files, a command is
one line.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language; of none by `""`."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for of, text in fenced if of == language]


def tree() -> list[str]:
    """Paths of the annotated tree: one line a package."""
    top, *packages = (line.split()[0] for line in blocks("")[-1].splitlines())
    return [top, *(top + package for package in packages)]


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


def test_the_tree_names_every_package():
    packages = {f"probe/{path.parent.name}/" for path in (ROOT / "probe").glob("*/__init__.py")}
    assert packages <= set(tree())


def test_the_first_sixty_lines_say_what_a_newcomer_needs():
    top = "\n".join(README.splitlines()[:60])
    for word in ("LLaVA-Mini", "Python 3.11", "disk", "minutes", "7B", "pip install .", "git+"):
        assert word in top
    for word in (
        "4bit",
        "probe attention",
        "pytest",
        "import probe",
        "LlavaForConditionalGeneration",
    ):
        assert word in top


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?://)([^)#]+)", README))))
def test_its_links_lead_to_files(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("ending", ["probe attention", "pytest"])
def test_each_command_is_one_line_from_nothing_to_done(ending):
    lines = "".join(blocks("bash")).splitlines()
    (line,) = [line for line in lines if line.endswith(f".venv/bin/{ending}")]
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
