"""Situations that users of LLaVA-like models reported in public, each rebuilt by a script that exits
with 0 where the product is right.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPO = HERE.parents[1]
SCRIPTS = sorted(
    file.stem
    for file in HERE.glob("*.py")
    if not file.stem.startswith(("_", "test_")) and file.stem != "common"
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_product_is_right(name):
    path = os.pathsep.join([str(REPO), str(REPO / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "PROBE_REPO": str(REPO)}
    process = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py")],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
