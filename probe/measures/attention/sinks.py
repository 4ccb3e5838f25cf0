"""Attention sinks: rows that get attention for what they are, not for what they show.

The rule, for a row and a layer (the first token of nearly every model, and some vision tokens,
satisfy it):

    1. its norm is outlying     the hidden state that enters the layer has at least 8 times the median norm of all rows
    2. it draws attention       it receives at least 4 times an even spread, mean over heads and the queries that see it

The outlying norm is the massive activation that sinks are made of; attention alone would also find
what is truly looked at. A token is a sink where both hold in any layer.

    found = find_sinks(subject, "street.jpg", "what is on the left ?")
    found["sink"]                  # (layer, row)
    found["row_text"][found["sink"].any("layer")]

Source: arXiv 2503.03321 (visual attention sinks; there by the activation of a few dimensions that
are found from the first token, above 20 times the row's root mean square) and arXiv 2402.17762
(massive activations). The two numbers here are ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe import __version__
from probe.data.image import ImageSource
from probe.data.token_types import PADDING
from probe.hooks.attention_tap import tap
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import LayerStack, stacks
from probe.measures.attention.stack_queries import StackStatistic
from probe.measures.attention.statistic import AttentionStatistic
from probe.subject.inputs import Ids, Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

NORM = 8.0  # times the median norm of the rows
ATTENTION = 4.0  # times an even spread
RULE = f"norm ≥ {NORM:g} x the median, attention received ≥ {ATTENTION:g} x an even spread"
UNITS = {
    "sink": ("whether the row is a sink of the layer", "yes or no"),
    "norm": ("norm of the row ÷ the median of all rows", "ratio"),
    "drawn": ("attention received ÷ an even spread", "ratio"),
    "row_text": ("token of the row", "text"),
    "row_type": ("type of the row", "text"),
    "row_key": ("vision key of the row, -1 for text", "index"),
}

SINK = "sink"  # the type of sinks that are set apart
HANDLED = ("keep", "drop", "split")
Numbers = Float[np.ndarray, "batch layer token"]


def find_sinks(
    subject: Subject,
    image: ImageSource | Sequence[ImageSource] | Inputs | None,
    question: Any = None,
    response: str | Ids | None = None,
    *,
    max_new_tokens: int = 32,
) -> xr.Dataset:
    """The sinks among prompt and answer, by the rule above: sink, norm, drawn (layer, row). Raises
    as `Answer.of`.
    """
    answer = TargetResponse.of(subject, image, question, response, max_new_tokens=max_new_tokens)
    types = answer.inputs.types
    norm, drawn = norms_and_attention(subject, answer.inputs)
    vision = types.vision[0]
    values = {
        "sink": (("layer", "row"), is_sink(norm, drawn)[0]),
        "norm": (("layer", "row"), norm[0]),
        "drawn": (("layer", "row"), drawn[0]),
        "row_text": (("row",), np.array(answer.inputs.tokens[0], object)),
        "row_type": (("row",), np.array([types.names[i] for i in types.ids[0]], object)),
        "row_key": (("row",), np.where(vision, np.cumsum(vision) - 1, -1)),
    }
    attrs = subject.provenance() | {
        "kind": "sinks",
        "probe_version": __version__,
        "rule": RULE,
        "prompt": answer.inputs.prompt[0],
        "response": answer.inputs.response[0],
        "intervention": active_interventions(subject.model),
    }
    variables = {
        name: xr.Variable(dims, array, dict(zip(("long_name", "units"), UNITS[name], strict=True)))
        for name, (dims, array) in values.items()
    }
    return xr.Dataset(variables, {"layer": np.arange(norm.shape[1])}, attrs)


def is_sink(
    norm: Float[np.ndarray, "*axes token"], drawn: Float[np.ndarray, "*axes token"]
) -> Bool[np.ndarray, "*axes token"]:
    """The rule. NaN (padding) is none."""
    return (norm >= NORM) & (drawn >= ATTENTION)


@torch.no_grad()
def norms_and_attention(subject: Subject, inputs: Inputs) -> tuple[Numbers, Numbers]:
    """Norm ÷ median norm, and attention received ÷ an even spread, of every row before and in every
    layer.

    Rows that a layer runs without (removed, or padding) are NaN.
    """
    stack, real = stacks(subject.model)["llm"], inputs.types.role >= 0
    everything = np.where(real, 0, -1)
    statistic = AttentionStatistic(("row",), everything, everything, real)
    with norms_watched(stack, real) as norms, tap(stack.attention, statistic):
        subject.model(**inputs, use_cache=False)
    drawn = np.full((len(real), len(stack.layers), real.shape[1]), np.nan, np.float32)
    for row, there in enumerate(real):
        for layer, name in enumerate(stack.attention):
            drawn[row, layer, there] = statistic.table(name, [row])["received"][0] / even_spread(
                there[there]
            )
    return np.stack([norms[layer] for layer in sorted(norms)], 1), drawn


@contextmanager
def norms_watched(
    stack: LayerStack, real: Bool[np.ndarray, "batch token"]
) -> Iterator[dict[int, np.ndarray]]:
    """{layer: norm of each row ÷ the median of its sequence} of the forward that runs in the
    block.
    """
    norms: dict[int, np.ndarray] = {}

    def measure(layer: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        norms[layer] = _relative(args[0] if args else kwargs["hidden_states"], real)

    with ExitStack() as hooks:
        for number, layer in enumerate(stack.layers):
            hook = layer.register_forward_pre_hook(partial(measure, number), with_kwargs=True)
            hooks.callback(hook.remove)
        yield norms


def _relative(
    hidden: Float[Tensor, "batch present width"], real: Bool[np.ndarray, "batch token"]
) -> Float[np.ndarray, "batch token"]:
    if hidden.shape[1] != real.shape[1]:
        return np.full(real.shape, np.nan, np.float32)
    norm = hidden.detach().float().norm(dim=-1).cpu().numpy()
    norm[~real] = np.nan
    return norm / np.maximum(np.nanmedian(norm, 1, keepdims=True), 1e-30)


def even_spread(asked: Bool[np.ndarray, "token"]) -> Float[np.ndarray, "token"]:
    """What each token would receive if the queries that are `asked` spread themselves evenly over
    what they see.
    """
    share = asked / np.arange(1, len(asked) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.cumsum(share[::-1])[::-1] / np.cumsum(asked[::-1])[::-1]


def key_sinks(
    counting: StackStatistic,
    stack: LayerStack,
    norms: Mapping[int, np.ndarray],
    inputs: Inputs,
    row: int,
) -> Float[np.ndarray, "layer key"]:
    """1 for the vision keys of a row that are a sink of the layer, else 0: from what a measurement
    has counted.
    """
    real, statistic = inputs.types.role[row] >= 0, counting.statistic
    vision = inputs.types.vision[row][real]
    even = even_spread(statistic.query_ids[row][real] >= 0)[vision]
    found = []
    for layer, name in enumerate(stack.attention):
        sums = statistic.sums(name)[row]
        with np.errstate(invalid="ignore", divide="ignore"):
            received = sums["received"].sum(0) / sums["received_count"].sum(0)
        found.append(is_sink(norms[layer][row][real][vision], received / even))
    return np.stack(found).astype(np.float32)


def set_apart(subject: Subject, inputs: Inputs) -> Inputs:
    """One row whose sinks (in any layer) are a type of their own, whatever they are otherwise."""
    sinks, types = is_sink(*norms_and_attention(subject, inputs)).any(1), inputs.types
    ids = np.where(types.ids == PADDING, PADDING, types.ids + 1)
    return inputs.having(
        dict(inputs), types=replace(types, names=(SINK, *types.names), ids=np.where(sinks, 0, ids))
    )


def left_out(counting: StackStatistic) -> StackStatistic:
    """The same counts, of which the sinks that were set apart are not told."""
    queries, keys = (
        tuple(name for name in names if name != SINK)
        for names in (counting.query_types, counting.key_types)
    )
    return replace(counting, query_types=queries, key_types=keys)
