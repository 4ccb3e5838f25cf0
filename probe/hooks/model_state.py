"""What open blocks have put on a model, and what was found out about it: the one registry.

Two interventions that contradict each other are refused before anything runs, and a record names
what was done to the model it was taken from. Each thread sees the entries of the blocks that
concern it (`block_threads.py`).

    with registered(model, Intervention("drop_vision", "remove", (2, 3), "mode=remove")):
        active_interventions(model)          # 'drop_vision(layers=2-3, mode=remove)'
    with registered_reducer(model, "FastV(layer=2, keep=0.5)", text_guided=True):
        active_reducers(model)               # 'FastV(layer=2, keep=0.5)'
    clear(model)                             # forgets all of it
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import update_wrapper, wraps
from threading import RLock
from typing import Any, Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from probe.errors import ProbeError
from probe.hooks.block_threads import BlockThreads, block_threads, model_block

P = ParamSpec("P")
T = TypeVar("T")

# Cannot be combined on the same layer: without its rows there is nothing to swap, patch or steer.
CONTRADICTING = (
    frozenset({"remove", "swap"}),
    frozenset({"remove", "patch"}),
    frozenset({"remove", "steer"}),
)

lock = RLock()  # held while a registry or a module is changed; never while a model runs


def locked(function: Callable[P, T]) -> Callable[P, T]:
    """One thread at a time."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return function(*args, **kwargs)

    return call


@dataclass(frozen=True, eq=False)
class Intervention:
    """One open intervention: the public function, what it does to the tokens, in which layers, and
    its other options in words.
    """

    called: str
    kind: str
    layers: tuple[int, ...]
    options: str = ""

    def __str__(self) -> str:
        layers = f"layers={layer_ranges(self.layers)}"
        return f"{self.called}({', '.join(filter(None, [layers, self.options]))})"


@dataclass(frozen=True, eq=False)
class ActiveReducer:
    """One open reducer: its name with its options, and whether its choice depends on the
    question.
    """

    name: str
    text_guided: bool


class BlockEntries(Generic[T]):
    """What open blocks have added, outermost first, each for the threads of its block."""

    def __init__(self):
        self._entries: list[tuple[BlockThreads, T]] = []

    def active(self) -> list[T]:
        """The entries that concern the thread that asks."""
        return [value for threads, value in tuple(self._entries) if threads.include_this()]

    @locked
    def add(self, value: T) -> None:
        """Adds an entry of the block that is being entered."""
        self._entries.append((block_threads(), value))

    @locked
    def remove(self, value: T) -> None:
        """Removes an entry; nothing happens where it is not listed."""
        self._entries[:] = [entry for entry in self._entries if entry[1] is not value]

    def __bool__(self) -> bool:
        return bool(self._entries)

    @contextmanager
    def listed(self, value: T) -> Iterator[None]:
        """The entry is there while the block lasts."""
        try:
            self.add(value)
            yield
        finally:
            self.remove(value)


class MethodOverride:
    """A method of one module that open blocks replace, each in its threads. The class is not
    changed. It may be called in any thread: in foreign ones it is the module's own.
    """

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name = module, name
        self.attribute = vars(module).get(name)  # set on the module itself, before any block
        self.original: Callable[..., Any] = getattr(module, name)
        self.replacements: BlockEntries[Callable[..., Any]] = BlockEntries()
        update_wrapper(self, self.original)  # `generate` looks at signatures

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        active = self.replacements.active()
        return (active[-1] if active else self.original)(*args, **kwargs)

    @locked
    def add(self, replacement: Callable[..., Any]) -> None:
        state_of(self.module).methods[self.name] = self
        self.replacements.add(replacement)
        setattr(self.module, self.name, self)

    @locked
    def remove(self, replacement: Callable[..., Any]) -> None:
        self.replacements.remove(replacement)
        methods = state_of(self.module).methods
        if not self.replacements and methods.pop(self.name, None) is self:
            if self.attribute is None:
                vars(self.module).pop(self.name, None)
            else:
                setattr(self.module, self.name, self.attribute)


@dataclass
class ModelState:
    """What is known of one model, or of one layer or attention module of it."""

    interventions: BlockEntries[Intervention] = field(default_factory=BlockEntries)
    reducers: BlockEntries[ActiveReducer] = field(default_factory=BlockEntries)
    # From a row's tensors to the patches that its vision tokens stand for (`image_placeholders.py`)
    token_counts: BlockEntries[Callable[..., Any]] = field(default_factory=BlockEntries)
    methods: dict[str, MethodOverride] = field(default_factory=dict)
    flow: Any = None  # of a stack's first layer: its `HiddenStateFlow` under removals
    tap: Any = None  # of an attention module: its `TapState` (`attention_tap.py`)
    # Of an attention module that now runs on some positions only: for each thread, what shows its
    # calls over the whole sequence (`token_removal.py`)
    views: dict[int, Callable[..., Any]] = field(default_factory=dict)
    # `subject/prefix_check.py`: the checks by setting, and the address and version of each weight
    sharing_checks: dict[Any, Any] = field(default_factory=dict)
    checked_weights: tuple = ()
    structure: tuple | None = None  # `model_structure.py`: the module tree and what is found in it
    # `encoder_layout.py`: what the first layer of the encoder reads, by all that it depends on
    encoder_calls: dict[Any, Any] = field(default_factory=dict)
    on_patches: dict[Any, int] = field(default_factory=dict)  # layers, of an encoder's first one
    image_token: int | None = None  # the processor's, where the config names none
    reads_rows_alone: bool | None = None  # `subject/batch_trial.py`, once it was tried
    # `subject/token_places.py`: what was measured of a processor, by its settings and image sizes
    measured_views: dict[Any, Any] = field(default_factory=dict)

    def is_empty(self) -> bool:
        """Whether no open block has left anything."""
        lists = self.interventions, self.reducers, self.token_counts
        return not any((*lists, self.methods, self.flow, self.tap, self.views))


_states: "WeakKeyDictionary[nn.Module, ModelState]" = WeakKeyDictionary()


@locked
def state_of(module: nn.Module) -> ModelState:
    """The state of a model or of a part of it."""
    state = _states.get(module)
    if state is None:
        state = _states[module] = ModelState()
    return state


@locked
def clear(model: nn.Module) -> None:
    """Forgets the model and all its parts, as if no block were open and nothing had been found
    out about it.
    """
    for module in model.modules():
        state = _states.pop(module, None)
        if state is not None and state.tap is not None:
            module.config = state.tap.config


def is_clear(module: nn.Module) -> bool:
    """Whether no open block has left anything on a model or a part of it."""
    state = _states.get(module)
    return state is None or state.is_empty()


def active_interventions(model: nn.Module) -> str:
    """What is being done to the model, outermost first, as one string; "" for nothing."""
    active = state_of(model).interventions.active()
    return "; ".join(str(intervention) for intervention in active if intervention.layers)


@model_block
def registered(model: nn.Module, intervention: Intervention) -> Iterator[None]:
    """Lists an intervention while the block lasts. Raises ProbeError where it contradicts one that
    is active.
    """
    interventions = state_of(model).interventions
    for other in interventions.active():
        shared = sorted(set(other.layers) & set(intervention.layers))
        if shared and _contradict(other.kind, intervention.kind):
            raise ProbeError(
                intervention.called,
                expected="layers whose vision rows are in place",
                got=f"layers {layer_ranges(shared)}, already under {other}",
                fix="choose layers that do not overlap",
            )
    with interventions.listed(intervention):
        yield


def _contradict(kind: str, other: str) -> bool:
    """Whether two kinds exclude each other. One kind may be nested in itself where nothing is
    removed or swapped.
    """
    if kind == other:
        return kind in ("remove", "swap")
    return {kind, other} in CONTRADICTING


def active_blocks(model: nn.Module) -> tuple[object, ...]:
    """All that is done to the model, to be compared: equal as long as the same blocks are open."""
    state = state_of(model)
    return *state.interventions.active(), *state.reducers.active()


def active_reducers(model: nn.Module) -> str:
    """The reducers of the model, outermost first, as one string; "" for none."""
    return "; ".join(reducer.name for reducer in state_of(model).reducers.active())


def active_text_guided_reducers(model: nn.Module) -> str:
    """Active reducers that depend on the question; their selection must not be cached across
    questions.
    """
    active = state_of(model).reducers.active()
    return "; ".join(reducer.name for reducer in active if reducer.text_guided)


@model_block
def registered_reducer(model: nn.Module, name: str, text_guided: bool = False) -> Iterator[None]:
    """Lists a reducer by its name and options while the block lasts."""
    with state_of(model).reducers.listed(ActiveReducer(name, text_guided)):
        yield


def own_method(module: nn.Module, name: str) -> Callable[..., Any] | None:
    """A method as it is without any block, None where the module has none of that name."""
    override = state_of(module).methods.get(name)
    return getattr(module, name, None) if override is None else override.original


@model_block
def override_method(
    module: nn.Module, name: str, replacement: Callable[..., Any]
) -> Iterator[None]:
    """In the threads of the block `module.name` is this function."""
    with lock:
        override = state_of(module).methods.get(name) or MethodOverride(module, name)
        override.add(replacement)
    try:
        yield
    finally:
        override.remove(replacement)


def layer_ranges(layers: Iterable[int], first: int = 0, separator: str = ",") -> str:
    """A set of layers in short, numbered from `first`; "none" where it is empty.

    >>> layer_ranges((0, 1, 2, 5)), layer_ranges({0, 1, 2, 5}, first=1, separator=", ")
    ('0-2,5', '1-3, 6')
    """
    ranges: list[tuple[int, int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], layer
        else:
            ranges.append((layer, layer))
    texts = [
        f"{start + first}-{end + first}" if start < end else str(start + first)
        for start, end in ranges
    ]
    return separator.join(texts) or "none"
