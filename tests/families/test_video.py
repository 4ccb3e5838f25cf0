"""Videos: every family that reads them is exact, unchanged and blind without them; each token knows
its frame and time."""

from functools import cached_property

import numpy as np
import pytest
from PIL import Image

import probe
from probe.data.image import Video
from tests.families.checks import CHECKS, QUESTION, SIZE, Case, results
from tests.families.video_models import VIDEO_FAMILIES

NO_LAYOUT = "no: windows, packed images or other tokens"
ALL = {**dict.fromkeys(CHECKS, "yes"), "compressor, cross": "no: it has none"}
EXPECTED = {
    "qwen2_5_vl": {"encoder measured": NO_LAYOUT},
    "video_llava": {"encoder measured": NO_LAYOUT},  # the frames' tower is another one
}
FRAMES = 3


def clip(seed: int, frames: int = FRAMES) -> Video:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    shown = [Image.fromarray(frame).resize(SIZE, Image.Resampling.NEAREST) for frame in pixels]
    return Video(shown, fps=2)


class VideoCase(Case):
    @cached_property
    def prompts(self):
        return tuple(self.subject.encode(clip(seed), QUESTION) for seed in (0, 1))


def families():
    """Those of each kind; the others are left to the wide run."""
    kinds = ("qwen3_vl", "video_llava", "internvl")
    return [
        pytest.param(name, marks=[] if name in kinds else pytest.mark.wide)
        for name in VIDEO_FAMILIES
    ]


@pytest.mark.parametrize("name", families())
def test_a_family_is_exact_unchanged_and_blind_without_its_video(name):
    model, processor = VIDEO_FAMILIES[name]()
    case = VideoCase(probe.load(model, processor=processor))
    assert results(case) == {**ALL, **EXPECTED.get(name, {})}
    (grid,) = case.prompts[0].grid
    seen = grid.frame >= 0
    spans = set(zip(grid.frame[seen], grid.last_frame[seen], grid.time[seen], strict=True))
    pairs = {(0, 1, 0.25), (2, 2, 1.0)}  # an odd last frame is paired with itself
    each = {(0, 0, 0.0), (1, 1, 0.5), (2, 2, 1.0)}
    assert spans == (pairs if name.startswith("qwen") else each)
