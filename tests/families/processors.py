"""A processor of a few lines, for families whose own can't be built without torchvision.

    processor = TinyProcessor(expand=lambda size: "<image>" * 16, pixels=planes(32))
    processor(text=["<s> user: <image> what is red ? "], images=[image])

It does to text and images what the real ones do: each placeholder becomes as many as the model
makes vision tokens, with markers around them where the family has any.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>", "<start>", "<end>", "<break>")
PAD, BOS, EOS, UNKNOWN, IMAGE, VIDEO, START, END, BREAK = range(len(SPECIAL))
SENTENCE = """system : user assistant what is red blue shape the a circle square of in picture ? .
how many left right one two it and"""
WORDS = tuple(SENTENCE.split())
VOCABULARY = 64
TEMPLATE = (
    "<s>{% for m in messages %}{{ m['role'] + ': ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% elif c['type'] == 'video' %}<video>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{{ 'assistant:' if add_generation_prompt else '' }}"
)

Size = tuple[int, int]  # width, height


def word_tokenizer(
    special: Sequence[str] = SPECIAL,
    words: Sequence[str] = WORDS,
    pattern: str = r"\n+|\w+|[^\w\s]+",
    **named: str,
) -> PreTrainedTokenizerFast:
    """One token a word; an id is the place in `special` and `words`, which come in this order."""
    table = {word: place for place, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=named,
    )
    fast.add_special_tokens({"additional_special_tokens": list(special[4:])})
    return fast


class TinyProcessor:
    """`expand` says what stands for an image of a size, `pixels` makes the tensors of the images,
    `more` those that depend on the ids.
    """

    image_token = "<image>"

    def __init__(
        self,
        expand: Callable[[Size], str],
        pixels: Callable[[list[Image.Image]], dict[str, torch.Tensor]],
        more: Callable[[torch.Tensor], dict[str, torch.Tensor]] = lambda ids: {},
        clips: "TinyVideos | None" = None,
    ):
        self.tokenizer = word_tokenizer()
        self.image_processor = SimpleNamespace(
            size={"height": 32, "width": 32},
            do_center_crop=False,
            do_resize=True,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        self.chat_template = TEMPLATE
        self.expand, self.pixels, self.more = expand, pixels, more
        if clips is not None:
            self.video_processor, self.video_token = clips, "<video>"

    def apply_chat_template(self, conversation: Any, add_generation_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            conversation,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )

    def __call__(
        self, text: list[str], images: Any = None, videos: Any = None, **options: Any
    ) -> dict[str, Any]:
        images, videos = list(images or ()), list(videos or ())
        first, *rest = re.split("<image>|<video>", text[0])
        marks = re.findall("<image>|<video>", text[0])
        of_images = iter([self.expand(image.size) for image in images])
        of_videos = iter([self.video_processor.expand(frames) for frames in videos])
        pieces = [next(of_images if mark == "<image>" else of_videos) for mark in marks]
        whole = first + "".join(mark + piece for mark, piece in zip(pieces, rest, strict=True))
        encoded = self.tokenizer(
            [whole],
            return_tensors="pt",
            add_special_tokens=options.get("add_special_tokens", True),
            return_token_type_ids=False,
        )
        pixels = self.pixels(images) if images else {}
        if videos:
            pixels |= self.video_processor.pixels(videos[0])
        return {**encoded, **pixels, **self.more(encoded["input_ids"])}


@dataclass(frozen=True)
class TinyVideos:
    """`expand` says what stands for the frames of a video, `pixels` makes their tensors."""

    expand: Callable[[list[Image.Image]], str]
    pixels: Callable[[list[Image.Image]], dict[str, torch.Tensor]]


def planes(
    height: int, width: int | None = None, name: str = "pixel_values"
) -> Callable[[list[Image.Image]], dict[str, torch.Tensor]]:
    """Each image stretched to one size: (image, channel, height, width)."""
    return lambda images: {
        name: torch.stack([_stretched(image, height, width or height) for image in images])
    }


def _stretched(image: Image.Image, height: int, width: int) -> torch.Tensor:
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


def cells(size: Size, cell: int = 16, most: int = 6) -> tuple[int, int]:
    """Rows and columns of merged cells of an image at its own resolution."""
    width, height = size
    return tuple(min(max(1, round(edge / cell)), most) for edge in (height, width))  # type: ignore


def blocks(images: list[Image.Image], patch: int = 8, merge: int = 2) -> dict[str, torch.Tensor]:
    """Qwen-VL's flat patches, merged cell by merged cell, twice in time."""
    flat, grid = [], []
    for image in images:
        rows, columns = cells(image.size, patch * merge)
        pixels = _stretched(image, rows * patch * merge, columns * patch * merge)
        split = pixels.view(3, rows, merge, patch, columns, merge, patch)
        ordered = split.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3, 1, patch, patch)
        flat.append(ordered.expand(-1, -1, 2, -1, -1).reshape(len(ordered), -1))
        grid.append([1, rows * merge, columns * merge])
    return {"pixel_values": torch.cat(flat), "image_grid_thw": torch.tensor(grid)}


def video_blocks(
    frames: list[Image.Image], patch: int = 8, merge: int = 2
) -> dict[str, torch.Tensor]:
    """Qwen-VL's flat patches of pairs of frames; an odd last frame is paired with itself."""
    frames = frames + frames[-1:] * (len(frames) % 2)
    rows, columns = cells(frames[0].size, patch * merge)
    whole = [_stretched(f, rows * patch * merge, columns * patch * merge) for f in frames]
    split = torch.stack(whole).view(-1, 2, 3, rows, merge, patch, columns, merge, patch)
    ordered = split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    grid = [len(frames) // 2, rows * merge, columns * merge]
    flat = ordered.reshape(grid[0] * grid[1] * grid[2], -1)
    return {"pixel_values_videos": flat, "video_grid_thw": torch.tensor([grid])}
