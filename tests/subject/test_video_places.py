"""Which frames a vision token shows, where a model joins pictures or marks rows: as occlusion of
one frame after the other finds it.
"""

from functools import partial

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import probe
from probe.hooks.model_structure import text_decoder
from tests.families.checks import QUESTION, SIZE
from tests.families.document_models import DOCUMENT_FAMILIES
from tests.families.patch_models import PATCH_FAMILIES, by_rows
from tests.families.picture_models import PICTURE_FAMILIES
from tests.families.processors import TinyVideos, cells
from tests.families.video_models import kinds

FPS = 2


def videos(made, frames, most):
    """What is made of images, as that of the frames of one video; `most` of them are one entry of
    its grid.
    """
    tensors = made(list(frames))
    grid = tensors.pop("image_grid_thw", None)
    named = {name.replace("pixel_values", "pixel_values_videos"): v for name, v in tensors.items()}
    if grid is not None:
        parts = [min(most, len(frames) - first) for first in range(0, len(frames), most)]
        shape = grid[0, 1:].tolist()
        named["video_grid_thw"] = torch.tensor([[part, *shape] for part in parts])
    return named


def cells_of(frames):
    rows, columns = cells(frames[0].size)
    return rows * columns


def kimi():
    """Four frames are joined."""
    model, processor = PATCH_FAMILIES["kimi_k25"]()
    made = processor.pixels
    return (
        model,
        processor,
        made,
        lambda frames: "<video>" * cells_of(frames) * -(-len(frames) // 4),
    )


def minicpm():
    """A strip of the patches of all frames."""
    model, processor = PICTURE_FAMILIES["minicpmv4_6"]()

    def made(frames):
        tensors = processor.pixels(frames)
        tensors["target_sizes_videos"] = tensors.pop("target_sizes")
        return tensors

    return (
        model,
        processor,
        made,
        lambda frames: processor.expand(frames[0].size).replace("<image>", "<video>") * len(frames),
    )


def hunyuan():
    """A mark at the end of each row, under the id of the tokens."""
    model, processor = DOCUMENT_FAMILIES["hy_v4_vl"]()

    def expand(frames):
        rows, columns = cells(frames[0].size)
        return ("<start>" + "<video>" * rows * (columns + 1) + "<end>") * len(frames)

    return model, processor, by_rows, expand


MAKE = {"kimi": kimi, "minicpm": minicpm, "hunyuan": hunyuan}
MOST = {"hunyuan": 1}
NEWEST = {"hunyuan": "HYV4VLForConditionalGeneration"}


def subject_of(name):
    if name in NEWEST and not hasattr(transformers, NEWEST[name]):
        pytest.skip("this transformers does not have it")
    if name == "kimi" and not hasattr(transformers, NEWEST["hunyuan"]):
        pytest.skip("its model of this transformers does not run on videos")
    model, processor, made, expand = MAKE[name]()
    processor.video_processor = TinyVideos(expand, partial(videos, made, most=MOST.get(name, 4)))
    processor.video_token = "<video>"
    processor.more = kinds if name == "hunyuan" else lambda ids: {}
    return probe.load(model, processor=processor)


def noise(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def embedded(subject, frames):
    inputs = subject.encode(probe.Video(frames, fps=FPS), QUESTION)
    seen = []
    hook = text_decoder(subject.model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    with hook, torch.no_grad():
        subject.model(**inputs, use_cache=False)
    return seen[0][torch.from_numpy(inputs.types.vision[0])], inputs.grid[0]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", MAKE)
def test_tokens_know_the_frames_that_change_them(name, count):
    subject = subject_of(name)
    frames = [noise(seed) for seed in range(count)]
    before, grid = embedded(subject, frames)
    moved = np.zeros((len(grid), count), bool)
    for number in range(count):
        others = [*frames[:number], noise(99), *frames[number + 1 :]]
        moved[:, number] = (embedded(subject, others)[0] != before).any(-1).numpy()
    is_mark = ~moved.any(axis=1)
    assert is_mark.any() == (name == "hunyuan")
    assert (np.isnan(grid.box).any(axis=1) == is_mark).all()
    for token in np.flatnonzero(~is_mark):
        first, *_, last = np.repeat(np.flatnonzero(moved[token]), 2)
        assert (grid.frame[token], grid.last_frame[token]) == (first, last)
        assert grid.time[token] == np.arange(first, last + 1).mean() / FPS
