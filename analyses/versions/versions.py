"""Run the test suite on several versions of transformers, and print version x outcome.

    python analyses/versions/versions.py                        # oldest and newest of the bound
    python analyses/versions/versions.py 5.15.0 5.20.2 5.24.0 -- tests/hooks tests/models
    python analyses/versions/versions.py --torchvision 5.24.0   # beside a torchvision that imports
    python analyses/versions/versions.py --oldest               # prints the oldest requirement

Each version gets a fresh environment with the other pins of `constraints.txt`. PyPI's torchvision
does not import beside a CPU build of torch (its library lacks two operators); `--torchvision`
installs it with a start-up file that defines them, so that processors that want torchvision are
built and tried as well. Needs only the standard library. Not part of CI: a version takes about ten
minutes on two cores.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLLOWS_TRANSFORMERS = ("transformers", "tokenizers", "huggingface-hub")
TORCHVISION = "torchvision==0.28.0"
OPERATORS = '''"""Defines the operators that torchvision registers for shapes, first."""
try:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except ImportError:
    pass
'''


def oldest() -> str:
    """The lower bound of transformers in pyproject.toml, as a full version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirement = next(r for r in project["dependencies"] if r.startswith("transformers"))
    bound = re.search(r">=([\d.]+)", requirement)
    assert bound is not None, requirement
    parts = bound[1].split(".")
    return ".".join(parts + ["0"] * (3 - len(parts)))


def pinned() -> str:
    """The version in constraints.txt: the newest that the suite is known to pass on."""
    line = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert line is not None
    return line[1]


def environment(folder: Path, version: str, torchvision: bool) -> Path:
    """A fresh virtual environment with this version of transformers; its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith(FOLLOWS_TRANSFORMERS)
    ]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins))
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = [f"transformers=={version}", "-e", f"{ROOT}[dev]"]
    subprocess.run([*install, "-c", constraints, *wanted], check=True)
    if torchvision:
        subprocess.run([*install, "--no-deps", TORCHVISION], check=True)
        (site_packages,) = (folder / "lib").glob("python*/site-packages")
        (site_packages / "torchvision_operators.py").write_text(OPERATORS)
        (site_packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    return python


def outcome(python: Path, arguments: list[str]) -> str:
    """pytest's closing line, and up to ten failures."""
    command = [python, "-m", "pytest", "-q", *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = finished.stdout.strip().splitlines() or [finished.stderr.strip()[-300:]]
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n    ".join([lines[-1].strip("= "), *failures[:10]])


def main() -> int:
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("versions", nargs="*", help="versions of transformers")
    parser.add_argument("--torchvision", action="store_true", help=f"also {TORCHVISION}")
    parser.add_argument(
        "--oldest", action="store_true", help="print the oldest requirement and stop"
    )
    options = parser.parse_args(words[:split])
    if options.oldest:
        print(f"transformers=={oldest()}")
        return 0
    passed = True
    for version in options.versions or [oldest(), pinned()]:
        with tempfile.TemporaryDirectory(prefix=f"transformers-{version}-") as folder:
            print(f"transformers {version}: installing", flush=True)
            try:
                python = environment(Path(folder), version, options.torchvision)
                result = outcome(python, words[split + 1 :])
            except subprocess.CalledProcessError as error:
                result = f"failed: can't be installed ({error})"
        print(f"transformers {version}: {result}", flush=True)
        passed = passed and not re.search(r"\b(failed|errors?)\b", result)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
