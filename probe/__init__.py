"""See, layer by layer, how LLaVA-family models attend to instruction, vision and response tokens.

>>> import probe
>>> subject = probe.load("tiny-llava")                        # doctest: +SKIP
>>> record = probe.measure(subject, "photo.jpg", "what is this ?")  # doctest: +SKIP
>>> record["llm"]["mass"]                                     # doctest: +SKIP

This file is the map: each public name and the file it lives in, which is loaded when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe import plots
    from probe.attribution import attribute, deletion_curves
    from probe.costs import cost
    from probe.errors import ProbeError
    from probe.interventions import drop_vision, knockout, swap_vision
    from probe.interventions.sweep import drop_sweep, from_layer, until_layer, windows
    from probe.lens import logit_lens
    from probe.measurement import measure
    from probe.record import open, save, to_dataframe
    from probe.reducers.reducing import reduced
    from probe.samples import Sample
    from probe.sinks import find_sinks
    from probe.subject import load
    from probe.verification import verify

__version__ = "0.1.0"
__all__ = [
    "load", "measure", "save", "open", "to_dataframe", "plots", "verify", "cost", "Sample", "ProbeError",
    "drop_vision", "knockout", "swap_vision", "drop_sweep", "windows", "from_layer", "until_layer", "reduced",
    "attribute", "deletion_curves", "logit_lens", "find_sinks",
]  # fmt: skip

_HOMES = {
    "load": "probe.subject",
    "measure": "probe.measurement",
    "save": "probe.record",
    "open": "probe.record",
    "to_dataframe": "probe.record",
    "verify": "probe.verification",
    "cost": "probe.costs",
    "drop_vision": "probe.interventions",
    "knockout": "probe.interventions",
    "swap_vision": "probe.interventions",
    "drop_sweep": "probe.interventions.sweep",
    "windows": "probe.interventions.sweep",
    "from_layer": "probe.interventions.sweep",
    "until_layer": "probe.interventions.sweep",
    "reduced": "probe.reducers",
    "attribute": "probe.attribution",
    "deletion_curves": "probe.attribution",
    "logit_lens": "probe.lens",
    "find_sinks": "probe.sinks",
    "Sample": "probe.samples",
    "ProbeError": "probe.errors",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("plots", "models", "reducers"):
        return import_module(f"probe.{name}")
    raise AttributeError(f"module 'probe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
