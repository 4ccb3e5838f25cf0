"""One pass of the untouched model over the rows of a prompt: what the cases of a sweep begin with.

Kept are the input of every layer, the keys and values of every attention call and, where asked for,
the activations of a site. Layers, norms and kernels are the model's own; what precedes the rows
that run is attended to as a second part of the softmax (`subject/prefix_attention.py`).

    rows = record(model, stack, prompt, 0, len(prompt.ids))          # a pass over all positions
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.layer_arguments import hidden_first, without_cache
from probe.hooks.layer_sites import add_site_hook
from probe.hooks.model_structure import LayerStack, text_decoder
from probe.subject.image_prefix import EmbeddedPrompt, check_window
from probe.subject.prefix_attention import KeyValue, attend, merged, over_shared

Keys = Mapping[str, KeyValue]  # by attention module: (key_head, key, dim), or (row, key_head, ...)


@dataclass(frozen=True)
class RecordedRows:
    """The rows of one prompt from position `start` on, in one pass of the untouched model.

    inputs   of each layer, and the output of the last one: (1, position, width)
    options  the other arguments of each layer
    keys     of these rows, by attention module: (key_head, position, dim)
    before   keys and values of the positions before them; none where `start` is 0
    narrow   attention modules whose sliding window is shorter than the prompt
    sites    activations of sites that were asked for, by layer
    """

    start: int
    inputs: tuple[Float[Tensor, "1 position width"], ...]
    options: tuple[dict[str, Any], ...]
    keys: dict[str, KeyValue]
    before: Keys
    narrow: set[str]
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
    layers: Iterable[int] = (),
) -> RecordedRows:
    """One pass over the positions from `start` to `stop` of a prompt. `before`: keys and values of
    the positions before `start`. `site`, `layers`: whose activations are kept, none by default.
    """
    before, chosen = before or {}, set(layers)
    given: list[tuple[Tensor, dict]] = []
    last: list[Tensor] = []
    keys: dict[str, KeyValue] = {}
    narrow: set[str] = set()
    sites: dict[int, Tensor] = {}

    def keep_input(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        (hidden, *_), options = hidden_first(layer, args, kwargs)
        given.append((hidden, without_cache(options)))

    def keep_output(layer: nn.Module, args: tuple, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        keys[call.name] = call.key[0], call.value[0]
        if call.window is not None and call.window < len(prompt.ids):
            narrow.add(call.name)
        return attention_after(call, kernel, before.get(call.name), len(prompt.ids)), None

    with ExitStack() as undo:
        for number, layer in enumerate(stack.layers):
            add_hook(undo, layer.register_forward_pre_hook, keep_input, with_kwargs=True)
            if number in chosen and site != "residual":
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
        sites = {layer: inputs[layer + 1] for layer in chosen}
    return RecordedRows(start, inputs, options, keys, before, narrow, sites)


def _keep(sites: dict[int, Tensor], layer: int, activations: Tensor) -> None:
    sites[layer] = activations


def attention_after(
    call: AttentionCall, kernel: Kernel, before: KeyValue | None, length: int
) -> Float[Tensor, "row query head dim"]:
    """The output of an attention call whose rows follow these keys and values: of all rows, or of
    each. Without any it is the kernel's own. Queries may be those of the last rows alone.
    """
    tokens, follows = call.query_count, before is not None and before[0].shape[-2] > 0
    if not follows and tokens == call.key_count:
        return kernel(call)[0]
    check_window(call, length)
    ones = torch.ones(tokens, call.key_count, dtype=torch.bool, device=call.key.device)
    visible = ones.tril(call.key_count - tokens)
    own = attend(call.query, call.key, call.value, call.scaling, visible)
    output = own[0] if before is None or not follows else merged(over_before(call, before), own)
    return output.to(call.query.dtype).transpose(1, 2).contiguous()


def over_before(call: AttentionCall, before: KeyValue) -> tuple[Tensor, Tensor]:
    """The queries over keys and values before them: of all rows, or of each."""
    key, value = before
    if key.ndim == 3:
        return over_shared(call.query, key, value, call.scaling)
    return attend(call.query, key, value, call.scaling)
