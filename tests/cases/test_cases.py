"""Situations that users of LLaVA-like models reported in public, each rebuilt by a script that exits
with 0 where the product is right.

Each script runs in a process of its own. The processes are forked from one that has imported torch
and the product already: importing them anew took longer than most scripts.
"""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPO = HERE.parents[1]
SCRIPTS = sorted(
    file.stem
    for file in HERE.glob("*.py")
    if not file.stem.startswith(("_", "test_")) and file.stem not in {"common", "conftest"}
)
IMPORTED = ["models", "probe.measures.attention.measure", "probe.reducers.context"]
LONGEST = 300  # seconds, after which a script counts as hanging


def run_script(script: str, output: str) -> None:
    """Runs a script as `python SCRIPT` would in the repository's root, its words going to a file."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(REPO)
    os.environ["PROBE_REPO"] = str(REPO)
    sys.path[:0] = [str(Path(script).parent), str(REPO), str(REPO / "tests")]
    runpy.run_path(script, run_name="__main__")


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_product_is_right(name, processes, tmp_path):
    output = tmp_path / "output.txt"
    script = HERE / f"{name}.py"
    process = processes.Process(target=run_script, args=(str(script), str(output)))
    process.start()
    process.join(LONGEST)
    hangs = process.is_alive()
    if hangs:
        process.kill()
        process.join()
    assert not hangs, f"not finished after {LONGEST} s\n{output.read_text()}"
    assert process.exitcode == 0, output.read_text()
