"""Runs a model without weights on a real prompt: what comes from weights has shapes and no numbers,
what is only of the prompt (ids, grids, masks, positions) keeps its numbers.

Models look at such numbers: an encoder at its own resolution divides its patches as the grids say.
A model on torch's meta device alone could not be asked.

    with torch.no_grad(), ShapesOnly():
        skeleton(config)(**inputs)          # inputs on the CPU, all weights on "meta"

Where an operation gets both, its result has a shape only. What a model would ask of such a result
is not known, and fails.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)


class ShapesOnly(TorchDispatchMode):
    """While it is entered, tensors with numbers and those of shapes can be used together.

    >>> weight = torch.empty(3, 5, device="meta")
    >>> with ShapesOnly():
    ...     product = torch.ones(2, 3) @ weight
    >>> product.device.type, product.shape
    ('meta', torch.Size([2, 5]))
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        of_shape = [tensor for tensor in tensors if tensor.is_meta]
        if kwargs.get("device") is not None:  # numbers stay numbers wherever they are sent
            kwargs["device"] = "meta" if of_shape else "cpu"
        if of_shape and len(of_shape) < len(tensors):
            if func in INDEXING:
                args = (args[0], _by_number(args[1]), *args[2:])
            args = tree_map(_shape_of, args)
            kwargs = {name: tree_map(_shape_of, value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _shape_of(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) and not value.is_meta else value


def _by_number(indices: Any) -> list[Tensor | None]:
    """Masks as the numbers of the places that they choose: a mask without numbers chooses nothing
    that is known.
    """
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not index.is_meta:
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found
