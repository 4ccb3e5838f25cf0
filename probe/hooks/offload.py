"""Models whose weights accelerate keeps elsewhere (in CPU memory, on disk) until a module runs.

Such a parameter is on the device "meta" and has no values; arithmetic with it gives arbitrary
numbers without an error. accelerate's hook on the module knows where the values are, and on which
device the module runs.

    input_device(model)                 # where inputs go: the device of the module that gets them
    stored_parameter(linear, "weight")  # the values, wherever they are
    with own_values(model):             # for code that reads them outside of the module's forward
        model.get_image_features(pixels)
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probe.errors import ProbeError

META = torch.device("meta")


def input_device(model: Any) -> torch.device:
    """The device that the ids of a prompt are embedded on."""
    return execution_device(model.get_input_embeddings())


def execution_device(module: nn.Module) -> torch.device:
    """The device on which a module reads its input: that of its first part with parameters."""
    parts = (part for part in module.modules() if any(True for _ in part.parameters(recurse=False)))
    first = next(parts, module)
    for hook in _offloading_hooks(first):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    parameter = next(first.parameters(recurse=False), None)
    return torch.device("cpu") if parameter is None else parameter.device


def stored_parameter(module: nn.Module, name: str) -> Tensor:
    """A parameter of the module itself. Raises ProbeError where its values are nowhere."""
    parameter = getattr(module, name)
    if parameter.device != META:
        return parameter.detach()
    for hook in _offloading_hooks(module):
        weights = getattr(hook, "weights_map", None)
        if weights is not None:
            return torch.as_tensor(weights[name])
    raise ProbeError(
        "model",
        expected="weights with values",
        got=f"{type(module).__name__}.{name} on the device meta",
        fix="load the model with weights that fit, on the CPU if need be",
    )


def require_values(called: str, model: nn.Module) -> None:
    """Raises ProbeError for a model on the device meta whose values are nowhere."""
    nowhere = [name for name, parameter in model.named_parameters() if parameter.device == META]
    hooks = (hook for module in model.modules() for hook in _offloading_hooks(module))
    if nowhere and not any(getattr(hook, "weights_map", None) is not None for hook in hooks):
        got = f"{len(nowhere)} weights on the device meta, such as {nowhere[0]}"
        raise ProbeError(called, expected="a model whose weights have values", got=got)


@contextmanager
def own_values(*modules: nn.Module) -> Iterator[None]:
    """While the block lasts, the parameters that these modules themselves hold (not those of their
    parts; those of a model's base model too) have their values. accelerate brings them for a
    module's forward alone, but a newline token or a table of positions may be read by another
    method. A forward inside the block takes them away again, as ever.
    """
    bases = [getattr(module, "base_model", module) for module in modules]
    with ExitStack() as undo:
        for module in dict.fromkeys([*modules, *bases]):
            for hook in _offloading_hooks(module):
                if getattr(hook, "weights_map", None) is not None:
                    undo.callback(hook.post_forward, module, None)
                    hook.pre_forward(module)
        yield


def _offloading_hooks(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))  # of a `SequentialHook`
