"""What text sees of vision in each layer of each case, before any model is run.

    readings = Reading("mask").of_cases({"untouched": frozenset(), "3-4": frozenset({2, 3})}, layers=4)
    # {"untouched": (SEEN, SEEN, SEEN, SEEN), "3-4": (SEEN, SEEN, MASKED, MASKED)}
    row_layers(readings.values())        # 4 + 2: rows are shared up to the first layer in which cases differ

`"remove"` is `"mask"` where vision does not come back (to the last layer, or `restore=False`).
Where it does, it comes back as it was before its first dropped layer: "mask" with `freeze`, a
prefix of its own in the layers behind.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from probe.errors import ProbeError
from probe.interventions.sweep.layer_sets import ANOTHER_IMAGE, NO_VISION, UNTOUCHED

SEEN, MASKED, ZEROED, SWAPPED = "seen", "masked", "zeroed", "swapped"
HOWS = {"mask": MASKED, "remove": MASKED, "zero": ZEROED, "swap": SWAPPED}
Frozen = frozenset[int]  # seen as it is when it has skipped these layers
Symbol = str | Frozen


@dataclass(frozen=True)
class DropMode:
    """One reading of "dropped", as `drop_vision` has it. Raises ProbeError for one that it doesn't
    have.
    """

    how: str = "mask"
    freeze: bool = False
    restore: bool = True

    def __post_init__(self):
        if self.how not in HOWS:
            raise ProbeError("drop_sweep", expected=f"how of {', '.join(HOWS)}", got=repr(self.how))
        if self.freeze and self.how != "mask":
            raise ProbeError(
                "drop_sweep", expected="freeze with how='mask'", got=f"how={self.how!r}"
            )
        if not self.restore and self.how != "remove":
            raise ProbeError(
                "drop_sweep", expected="restore=False with how='remove'", got=f"how={self.how!r}"
            )

    @property
    def freezes(self) -> bool:
        return self.freeze or (self.how == "remove" and self.restore)

    def of_cases(
        self, cases: Mapping[str, frozenset[int]], layers: int
    ) -> dict[str, tuple[Symbol, ...]]:
        """The symbol of each layer, by case; the cases that every sweep has by their names."""
        always = {UNTOUCHED: SEEN, NO_VISION: MASKED, ANOTHER_IMAGE: SWAPPED}
        return {
            name: (always[name],) * layers if name in always else self._of_case(chosen, layers)
            for name, chosen in cases.items()
        }

    def _of_case(self, chosen: frozenset[int], layers: int) -> tuple[Symbol, ...]:
        first = min(chosen, default=layers)
        if not self.restore:
            chosen = frozenset(range(first, layers))
        behind = chosen if self.freezes else SEEN
        return tuple(
            HOWS[self.how] if layer in chosen else behind if layer > first else SEEN
            for layer in range(layers)
        )


def row_layers(readings: Collection[tuple[Symbol, ...]]) -> int:
    """Rows times layers that these cases cost: in each layer, the distinct histories up to it.

    >>> row_layers([("seen", "seen", "seen"), ("seen", "masked", "masked"), ("seen", "seen", "masked")])
    6
    """
    depth = len(next(iter(readings)))
    return sum(len({reading[: layer + 1] for reading in readings}) for layer in range(depth))
