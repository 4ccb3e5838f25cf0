"""Stacks that read the image outside of encoder and LLM: what stands between the two, and gated
cross-attention.

    compressor   learned queries that read patches: a Q-Former's cross-attention (BLIP-2,
                 InstructBLIP), a perceiver whose queries are keys too (Idefics2, Idefics), one
                 module that holds its queries (Aria's projector)
    cross        words that read the image in some layers of the LLM (Mllama, Idefics)

Found by what modules can do: attention whose keys are not, or not only, the tokens that a layer is
called with.
"""

import inspect
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from probe.hooks.layer_stack import (
    LayerStack,
    attention_of,
    cross_attention_of,
    stack_of_layers,
)
from probe.hooks.offload import stored_parameter

COMPRESSOR = "compressor"
CROSS = "cross"
# What a module that reads other tokens calls them
READ = ("context", "encoder_hidden_states", "key_value_states", "cross_attention_states")


def learned_compressor(model: nn.Module, known: Iterable[nn.Module]) -> LayerStack | None:
    """The layers in which learned queries read patches, None where a model has none. `known`:
    encoders and layers of the LLM, in which nothing is looked for.
    """
    inside = {module for part in known for module in part.modules()}
    for layers in (*_layer_lists(model), *_holders_of_queries(model)):
        if any(part in inside for layer in layers for part in layer.modules()):
            continue
        found = cross_attention_of(layers) or _reading(attention_of(layers))
        if found:
            return stack_of_layers(COMPRESSOR, model, layers, found)
    return None


def _layer_lists(part: nn.Module) -> Iterator[tuple[nn.Module, ...]]:
    for module in part.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            yield tuple(module)


def _holders_of_queries(model: nn.Module) -> Iterator[tuple[nn.Module, ...]]:
    """Each module that owns a matrix itself, learned queries perhaps, and a child that is given
    what it reads: a layer of its own.
    """
    for module in model.modules():
        owns_matrix = any(each.ndim > 1 for each in module.parameters(recurse=False))
        children = {child: child for child in module.children()}
        if owns_matrix and _reading(children):
            yield (module,)


def _reading(found: dict[nn.Module, nn.Module]) -> dict[nn.Module, nn.Module]:
    """Those attention modules that are given what they read."""
    return {
        layer: module
        for layer, module in found.items()
        if set(READ) & inspect.signature(module.forward).parameters.keys()
    }


def gated_cross_attention(
    model: nn.Module, decoder: nn.Module, llm_layers: int
) -> LayerStack | None:
    """The LLM's cross-attention to the image, None where vision tokens stand among the words. Its
    `numbers` are those of the LLM's layers that it belongs to, or stands before.
    """
    for blocks in _layer_lists(decoder):
        found = cross_attention_of(blocks)
        if found:
            interval = -(-llm_layers // len(blocks))  # blocks before each n-th layer
            reading = tuple(block for block in blocks if block in found)
            numbers = tuple(interval * i for i, block in enumerate(blocks) if block in found)
            return stack_of_layers(CROSS, model, reading, found, numbers)
    return None


def gate_of(block: nn.Module) -> Tensor | None:
    """The factor on what a block's cross-attention adds to the residual stream, tanh taken: one
    number, or one for each entry of a hidden state. None where it is added as it is.
    """
    for name, _ in block.named_parameters(recurse=False):
        is_gate = "gate" in name or "alpha" in name
        if is_gate and name.count("attn") > name.count("mlp") + name.count("dense"):
            return stored_parameter(block, name).tanh().flatten()
    return None


def chained_projection(first: nn.Linear, then: nn.Linear) -> nn.Linear:
    """Two linear maps, one behind the other, as one: a copy."""
    weight = stored_parameter(then, "weight") @ stored_parameter(first, "weight")
    return _linear(weight)


def gated_projection(projection: nn.Linear, gate: Tensor | None) -> nn.Linear:
    """The output projection with a gate's factor in its rows: a copy, where there is a gate."""
    if gate is None:
        return projection
    weight = stored_parameter(projection, "weight")
    return _linear(weight * gate.to(weight)[:, None])


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made
