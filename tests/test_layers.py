"""The package is a house of rooms: a file imports only from its own room and from those that ORDER
lists above it. And the map (`import probe`) loads nothing heavy.
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

# Rooms and top-level files in order, each with the packages that it must not import.
ORDER = {
    "errors.py": HEAVY,
    "data/": NO_TRANSFORMERS,
    "records/": HEAVY,
    "models/": ANYTHING,
    "hooks/": ANYTHING,
    "subject/": ANYTHING,
    "interventions/": ANYTHING,
    "reducers/": ANYTHING,
    "measures/": ANYTHING,
    "evaluation/": ANYTHING,
    "plots/": HEAVY,
    "viewer/": HEAVY,
    "accessor.py": HEAVY,
    "__init__.py": ANYTHING,
    "cli/": ANYTHING,
    "__main__.py": ANYTHING,
}
# Files and folders that promise more than their room does. "probe": nothing outside the folder.
PROMISES = {
    "models/__init__.py": HEAVY | {"probe"},
    "models/llava_mini/": frozenset({"probe"}),
    "models/tiny/__init__.py": HEAVY,
    "models/tiny/scenes.py": HEAVY,
    "models/tiny/questions.py": HEAVY,
    "evaluation/benchmarks/": HEAVY,
    "evaluation/drop_effects.py": HEAVY,
    "evaluation/judge_scores.py": HEAVY,
    "evaluation/task.py": HEAVY,
}
# What LLaVA-Mini shares with its rivals: reading the authors' files, and prompts in pieces.
SHARED_BY_MODELS = ("models/original/", "models/piecewise_processor.py")
VERSION = "probe.__version__"  # provenance: the one name of the map that rooms may import


def covers(entry: str, path: str) -> bool:
    """Whether an entry of the tables is this file, or a folder that contains it."""
    return path == entry or (entry.endswith("/") and path.startswith(entry))


def room_of(path: str) -> int | None:
    """The place in ORDER of a file (relative to the package)."""
    return next((i for i, entry in enumerate(ORDER) if covers(entry, path)), None)


def forbidden_to(path: str) -> frozenset[str]:
    """The packages that a file must not import."""
    entries = [banned for entry, banned in (ORDER | PROMISES).items() if covers(entry, path)]
    return frozenset().union(*entries)


def imports(file: Path, package: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, functions included; relative ones made
    absolute.
    """
    folder = ["probe", *file.relative_to(package).parent.parts]
    for statement in ast.walk(ast.parse(file.read_text())):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = folder[: len(folder) + 1 - statement.level] if statement.level else []
            module = ".".join([*base, *([statement.module] if statement.module else [])])
            yield from (f"{module}.{alias.name}" for alias in statement.names)


def file_of(name: str, package: Path) -> str | None:
    """The file of the package that a dotted name leads to: `probe.subject.loading.load` ->
    `subject/loading.py`.
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
    lines = []
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).as_posix()
        if room_of(path) is None:
            lines.append(f"{path} is not in ORDER")
            continue
        lines += [
            f"{path} {complaint}"
            for name in imports(file, package)
            if (complaint := complaint_about(path, name, package))
        ]
    return lines


def complaint_about(path: str, name: str, package: Path) -> str | None:
    """What is wrong with importing `name` into the file at `path`, if anything."""
    forbidden = name.split(".")[0] in forbidden_to(path)
    if not name.startswith("probe") or name == VERSION:
        return f"must not import {name}" if forbidden else None
    target = file_of(name, package)
    if target is None:
        return None
    same_promise = any(covers(entry, path) and covers(entry, target) for entry in PROMISES)
    same_promise |= any(covers(entry, target) for entry in SHARED_BY_MODELS)
    if forbidden and not same_promise:
        return f"must not import {name}"
    room, target_room = room_of(path), room_of(target)
    later = room is not None and target_room is not None and target_room > room
    return f"imports {name}, which comes later" if later else None


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages in memory after a fresh interpreter has imported these modules."""
    code = (
        f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def modules_without(package: str) -> list[str]:
    """Existing modules of probe that must not import `package`."""
    paths = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))
    bound = [path for path in paths if package in forbidden_to(path.as_posix())]
    return [
        ".".join(["probe", *path.with_suffix("").parts]).removesuffix(".__init__") for path in bound
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
    "__init__.py": "from probe.subject.loading import load",
    "errors.py": "import sys",
    "data/image.py": "import numpy\nfrom probe.errors import ProbeError",
    "records/io.py": "import xarray\nfrom probe import __version__\nfrom ..data import image",
    "models/llava_mini/compressor.py": "import torch",
    "models/llava_mini/modeling.py": "from .compressor import Compressor",
    "models/tiny/scenes.py": "import numpy\nfrom ...errors import ProbeError",
    "models/tiny/weights.py": "import torch\nfrom .scenes import scene",
    "hooks/attention_tap.py": "import torch\nfrom probe.models.tiny import weights",
    "subject/__init__.py": "",
    "subject/loading.py": "import transformers\nfrom ..hooks.attention_tap import tap",
    "plots/style.py": "import matplotlib\nfrom probe.records.io import open_record",
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
            "from probe.subject.loading import load",
            "errors.py imports probe.subject.loading.load, which comes later",
        ),
        (
            "errors.py",
            "from . import subject",
            "errors.py imports probe.subject, which comes later",
        ),
        (
            "records/io.py",
            "def f():\n    import probe.subject.loading",
            "records/io.py imports probe.subject.loading, which comes later",
        ),
        (
            "records/io.py",
            "from probe import load",
            "records/io.py imports probe.load, which comes later",
        ),
        (
            "hooks/attention_tap.py",
            "from ..subject.loading import load",
            "hooks/attention_tap.py imports probe.subject.loading.load, which comes later",
        ),
        ("records/io.py", "import torch.nn", "records/io.py must not import torch.nn"),
        (
            "data/image.py",
            "from transformers.image_processing_utils import select_best_resolution",
            "data/image.py must not import transformers.image_processing_utils",
        ),
        ("plots/style.py", "def f():\n    import torch", "plots/style.py must not import torch"),
        ("models/tiny/scenes.py", "import torch", "models/tiny/scenes.py must not import torch"),
        (
            "models/llava_mini/compressor.py",
            "from ...errors import ProbeError",
            "models/llava_mini/compressor.py must not import probe.errors.ProbeError",
        ),
        (
            "models/llava_mini/compressor.py",
            "from ..tiny import scenes",
            "models/llava_mini/compressor.py must not import probe.models.tiny.scenes",
        ),
        ("utils.py", "", "utils.py is not in ORDER"),
    ],
)
def test_the_test_can_fail(tmp_path, path, text, complaint):
    lines = violations(made_up(tmp_path, **{path: text}))
    assert len(lines) == 1
    assert complaint in lines[0]
