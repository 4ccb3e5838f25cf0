"""Which pixels each vision token comes from, against what occlusion found (`golden/pixels`).

The processors and model classes are real; the files say how to build them, and for each token the
rectangle of the original image that it depends on. Needs torchvision where the class has a video
processor: `pip install torchvision==0.28.0 --no-deps`, which is enough beside a CPU torch, since
two operators are defined here. Without it, families that can be built are checked.
"""

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import probe
from probe.data.image import Video
from tests.families.processors import word_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "pixels"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
FPS = 2
NO_VISION = find_spec("torchvision") is None


@pytest.fixture(autouse=True, scope="module")
def operators_of_torchvision():
    """torchvision's library needs CUDA's; its import needs these two names only."""
    if NO_VISION or hasattr(torch.ops.torchvision, "nms"):
        yield
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield


@lru_cache
def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def made(kind: str, **options: Any) -> Any:
    if NO_VISION and kind.endswith("ImageProcessor"):
        kind += "Pil"
        if not hasattr(transformers, kind):
            pytest.skip(f"{kind} does not exist: the class needs torchvision")
    return getattr(transformers, kind)(**options)


def subject_of(settings: dict[str, Any]) -> Any:
    if NO_VISION and ("video_processor" in settings or settings["processor"][0].startswith("Pix")):
        pytest.skip("its video processor needs torchvision")
    if settings["processor"][0] == "SmolVLMProcessor" and find_spec("num2words") is None:
        pytest.skip("SmolVLM's processor needs num2words")
    table = settings["tokenizer"]
    parts = {
        "tokenizer": word_tokenizer(
            *(table[k] for k in ("special", "words", "pattern")), **table["named"]
        )
    }
    for part in ("image_processor", "video_processor"):
        if part in settings:
            kind, options = settings[part]
            parts[part] = made(kind, **options)
            vars(parts[part]).update(settings.get(f"{part}_attributes", {}))
    kind, options = settings["processor"]
    attributes = settings.get("processor_attributes", {})
    if not all(hasattr(getattr(transformers, kind), name) for name in attributes):
        pytest.skip(f"the {kind} of this transformers has no {', '.join(attributes)}")
    processor = made(kind, chat_template=settings["chat_template"], **parts, **options)
    vars(processor).update(attributes)
    torch.manual_seed(0)
    model_type, fields = settings["config"]
    config = transformers.AutoConfig.for_model(model_type, **fields)
    model = getattr(transformers, settings["model"])._from_config(config)
    return probe.load(model, processor=processor, **settings.get("load", {}))


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(number).integers(95, 160, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def runs(tokens: list[str]) -> list[list[Any]]:
    """Equal neighbours as [token, times]."""
    found: list[list[Any]] = []
    for token in tokens:
        if found and found[-1][0] == token:
            found[-1][1] += 1
        else:
            found.append([token, 1])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_the_pixels_that_occlusion_found(name):
    truth = golden(name)
    subject = subject_of(truth["settings"])
    for case in truth["cases"]:
        pictures = [picture(n, tuple(size)) for n, size in enumerate(case["images"])]
        shown = Video(pictures, fps=FPS) if case["video"] else pictures
        inputs = subject.encode(shown, "what is red ?")
        assert runs(inputs.tokens[0]) == case["layout"]
        (grid,) = inputs.grid
        assert len(grid) == len(case["tokens"]) == case["placeholders"]
        for number, entry in enumerate(case["tokens"]):
            if case["video"] and entry is not None:
                first, last = grid.frame[number], grid.last_frame[number]
                assert list(range(first, last + 1)) == entry["frames"]
                assert grid.time[number] == np.mean(entry["frames"]) / FPS
            box = grid.box[number]
            inside = box.clip(0, 1)
            if entry is None or entry.get("box") is None:  # newlines, class token, padding alone
                assert np.isnan(box).all() or (inside[2:] <= inside[:2]).any()
            elif not (entry.get("weak") and np.isnan(box).all()):
                index = entry["frames"][0] if case["video"] else entry.get("picture", 0)
                assert grid.image[number] == index
                pixels = np.tile(case["images"][index], 2)
                apart = np.abs(inside - entry["box"]) * pixels
                assert entry.get("weak") or apart.max() <= truth["tolerance_px"], (number, box)
