"""The cases of a sweep: named sets of layers, and the three that every sweep has.

    resolve(windows(4), 32)              # {"1-4": {0, 1, 2, 3}, "5-8": ...}: the paper's Fig. 5
    resolve([from_layer(4), {0, 5}], 8)  # {"1-8": ..., "5-8": {4, 5, 6, 7}, "1, 6": {0, 5}}

Layers are numbered from 0 in code and from 1 in names, as on the paper's axes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from probe.errors import ProbeError, at_least
from probe.hooks.model_state import layer_ranges

UNTOUCHED = "untouched"  # the model as it is
# Vision masked in every layer of the stack. In a LLaVA this leaves the text alone; in LLaVA-Mini
# each of its two stacks still receives image information from the other: compressed tokens, and
# text that was fused with the image.
NO_VISION = "no vision"
ANOTHER_IMAGE = "another image"  # the untouched model, asked about another image
ALWAYS = (UNTOUCHED, NO_VISION, ANOTHER_IMAGE)

LayerSet = Iterable[int]
CasesOf = Callable[[int], Mapping[str, LayerSet]]  # number of layers -> cases
Cases = (
    Mapping[str, LayerSet] | CasesOf | Iterable[LayerSet | CasesOf | Mapping[str, LayerSet] | int]
)


def windows(size: int = 4, stride: int | None = None) -> CasesOf:
    """`size` neighbouring layers at a time, every `stride` (by default `size`) layers; the last may
    be shorter.

    >>> [*windows(4)(10)]
    ['1-4', '5-8', '9-10']
    """
    step = size if stride is None else stride
    at_least("windows", "a size", size, 1)
    at_least("windows", "a stride", step, 1)

    def cases(layers: int) -> dict[str, LayerSet]:
        if size > layers:
            expected = f"a size of at most {layers}, the layers of the stack"
            raise ProbeError("windows", expected=expected, got=str(size))
        starts = [
            start for start in range(0, layers, step) if start == 0 or start + size - step < layers
        ]
        return _named(range(start, min(start + size, layers)) for start in starts)

    return cases


def from_layer(step: int = 1) -> CasesOf:
    """From a layer to the last one, for every `step`-th layer.

    >>> from_layer(4)(8)
    {'1-8': range(0, 8), '5-8': range(4, 8)}
    """
    at_least("from_layer", "a step", step, 1)
    return lambda layers: _named(range(start, layers) for start in range(0, layers, step))


def until_layer(step: int = 1) -> CasesOf:
    """From the first layer up to a layer, for every `step`-th layer.

    >>> until_layer(4)(8)
    {'1-4': range(0, 4), '1-8': range(0, 8)}
    """
    at_least("until_layer", "a step", step, 1)
    return lambda layers: _named(range(end) for end in range(step, layers + 1, step))


def resolve(cases: Cases, layers: int) -> dict[str, frozenset[int]]:
    """Cases of a stack with `layers` layers, by name; a set without a name is named by its layers,
    numbered from 1.

    A set given twice without a name is one case. Raises ProbeError for a layer outside the stack,
    one name for two sets, and the names of the cases that every sweep has.
    """
    if callable(cases):
        cases = cases(layers)
    if not isinstance(cases, Mapping):
        cases = _joined(list(cases), layers)
    resolved = {}
    for name, chosen in cases.items():
        resolved[str(name)] = frozenset(map(int, chosen))
        if wrong := [layer for layer in resolved[str(name)] if not 0 <= layer < layers]:
            raise ProbeError(
                "drop_sweep", expected=f"layers of 0 to {layers - 1}", got=f"{wrong[0]} in {name!r}"
            )
        if name in ALWAYS:
            raise ProbeError(
                "drop_sweep",
                expected="another name",
                got=repr(name),
                fix="every sweep has this case",
            )
    return resolved


def _named(sets: Iterable[LayerSet]) -> dict[str, LayerSet]:
    return {layer_ranges(chosen, first=1, separator=", "): chosen for chosen in sets}


def _joined(parts: list, layers: int) -> dict[str, LayerSet]:
    """Layer sets, helpers and mappings in one list; a single set of layers is one case."""
    if parts and all(isinstance(part, int) for part in parts):
        return _named([parts])
    joined: dict[str, LayerSet] = {}
    for part in parts:
        made: Any = part(layers) if callable(part) else part
        named = made if isinstance(made, Mapping) else _named([list(made)])
        for name, chosen in named.items():
            if name in joined and set(joined[name]) != set(chosen):
                raise ProbeError(
                    "drop_sweep",
                    expected="one set of layers for each name",
                    got=f"two for {name!r}",
                )
            joined[name] = chosen
    return joined
