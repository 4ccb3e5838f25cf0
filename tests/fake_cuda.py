"""CUDA tensors without a GPU, on which mixing devices and reading a value both raise.

    with fake_cuda():
        x = torch.zeros(2, 3, device="cuda")
        x[0].item()                      # raises: the host would wait for the device

A build of torch without CUDA cannot index such tensors, nor make them from arrays: both are done
here by operations that it can.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode


@contextmanager
def fake_cuda() -> Iterator[None]:
    with FakeTensorMode(), _Indexing():
        yield


class _Indexing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__getitem__:
            return _index(*args)
        if func is Tensor.__setitem__:
            x, index, value = args
            view = _index(x, index)
            assert view._is_view(), "an indexed assignment to a copy changes nothing"
            fill = torch.ops.aten.copy_ if isinstance(value, Tensor) else torch.ops.aten.fill_
            return fill(view, value)
        if func is torch.as_tensor and "device" in (kwargs or {}):
            array = torch.from_numpy(args[0]) if not isinstance(args[0], Tensor) else args[0]
            return torch.zeros(array.shape, dtype=array.dtype, device=kwargs["device"])
        if func is Tensor.__invert__:
            return args[0].logical_not()
        return func(*args, **(kwargs or {}))


def _index(x: Tensor, index) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    named = sum(each is not None and each is not Ellipsis for each in index)
    dim = 0
    for each in index:
        if each is Ellipsis:
            dim += x.ndim - dim - (named - _before(index, each))
        elif each is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(each, slice):
            x, dim = torch.ops.aten.slice(x, dim, each.start, each.stop), dim + 1
        elif isinstance(each, Tensor):
            x, dim = torch.ops.aten.index(x, [None] * dim + [each]), dim + 1
        else:
            x = x.select(dim, int(each))
    return x


def _before(index: tuple, ellipsis) -> int:
    """How many axes are named before the ellipsis."""
    return sum(each is not None for each in index[: index.index(ellipsis)])
