"""A float16 model that overflows says "!!!!" and has NaN attention from a layer on. NaN also means "no query sees this": the user must be told."""

from common import verdict
import warnings
import models
import probe
from _overflow import overflowing

model, processor = overflowing()
subject = probe.load(model, processor=processor)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    try:
        record = probe.measure(subject, models.picture(0), "what is it?", response="a red circle")
    except Exception as error:
        verdict("ProbeError" in type(error).__name__, refused=error)
mass = record["llm"]["mass"].sel(query_type="response", key_type="vision").mean("head").values
told = [str(w.message)[:120] for w in told]
verdict(
    any("finite" in t or "float16" in t or "overflow" in t for t in told),
    mass_by_layer=mass,
    query_count=record["llm"]["query_count"].sel(query_type="response", key_type="vision").values,
    warned=told,
)
