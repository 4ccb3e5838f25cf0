"""The LLM from one layer on, for many cases at once: an edit in layer l leaves all that comes
before it alone.

One pass of the untouched model records the input of every layer, and the keys and values of every
attention call (`record`). A case then costs its layers after the edit only (`resume`): in the
edited layer the module is called once for all cases, and its output becomes a row for each of them
where the edit is made. Layers, norms and kernels are the model's own; what precedes the rows that
run is attended to as a second part of the softmax (`subject/prefix_attention.py`).

    rows = record(model, stack, prompt, 0, len(prompt.ids))          # a pass over all positions
    hidden = resume(model, stack, rows, 3, "head", expand)           # (case, position, width)
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.layer_arguments import hidden_states, without_cache
from probe.hooks.layer_sites import add_site_hook
from probe.hooks.model_structure import LayerStack, last_norm, text_decoder
from probe.hooks.stop_forward import StopForward
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix, check_window
from probe.subject.prefix_attention import KeyValue, attend, merged, over_shared

Keys = Mapping[str, KeyValue]  # by attention module: (key_head, key, dim), or (row, key_head, ...)
Expand = Callable[[Tensor], Tensor]  # (1, position, width) of a site -> (case, position, width)
Around = Callable[[AttentionCall, Kernel, Callable[..., Tensor]], Tensor]


@dataclass(frozen=True)
class RecordedRows:
    """The rows of one prompt from position `start` on, in one pass of the untouched model.

    inputs   of each layer, and the output of the last one: (1, position, width)
    options  the other arguments of each layer
    keys     of these rows, by attention module: (key_head, position, dim)
    before   keys and values of the positions before them; none where `start` is 0
    sites    activations of sites that were asked for, by layer
    """

    start: int
    inputs: tuple[Float[Tensor, "1 position width"], ...]
    options: tuple[dict[str, Any], ...]
    keys: dict[str, KeyValue]
    before: Keys
    sites: dict[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.inputs[0].shape[1]


@only_this_thread()
@torch.no_grad()
def record(
    model: PreTrainedModel,
    stack: LayerStack,
    prompt: EmbeddedPrompt,
    start: int,
    stop: int,
    before: Keys | None = None,
    site: str = "",
) -> RecordedRows:
    """One pass over the positions from `start` to `stop` of a prompt. `before`: keys and values of
    the positions before `start`. `site`: whose activations are kept, none by default.
    """
    before = before or {}
    given: list[tuple[Tensor, dict]] = []
    last: list[Tensor] = []
    keys: dict[str, KeyValue] = {}
    sites: dict[int, Tensor] = {}

    def keep_input(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        options = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        given.append((hidden_states(args, kwargs), without_cache(options)))

    def keep_output(layer: nn.Module, args: tuple, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        keys[call.name] = call.key[0], call.value[0]
        return attention_after(call, kernel, before.get(call.name), len(prompt.ids)), None

    with ExitStack() as undo:
        for number, layer in enumerate(stack.layers):
            add_hook(undo, layer.register_forward_pre_hook, keep_input, with_kwargs=True)
            if site and site != "residual":
                keep = partial(_keep, sites, number)
                add_site_hook(undo, "record", stack, number, site, keep)
        add_hook(undo, stack.layers[-1].register_forward_hook, keep_output)
        undo.enter_context(routed(stack.attention, around))
        text_decoder(model)(
            inputs_embeds=prompt.embeddings[:, start:stop],
            position_ids=prompt.positions[..., start:stop],
            use_cache=False,
        )
    inputs = (*(hidden for hidden, _ in given), last[0])
    options = tuple(options for _, options in given)
    if site == "residual":
        sites = dict(enumerate(inputs[1:]))
    return RecordedRows(start, inputs, options, keys, before, sites)


def _keep(sites: dict[int, Tensor], layer: int, activations: Tensor) -> None:
    sites[layer] = activations


@only_this_thread()
@torch.no_grad()
def resume(
    model: PreTrainedModel,
    stack: LayerStack,
    rows: RecordedRows,
    layer: int,
    site: str,
    expand: Expand,
    *,
    first: int = 0,
    before: Keys | None = None,
    around: Around | None = None,
    keys: dict[str, KeyValue] | None = None,
) -> Float[Tensor, "case position width"] | None:
    """The last layer's output for cases that differ from the recorded rows in one site of `layer`.

    Args:
        expand: the site's activations of all cases, from those of the recorded rows.
        first: the first of the recorded rows that runs; earlier ones are as they were recorded.
        before: keys and values before the rows in layers after `layer`; by default those that the
            rows were recorded with.
        around: makes the attention of the edited layer: `around(call, kernel, attention)`, where
            `attention(query)` is what the layer's heads have read.
        keys: is given the keys and values of the cases' rows in each layer after `layer`; the last
            layer then ends with its attention call, and nothing is returned.
    """
    edited = layer + 1 if site == "residual" else layer
    hidden = rows.inputs[edited][:, first:]
    if site == "residual":
        hidden = expand(hidden)
    names = [name for name in stack.modules[edited:] if name is not None]

    def attention(call: AttentionCall, kernel: Kernel) -> Output:
        number = stack.modules.index(call.name)
        earlier = rows.before if before is None or number <= layer else before
        part = _joined(earlier.get(call.name), rows.keys[call.name], first)
        if keys is not None and number > layer:
            keys[call.name] = call.key, call.value
            if call.name == names[-1]:
                raise StopForward
        length = rows.start + rows.length

        def of_query(query: Tensor | None = None) -> Tensor:
            asked = call if query is None else replace(call, query=query)
            return attention_after(asked, kernel, part, length)

        if around is not None and number == layer:
            return around(call, kernel, of_query), None
        return of_query(), None

    with suppress(StopForward), ExitStack() as undo:
        if site != "residual":
            add_site_hook(undo, "resume", stack, layer, site, expand)
        undo.enter_context(routed(stack.attention_of(range(edited, len(stack.layers))), attention))
        for number in range(edited, len(stack.layers)):
            options = _later_rows(rows.options[number], rows.length, first)
            output = stack.layers[number](hidden, **options)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden
    return None


def attention_after(
    call: AttentionCall, kernel: Kernel, before: KeyValue | None, length: int
) -> Float[Tensor, "row query head dim"]:
    """The output of an attention call whose rows follow these keys and values: of all rows, or of
    each. Without any it is the kernel's own.
    """
    if before is None or not before[0].shape[-2]:
        return kernel(call)[0]
    check_window(call, length)
    tokens = call.query_count
    ones = torch.ones(tokens, call.key_count, dtype=torch.bool, device=call.key.device)
    visible = ones.tril(call.key_count - tokens)
    own = attend(call.query, call.key, call.value, call.scaling, visible)
    output = merged(over_before(call, before), own)
    return output.to(call.query.dtype).transpose(1, 2).contiguous()


def over_before(call: AttentionCall, before: KeyValue) -> tuple[Tensor, Tensor]:
    """The queries over keys and values before them: of all rows, or of each."""
    key, value = before
    if key.ndim == 3:
        return over_shared(call.query, key, value, call.scaling)
    return attend(call.query, key, value, call.scaling)


def _joined(before: KeyValue | None, own: KeyValue, first: int) -> KeyValue | None:
    """Keys and values before the rows, with those of the first recorded rows."""
    if not first:
        return before
    earlier = own[0][:, :first], own[1][:, :first]
    if before is None or not before[0].shape[-2]:
        return earlier
    return torch.cat([before[0], earlier[0]], 1), torch.cat([before[1], earlier[1]], 1)


def _later_rows(options: dict[str, Any], length: int, first: int) -> dict[str, Any]:
    """A layer's arguments for its rows from `first` on: positions and rotary embeddings."""
    if not first:
        return options
    return {name: _sliced(value, length, first) for name, value in options.items()}


def _sliced(value: Any, length: int, first: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_sliced(each, length, first) for each in value)
    if not isinstance(value, Tensor):
        return value
    axis = value.ndim - 2 if value.is_floating_point() else value.ndim - 1
    if axis < 0 or value.shape[axis] != length:
        return value
    return value.narrow(axis, first, length - first)


def logits_of(
    model: PreTrainedModel, hidden: Float[Tensor, "case position width"], kept: int
) -> Float[Tensor, "case kept vocabulary"]:
    """The logits of the last `kept` positions."""
    head: Any = model.get_output_embeddings()
    return head(last_norm("causal", model)(hidden[:, -kept:]))


def no_prefix(stack: LayerStack, prompt: EmbeddedPrompt) -> ImagePrefix:
    """A prefix of no tokens: of what is checked as a whole (`check_sharing`)."""
    none = prompt.embeddings.new_empty(1, 0, 1)
    return ImagePrefix(prompt, 0, dict.fromkeys(stack.attention, (none, none)))


def untouched(
    model: PreTrainedModel, stack: LayerStack, rows: RecordedRows, kept: int
) -> Float[Tensor, "1 kept vocabulary"]:
    """The logits of the recorded rows by the way that cases take: from the first layer on."""
    hidden = resume(model, stack, rows, 0, "residual", lambda activations: activations)
    assert hidden is not None  # no keys were asked for
    return logits_of(model, hidden, kept)
