"""Time and memory from pixels to the first token, on this machine.

The clock starts before the vision encoder and stops once the first token's id is on the host.
Memory is the resident memory of the process on a CPU, and what torch has allocated on a GPU.
Pixels are noise and text is one word repeated: neither changes what is computed.
"""

import inspect
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoModelForImageTextToText, PreTrainedModel

from probe.hooks.model_structure import image_token_id, video_token_id
from probe.hooks.offload import input_device
from probe.measures.cost.flop_count import asked, fuses
from probe.measures.cost.prompt_shape import PromptShape, side_of

MOMENTS = ("before", "peak")


def with_random_weights(config: Any, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """A model of a config, on the GPU if there is one; it costs as much as a trained one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


def measure_prefill(
    model: PreTrainedModel, inputs: Mapping[str, Any], repeats: int
) -> tuple[Float[np.ndarray, " repeat"], Float[np.ndarray, " moment"]]:
    """Seconds of each repeat, and bytes at MOMENTS, after one warm-up prefill."""
    first_token(model, inputs)
    before = _memory(model.device)
    _start_peak(model.device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        first_token(model, inputs)
        seconds.append(time.perf_counter() - start)
    return np.array(seconds), np.array([before, max(before, _peak(model.device))])


@torch.no_grad()
def first_token(model: Any, inputs: Mapping[str, Any]) -> int:
    """The id that greedy decoding begins with; the cache is filled too."""
    has_option = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if has_option else {}
    return int(model(**inputs, use_cache=True, **options).logits[0, -1].argmax())


def inputs_of(
    model: PreTrainedModel, prompt: PromptShape, vision_tokens: int, seed: int = 0
) -> dict[str, Any]:
    """Noise as pixels, and `vision_tokens` placeholders in the middle of the words."""
    base = model.base_model
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(input_device(model), model.dtype)

    video = hasattr(base, "get_video_features")
    pixels = prompt.pixels(side_of(model.config), model.config, fuses(base), video, noise)
    place = video_token_id(model) if "pixel_values_videos" in pixels else image_token_id(model)
    word = next(
        id for id in range(1, 4) if id not in (image_token_id(model), video_token_id(model))
    )
    before = prompt.text_tokens // 2
    after = prompt.text_tokens - before
    row = [word] * before + [place] * vision_tokens + [word] * after
    ids = torch.tensor([row], device=input_device(model))
    taken = inspect.signature(model.forward).parameters
    images = {name if name in taken else f"{name}_images": value for name, value in pixels.items()}
    questions = asked(base, prompt)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images, **questions}


def _memory(device: torch.device) -> float:
    return (
        float(torch.cuda.memory_allocated(device))
        if device.type == "cuda"
        else _of_process("VmRSS")
    )


def _start_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the high-water mark


def _peak(device: torch.device) -> float:
    return (
        float(torch.cuda.max_memory_allocated(device))
        if device.type == "cuda"
        else _of_process("VmHWM")
    )


def _of_process(name: str) -> float:
    """Bytes of a line of Linux's process status; NaN on other systems."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if os.path.exists(status) else []
    return next(
        (1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")),
        float("nan"),
    )
