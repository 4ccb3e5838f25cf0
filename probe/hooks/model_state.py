"""Which interventions and which reducers are at work in a model right now.

So that two that contradict each other are refused before anything runs, and a record can name what
was done to the model it was taken from.

    with registered(model, Intervention("drop_vision", "remove", (2, 3), "mode=remove")):
        active(model)                        # 'drop_vision(layers=2-3, mode=remove)'
    with registered_reducer(model, "FastV(layer=2, keep=0.5)", text_guided=True):
        reducer(model)                       # 'FastV(layer=2, keep=0.5)'
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from probe.errors import ProbeError

# What finds its vision rows gone or exchanged cannot remove or exchange them again.
CONTRADICTING = frozenset({"remove", "swap"})


@dataclass(frozen=True, eq=False)
class Intervention:
    """One entry: the public function, what it does to the rows, in which layers, and its other
    options in words.
    """

    called: str
    kind: str
    layers: tuple[int, ...]
    options: str = ""

    def __str__(self) -> str:
        return f"{self.called}({', '.join(filter(None, [f'layers={layer_ranges(self.layers)}', self.options]))})"


_at_work: "WeakKeyDictionary[nn.Module, list[Intervention]]" = WeakKeyDictionary()


def active_interventions(model: nn.Module) -> str:
    """What is being done to the model, outermost first, as one string; "" for nothing."""
    return "; ".join(
        str(intervention) for intervention in _at_work.get(model, ()) if intervention.layers
    )


@contextmanager
def registered(model: nn.Module, intervention: Intervention) -> Iterator[None]:
    """Lists an intervention while the block lasts. Raises ProbeError where it contradicts one that
    is at work.
    """
    entries = _at_work.setdefault(model, [])
    for other in entries:
        shared = sorted(set(other.layers) & set(intervention.layers))
        if shared and {other.kind, intervention.kind} <= CONTRADICTING:
            raise ProbeError(
                intervention.called,
                expected="layers whose vision rows are in place",
                got=f"layers {layer_ranges(shared)}, already under {other}",
                fix="choose layers that do not overlap",
            )
    entries.append(intervention)
    try:
        yield
    finally:
        entries.remove(intervention)


@dataclass(frozen=True, eq=False)
class ActiveReducer:
    """One reducer at work: its name with its options, and whether it chooses by the question."""

    name: str
    text_guided: bool


_reducing: "WeakKeyDictionary[nn.Module, list[ActiveReducer]]" = WeakKeyDictionary()


def active_blocks(model: nn.Module) -> tuple[object, ...]:
    """All that is done to the model, to be compared: equal as long as the same blocks last."""
    return *_at_work.get(model, ()), *_reducing.get(model, ())


def active_reducers(model: nn.Module) -> str:
    """What leaves fewer vision tokens in the model, outermost first, as one string; "" for
    nothing.
    """
    return "; ".join(entry.name for entry in _reducing.get(model, ()))


def active_text_guided_reducers(model: nn.Module) -> str:
    """Those of them that choose by the question: nothing that they left of an image holds for
    another one.
    """
    return "; ".join(entry.name for entry in _reducing.get(model, ()) if entry.text_guided)


@contextmanager
def registered_reducer(model: nn.Module, name: str, text_guided: bool = False) -> Iterator[None]:
    """Lists a reducer by its name and options while the block lasts."""
    entries, entry = _reducing.setdefault(model, []), ActiveReducer(name, text_guided)
    entries.append(entry)
    try:
        yield
    finally:
        entries.remove(entry)


def layer_ranges(layers: Sequence[int]) -> str:
    """Layers in short: (0, 1, 2, 5) is '0-2,5'."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return (
        ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
    )
