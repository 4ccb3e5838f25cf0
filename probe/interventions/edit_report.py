"""What an edit did: a block that edits activations counts the calls it reached and changed, and
fails where it reached none.

    with ablate_heads(subject, {3: [0, 1]}) as report:
        subject.model(**inputs)
    report.calls_changed, report.largest_change          # 1, 0.41
    print(report)        # ablate_heads: changed 1 of 1 calls in 1 layer, by at most 0.41

An edit that reaches its calls and changes no number is reported, not an error: a head may add
nothing already.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan, nan
from threading import Lock

from torch import Tensor

from probe.errors import ProbeError


@dataclass
class LayerEdits:
    """One layer's calls in a block: how many were reached and changed, and the largest absolute
    change of an activation.
    """

    calls: int = 0
    calls_changed: int = 0
    largest_change: float = 0.0


@dataclass
class EditReport:
    """What a block did so far, by layer (counted from 0). `called`: the public function."""

    called: str
    layers: dict[int, LayerEdits]
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def of(cls, called: str, layers: Iterable[int]) -> "EditReport":
        return cls(called, {layer: LayerEdits() for layer in layers})

    @property
    def calls(self) -> int:
        """Calls that the edit reached."""
        return sum(layer.calls for layer in self.layers.values())

    @property
    def calls_changed(self) -> int:
        """Calls of which at least one number was changed."""
        return sum(layer.calls_changed for layer in self.layers.values())

    @property
    def largest_change(self) -> float:
        """The largest absolute change of an activation, in any call."""
        changes = [layer.largest_change for layer in self.layers.values()]
        return nan if any(isnan(change) for change in changes) else max(changes, default=0.0)

    def note(self, layer: int, before: Tensor, after: Tensor) -> None:
        """Counts one call. No values, as of a call that holds none of the edited positions, are no
        change.
        """
        change = 0.0
        if before.numel():
            change = float((after.detach() - before.detach()).abs().max())
        with self._lock:
            edits = self.layers[layer]
            edits.calls += 1
            edits.calls_changed += change != 0
            # a change to NaN is the largest of all, and stays
            if isnan(change) or change > edits.largest_change:
                edits.largest_change = change

    def require_calls(self, fix: str) -> None:
        """Raises ProbeError for a layer of which no call was reached."""
        missed = [layer for layer, edits in self.layers.items() if not edits.calls]
        if missed:
            count = f"{len(missed)} of {len(self.layers)} layers"
            raise ProbeError(
                self.called,
                expected="calls that it can change",
                got=f"none in layer {missed[0]} (from 0), {count}",
                fix=fix,
            )

    def __str__(self) -> str:
        count = len(self.layers)
        layers = f"{count} layer{'' if count == 1 else 's'}"
        changed = f"changed {self.calls_changed} of {self.calls} calls in {layers}"
        return f"{self.called}: {changed}, by at most {self.largest_change:.3g}"
