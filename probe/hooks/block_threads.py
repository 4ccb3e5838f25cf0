"""Which threads a block belongs to: one rule for every block that observes or changes a model.

A model may be in use in several threads at once. A block (`tap`, `drop_vision`, `knockout`,
`swap_vision`, `reduced`, ...) concerns

    the thread that enters it
    threads that are started while it is open, and threads that those start
    threads that ask for it: `with block.in_this_thread()`, for those of a pool

Every other thread is foreign: its forwards run on the untouched model and are not observed. Several
threads may have blocks open on the same model at the same time; start the threads of a pool before
the first of them opens a block. A function that runs the forward itself (`measure`, `drop_sweep`,
`logit_lens`, ...) concerns the thread that calls it and no other.

    block = drop_vision(subject, range(8, 32))
    with block:
        Thread(target=subject.model.generate, kwargs=inputs | {"streamer": streamer}).start()
        pool.submit(answer, block)       # answer(block) runs its forwards in block.in_this_thread()

All hooks of the package are registered by `add_hook`, and called only in the threads concerned.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar
from weakref import WeakSet

from torch import nn

from probe.errors import ProbeError

P = ParamSpec("P")
T = TypeVar("T")


class BlockThreads:
    """The threads that one block concerns, from the moment on at which it is entered."""

    def __init__(self, only_this_thread: bool = False):
        this_thread = threading.current_thread()
        others = [thread for thread in threading.enumerate() if thread is not this_thread]
        self._members = WeakSet([this_thread])
        self._foreign = WeakSet(others)
        self._open_to_new = not only_this_thread

    def include_this(self) -> bool:
        """Whether the block concerns the thread that calls this."""
        thread = threading.current_thread()
        return thread in self._members or (self._open_to_new and thread not in self._foreign)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """The block also concerns this thread while the inner block lasts."""
        thread = threading.current_thread()
        if thread in self._members:
            yield
            return
        self._members.add(thread)
        try:
            yield
        finally:
            self._members.discard(thread)


# The block that is being entered in this thread: blocks that it consists of share its threads.
_entering: ContextVar[BlockThreads | None] = ContextVar("entering", default=None)
_untouched: ContextVar[bool] = ContextVar("untouched", default=False)


def block_threads() -> BlockThreads:
    """The threads of the block that is being entered."""
    threads = _entering.get()
    assert threads is not None, "hooks are added in a `model_block` or in `only_this_thread`"
    return threads


@contextmanager
def _shared(threads: BlockThreads) -> Iterator[None]:
    """Blocks that are entered in here share these threads."""
    token = _entering.set(threads)
    try:
        yield
    finally:
        _entering.reset(token)


@contextmanager
def only_this_thread() -> Iterator[None]:
    """Blocks that are entered in here concern this thread only. Also a decorator of functions that
    run the forward themselves: no thread that another one starts meanwhile can be meant.
    """
    with _shared(_entering.get() or BlockThreads(only_this_thread=True)):
        yield


class ModelBlock(AbstractContextManager[T], Generic[T]):
    """A context manager that observes or changes a model, in the threads it concerns."""

    def __init__(self, manager: AbstractContextManager[T]):
        self._manager = manager
        self._threads: BlockThreads | None = None

    def __enter__(self) -> T:
        if self._threads is not None:
            raise ProbeError(
                "probe",
                expected="a block that is entered once",
                got="one that was entered before",
                fix="make a new one for each `with`",
            )
        self._threads = _entering.get() or BlockThreads()
        with _shared(self._threads):
            return self._manager.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._manager.__exit__(kind, error, traceback)

    def in_this_thread(self) -> AbstractContextManager[None]:
        """For a thread that lived before the block was entered: `with block.in_this_thread(): ...`
        makes its forwards part of the block.
        """
        assert self._threads is not None, "enter the block first"
        return self._threads.joined()


def model_block(function: Callable[P, Iterator[T]]) -> Callable[P, ModelBlock[T]]:
    """`contextlib.contextmanager` for what observes or changes a model. Whatever it enters before
    it yields concerns the same threads.
    """
    manager = contextmanager(function)

    @wraps(function)
    def block(*args: P.args, **kwargs: P.kwargs) -> ModelBlock[T]:
        return ModelBlock(manager(*args, **kwargs))

    return block


@contextmanager
def untouched() -> Iterator[None]:
    """Forwards of this thread run on the untouched model in here, whatever blocks are open."""
    token = _untouched.set(True)
    try:
        yield
    finally:
        _untouched.reset(token)


def concerns(threads: BlockThreads, always: bool = False) -> bool:
    """Whether a block acts on what runs now. `always`: in `untouched` forwards too, for what has
    become a part of the model.
    """
    return threads.include_this() and (always or not _untouched.get())


def add_hook(
    undo: ExitStack,
    register: Callable[..., Any],
    function: Callable[..., Any],
    *,
    always: bool = False,
    **options: Any,
) -> None:
    """Registers a hook of the block that is being entered, and has `undo` remove it.

        add_hook(undo, layer.register_forward_pre_hook, change, with_kwargs=True)

    `undo` knows of the hook before the module does, and twice, so that an interrupt at any line
    leaves nothing.
    """
    threads, module = block_threads(), getattr(register, "__self__")  # noqa: B009

    # In a foreign thread its other arguments may not fit: it may run between torch's two steps of
    # registering a hook with keyword arguments.
    def hook(module: nn.Module, *arguments: Any) -> Any:
        return function(module, *arguments) if concerns(threads, always) else None

    undo.callback(_remove, module, hook)
    undo.callback(_remove, module, hook)
    register(hook, **options)


def _remove(module: nn.Module, hook: Callable[..., Any]) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for number in [number for number, known in hooks.items() if known is hook]:
            for table in (
                module._forward_pre_hooks_with_kwargs,
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
                hooks,
            ):
                table.pop(number, None)
