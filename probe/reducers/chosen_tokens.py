"""What a reducer leaves of the images in one call of an encoder, in the order of the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.encoder_reducer import EncoderReducer
from probe.reducers.tile_order import prompt_order, source_patches, token_of_patches


@dataclass
class EncoderCall:
    """One forward of an encoder, from its end until its tokens are reduced.

    output: what the encoder returned. `full`, `left`, `patches` and `tokens_of_patches` are set on
    it: of each image the number of unreduced tokens, of tokens that are left, the patches that
    these stand for, and the token that each patch went into.
    tokens: how many of each view the projector was given.
    chosen: what is left of each image, once it is known.
    """

    output: Any
    encoder_output: EncoderOutput
    tokens: int = 0
    chosen: "ChosenTokens | None" = None


@dataclass(frozen=True)
class ChosenTokens:
    """The tokens that are left of some images, in the order of the prompt.

    tokens: of all images; what the projector gets, or what it made (`is_projected`).
    counts: how many of them each image has.
    sources: the patch that each token of an image stands for.
    tokens_of_patches: the token that each patch of an image went into; -1 where it was discarded.
    images: the number of views of each, and which feature each unreduced token is (-1: a newline).
    fewest: tokens that any view is left with.
    """

    tokens: Tensor
    counts: Sequence[int]
    sources: list[Tensor]
    tokens_of_patches: list[Tensor]
    images: Sequence[tuple[int, Int[Tensor, "_"]]]
    fewest: int
    is_projected: bool


def choose(
    reducer: EncoderReducer, call: EncoderCall, images: Sequence[tuple[int, Int[Tensor, "_"]]]
) -> ChosenTokens:
    """What the reducer leaves of each image. `images`: as in `ChosenTokens`."""
    kept = []
    sources = []
    into = []
    start = 0
    is_projected = False
    fewest = call.encoder_output.full_patches
    for views, indices in images:
        reduction = reducer.reduce(call.encoder_output.of_views(start, start + views))
        start += views
        is_projected = reduction.is_projected
        fewest = min(fewest, *reduction.count)
        across = 1 if views == 1 else _tiles_across(indices[call.tokens :], call.tokens)
        order = prompt_order(reduction, across)
        kept.append(reduction.tokens.flatten(0, 1)[order])
        sources.append(source_patches(reduction, order))
        into.append(token_of_patches(reduction, order))
    counts = [len(each) for each in kept]
    return ChosenTokens(torch.cat(kept), counts, sources, into, images, fewest, is_projected)


def _tiles_across(indices: Int[Tensor, " packed"], tokens: int) -> int:
    """Tiles in a row: the view that the last patch before the first newline belongs to."""
    row_end = int((indices < 0).long().argmax())
    return int(indices[row_end - 1]) // tokens
