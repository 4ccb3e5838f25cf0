"""The cases of a sweep: named sets of layers, parts of vision in some layers, and the three that
every sweep has.

    resolve(windows(4), 32)              # {"1-4": {0, 1, 2, 3}, "5-8": ...}: the paper's Fig. 5
    resolve([from_layer(4), {0, 5}], 8)  # {"1-8": ..., "5-8": {4, 5, 6, 7}, "1, 6": {0, 5}}
    parts_of(frame_windows(4, 16), 32)   # {"frames 1-4": VisionPart(frames=range(4)), ...}

Layers are numbered from 0 in code and from 1 in names, as on the paper's axes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from probe.errors import ProbeError, at_least, whole_numbers
from probe.hooks.model_state import layer_ranges
from probe.interventions.sweep.vision_parts import VisionPart

UNTOUCHED = "untouched"  # the model as it is
# Vision masked in every layer of the stack. In a LLaVA this leaves the text alone; in LLaVA-Mini
# each of its two stacks still receives image information from the other: compressed tokens, and
# text that was fused with the image.
NO_VISION = "no vision"
ANOTHER_IMAGE = "another image"  # the untouched model, asked about another image
ALWAYS = (UNTOUCHED, NO_VISION, ANOTHER_IMAGE)

LayerSet = Iterable[Any]  # the elements are checked
Dropped = LayerSet | VisionPart  # all vision in these layers, or a part of it
CasesOf = Callable[[int], Mapping[str, Dropped]]  # number of layers -> cases
Cases = (
    Mapping[str, Dropped]
    | CasesOf
    | VisionPart
    | Iterable[Dropped | CasesOf | Mapping[str, Dropped] | int]
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

    def cases(layers: int) -> dict[str, Dropped]:
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


def frame_windows(size: int, frames: int, layers: Cases | None = None) -> CasesOf:
    """`size` neighbouring frames at a time, of the first `frames` of each video; the last window
    may be shorter. `layers`: the sets of layers that each is dropped in; by default all layers.

    >>> [*frame_windows(4, frames=10)(8)]
    ['frames 1-4', 'frames 5-8', 'frames 9-10']
    """
    at_least("frame_windows", "a size", size, 1)
    at_least("frame_windows", "frames", frames, 1)
    starts = range(0, frames, size)
    windows_of_frames = [VisionPart(frames=range(i, min(i + size, frames))) for i in starts]
    return _in_layers(windows_of_frames, layers)


def frame_parts(count: int, layers: Cases | None = None) -> CasesOf:
    """Equal parts of the frames of each video, however many it has, one at a time. `layers`: as in
    `frame_windows`.

    >>> [*frame_parts(2)(8)]
    ['part 1 of 2', 'part 2 of 2']
    >>> [*frame_parts(1, windows(4))(8)]
    ['part 1 of 1, layers 1-4', 'part 1 of 1, layers 5-8']
    """
    at_least("frame_parts", "a count", count, 1)
    return _in_layers([VisionPart(share=(part, count)) for part in range(count)], layers)


def _in_layers(parts: list[VisionPart], cases: Cases | None) -> CasesOf:
    def made(layers: int) -> dict[str, Dropped]:
        sets = [None] if cases is None else list(resolve(cases, layers).values())
        every = [replace(part, layers=chosen) for chosen in sets for part in parts]
        return {part.name: part for part in every}

    return made


def resolve(cases: Cases, layers: int) -> dict[str, frozenset[int]]:
    """The layers of each case in a stack with `layers` layers, by name; a set without a name is
    named by its layers, numbered from 1.

    A set given twice without a name is one case. Raises ProbeError for a layer outside the stack,
    one name for two sets, and the names of the cases that every sweep has.
    """
    resolved = {}
    for name, chosen in by_name(cases, layers).items():
        given = whole_numbers("drop_sweep", f"layers of {name!r}", _layers_of(chosen, layers))
        resolved[str(name)] = frozenset(given)
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


def parts_of(cases: Cases, layers: int) -> dict[str, VisionPart]:
    """The cases among them that drop a part of vision, by name."""
    named = by_name(cases, layers).items()
    return {str(name): chosen for name, chosen in named if isinstance(chosen, VisionPart)}


def by_name(cases: Cases, layers: int) -> Mapping[str, Dropped]:
    """What each case drops, in a stack with `layers` layers."""
    given: Any = cases(layers) if callable(cases) else cases
    if isinstance(given, VisionPart):
        return {given.name: given}
    return given if isinstance(given, Mapping) else _joined(list(given), layers)


def _layers_of(chosen: Dropped, layers: int) -> LayerSet:
    return chosen.layers_of(layers) if isinstance(chosen, VisionPart) else chosen


def _named(sets: Iterable[LayerSet]) -> dict[str, Dropped]:
    return {layer_ranges(chosen, first=1, separator=", "): chosen for chosen in sets}


def _joined(parts: list, layers: int) -> dict[str, Dropped]:
    """Layer sets, helpers and mappings in one list; a single set of layers is one case."""
    if parts and all(isinstance(part, int) for part in parts):
        return _named([parts])
    joined: dict[str, Dropped] = {}
    for part in parts:
        made: Any = part(layers) if callable(part) else part
        if isinstance(made, VisionPart):
            made = {made.name: made}
        sets = made if isinstance(made, Mapping) else _named([list(made)])
        for name, chosen in sets.items():
            if name in joined and not _same(joined[name], chosen):
                raise ProbeError(
                    "drop_sweep",
                    expected="one set of layers for each name",
                    got=f"two for {name!r}",
                )
            joined[name] = chosen
    return joined


def _same(first: Dropped, second: Dropped) -> bool:
    if isinstance(first, VisionPart) or isinstance(second, VisionPart):
        return first == second
    return set(first) == set(second)
