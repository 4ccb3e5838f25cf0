"""Shared by the cases: where the product is, the tiny models of its tests, an image.

python tests/cases/NAME.py        # from the repository's root; exit code 0: the product is right
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

REPO = Path(os.environ.get("PROBE_REPO", Path.cwd()))
sys.path[:0] = [str(REPO), str(REPO / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image
from transformers.utils import logging

logging.set_verbosity_error()


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """An image of noise."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def verdict(ok: bool, /, **observed: object) -> NoReturn:
    """Prints what was observed; exits with 0 where the product is right, else with 1."""
    for name, value in observed.items():
        print(f"{name}: {value}")
    print("RIGHT" if ok else "WRONG")
    sys.exit(0 if ok else 1)
