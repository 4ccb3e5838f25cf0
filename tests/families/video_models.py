"""Tiny random models of the families that read videos, each with a processor of a few lines.

    model, processor = VIDEO_FAMILIES["qwen2_vl"]()

Every way to turn frames into tokens has a family here: pairs of frames, pooling, a tower of their
own with a class token, frames as images with words between them, an end of the video.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from probe.data.image import Video
from tests.families.checks import SIZE, Case
from tests.families.models import CLIP, FAMILIES, VISION, Family, build, text
from tests.families.processors import (
    BREAK,
    IMAGE,
    VIDEO,
    TinyProcessor,
    TinyVideos,
    blocks,
    cells,
    planes,
    video_blocks,
)

Frames = list[Image.Image]


def frame_planes(side: int = 32, name: str = "pixel_values_videos", batched: bool = True) -> Any:
    """All frames stretched to squares: (video, frame, channel, height, width)."""

    def pixels(frames: Frames) -> dict[str, torch.Tensor]:
        views = planes(side)(frames)["pixel_values"]
        return {name: views[None] if batched else views}

    return pixels


def per_frame(count: int, before: str = "", after: str = "", end: str = "") -> Any:
    """The same placeholders for each frame, and `end` behind the last."""
    token = "<image>" if before else "<video>"
    return lambda frames: (before + token * count + after) * len(frames) + end


def pairs(stamp: bool = False) -> Any:
    """Qwen-VL's: a token for each merged cell of two frames; Qwen3-VL writes words before each."""

    def expand(frames: Frames) -> str:
        rows, columns = cells(frames[0].size)
        words = "one <start>" if stamp else ""
        group = words + "<video>" * rows * columns + "<end>" * stamp
        groups = -(-len(frames) // 2)
        return group * groups if stamp else f"<start>{group * groups}<end>"

    return expand


def with_videos(family: str, clips: TinyVideos, more: Any = None, **options: Any) -> Family:
    """A family of images that reads videos, too."""
    model, processor = FAMILIES[family](**options)
    processor.video_processor, processor.video_token = clips, "<video>"
    if more is not None:
        processor.more = more
    return model, processor


def kinds(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


def next_video(attn: str = "sdpa") -> Family:
    model = build(
        "LlavaNextVideoForConditionalGeneration",
        "llava_next_video",
        attn,
        vision_config=CLIP,
        text_config=text("llama"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[32, 32]],
        spatial_pool_stride=2,
        spatial_pool_mode="average",
    )
    images = planes(32)
    clips = TinyVideos(per_frame(4), frame_planes())
    return model, TinyProcessor(lambda size: "<image>" * 16, images, clips=clips)


def kinds_between_marks(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """GLM-4V's: image tokens between the marks of a video are the video's."""
    in_video = (ids == BREAK).cumsum(-1) % 2 == 1
    return {"mm_token_type_ids": (ids == IMAGE).long() * (1 + in_video.long())}


def marked_pairs(frames: Frames) -> str:
    """GLM-4V's: image tokens for each pair of frames, words behind them."""
    rows, columns = cells(frames[0].size)
    pair = "<start>" + "<image>" * rows * columns + "<end>one "
    return "<break>" + pair * -(-len(frames) // 2) + "<break>"


def timed_frames(frames: Frames) -> str:
    """VideoLLaMA 3's: a time before the tokens of each frame."""
    rows, columns = cells(frames[0].size)
    return " , ".join(["one :" + "<video>" * rows * columns] * len(frames))


def blocks_of_frames(frames: Frames) -> dict[str, torch.Tensor]:
    """VideoLLaMA 3's: the patches of each frame."""
    tensors = blocks(frames)
    rows, columns = tensors["image_grid_thw"][0, 1:].tolist()
    patches = tensors["pixel_values"]
    once = patches.view(len(patches), 3, 2, -1)[:, :, 0].flatten(1)
    return {
        "pixel_values_videos": once,
        "video_grid_thw": torch.tensor([[len(frames), rows, columns]]),
        "video_merge_sizes": torch.tensor([2]),
        "video_compression_mask": torch.ones(len(once) // 4, dtype=torch.bool),
    }


def gemma4(**options: Any) -> Family:
    """Frames as images are: patches with their positions; a time and marks around each."""
    model, processor = FAMILIES["gemma4"](**options)
    of_images = processor.pixels

    def pixels(frames: Frames) -> dict[str, torch.Tensor]:
        tensors = of_images(frames)
        return {
            "pixel_values_videos": tensors["pixel_values"],
            "video_position_ids": tensors["image_position_ids"],
            "num_frames_per_video": torch.tensor([len(frames)]),
        }

    def expand(frames: Frames) -> str:
        rows, columns = cells(frames[0].size)
        return " ".join(["one <start>" + "<video>" * rows * columns + "<end>"] * len(frames))

    processor.video_processor = TinyVideos(expand, pixels)
    processor.video_token = "<video>"
    processor.more = kinds
    return model, processor


ONE = torch.ones(1)  # second a pair of frames

VIDEO_FAMILIES: dict[str, Callable[..., Family]] = {
    "qwen2_vl": lambda **o: with_videos("qwen2_vl", TinyVideos(pairs(), video_blocks), kinds, **o),
    "qwen2_5_vl": lambda **o: with_videos(
        "qwen2_5_vl",
        TinyVideos(
            pairs(),
            lambda frames: video_blocks(frames) | {"second_per_grid_ts": torch.tensor([1.0])},
        ),
        kinds,
        **o,
    ),
    "qwen3_vl": lambda **o: with_videos(
        "qwen3_vl", TinyVideos(pairs(stamp=True), video_blocks), kinds, **o
    ),
    "glm4v": lambda **o: with_videos(
        "glm4v", TinyVideos(marked_pairs, video_blocks), kinds_between_marks, **o
    ),
    "video_llama_3": lambda **o: with_videos(
        "video_llama_3", TinyVideos(timed_frames, blocks_of_frames), **o
    ),
    "gemma4": gemma4,
    "llava_next_video": next_video,
    "onevision": lambda **o: with_videos(
        "onevision", TinyVideos(per_frame(4, end="<video>"), frame_planes()), **o
    ),
    "video_llava": lambda **o: with_videos(
        "video_llava", TinyVideos(per_frame(17), frame_planes()), **o
    ),
    "internvl": lambda **o: with_videos(
        "internvl",
        TinyVideos(
            per_frame(4, "one : <start>", "<end>"),
            frame_planes(name="pixel_values", batched=False),
        ),
        **o,
    ),
    "smolvlm": lambda **o: with_videos(
        "smolvlm", TinyVideos(per_frame(4, "<start>", "<end>"), _smol), **o
    ),
}


def _smol(frames: Frames) -> dict[str, torch.Tensor]:
    pixels = frame_planes(name="pixel_values")(frames)
    mask = torch.ones(1, len(frames), VISION["image_size"], VISION["image_size"], dtype=torch.long)
    return {**pixels, "pixel_attention_mask": mask}


FRAMES = 3


def clip(seed: int, frames: int = FRAMES, last: int | None = None) -> Video:
    """`last`: the seed of the last frame, where that is another."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    if last is not None:
        pixels[-1] = np.random.default_rng(last).integers(0, 256, pixels[-1].shape)
    shown = [Image.fromarray(frame).resize(SIZE, Image.Resampling.NEAREST) for frame in pixels]
    return Video(shown, fps=2)


class VideoCase(Case):
    def shown(self, seed):
        return clip(seed)
