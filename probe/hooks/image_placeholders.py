"""How many placeholders an image has in the prompt: as many as vision tokens reach the LLM.

Processors count the patches of an image. Where a reducer is at work in the model fewer tokens are
left (and which ones may depend on the image), so whoever encodes a prompt asks here, and the
placeholders are made to fit.

    with counted(model, left):                  # what `probe.reduced` does
        left_of(model, tensors)                 # [array of patches, -1 for what is no patch], one for each image
    fitted(tensors, image_token, [(576, 64)])   # 576 placeholders of the first image have become 64
"""

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.prompt_ends import prompt_end, remember

# From the tensors of one row to the patch (in its image, tiles one after the other) that each
# vision token stands for
KeptPatches = Callable[[Mapping[str, Any]], list[Int[np.ndarray, "_"]]]

_counted: "WeakKeyDictionary[nn.Module, KeptPatches]" = WeakKeyDictionary()


@contextmanager
def override_token_count(model: nn.Module, left: KeptPatches) -> Iterator[None]:
    """While the block lasts `left` says which vision tokens the model makes of an image. Raises
    ProbeError where another says so already."""
    if model in _counted:
        raise ProbeError(
            "reduced",
            expected="one reducer of the encoder's output at a time",
            got="a second one",
            fix="leave the first block before you enter another",
        )
    _counted[model] = left
    try:
        yield
    finally:
        _counted.pop(model, None)


def kept_patches(model: nn.Module, tensors: Mapping[str, Any]) -> list[Int[np.ndarray, "_"]] | None:
    """What the vision tokens of each image stand for, None where the model makes as many as its
    processor counts.
    """
    left = _counted.get(model)
    return None if left is None else left(tensors)


def resize_placeholders(
    tensors: Mapping[str, Any], image_token: int, counts: Sequence[tuple[int, int]], pad: int = 0
) -> dict[str, Any]:
    """The same batch with other numbers of placeholders: (there are, there shall be) for each
    image, in order.

    Every tensor of the shape of `input_ids` follows. Rows that come out shorter than others are
    padded on the side where there is padding already, on the right where there is none. Positions
    are left for the model to count. Raises ProbeError where the placeholders are not those of the
    images.
    """
    ids: Tensor = tensors["input_ids"]
    mask = tensors.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    rows = [_columns(row, counts) for row in _by_row(ids == image_token, counts)]
    rows = [
        _without_padding(columns, real)
        for columns, real in zip(rows, mask.bool().tolist(), strict=True)
    ]
    width, left = max(map(len, rows)), bool((mask[:, 0] == 0).any())
    changed = {name: value for name, value in tensors.items() if name != "position_ids"} | {
        "attention_mask": mask
    }
    for name, value in changed.items():
        if torch.is_tensor(value) and value.shape == ids.shape:
            fill = {"input_ids": pad, "labels": -100}.get(name, 0)
            changed[name] = torch.stack(
                [
                    _padded(
                        value[row, torch.tensor(columns, device=value.device)], width, fill, left
                    )
                    for row, columns in enumerate(rows)
                ]
            )
    ends = prompt_end(
        ids, mask.bool()
    ).tolist()  # what chooses by the prompt's last token finds it here too
    places = [
        bisect(row, end) - 1 + (width - len(row)) * left
        for row, end in zip(rows, ends, strict=True)
    ]
    remember(changed["input_ids"], torch.tensor(places))
    return changed


def _by_row(
    image: Tensor, counts: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[bool], list[int]]]:
    """Each row's placeholders with the images that they belong to."""
    ends = np.cumsum([before for before, _ in counts]).tolist()
    picture, seen = 0, 0
    for row in image.tolist():
        first, seen = picture, seen + sum(row)
        while picture < len(counts) and ends[picture] <= seen:
            picture += 1
        if seen != (ends[picture - 1] if picture else 0):
            raise ProbeError(
                "inputs",
                expected=f"placeholders of whole images ({counts[first][0]} of the next)",
                got=f"{sum(row)} in a row",
            )
        yield row, list(range(first, picture))
    if picture < len(counts):
        raise ProbeError(
            "inputs", expected=f"placeholders for {len(counts)} images", got=f"for {picture}"
        )


def _columns(row: tuple[list[bool], list[int]], counts: Sequence[tuple[int, int]]) -> list[int]:
    """Which columns stay; one is repeated where an image has more tokens than placeholders."""
    image, images = row
    places = [column for column, here in enumerate(image) if here]
    stay = [column for column, here in enumerate(image) if not here]
    for picture in images:
        before, after = counts[picture]
        own, places = places[:before], places[before:]
        stay += own[:after] + own[-1:] * (after - before)
    return sorted(stay)


def _without_padding(columns: list[int], real: list[bool]) -> list[int]:
    """The columns from the first real token to the last."""
    first, last = real.index(True), len(real) - 1 - real[::-1].index(True)
    return [column for column in columns if first <= column <= last]


def _padded(row: Tensor, width: int, fill: int, left: bool) -> Tensor:
    missing = width - len(row)
    return torch.nn.functional.pad(row, (missing, 0) if left else (0, missing), value=fill)
