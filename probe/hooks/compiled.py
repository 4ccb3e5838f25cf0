"""Find what went through torch.compile, wherever it is in a model.

A compiled graph calls no hooks that are registered after it ran: nothing in it can be observed or
changed, and nothing would say so. `torch.compile(model)` and `module.compile()` mark the module;
`module.forward = torch.compile(module.forward)` marks a function, which may be wrapped further.

    compiled_part(model)            # "model.language_model", "" for the model itself, None for none
    refuse_compiled("drop_vision", model)
"""

import functools
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from probe.errors import ProbeError

# What `generate` makes for a static cache and calls there only; it replaces no call of the model
NOT_IN_USE = frozenset({"_compiled_call"})
DEEPEST = 16  # wrappers around a function that are looked into


def compiled_part(model: Any) -> str | None:
    """The qualified name of the first module that runs compiled, None where all run as they are."""
    if not isinstance(model, nn.Module):
        return None
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule) or hasattr(part, "_orig_mod"):
            return name
        if part._compiled_call_impl is not None:
            return name
        attributes = [value for key, value in vars(part).items() if key not in NOT_IN_USE]
        callables = [value for value in attributes if callable(value)]
        if any(_leads_to_compiled(one) for one in [*callables, type(part).forward]):
            return name
    return None


def refuse_compiled(called: str, model: Any) -> None:
    """Raises ProbeError for a model of which any part runs compiled."""
    name = compiled_part(model)
    if name is not None:
        kind = type(getattr(model, "_orig_mod", model)).__name__
        where = f" (by its {name})" if name else ""
        raise ProbeError(
            called,
            expected="a model that is not compiled",
            got=f"a compiled {kind}{where}",
            fix="use the model as it was before torch.compile",
        )


def _leads_to_compiled(function: Any) -> bool:
    """Whether calling it may run what torch.compile made: itself, or what it wraps."""
    seen: set[int] = set()
    level = [function]
    for _ in range(DEEPEST):
        if any(_is_compiled(one) for one in level):
            return True
        seen |= {id(one) for one in level}
        level = [inner for one in level for inner in _wrapped(one) if id(inner) not in seen]
        if not level:
            return False
    return False


def _is_compiled(function: Any) -> bool:
    attributes = getattr(function, "__dict__", {})
    marked = "_torchdynamo_orig_callable" in attributes or "_orig_mod" in attributes
    if isinstance(function, nn.Module):
        return (
            marked or "_orig_mod" in function._modules or function._compiled_call_impl is not None
        )
    return marked and not attributes.get("_torchdynamo_disable")  # of torch.compiler.disable


def _wrapped(function: Any) -> Iterator[Any]:
    """What a function may call: that of a partial, of a bound method, in a decorator."""
    inner: list[Any] = []
    if isinstance(function, functools.partial):
        inner = [function.func, *function.args, *function.keywords.values()]
    elif isinstance(function, MethodType):
        inner = [function.__func__]
    elif isinstance(function, FunctionType):
        cells = function.__closure__ or ()
        inner = [cell.cell_contents for cell in cells if _is_filled(cell)]
        inner.append(getattr(function, "__wrapped__", None))
    elif not isinstance(function, type | nn.Module):
        inner = list(getattr(function, "__dict__", {}).values())  # an object with `__call__`
    for each in inner:
        if callable(each) and not isinstance(each, type):
            yield each


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
