"""A batch that goes unchanged into `model(**inputs)`, and what is known about each of its
positions.

Single rows come from `Subject.encode`; here they get their response and become a padded batch:

    inputs = collate([subject.encode(image, question) for question in questions], side="left")
    logits = subject.model(**inputs).logits
    inputs.types.mask("vision")          # (batch, token)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch.nn import functional

from probe.data.patch_grid import PatchGrid
from probe.data.token_types import PADDING, TokenTypes, stack
from probe.errors import ProbeError, shown
from probe.hooks.prompt_lengths import record_prompts
from probe.subject.joined_pixels import counted_on, holds_numbers, is_strip, joined

# Answers of several rows have lengths of their own
Ids = Sequence[SupportsIndex] | Int[np.ndarray, "_"] | Int[torch.Tensor, "_"]


@dataclass(frozen=True)
class TokenizerInfo:
    """What ids mean: the tokenizer, the ids that end an answer, the id that pads, those that stand
    for images and videos (the images' first), and how many ids the model embeds."""

    tokenizer: Any
    end_ids: tuple[int, ...]
    pad_id: int
    placeholder_ids: tuple[int, ...]
    size: int

    def words(self, ids: Any) -> str:
        """What ids say, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


# What `Inputs` has of each row, in lists
ROWS = ("grid", "encoder_grid", "merged_into", "images", "frames", "shown", "prompt", "response")


class Inputs(dict):
    """The tensors of `model(**inputs)`; the attributes have one entry for each row.

    types          TokenTypes of the whole batch
    grid           where each vision token of the row lies in its images
    encoder_grid   where each of the encoder's patches lies, in the order of `pixel_values`
    merged_into    the vision token that each of these patches went into, -1 for none; empty where
                   no reducer of the encoder's output is active
    images         the images (or frames) as they were opened, before any processing
    shown          how many of `images` each image is: 1, or the frames of a video, which is one
    frames         how many images the encoder gets of each: 1, or the frames of a video (or
                   groups of frames, where the model joins them)
    prompt         the text given to the tokenizer, one placeholder an image
    response       the words of the response, "" without a response
    tokens         each position's piece of text, "" for padding
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        *,
        types: TokenTypes,
        grid: list[PatchGrid],
        encoder_grid: list[PatchGrid],
        images: list[Sequence[Image.Image]],
        prompt: list[str],
        response: list[str],
        vocabulary: TokenizerInfo,
        frames: list[tuple[int, ...]] | None = None,
        shown: list[tuple[int, ...]] | None = None,
        merged_into: list[Int[np.ndarray, "_"]] | None = None,
    ):
        super().__init__(tensors)
        self.types = types
        self.grid = grid
        self.encoder_grid = encoder_grid
        self.images = images
        self.prompt = prompt
        self.response = response
        self.vocabulary = vocabulary
        self.shown = shown or [(1,) * len(own) for own in images]
        self.frames = frames or self.shown
        self.merged_into = merged_into or [np.zeros(0, np.int64)] * len(images)
        real = types.role != PADDING
        lengths = np.where(types.prompt_length > 0, types.prompt_length, real.sum(axis=1))
        lengths = [{int(length)} for length in lengths]
        record_prompts(tensors["input_ids"], torch.from_numpy(real), lengths)

    @cached_property
    def tokens(self) -> list[list[str]]:
        piece = cache(lambda id: self.vocabulary.tokenizer.decode([id]))
        rows = zip(self["input_ids"].tolist(), self.types.role.tolist(), strict=True)
        return [
            [piece(id) if role >= 0 else "" for id, role in zip(*row, strict=True)] for row in rows
        ]

    def vision_of(
        self,
        *,
        images: int | Iterable[int] | None = None,
        frames: int | Iterable[int] | None = None,
        seconds: tuple[float, float] | None = None,
        required: bool = True,
    ) -> Bool[np.ndarray, "batch token"]:
        """The positions of some vision tokens: of images (the frames of a video count as images one
        by one), of frames of the prompt's videos, or of the time from the first of `seconds` up to
        the second. Of several conditions all must hold. A token that shows several frames is one of
        each of them.

        Raises ProbeError where it is not known what tokens show; and where no token is left, unless
        `required` is False.
        """
        chosen = np.zeros_like(self.types.vision)
        for row, grid in enumerate(self.grid):
            positions = np.flatnonzero(self.types.vision[row])
            if len(positions) != len(grid):
                raise ProbeError("vision_of", expected="tokens of known images", got="others")
            inside = np.ones(len(grid), dtype=bool)
            if images is not None:
                inside &= np.isin(grid.image, _numbers(images))
            if frames is not None:
                inside &= grid.shows(_numbers(frames))
            if seconds is not None:
                inside &= (seconds[0] <= grid.time) & (grid.time < seconds[1])
            chosen[row, positions[inside]] = True
        if required and not chosen.any():
            raise ProbeError(
                "vision_of",
                expected=f"what tokens of the inputs show: {self._shown()}",
                got=f"images={images}, frames={frames}, seconds={seconds}, which no token shows",
            )
        return chosen

    def _shown(self) -> str:
        """What there is to choose from: "images 0 to 3, frames 0 to 3, up to 1.5 s"."""
        image = np.concatenate([grid.image for grid in self.grid])
        last_frame = np.concatenate([grid.last_frame for grid in self.grid])
        time = np.concatenate([grid.time for grid in self.grid])
        if not len(image):
            return "nothing"
        words = f"images 0 to {max(image.max(), last_frame.max())}"
        if last_frame.max() < 0:
            return f"{words}, no video"
        return f"{words}, frames 0 to {last_frame.max()}, up to {np.nanmax(time):g} s"

    def having(self, tensors: dict[str, torch.Tensor], **changed: Any) -> "Inputs":
        """A copy with other tensors and, where given, other attributes."""
        known = {name: value for name, value in vars(self).items() if name != "tokens"}
        return Inputs(tensors, **(known | changed))

    def to(self, device: torch.device | str) -> "Inputs":
        """A copy on another device."""
        moved = {
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in self.items()
        }
        return self.having(moved)

    def as_types(self, types: Any = "paper", turns: str = "last") -> "Inputs":
        """The same inputs with other token types (see `TokenTypes.as_types`)."""
        return self.having(dict(self), types=self.types.as_types(types, turns))


def _numbers(given: int | Iterable[int]) -> list[int]:
    """Raises ProbeError for fractions and a mask of booleans, which would count as numbers."""
    numbers = list(given) if isinstance(given, Iterable) else [given]
    for number in numbers:
        if not isinstance(number, int | np.integer) or isinstance(number, bool):
            expected = "whole numbers of images and frames, from 0"
            raise ProbeError("vision_of", expected=expected, got=shown(number))
    return numbers


def with_response(inputs: Inputs, ids: Ids) -> Inputs:
    """One row with a response appended, id by id as it was generated; end-of-turn tokens at its end
    are instruction. The words of the response are decoded from the ids.

    Raises ProbeError for anything but ids, and for ids that the model does not embed or that stand
    for images.
    """
    _one_row(inputs, "with_response")
    ids = _response_ids(ids, inputs.vocabulary).to(inputs["input_ids"].device)
    answer_length = len(ids)
    while answer_length and int(ids[answer_length - 1]) in inputs.vocabulary.end_ids:
        answer_length -= 1
    width = inputs["input_ids"].shape[1]
    tensors: dict[str, Any] = {
        name: _continued(name, tensor, len(ids), inputs)
        if _is_per_token(name, tensor, width)
        else tensor
        for name, tensor in inputs.items()
    }
    tensors["input_ids"] = torch.cat([inputs["input_ids"], ids[None]], dim=1)
    words = inputs.vocabulary.words(ids[:answer_length])
    return inputs.having(
        tensors,
        types=inputs.types.with_response(answer_length, len(ids) - answer_length),
        response=[" ".join(filter(None, [inputs.response[0], words]))],
    )


def _is_per_token(name: str, value: Any, width: int) -> bool:
    """Whether a tensor of the inputs says something of each token: all of the shape of `input_ids`
    but a question of its own (InstructBLIP's), and masks of tokens over images.
    """
    if not torch.is_tensor(value) or value.shape[:2] != (1, width):
        return False
    if name.startswith(("pixel", "qformer", "query")):
        return False
    return value.ndim == 2 or name.endswith("attention_mask")


def _continued(name: str, tensor: torch.Tensor, more: int, inputs: Inputs) -> torch.Tensor:
    """A tensor with an entry for each token, continued by those of a response, which is causal."""
    if tensor.ndim > 2:  # a response sees the images that the last word of the prompt sees
        of_last_word = tensor[:, -1:]
        of_response = of_last_word.expand(-1, more, *tensor.shape[2:])
        return torch.cat([tensor, of_response], 1)
    value = int(name == "attention_mask")
    if name == "token_type_ids":
        # 0 is a prefix that is read both ways where vision tokens have it, as in PaliGemma
        is_vision = torch.from_numpy(inputs.types.vision).to(tensor.device)
        has_vision = bool(is_vision.any())
        value = int(has_vision and not bool(tensor[is_vision].any()))
    return functional.pad(tensor, (0, more), value=value)


def _response_ids(ids: Ids, vocabulary: TokenizerInfo) -> Int[torch.Tensor, "token"]:
    expected = "response ids (whole numbers, one after the other)"
    try:
        found = ids if isinstance(ids, torch.Tensor) else torch.as_tensor(np.asarray(ids))
    except (
        TypeError,
        ValueError,
        OverflowError,
    ):  # words, lists of unequal length, numbers beyond 64 bits
        raise ProbeError("response", expected=expected, got=repr(ids)[:60]) from None
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.ndim == 0 or (found.numel() and not whole):
        raise ProbeError("response", expected=expected, got=repr(ids)[:60])
    found = found.to(torch.long).reshape(-1)
    placeholders = torch.tensor(vocabulary.placeholder_ids, device=found.device)
    is_placeholder = torch.isin(found, placeholders)
    outside = found[(found < 0) | (found >= vocabulary.size) | is_placeholder].tolist()
    if outside:
        kind = dict(zip(vocabulary.placeholder_ids, ("image", "video"), strict=False))
        expected = f"ids from 0 to {vocabulary.size - 1}"
        if outside[0] in kind:
            expected = f"ids without the {kind[outside[0]]} token"
        raise ProbeError("response", expected=expected, got=str(outside[0]))
    return found


def collate(rows: Sequence[Inputs], side: Literal["left", "right"] = "left") -> Inputs:
    """Single rows as one batch, padded on one side. Generating needs the left one.

    What is known of each position stays exact; images with fewer tiles are padded with empty ones,
    as the processors do.
    """
    for row in rows:
        _one_row(row, "collate")
    first = rows[0]
    widths = [row["input_ids"].shape[1] for row in rows]
    tensors = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        with_width = zip(rows, widths, strict=True)
        parts = [(row[name], width) for row, width in with_width if name in row]
        if _is_per_token(name, *parts[0]):
            fill = first.vocabulary.pad_id if name == "input_ids" else 0
            wide = [_widened(part, max(widths), fill, side) for part, _ in parts]
            tensors[name] = torch.cat(wide) if wide[0].ndim == 2 else joined(wide)
        elif not torch.is_tensor(parts[0][0]):
            tensors[name] = [item for part, _ in parts for item in part]
        elif any(is_strip(row, name) for row in rows if name in row):
            tensors[name] = torch.cat([part for part, _ in parts], -1)
        else:
            is_number = name.endswith("position_ids") or holds_numbers(name)
            own = counted_on([row for row in rows if name in row], name)
            tensors[name] = joined(own, -1 if is_number else 0)
    return Inputs(
        tensors,
        types=stack([row.types for row in rows], side),
        vocabulary=first.vocabulary,
        **{name: [getattr(row, name)[0] for row in rows] for name in ROWS},
    )


def _one_row(inputs: Inputs, called: str) -> None:
    if len(inputs.prompt) != 1:
        raise ProbeError(called, expected="inputs of one row", got=f"{len(inputs.prompt)} rows")


def _widened(row: torch.Tensor, width: int, fill: int, side: str) -> torch.Tensor:
    missing = width - row.shape[1]
    edges = (missing, 0) if side == "left" else (0, missing)
    return functional.pad(row, (0, 0) * (row.ndim - 2) + edges, value=fill)


def at_positions(inputs: Inputs, positions: Int[np.ndarray, " chosen"]) -> Inputs:
    """One row at some of its positions; what is not one value a token stays as it is."""
    ids = inputs["input_ids"]
    width = ids.shape[1]
    if np.array_equal(positions, np.arange(width)):
        return inputs
    chosen = torch.from_numpy(positions).to(ids.device)
    tensors = dict(inputs)
    for name, tensor in inputs.items():
        if tensor.shape == (1, width):
            tensors[name] = tensor[:, chosen]
    return inputs.having(tensors, types=_types_at(inputs.types, positions[None]))


def collate_after(rows: Sequence[Inputs], shared: int) -> Inputs:
    """Single rows whose first `shared` tokens are equal as one batch, padded after these tokens.
    Only tensors with one value a token are in it: images belong to what is shared.
    """
    batch = collate([without_images(row) for row in rows], side="left")
    width = batch["input_ids"].shape[1]
    order = []
    for row in rows:
        padding = width - row["input_ids"].shape[1]
        first = np.arange(padding, padding + shared)
        after = np.arange(padding + shared, width)
        order.append(np.concatenate([first, np.arange(padding), after]))
    positions = np.stack(order)
    index = torch.from_numpy(positions).to(batch["input_ids"].device)
    tensors = {name: tensor.gather(1, index) for name, tensor in batch.items()}
    return batch.having(tensors, types=_types_at(batch.types, positions))


def without_images(inputs: Inputs) -> Inputs:
    """One row with only those of its tensors that have one value a token."""
    shape = inputs["input_ids"].shape
    return inputs.having({name: tensor for name, tensor in inputs.items() if tensor.shape == shape})


def _types_at(types: TokenTypes, positions: Int[np.ndarray, "batch chosen"]) -> TokenTypes:
    arrays = {name: getattr(types, name) for name in ("ids", "vision", "role", "turn")}
    return replace(
        types, **{name: np.take_along_axis(a, positions, 1) for name, a in arrays.items()}
    )
