"""The sites of a layer at which activations are read and changed, found by what a module does.

    residual    the output of the layer
    attention   what the attention module adds to the residual stream
    mlp         what the MLP adds to it
    head        the heads' parts before the output projection, side by side: (batch, position,
                head x head width)

Where a norm or a gate follows the attention or the MLP before it is added (Gemma; the
cross-attention of Mllama and Idefics), the module before it is the site: it acts on each position
alone, so that equal values before it are equal values after it.

    add_site_hook(undo, "patch", stack, 3, "mlp", lambda hidden: hidden * 0)
    values = recorded(model, "patch", stack, (3, 4), "residual", inputs)      # {3: [tensor], ...}
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError, one_of
from probe.hooks.block_threads import add_hook, only_this_thread, untouched
from probe.hooks.layer_arguments import without_cache
from probe.hooks.layer_stack import cross_attention_of
from probe.hooks.model_structure import LayerStack, projection_module
from probe.hooks.whole_layers import last_logits

SITES = ("residual", "attention", "mlp", "head")
OWN_HEADS = ("num_heads", "n_heads")  # what an attention module calls their number

Edit = Callable[[Tensor], Tensor | None]  # of a site's activations; None leaves them as they are


def site_module(called: str, stack: LayerStack, layer: int, site: str) -> nn.Module:
    """The module whose output is the site ("head": whose input it is). Raises ProbeError for an
    unknown site, and where the layer has no such module.
    """
    one_of(called, "a site of", site, SITES)
    if site == "residual":
        return stack.layers[layer]
    if site == "mlp":
        return _mlp(called, stack, layer)
    name = stack.modules[layer]
    attention = None if name is None else stack.attention[name]
    module = attention if attention is None or site == "attention" else projection_module(attention)
    if module is None:
        raise _missing(called, stack, layer, site, "none")
    return module


def _mlp(called: str, stack: LayerStack, layer: int) -> nn.Module:
    """The layer's one part that has linear maps and is not attention: neither among its own tokens
    nor to others.
    """
    name = stack.modules[layer]
    attention = {*cross_attention_of([stack.layers[layer]]).values()}
    if name is not None:
        attention.add(stack.attention[name])
    found = [
        child
        for child in stack.layers[layer].children()
        if attention.isdisjoint(child.modules())
        and sum(parameter.ndim > 1 for parameter in child.parameters()) > 1
    ]
    if len(found) != 1:
        got = ", ".join(type(child).__name__ for child in found) or "none"
        raise _missing(called, stack, layer, "mlp", got)
    return found[0]


def _missing(called: str, stack: LayerStack, layer: int, site: str, got: str) -> ProbeError:
    return ProbeError(
        called,
        expected=f"one module that is the {site} of layer {layer} (from 0) of {stack.name}",
        got=got,
        fix="use site='residual'",
    )


def head_count(called: str, module: nn.Module) -> int:
    """The query heads of an attention module, from its config or from the module itself."""
    config = getattr(module, "config", None)
    own = [(module, name) for name in OWN_HEADS]
    for owner, name in (*own, (config, "num_attention_heads")):
        count = getattr(owner, name, None)
        if isinstance(count, int):
            return count
    raise ProbeError(called, expected="an attention module with heads", got=type(module).__name__)


def add_site_hook(
    undo: ExitStack,
    called: str,
    stack: LayerStack,
    layer: int,
    site: str,
    edit: Edit,
    *,
    always: bool = False,
) -> None:
    """Runs `edit` on the site's activations (batch, position, width) in every call of the layer,
    for the block that is being entered. `always`: also in forwards on the `untouched` model.
    """
    module = site_module(called, stack, layer, site)
    edit = partial(_edited, called, edit)

    def before(module: nn.Module, args: tuple) -> Any:
        changed = edit(args[0])
        return None if changed is None else (changed, *args[1:])

    def after(module: nn.Module, args: tuple, output: Any) -> Any:
        is_tuple = isinstance(output, tuple)
        changed = edit(output[0] if is_tuple else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if is_tuple else changed

    if site == "head":
        add_hook(undo, module.register_forward_pre_hook, before, always=always)
    else:
        add_hook(undo, module.register_forward_hook, after, always=always)


def _edited(called: str, edit: Edit, activations: Tensor) -> Tensor | None:
    """Raises ProbeError for several streams side by side (Gemma 3n, hyper-connections)."""
    if activations.ndim != 3:
        raise ProbeError(
            called,
            expected="activations (batch, position, size)",
            got=f"{tuple(activations.shape)}, several streams side by side",
            fix="use site='head' or 'attention'",
        )
    return edit(activations)


@only_this_thread()
def recorded(
    model: PreTrainedModel,
    called: str,
    stack: LayerStack,
    layers: Iterable[int],
    site: str,
    inputs: Mapping[str, Any],
) -> dict[int, list[Tensor]]:
    """The site's activations in one forward of these inputs on the untouched model, for each call
    of each of the layers. Raises ProbeError where a layer was not called.
    """
    values: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    given: Any = without_cache(inputs) | last_logits(model, 1)
    with ExitStack() as undo:
        for layer, calls in values.items():
            keep = partial(_keep, calls)
            add_site_hook(undo, called, stack, layer, site, keep, always=True)
        with torch.no_grad(), untouched():
            model(**given)
    if missed := [layer for layer, calls in values.items() if not calls]:
        raise ProbeError(
            called,
            expected="a source whose forward calls the chosen layers (with an image, where these "
            "read it)",
            got=f"no call of layer {missed[0]} (from 0) of {stack.name}",
        )
    return values


def _keep(calls: list[Tensor], activations: Tensor) -> None:
    calls.append(activations.detach())
