"""See, layer by layer, how LLaVA-family models attend to instruction, vision and response tokens.

>>> import probe
>>> subject = probe.load("tiny-llava")                        # doctest: +SKIP
>>> record = probe.measure(subject, "photo.jpg", "what is this ?")  # doctest: +SKIP
>>> record["llm"]["mass"]                                     # doctest: +SKIP

This file is the map: each public name and the file it lives in, which is loaded when the name is
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe import plots
    from probe.data.sample import Sample
    from probe.errors import ProbeError
    from probe.interventions import drop_vision, knockout, swap_vision
    from probe.interventions.sweep import drop_sweep, from_layer, until_layer, windows
    from probe.measures.attention.measure import measure
    from probe.measures.attention.sinks import find_sinks
    from probe.measures.attribution import attribute, deletion_curves
    from probe.measures.cost import cost
    from probe.measures.logit_lens import logit_lens
    from probe.measures.verify import verify
    from probe.records import open_record, save_record, to_dataframe
    from probe.reducers.context import reduced
    from probe.subject.subject import load

__version__ = "0.1.0"
__all__ = [
    "load",
    "measure",
    "save_record",
    "open_record",
    "to_dataframe",
    "plots",
    "verify",
    "cost",
    "Sample",
    "ProbeError",
    "drop_vision",
    "knockout",
    "swap_vision",
    "drop_sweep",
    "windows",
    "from_layer",
    "until_layer",
    "reduced",
    "attribute",
    "deletion_curves",
    "logit_lens",
    "find_sinks",
]

_HOMES = {
    "load": "probe.subject.subject",
    "measure": "probe.measures.attention.measure",
    "save_record": "probe.records",
    "open_record": "probe.records",
    "to_dataframe": "probe.records",
    "verify": "probe.measures.verify",
    "cost": "probe.measures.cost",
    "drop_vision": "probe.interventions",
    "knockout": "probe.interventions",
    "swap_vision": "probe.interventions",
    "drop_sweep": "probe.interventions.sweep",
    "windows": "probe.interventions.sweep",
    "from_layer": "probe.interventions.sweep",
    "until_layer": "probe.interventions.sweep",
    "reduced": "probe.reducers",
    "attribute": "probe.measures.attribution",
    "deletion_curves": "probe.measures.attribution",
    "logit_lens": "probe.measures.logit_lens",
    "find_sinks": "probe.measures.attention.sinks",
    "Sample": "probe.data.sample",
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
