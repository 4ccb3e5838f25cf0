"""The package is layers: a file imports only what ORDER lists before it. And the map loads nothing
heavy.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import probe

PACKAGE = Path(probe.__file__).parent

HEAVY = frozenset({"torch", "transformers", "captum"})
NO_TRANSFORMERS = frozenset({"transformers", "captum"})
ANYTHING = frozenset[str]()

# The rooms of the house (files of one room may import each other), and what each must do without.
ORDER = [
    ("errors.py", HEAVY),
    ("data/", NO_TRANSFORMERS),
    ("records/", HEAVY),
    ("models/", ANYTHING),
    ("hooks/", ANYTHING),
    ("subject/", ANYTHING),
    ("interventions/", ANYTHING),
    ("reducers/", ANYTHING),
    ("measures/", ANYTHING),
    ("evaluation/", ANYTHING),
    ("plots/", HEAVY),
    ("viewer/", HEAVY),
    ("accessor.py", HEAVY),
    ("__init__.py", ANYTHING),
    ("cli/", ANYTHING),
    ("__main__.py", ANYTHING),
]
VERSION = "probe.__version__"  # provenance: the one name of the map that files below it may read


def level(path: str) -> int | None:
    """The place of a file (relative to the package) in ORDER: its own entry, else its folder's."""
    names = [name for name, _ in ORDER]
    if path in names:
        return names.index(path)
    return next(
        (i for i, name in enumerate(names) if name.endswith("/") and path.startswith(name)), None
    )


def imports(file: Path, package: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, functions included; relative ones made
    absolute.
    """
    here = ["probe", *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def file_of(name: str, package: Path) -> str | None:
    """The file of the package that a dotted name leads to: `probe.subject.subject.load` ->
    `subject.py`.
    """
    parts = name.split(".")[1:]
    for end in range(len(parts), -1, -1):
        stem = package.joinpath(*parts[:end])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                return file.relative_to(package).as_posix()
    return None


def violations(package: Path) -> list[str]:
    """One line for each import that goes the wrong way or brings in what its file must do
    without.
    """
    found = []
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).as_posix()
        mine = level(path)
        if mine is None:
            found.append(f"{path} is not in ORDER")
            continue
        for name in imports(file, package):
            package_name = name.split(".")[0]
            target = file_of(name, package) if package_name == "probe" and name != VERSION else None
            theirs = level(target) if target else None
            if theirs == mine:
                continue  # a file of the same folder
            if package_name in ORDER[mine][1]:
                found.append(f"{path} must not import {name}")
            elif theirs is not None and theirs > mine:
                found.append(f"{path} imports {name}, which comes later")
    return found


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages in memory after a fresh interpreter has imported these modules."""
    code = (
        f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def modules_without(package: str) -> list[str]:
    """Existing modules of probe whose entry in ORDER forbids `package`."""
    paths = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py")]
    levels = {path: level(path.as_posix()) for path in paths}
    bound = [path for path, at in levels.items() if at is not None and package in ORDER[at][1]]
    return [
        ".".join(["probe", *path.with_suffix("").parts]).removesuffix(".__init__")
        for path in sorted(bound)
    ]


def test_a_file_imports_only_what_is_listed_above_it():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize("heavy", ["torch", "transformers"])
def test_files_that_promise_to_do_without_do_without(heavy):
    assert heavy not in loaded_by(modules_without(heavy))


def test_importing_probe_and_its_command_line_loads_nothing_heavy():
    heavy = {
        "torch",
        "transformers",
        "captum",
        "numpy",
        "pandas",
        "xarray",
        "zarr",
        "matplotlib",
        "PIL",
    }
    assert not heavy & loaded_by(["probe", "probe.cli"])


def test_every_public_name_leads_somewhere_and_hides_no_module():
    modules = {path.stem for path in PACKAGE.iterdir()}
    for name in probe.__all__:
        assert getattr(probe, name) is not None
        assert name == "plots" or name not in modules, (
            f"probe.{name} would be hidden by its own module"
        )
    assert set(probe.__all__) <= set(dir(probe))
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        probe.mesure  # noqa: B018  # pyright: ignore


LAWFUL = {
    "__init__.py": "from probe.subject.subject import load",
    "errors.py": "import sys",
    "record/storage.py": "import xarray\nfrom probe import __version__\nfrom probe.errors import ProbeError",
    "models/llava_mini/layout.py": "import torch",
    "models/llava_mini/modeling.py": "from .layout import pack",
    "models/tiny/drawing.py": "import numpy",
    "models/tiny/recipe.py": "import torch\nfrom .drawing import scene\nfrom ...errors import ProbeError",
    "subject.py": "import torch\nfrom probe.models.tiny import recipe",
}


def made_up(folder: Path, **changed: str) -> Path:
    for path, text in (LAWFUL | changed).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def test_a_lawful_tree_passes(tmp_path):
    assert violations(made_up(tmp_path)) == []


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        (
            "errors.py",
            "from probe.subject.subject import load",
            "imports probe.subject.subject.load, which comes later",
        ),
        (
            "errors.py",
            "from . import subject",
            "errors.py imports probe.subject.subject, which comes later",
        ),
        (
            "record/storage.py",
            "def f():\n    import probe.subject.subject",
            "record/storage.py imports probe.subject.subject, which comes later",
        ),
        (
            "record/storage.py",
            "from probe import load",
            "record/storage.py imports probe.load, which comes later",
        ),
        ("record/storage.py", "import torch.nn", "record/storage.py must not import torch.nn"),
        (
            "models/tiny/drawing.py",
            "from .recipe import x",
            "drawing.py imports probe.models.tiny.training.recipe.x",
        ),
        (
            "models/llava_mini/layout.py",
            "from ...errors import ProbeError",
            "must not import probe.errors",
        ),
        ("utils.py", "", "utils.py is not in ORDER"),
    ],
)
def test_the_test_can_fail(tmp_path, path, text, complaint):
    found = violations(made_up(tmp_path, **{path: text}))
    assert len(found) == 1
    assert complaint in found[0]
