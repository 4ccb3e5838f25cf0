"""The cases of a sweep: named sets of layers, and the three that every sweep has.

    resolve(windows(4), 32)              # {"1-4": {0, 1, 2, 3}, "5-8": ..., ...}: the paper's Fig. 5
    resolve([from_layer(4), {0, 5}], 8)  # {"1-8": ..., "5-8": {4, 5, 6, 7}, "1, 6": {0, 5}}

Layers are numbered from 0 in code and from 1 in names, as on the paper's axes.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

from probe.errors import ProbeError

UNTOUCHED = "untouched"  # the model as it is
# Vision masked in every layer of the stack. In a LLaVA: what the words alone give; in LLaVA-Mini
# one stack still has what the other passes on: compressed tokens, and words that have read the
# image.
NO_VISION = "no vision"
ANOTHER_IMAGE = "another image"  # the untouched model, asked about another image
ALWAYS = (UNTOUCHED, NO_VISION, ANOTHER_IMAGE)

Layers = Iterable[int]
CasesOf = Callable[[int], Mapping[str, Layers]]  # number of layers -> cases
Cases = Mapping[str, Layers] | CasesOf | Iterable[Layers | CasesOf | Mapping[str, Layers] | int]


def windows(size: int = 4, stride: int | None = None) -> CasesOf:
    """`size` neighbouring layers at a time, every `stride` (by default `size`) layers; the last may
    be shorter.

    >>> [*windows(4)(10)]
    ['1-4', '5-8', '9-10']
    """
    step = size if stride is None else stride
    if size < 1 or step < 1:
        raise ProbeError(
            "windows", expected="a size and a stride of at least 1", got=f"{size} and {step}"
        )

    def cases(layers: int) -> dict[str, Layers]:
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
    return lambda layers: _named(range(start, layers) for start in range(0, layers, step))


def until_layer(step: int = 1) -> CasesOf:
    """From the first layer up to a layer, for every `step`-th layer.

    >>> until_layer(4)(8)
    {'1-4': range(0, 4), '1-8': range(0, 8)}
    """
    return lambda layers: _named(range(end) for end in range(step, layers + 1, step))


def resolve(cases: Cases, layers: int) -> dict[str, frozenset[int]]:
    """Cases of a stack with so many layers, by name; sets without a name get their layers, numbered
    from 1.

    Sets that come twice without a name are one case. Raises ProbeError for a layer that is not
    there, one name for two sets, and the names of the cases that every sweep has.
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


def name_of(layers: Layers) -> str:
    """Layers as a reader counts them.

    >>> name_of({0, 1, 2, 5}), name_of([])
    ('1-3, 6', 'none')
    """
    runs = groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0])
    runs = [[layer + 1 for _, layer in run] for _, run in runs]
    return (
        ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
    )


def _named(sets: Iterable[Layers]) -> dict[str, Layers]:
    return {name_of(chosen): chosen for chosen in sets}


def _joined(parts: list, layers: int) -> dict[str, Layers]:
    """Layer sets, helpers and mappings in one list; a single set of layers is one case."""
    if parts and all(isinstance(part, int) for part in parts):
        return _named([parts])
    joined: dict[str, Layers] = {}
    for part in parts:
        found = (
            part(layers)
            if callable(part)
            else part
            if isinstance(part, Mapping)
            else _named([list(part)])
        )
        for name, chosen in found.items():  # pyright: ignore[reportAttributeAccessIssue]
            if name in joined and set(joined[name]) != set(chosen):
                raise ProbeError(
                    "drop_sweep",
                    expected="one set of layers for each name",
                    got=f"two for {name!r}",
                )
            joined[name] = chosen
    return joined
