"""How large a page of a 7B model's record is, and how fast it answers in a real browser.

    PYTHONPATH=.:tests python analyses/viewer/size.py            # 576 and 2880 patches, 100 tokens

The record is made up: 32 layers, 32 heads, heavy-tailed attention. Times are medians of 15, from the
event to the end of the drawing, in Chromium without a GPU.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from chromium import Browser, chromium

from probe.records import assemble
from probe.viewer import view

LAYERS, HEADS, TOKENS, TYPES = 32, 32, 100, ("instruction", "vision", "response")
REPEATS = 15
HOVER = (
    "document.querySelectorAll('.word')[i % 100].dispatchEvent(new PointerEvent('pointerenter'))"
)
BOX = "change({box: [0.1 + i / 100, 0.2, 0.6 + i / 100, 0.7]})"
LAYER = "change({layer: i})"


def heavy_tailed(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Rows that sum to 0.3, as attention on an image does: few patches have most of it."""
    weight = np.exp(rng.normal(0, 2, shape)).astype(np.float32)
    return 0.3 * weight / weight.sum(-1, keepdims=True)


def grid(patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and tiles of a square of 576 patches, and of four tiles of as many."""
    side = np.linspace(0, 1, 25)
    whole = [(side[c], side[r], side[c + 1], side[r + 1]) for r in range(24) for c in range(24)]
    if patches == len(whole):
        return np.array(whole), np.zeros(patches)
    corners = [(x, y) for y in (0, 0.5) for x in (0, 0.5)]
    tiles = [np.array(whole) / 2 + [x, y, x, y] for x, y in corners]
    return np.concatenate([whole, *tiles]), np.repeat(np.arange(5), len(whole))


def made_up(patches: int) -> xr.DataTree:
    rng = np.random.default_rng(0)
    boxes, tiles = grid(patches)
    by_type = (1, LAYERS, HEADS, 3, 3)
    counts = np.full((1, 3, 3), 50)
    node = {
        "query_type": TYPES,
        "key_type": TYPES,
        "mass": rng.dirichlet(np.ones(3), by_type[:-1]),
        "lift": rng.random(by_type),
        "head_entropy": rng.random(by_type),
        "entropy": rng.random((1, LAYERS, 3, 3)),
        "query_count": counts,
        "entropy_count": np.full((1, LAYERS, 3, 3), 50),
        "head_entropy_count": np.full(by_type, 50),
        "key_count": np.full((1, 3), patches),
        "received": heavy_tailed(rng, 1, LAYERS, 3, patches),
        "key_image": np.zeros((1, patches)),
        "key_tile": tiles[None],
        "key_row": np.zeros((1, patches)),
        "key_col": np.zeros((1, patches)),
        "key_box": boxes[None],
        "maps": heavy_tailed(rng, 1, LAYERS, TOKENS, patches),
        "map_position": np.arange(TOKENS)[None],
        "map_token": np.array([["word"] * TOKENS], object),
    }
    y, x = np.mgrid[:672, :672]
    noise = rng.normal(0, 12, (672, 672))
    picture = np.stack([x / 4 + noise, y / 4 + noise, (x + y) / 6 + noise], -1)
    root = {
        "sample": ["0"],
        "question": ["what is this?"],
        "response": ["word " * TOKENS],
        "tokens": [["word"] * (TOKENS + 1)],
        "token_type": [["response"] * (TOKENS + 1)],
        "images": np.clip(picture, 0, 255).astype(np.uint8)[None, None],
        "image_size": [[[672, 672]]],
    }
    return assemble(root, {"llm": node}, {"model": "made up, 7B"})


def median_ms(browser: Browser, script: str) -> float:
    """Of a script that draws; `i` counts the repeats."""
    timed = f"const t = performance.now(); const i = arguments[0]; {script}; "
    timed += "document.body.offsetHeight; return performance.now() - t"
    return statistics.median(browser.run(timed, i) for i in range(REPEATS))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for patches in (576, 2880):
            started = time.perf_counter()
            path = view(made_up(patches)).save(Path(folder) / f"{patches}.html")
            written = time.perf_counter() - started
            started = time.perf_counter()
            browser.open(path.as_uri())
            loaded = time.perf_counter() - started
            hover, box, layer = (median_ms(browser, script) for script in (HOVER, BOX, LAYER))
            print(
                f"{patches} patches: {path.stat().st_size / 1e6:.2f} MB, made in {written:.1f} s, "
                f"loaded in {loaded:.2f} s; hover {hover:.0f} ms, layer {layer:.0f} ms, "
                f"box {box:.0f} ms"
            )


if __name__ == "__main__":
    main()
