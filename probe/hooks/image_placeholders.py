"""How many placeholders an image has in the prompt: as many as vision tokens reach the LLM.

Processors count the patches of an image. Under a reducer of the encoder's output fewer tokens reach
the LLM, and which ones may depend on the image. Whoever encodes a prompt asks here and resizes the
placeholders.

    with override_token_count(model, kept):        # what `probe.reduced` does
        kept_patches(model, tensors)               # what is left of each image
    resize_placeholders(tensors, image_token, [(576, 64)])     # 576 placeholders become 64
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.block_threads import model_block
from probe.hooks.model_state import state_of
from probe.hooks.prompt_lengths import record_prompts, recorded_lengths


@dataclass(frozen=True)
class KeptTokens:
    """The vision tokens that are left of one image; patches count over its tiles, one after the
    other.

    patch: the patch that a token stands for, -1 for none.
    token: the token that a patch went into, alone or with others; -1 where it was discarded.
    """

    patch: Int[np.ndarray, " token"]
    token: Int[np.ndarray, " patch"]


# From the tensors of one row to what is left of each image
KeptPatches = Callable[[Mapping[str, Any]], list[KeptTokens]]


@model_block
def override_token_count(model: nn.Module, kept: KeptPatches) -> Iterator[None]:
    """While the block lasts, `kept` says which vision tokens the model makes of an image. Raises
    ProbeError inside another such block.
    """
    counts = state_of(model).token_counts
    if counts.active():
        raise ProbeError(
            "reduced",
            expected="one reducer of the encoder's output at a time",
            got="a second one",
            fix="leave the first block before you enter another",
        )
    with counts.listed(kept):
        yield


def kept_patches(model: nn.Module, tensors: Mapping[str, Any]) -> list[KeptTokens] | None:
    """What is left of each image, None where the model makes as many tokens as its processor
    counts.
    """
    active = state_of(model).token_counts.active()
    return active[0](tensors) if active else None


def resize_placeholders(
    tensors: Mapping[str, Any], image_token: int, counts: Sequence[tuple[int, int]], pad: int = 0
) -> dict[str, Any]:
    """The same batch with other numbers of placeholders: (before, after) for each image, in order.

    Every tensor of the shape of `input_ids` follows. Rows that become shorter than others are
    padded on the left where the batch has padding on the left, else on the right. `position_ids`
    are left out, for the model to count again. Raises ProbeError where the placeholders are not
    those of whole images.

    >>> batch = {"input_ids": torch.tensor([[1, 9, 9, 9, 2], [1, 9, 3, 9, 2]])}
    >>> resize_placeholders(batch, 9, [(3, 1), (1, 2), (1, 1)])["input_ids"]
    tensor([[1, 9, 2, 0, 0, 0],
            [1, 9, 9, 3, 9, 2]])
    """
    ids: Tensor = tensors["input_ids"]
    mask = tensors.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    real = mask.bool().cpu().numpy()
    copies = _copies((ids == image_token).cpu().numpy(), counts) * _between_padding(real)
    columns = [np.repeat(np.arange(len(row)), row) for row in copies]
    index = _padded(columns, left=bool((~real[:, 0]).any()))
    source = index.clamp(min=0).to(ids.device)
    filler = (index < 0).to(ids.device)
    resized = {name: value for name, value in tensors.items() if name != "position_ids"}
    resized["attention_mask"] = mask
    for name, value in resized.items():
        if torch.is_tensor(value) and value.shape == ids.shape:
            fill = {"input_ids": pad, "labels": -100}.get(name, 0)
            chosen = value.gather(1, source.to(value.device))
            resized[name] = chosen.masked_fill(filler.to(value.device), fill)
    lengths = []  # of the prompts: a prompt of n real ids ends where their copies end
    for row_real, row_copies, known in zip(
        real, copies, recorded_lengths(ids, mask.bool()), strict=True
    ):
        copied = row_copies[row_real].cumsum()
        lengths.append({int(copied[length - 1]) for length in known})
    record_prompts(resized["input_ids"], ~filler, lengths)
    return resized


def _copies(
    is_image: Bool[np.ndarray, "row column"], counts: Sequence[tuple[int, int]]
) -> Int[np.ndarray, "row column"]:
    """How often each column is to be repeated: the first placeholders of an image stay, and the
    last one is repeated where the image gets more.
    """
    before = np.array([count for count, _ in counts], dtype=int)
    image_ends = np.concatenate([[0], before.cumsum()])
    row_ends = is_image.sum(1).cumsum()
    for row, end in enumerate(row_ends):
        if end not in image_ends:
            first = int((image_ends[1:] <= end - is_image[row].sum()).sum())
            following = before[first] if first < len(before) else 0
            raise ProbeError(
                "inputs",
                expected=f"placeholders of whole images ({following} of the next)",
                got=f"{is_image[row].sum()} in a row",
            )
    if row_ends[-1] < image_ends[-1]:
        complete = int((image_ends[1:] <= row_ends[-1]).sum())
        raise ProbeError(
            "inputs", expected=f"placeholders for {len(counts)} images", got=f"for {complete}"
        )
    of_images = []
    for count, wanted in counts:
        of_image = (np.arange(count) < wanted).astype(int)
        of_image[-1:] += max(wanted - count, 0)
        of_images.append(of_image)
    copies = np.ones(is_image.shape, dtype=int)
    copies[is_image] = np.concatenate([[], *of_images])  # row by row, image by image
    return copies


def _between_padding(real: Bool[np.ndarray, "row column"]) -> Bool[np.ndarray, "row column"]:
    """The columns from the first real token of each row to its last."""
    begun = np.logical_or.accumulate(real, axis=1)
    not_ended = np.logical_or.accumulate(real[:, ::-1], axis=1)[:, ::-1]
    return begun & not_ended


def _padded(columns: Sequence[Int[np.ndarray, "_"]], left: bool) -> Int[Tensor, "row column"]:
    """Rows of column numbers as one table, -1 where there is padding."""
    width = max(map(len, columns))
    missing = [np.full(width - len(row), -1) for row in columns]
    pairs = zip(missing, columns, strict=True) if left else zip(columns, missing, strict=True)
    return torch.from_numpy(np.stack([np.concatenate(pair) for pair in pairs]))
