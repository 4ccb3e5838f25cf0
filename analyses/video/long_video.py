"""Peak memory of a LLaVA-Mini that reads, and is measured on, a video of thousands of frames.

python analyses/video/long_video.py                    # 100, 1,000 and 10,000 frames
python analyses/video/long_video.py --frames 1000

Frames come from an iterator and run through encoder, compressor and pre-fusion a few at a time;
only their compressed tokens stay. The LLM then reads them all, and its attention is summed without
maps. Each length runs in a process of its own, whose peaks are printed: after the frames were read,
and at the end. A map of attention of one layer would be as large as the last column says.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import probe
from probe.data.token_types import INSTRUCTION, LAST, label
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from probe.measures.attention.stack_queries import MeasureOptions, llm_statistic

LENGTHS = (100, 1000, 10000)
WORDS = 8  # of the question
MEGABYTE = 2**20


def noise(frames: int, side: int) -> Iterator[torch.Tensor]:
    """Frames one by one, as the vision tower reads them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(frames):
        yield torch.randn(1, 3, side, side, generator=generator)


@torch.no_grad()
def measured(frames: int) -> tuple[float, dict[str, np.ndarray]]:
    """The peak after the frames were read, and the attention statistic of the LLM's first layer
    over all of them.
    """
    subject = probe.load("tiny-llava-mini")
    model: Any = subject.model
    words = torch.arange(10, 10 + WORDS)
    prompt = torch.cat([torch.tensor([model.config.image_token_id]), words])
    video = model.encode_image(
        noise(frames, model.config.vision_config.image_size), input_ids=prompt[None]
    )
    read = peak()
    placeholders = torch.full((video.num_tokens,), model.config.image_token_id)
    ids = torch.cat([placeholders, words])[None]
    role = np.full(ids.shape[1], INSTRUCTION)
    role[-1] = LAST
    is_vision = (ids == model.config.image_token_id)[0].numpy()
    types = label(role, np.zeros_like(role), is_vision)
    statistic = llm_statistic(types, MeasureOptions(rows="text"))
    attention = stacks(model)["llm"].attention
    with tap(attention, statistic):
        model(input_ids=ids, vision=[video], use_cache=False, logits_to_keep=1)
    return read, statistic.table(next(iter(attention)), [0])


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description="Peak memory of LLaVA-Mini on long videos")
    arguments.add_argument("--frames", type=int, help="one length, in this process")
    given = arguments.parse_args()
    if given.frames:
        start = time.perf_counter()
        read, table = measured(given.frames)
        mass = float(np.nanmean(table["mass"][:, 0, 1]))
        maps = 4 * 4 * given.frames**2 / MEGABYTE  # four heads in float32
        seconds = time.perf_counter() - start
        peaks = f"{read:>10.0f} {peak():>14.0f}"
        print(f"{given.frames:>7} {peaks} {seconds:>8.1f} {mass:>15.4f} {maps:>12.0f}")
        return
    print("         peak (MB)")
    print(" frames  when read  when measured  seconds  text -> vision   a map (MB)", flush=True)
    for frames in LENGTHS:
        subprocess.run([sys.executable, __file__, "--frames", str(frames)], check=True)


if __name__ == "__main__":
    main()
