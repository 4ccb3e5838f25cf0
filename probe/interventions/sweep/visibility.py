"""What text sees of vision in each layer of each case, before any model is run.

    cases = {"untouched": frozenset(), "3-4": frozenset({2, 3})}
    seen = visibility_of_cases("mask", cases, layers=4)
    # {"untouched": (SEEN, SEEN, SEEN, SEEN), "3-4": (SEEN, SEEN, MASKED, MASKED)}
    row_layers(seen.values())       # 4 + 2: shared until the cases differ

Text sees nothing of vision where vision tokens are removed, as where they are masked. After the
removal they return as they were before their first dropped layer, as with "mask_frozen": a prefix
of its own in the later layers.
"""

from collections.abc import Collection, Mapping
from typing import Literal

from probe.interventions.drop import DROP_MODES, DropMode
from probe.interventions.sweep.layer_sets import ANOTHER_IMAGE, NO_VISION, UNTOUCHED

SweepMode = DropMode | Literal["swap"]
SWEEP_MODES: tuple[str, ...] = (*DROP_MODES, "swap")

SEEN = "seen"
MASKED = "masked"
ZEROED = "zeroed"
SWAPPED = "swapped"
IN_DROPPED_LAYERS = dict.fromkeys(DROP_MODES, MASKED) | {"zero": ZEROED, "swap": SWAPPED}
FREEZING = ("mask_frozen", "remove")  # vision tokens pass the layers unchanged and are seen later

Visibility = str | frozenset[int]  # one of the four; or vision as it is after skipping these layers


def visibility_of_cases(
    mode: str, cases: Mapping[str, frozenset[int]], layers: int
) -> dict[str, tuple[Visibility, ...]]:
    """The visibility in each layer, by case; the cases that every sweep has by their names."""
    always = {UNTOUCHED: SEEN, NO_VISION: MASKED, ANOTHER_IMAGE: SWAPPED}
    return {
        name: (always[name],) * layers if name in always else _visibility(mode, chosen, layers)
        for name, chosen in cases.items()
    }


def _visibility(mode: str, chosen: frozenset[int], layers: int) -> tuple[Visibility, ...]:
    first = min(chosen, default=layers)
    if mode == "remove_for_good":
        chosen = frozenset(range(first, layers))
    later = chosen if mode in FREEZING else SEEN
    return tuple(
        IN_DROPPED_LAYERS[mode] if layer in chosen else later if layer > first else SEEN
        for layer in range(layers)
    )


def row_layers(visibilities: Collection[tuple[Visibility, ...]]) -> int:
    """Rows times layers that these cases cost: in each layer, the distinct histories up to it.

    >>> row_layers([("seen", "seen"), ("seen", "masked"), ("masked", "masked")])
    5
    """
    depth = len(next(iter(visibilities)))
    return sum(len({layers[: layer + 1] for layers in visibilities}) for layer in range(depth))
