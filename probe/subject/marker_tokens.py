"""Vision tokens that show nothing of the image: the ends of rows, a begin, an end, separators.

Some models put them among an image's tokens under the same id (HunYuan-VL, Emu3, Unlimited-OCR),
and no setting says where. The model itself is asked, with images of noise: what the LLM is given at
a marker is the same whatever is shown. Where the tokens between markers are the rows of an image's
grid, each has its place.

    rows_between_markers(model, tensors, is_token, views)    # (2, [array([-1, 0, 1, -1, ...])])
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.block_threads import add_hook, only_this_thread, untouched
from probe.hooks.model_structure import text_decoder
from probe.hooks.stop_forward import StopForward
from probe.subject.measured_views import pixel_names
from probe.subject.views_from_places import View

DRAWS = 6  # of noise: words of a codebook may be the same by chance in some

CellOfToken = Int[np.ndarray, "_"]


def rows_between_markers(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    is_token: Bool[np.ndarray, " position"],
    views: Sequence[View],
) -> tuple[int, list[CellOfToken]] | None:
    """The side s of the cells of s x s patches that the tokens stand for, and of each image the
    cell of each of its tokens, counted row by row, -1 for a marker. None where an image has several
    views, or where the tokens between markers are not the rows of its cells, with a marker behind
    each.
    """
    starts = np.flatnonzero(np.diff(is_token, prepend=False) & is_token)
    if not views or [view.image for view in views] != list(range(len(starts))):
        return None
    is_marker = unchanged_tokens(model, tensors, is_token)
    if is_marker is None or not is_marker.any():
        return None
    image_of = np.searchsorted(starts, np.flatnonzero(is_token), side="right") - 1
    return rows_of(views, [is_marker[image_of == image] for image in range(len(views))])


def rows_of(
    views: Sequence[View], is_marker: Sequence[Bool[np.ndarray, "_"]]
) -> tuple[int, list[CellOfToken]] | None:
    """As `rows_between_markers`, where it is known which of each image's tokens are markers."""
    most = min(min(view.rows, view.columns) for view in views)
    for side in range(1, most + 1):
        pairs = zip(views, is_marker, strict=True)
        if all(_are_rows(view, side, markers) for view, markers in pairs):
            return side, [np.where(own, -1, np.cumsum(~own) - 1) for own in is_marker]
    return None


def _are_rows(view: View, side: int, is_marker: Bool[np.ndarray, " token"]) -> bool:
    """Whether the tokens between markers are as many as the cells in each row of a view, row by
    row, and a marker ends each row.
    """
    rows, columns = -(-view.rows // side), -(-view.columns // side)
    runs = [len(list(run)) for marks, run in groupby(is_marker.tolist()) if not marks]
    return runs == [columns] * rows and bool(is_marker[-1])


@only_this_thread()
@torch.no_grad()
def unchanged_tokens(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    is_token: Bool[np.ndarray, " position"],
    name: str | None = None,
    entries: Int[np.ndarray, " entry"] | None = None,
) -> Bool[np.ndarray, " token"] | None:
    """Which of the vision tokens are given to the LLM alike whatever noise is shown; `name`: in one
    tensor of pixels only; `entries`: in these of its patches, or planes. None where the model can't
    be asked: it holds no numbers, or its LLM gets more than embeddings.
    """
    if model.device.type == "meta":
        return None
    given: list[Tensor] = []

    def stop(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is not None and embeddings.shape[:2] == (1, len(is_token)):
            given.append(embeddings[0].cpu()[torch.from_numpy(is_token)])
        raise StopForward

    for draw in range(DRAWS):
        noise = torch.Generator().manual_seed(draw)
        shown = {
            key: value.to(model.device) if torch.is_tensor(value) else value
            for key, value in tensors.items()
        }
        for key in pixel_names(tensors):
            if name in (None, key):
                value = tensors[key]
                coarse = 3 * torch.randn(*value.shape[:-1], 1, generator=noise)
                drawn = (torch.randn(value.shape, generator=noise) + coarse).to(shown[key])
                shown[key] = drawn if entries is None else _put(shown[key], drawn, entries)
        with suppress(StopForward), ExitStack() as blocks:
            blocks.enter_context(untouched())
            before = text_decoder(model).register_forward_pre_hook
            add_hook(blocks, before, stop, with_kwargs=True, always=True)
            try:
                model(**shown)
            except (RuntimeError, ValueError, TypeError):  # as many tokens as it does not make
                return None
    if len(given) < DRAWS:
        return None
    return torch.stack([(other == given[0]).all(-1) for other in given[1:]]).all(0).numpy()


def _put(pixels: Tensor, drawn: Tensor, entries: Int[np.ndarray, " entry"]) -> Tensor:
    """Pixels with others in some of their patches, or planes."""
    is_plane = pixels.ndim >= 4 and pixels.shape[-3] in (1, 3)
    own = pixels.shape[-3:] if is_plane else pixels.shape[-1:]
    changed = pixels.reshape(-1, *own).clone()
    changed[torch.from_numpy(entries)] = drawn.reshape(-1, *own)[torch.from_numpy(entries)]
    return changed.view_as(pixels)
