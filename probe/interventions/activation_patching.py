"""Put the activations of another run into this one, at chosen layers, positions and sites.

    clean = subject.encode("street.jpg", question)
    blank = subject.encode(grey, question)
    with patch(subject.model, clean, 12, positions="vision", site="residual") as report:
        subject.model(**blank)              # reads the street's vision tokens from layer 12 on
    print(report)                           # patch: changed 1 of 1 calls in 1 layer, by at most 3.1

`source` are the inputs of the run whose activations are put in, position by position, so that both
have the same length. It runs once, on the untouched model, when the block is entered. Positions are
those of the source: tokens that are generated after them are not patched, but read what was.

Sites (`hooks/layer_sites.py`): "residual" is the output of a layer, "attention" what the attention
module adds to the residual stream, "mlp" what the MLP adds, "head" the parts of heads before the
output projection.

Source: "activation patching", Meng et al. 2022 (arXiv 2202.05262, causal tracing); on best practice
Zhang and Nanda 2024 (arXiv 2309.16042).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from threading import local
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from probe.errors import ProbeError, one_of, shown
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.layer_sites import SITES, add_site_hook, head_count, recorded, site_module
from probe.hooks.model_structure import vision_positions
from probe.hooks.tracked_sequence import ForwardTracker, TrackedSequence
from probe.interventions.edit_report import EditReport
from probe.interventions.head_ablation import Heads, heads_of
from probe.interventions.layer_target import PREFUSION, Layers, LayerTarget

POSITIONS = ("vision", "text", "last")
Positions = str | np.ndarray | Tensor  # one of these, or a mask over the positions of the source


@model_block
def patch(
    model: Any,
    source: Mapping[str, Any],
    layers: Layers,
    positions: Positions = "vision",
    site: str = "residual",
    heads: Heads | None = None,
    *,
    stack: str = "llm",
) -> Iterator[EditReport]:
    """Puts the source's activations into the forwards of a model or Subject while the block lasts,
    and gives a report of what was changed.

    Args:
        source: inputs (the mapping of `subject.encode`), of one row for all rows of the forward or
            of as many, with the same length, padding and places of vision tokens.
        layers: counted from 0.
        positions: "vision"; "text" (all others but padding); "last" (the prompt's last token); or a
            bool mask (position) or (row, position). No position is vision where words read the
            image by cross-attention.
        site: "residual", "attention", "mlp" or "head".
        heads: which heads, for site="head"; all by default.
        stack: "llm"; "cross", the blocks that read the image by cross-attention (Mllama, Idefics),
            by the LLM's layers that they belong to; or "prefusion", where the model runs from
            pixels.

    Raises ProbeError before anything runs for an unknown site or position, a layer or head outside,
    a compiled model and layers whose rows are removed; in the forward for inputs that do not fit
    the source; on exit where no call of one of the layers was reached.
    """
    target = LayerTarget.of("patch", model, layers, stack, reads_across="in both")
    columns = site_columns(target, site, heads)
    mask = _checked(positions)
    target.refuse_vision(positions, "'text', 'last' or a mask")
    report = EditReport.of("patch", target.layers)
    name = positions if isinstance(positions, str) else "a mask"
    with target.listed("patch", f"site={site}, positions={name}"), ExitStack() as undo:
        if target.layers:
            values = _Source(target, source, site)
            sequences = target.sequences(changes_vision=True)
            undo.enter_context(sequences.followed())
            calls = _Calls()
            add_hook(undo, target.model.register_forward_pre_hook, calls.restart)
            for layer in target.layers:
                edit = partial(
                    _patched, layer, values, sequences, calls, mask, columns[layer], report
                )
                add_site_hook(undo, "patch", target.stack, layer, site, edit)
        yield report
    report.require_calls(target.to_reach)


def site_columns(
    target: LayerTarget, site: str, heads: Heads | None
) -> dict[int, tuple[int, tuple[int, ...]] | None]:
    """For each layer: its number of heads and those that are meant, None where the whole width is.
    Raises ProbeError for a site that a layer has not, and for heads of another site.
    """
    one_of(target.called, "a site of", site, SITES)
    for layer in target.layers:
        site_module(target.called, target.stack, layer, site)
    if site == "head":
        return {layer: _heads_of_layer(target, layer, heads) for layer in target.layers}
    if heads is not None:
        raise ProbeError(
            target.called, expected="heads= with site='head' only", got=f"site={site!r}"
        )
    return dict.fromkeys(target.layers)


def _heads_of_layer(
    target: LayerTarget, layer: int, heads: Heads | None
) -> tuple[int, tuple[int, ...]]:
    name = target.stack.modules[layer]
    chosen = heads_of(target, layer, "all" if heads is None else heads)
    assert name is not None  # otherwise `heads_of` refused
    return head_count(target.called, target.stack.attention[name]), chosen


def _checked(positions: Positions) -> str | Bool[Tensor, "row position"]:
    """The name, or the mask with a row axis. Raises ProbeError for anything else."""
    if isinstance(positions, str):
        one_of("patch", "positions: a mask, or one of", positions, POSITIONS)
        return positions
    expected = "a bool mask (position) or (row, position) with at least one position"
    try:
        mask = torch.as_tensor(positions)
    except (TypeError, ValueError, RuntimeError):
        raise ProbeError("patch", expected=expected, got=shown(positions)) from None
    if mask.dtype != torch.bool or mask.ndim not in (1, 2) or not mask.any():
        raise ProbeError("patch", expected=expected, got=shown(positions))
    return mask if mask.ndim == 2 else mask[None]


class _Calls(local):
    """How many calls of each layer the forward of a thread has made. Each thread has its own."""

    def __init__(self):
        self.made: dict[int, int] = {}

    def restart(self, *hooked: Any) -> None:
        self.made = {}

    def next(self, layer: int) -> int:
        number = self.made.get(layer, 0)
        self.made[layer] = number + 1
        return number


class _Source:
    """The activations of the source's run, and where its vision tokens and padding are."""

    def __init__(self, target: LayerTarget, inputs: Mapping[str, Any], site: str):
        if not isinstance(inputs, Mapping) or not inputs:
            kind = type(inputs).__name__
            raise ProbeError(
                "patch",
                expected="a source's inputs",
                got=f"an empty {kind}" if isinstance(inputs, Mapping) else kind,
                fix="pass subject.encode(image, question)",
            )
        arguments = target.model, "patch", target.stack, target.layers, site, inputs
        self.values = recorded(*arguments)
        self.of_llm = target.stack.name != PREFUSION
        ids, real = inputs.get("input_ids"), inputs.get("attention_mask")
        self.vision = None if ids is None else vision_positions(target.model, ids)
        self.real = real.bool() if isinstance(real, Tensor) and real.ndim == 2 else None

    def call(self, layer: int, number: int, rows: int) -> Tensor:
        """What the source had in this call of a layer. Raises ProbeError where it made none, or had
        another number of rows (frames, in pre-fusion).
        """
        calls = self.values[layer]
        if number < len(calls) and rows % len(calls[number]) == 0:
            return calls[number]
        got = f"{rows} rows in call {number + 1} of layer {layer} (from 0), where it has "
        got += f"{len(calls[number])}" if number < len(calls) else "none"
        fix = "pass a source of one row, or of as many rows (and frames) as the inputs"
        raise ProbeError("patch", expected="inputs of as many rows as the source", got=got, fix=fix)

    def check(self, now: TrackedSequence, hidden: Tensor, length: int) -> None:
        """Raises ProbeError where a forward does not fit the source."""
        fed = now if now.fed is None else now.fed
        if hidden.shape[1] != now.length - now.past:
            got = f"{hidden.shape[1]} of {now.length - now.past} positions in this layer"
            fix = "leave the block that removes tokens"
            raise ProbeError("patch", expected="all positions", got=got, fix=fix)
        for mine, other, what in (
            (self.vision, fed.vision, "vision tokens in the same places"),
            (self.real, fed.real, "the same padding"),
        ):
            if mine is None or other is None:
                continue
            width = min(mine.shape[1], other.shape[1])
            same_rows = len(other) % len(mine) == 0
            if not same_rows or (_repeated(mine, len(other))[:, :width] != other[:, :width]).any():
                raise ProbeError(
                    "patch",
                    expected=f"inputs with {what} as the source",
                    got=f"{tuple(other.shape)} for a source of {tuple(mine.shape)}",
                    fix="take images of the same size, and questions of the same length",
                )
        if self.of_llm and length not in (now.length, now.prompt_length):
            raise ProbeError(
                "patch",
                expected=f"inputs of {length} tokens, as the source",
                got=str(now.length),
                fix="take a question of the same length",
            )


def _repeated(mask: Tensor, rows: int) -> Tensor:
    """For each sequence of a batch: beams of a row stand together."""
    return mask.repeat_interleave(rows // len(mask), 0)


def _patched(
    layer: int,
    source: _Source,
    sequences: ForwardTracker,
    calls: _Calls,
    positions: str | Tensor,
    columns: tuple[int, tuple[int, ...]] | None,
    report: EditReport,
    hidden: Tensor,
) -> Tensor | None:
    """A site's activations in one call, with those of the source at the chosen positions."""
    now, number = sequences.running(), calls.next(layer)
    if source.of_llm and now.past:
        return None  # a decoding step: its tokens are not the source's
    value = source.call(layer, number, len(hidden)).to(hidden)
    source.check(now, hidden, value.shape[1])
    more = hidden.shape[1] - value.shape[1]  # generated tokens, where each step runs all of them
    value = _repeated(pad(value, (0, 0, 0, more)), len(hidden))
    chosen = now.of_queries(_mask(positions, now))[..., None].to(hidden.device)
    changed = torch.where(chosen & column_mask(columns, hidden), value, hidden)
    report.note(layer, hidden, changed)
    return changed


def _mask(positions: str | Tensor, now: TrackedSequence) -> Bool[Tensor, "batch position"]:
    """The chosen positions of the running sequence."""
    fed = now if now.fed is None else now.fed
    length = fed.length
    if positions == "vision":
        return now.vision
    if isinstance(positions, Tensor):
        mask = pad(positions, (0, max(length - positions.shape[1], 0)))
        rows_fit = len(fed.vision) % len(mask) == 0
        if not rows_fit or positions.shape[1] not in (length, fed.prompt_length):
            expected = f"a mask of {len(fed.vision)} x {length}, as the inputs"
            got = f"{len(positions)} x {positions.shape[1]}"
            raise ProbeError("patch", expected=expected, got=got)
        return now.spread(_repeated(mask, len(fed.vision)).to(now.vision.device))
    place = torch.arange(length, device=fed.vision.device)
    if positions == "last":
        return now.spread(place == fed.end[:, None])
    text = ~fed.vision & (place < fed.prompt_length)
    if fed.real is not None:
        text[:, : fed.real.shape[1]] &= fed.real
    return now.spread(text)


def column_mask(columns: tuple[int, tuple[int, ...]] | None, activations: Tensor) -> Tensor:
    """Which of a site's width is meant: that of the chosen heads (`site_columns`), or all of it."""
    column = torch.arange(activations.shape[-1], device=activations.device)
    if columns is None:
        return torch.ones_like(column, dtype=torch.bool)
    count, heads = columns
    head = column // (len(column) // count)
    return torch.isin(head, torch.tensor(heads, device=activations.device))
