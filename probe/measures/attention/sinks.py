"""Attention sinks: tokens that receive attention whatever they show.

A token is a sink of a layer where both conditions hold (the first token of nearly every model, and
some vision tokens):

    1. outlying norm        the hidden state that enters the layer has at least 8 times the median
                            norm of all queries (the last token of an answer is none)
    2. draws attention      it receives at least 4 times an even spread (mean over heads and over
                            the queries that see it)

The outlying norm is the massive activation that characterises sinks; attention alone would also
select tokens that the model reads. A token is a sink if it is one in any layer.

    found = find_sinks(subject, "street.jpg", "what is on the left ?")
    found["sink"]                  # (layer, row)
    found["row_text"][found["sink"].any("layer")]

Source: arXiv 2503.03321 (visual attention sinks; there defined by the activation of a few
dimensions, found from the first token, above 20 times the token's root mean square) and
arXiv 2402.17762 (massive activations). The two thresholds here are ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe.data.image import ImageSource
from probe.data.token_types import PADDING
from probe.hooks.attention_tap import tap
from probe.hooks.block_threads import add_hook, model_block, only_this_thread
from probe.hooks.finite_states import finite_states
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import LayerStack, stacks
from probe.measures.attention.stack_queries import StackStatistic
from probe.measures.attention.statistic import AttentionStatistic
from probe.measures.attention.type_sums import divide
from probe.records.provenance import provenance
from probe.records.schema import Variable, dataset
from probe.subject.inputs import Ids, Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

NORM = 8.0  # times the median norm of the tokens
ATTENTION = 4.0  # times an even spread
RULE = f"norm ≥ {NORM:g} x the median, attention received ≥ {ATTENTION:g} x an even spread"
SCHEMA = {
    "sink": Variable("layer row", "yes or no", "whether the token is a sink", dtype="bool"),
    "norm": Variable("layer row", "ratio", "norm of the hidden state ÷ the median of all tokens"),
    "drawn": Variable("layer row", "ratio", "attention received ÷ an even spread"),
    "row_text": Variable("row", "text", "token", dtype="object"),
    "row_type": Variable("row", "text", "type of the token", dtype="object"),
    "row_key": Variable("row", "index", "vision key of the token, -1 for text", dtype="int64"),
}

SINK = "sink"  # the token type of sinks that are counted apart
SINK_MODES = ("keep", "drop", "split")
PerLayer = Float[np.ndarray, "batch layer token"]
Norms = Float[Tensor, "_batch _present"]  # of one forward


@only_this_thread()
def find_sinks(
    subject: Subject,
    image: ImageSource | Sequence[ImageSource] | Inputs | None,
    question: Any = None,
    response: str | Ids | None = None,
    *,
    max_new_tokens: int = 32,
) -> xr.Dataset:
    """The sinks among the tokens of prompt and answer, by the rule above.

    Returns a dataset: sink, norm and drawn (layer, row), where a row is a position of the sequence;
    row_text, row_type and row_key (row). Raises ProbeError as `TargetResponse.of` does.
    """
    answer = TargetResponse.of(subject, image, question, response, max_new_tokens=max_new_tokens)
    inputs, types = answer.inputs, answer.inputs.types
    norm, attraction = norms_and_attention(subject, inputs)
    vision = types.vision[0]
    values = {
        "sink": is_sink(norm, attraction)[0],
        "norm": norm[0],
        "drawn": attraction[0],
        "row_text": inputs.tokens[0],
        "row_type": [types.names[i] for i in types.ids[0]],
        "row_key": np.where(vision, np.cumsum(vision) - 1, -1),
    }
    attrs = provenance(
        subject,
        kind="sinks",
        rule=RULE,
        prompt=inputs.prompt[0],
        response=inputs.response[0],
        intervention=active_interventions(subject.model),
    )
    return dataset("find_sinks", values, SCHEMA, attrs=attrs)


def is_sink(
    norm: Float[np.ndarray, "*axes token"], attraction: Float[np.ndarray, "*axes token"]
) -> Bool[np.ndarray, "*axes token"]:
    """The rule. NaN (padding) is not a sink."""
    return (norm >= NORM) & (attraction >= ATTENTION)


@only_this_thread()
@torch.no_grad()
def norms_and_attention(subject: Subject, inputs: Inputs) -> tuple[PerLayer, PerLayer]:
    """Norm ÷ median norm of each token that enters a layer, and the attention it receives there ÷
    an even spread.

    NaN for padding, and the norm of tokens in layers that run without some (removed ones).
    """
    stack, is_real = stacks(subject.model)["llm"], inputs.types.role != PADDING
    ids = np.where(is_real, 0, PADDING)
    statistic = AttentionStatistic(("token",), ids, ids, is_real)
    with (
        layer_norms(stack) as pieces,
        tap(stack.attention, statistic),
        finite_states("find_sinks", subject.model, ["llm"]),
    ):
        subject.model(**inputs, use_cache=False)
    norms = relative_norms(pieces, is_real, inputs.types.is_query)
    attraction = np.full((len(is_real), len(stack.layers), is_real.shape[1]), np.nan, np.float32)
    for row, real in enumerate(is_real):
        even = even_spread(real[real])
        for layer, name in enumerate(stack.modules):
            if name is None:
                continue
            attraction[row, layer, real] = statistic.table(name, [row])["received"][0] / even
    return norms, attraction


@model_block
def layer_norms(stack: LayerStack) -> Iterator[dict[int, list[Norms]]]:
    """{layer, from 0: norms of the hidden states that enter it, one tensor a forward}, filled by
    the forwards that run in the block.
    """
    pieces: dict[int, list[Norms]] = {layer: [] for layer in range(len(stack.layers))}

    def keep_norm(layer: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = hidden_states(args, kwargs)
        dims = (*_stream_axis(hidden, kwargs), -1)
        pieces[layer].append(torch.linalg.vector_norm(hidden.detach().float(), dim=dims))

    with ExitStack() as hooks:
        for number, layer in enumerate(stack.layers):
            register = layer.register_forward_pre_hook
            add_hook(hooks, register, partial(keep_norm, number), with_kwargs=True)
        yield pieces


def _stream_axis(hidden: Tensor, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The axis that counts the streams of a token, where layers are given several side by side: the
    first (Gemma 3n), else the one behind the positions (hyper-connections). None for one stream.
    """
    if hidden.ndim < 4:
        return ()
    ids = kwargs.get("position_ids")
    batch, length = (0, 0) if ids is None else (ids.shape[0], ids.shape[-1])
    is_first = hidden.shape[2] == length and hidden.shape[:2] != (batch, length)
    return (0,) if is_first else (2,)


def relative_norms(
    pieces: Mapping[int, Sequence[Norms]],
    is_real: Bool[np.ndarray, "batch token"],
    is_query: Bool[np.ndarray, "batch token"],
) -> PerLayer:
    """Norms ÷ the median norm of the queries of their sequence. NaN for padding, and throughout a
    layer that ran without some tokens.

    `pieces`: as `layer_norms` gives them, those of consecutive forwards one after the other.
    """
    relative = np.full((len(is_real), len(pieces), is_real.shape[1]), np.nan, np.float32)
    of_layers = {layer: torch.cat([*parts], 1) for layer, parts in sorted(pieces.items()) if parts}
    whole = {
        layer: norms.cpu() for layer, norms in of_layers.items() if norms.shape == is_real.shape
    }
    if not whole:
        return relative
    norms = torch.stack([*whole.values()]).numpy()  # (layer, batch, token)
    for row, (real, queries) in enumerate(zip(is_real, is_query, strict=True)):
        median = np.median(norms[:, row, queries], 1, keepdims=True) if queries.any() else np.nan
        of_row = norms[:, row] / np.maximum(median, 1e-30)
        relative[row, [*whole]] = np.where(real, of_row, np.nan)
    return relative


def even_spread(is_query: Bool[np.ndarray, "token"]) -> Float[np.ndarray, "token"]:
    """What each token of a causal sequence would receive, in the mean over the queries that see it,
    if every query spread its attention evenly over what it sees.

    Query i (from 0) sees i + 1 keys, so key j receives the mean of 1 / (i + 1) over the queries
    i ≥ j.
    """
    weight = is_query / np.arange(1, len(is_query) + 1)
    received = np.cumsum(weight[::-1])[::-1]  # sum over the queries from each position on
    queries = np.cumsum(is_query[::-1])[::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return received / queries


def key_sinks(
    stack_statistic: StackStatistic,
    stack: LayerStack,
    norms: PerLayer,
    inputs: Inputs,
    row: int,
) -> Float[np.ndarray, "layer key"]:
    """1 for the vision keys of a row that are sinks of the layer, else 0: computed from a
    measurement's own statistic and `relative_norms`.
    """
    statistic = stack_statistic.statistic
    is_real = inputs.types.role[row] != PADDING
    vision = inputs.types.vision[row][is_real]
    even = even_spread(statistic.query_ids[row][is_real] >= 0)[vision]
    marked = np.zeros((len(stack.layers), vision.sum()), np.float32)
    for layer, name in enumerate(stack.modules):
        if name is None:
            continue
        sums = statistic.sums(name)[row]
        received = divide(sums["received"].sum(0), sums["received_count"].sum(0))
        marked[layer] = is_sink(norms[row, layer, is_real][vision], received / even)
    return marked


def with_sink_type(subject: Subject, inputs: Inputs) -> Inputs:
    """One row whose sinks (in any layer) have the type "sink", whatever their type was."""
    sinks, types = is_sink(*norms_and_attention(subject, inputs)).any(1), inputs.types
    shifted = np.where(types.ids == PADDING, PADDING, types.ids + 1)
    ids = np.where(sinks, 0, shifted)
    return inputs.having(dict(inputs), types=replace(types, names=(SINK, *types.names), ids=ids))


def hide_sink_type(stack_statistic: StackStatistic) -> StackStatistic:
    """The same statistic, from which the type "sink" is not read."""
    query_types = tuple(name for name in stack_statistic.query_types if name != SINK)
    key_types = tuple(name for name in stack_statistic.key_types if name != SINK)
    return replace(stack_statistic, query_types=query_types, key_types=key_types)
