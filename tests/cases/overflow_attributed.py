"""The same model under attribution and logit lens: NaN attributions and a NaN self-check (last_layer_difference, delta) must not pass in silence."""

from common import np, verdict
import warnings
import models
import probe
from _overflow import overflowing
from probe.measures.attribution.attribute import attribute
from probe.measures.logit_lens import logit_lens

saw = {}
for name in ("attribute", "logit_lens"):
    model, processor = overflowing()
    subject = probe.load(model, processor=processor)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            if name == "attribute":
                found = attribute(
                    subject,
                    models.picture(0),
                    "what is it?",
                    response="a red circle",
                    method="shapley",
                    samples=2,
                    over="grid",
                    progress=False,
                )
                value = f"delta {float(found['delta'])}, {int(np.isnan(found['attribution']).sum())} of {found.sizes['feature']} NaN"
            else:
                found = logit_lens(
                    subject, models.picture(0), "what is it?", response="a red circle"
                )
                value = f"last_layer_difference {found.attrs['last_layer_difference']}"
            saw[name] = (
                value,
                [
                    str(w.message)[:100]
                    for w in told
                    if "finite" in str(w.message) or "overflow" in str(w.message)
                ],
            )
        except Exception as error:
            saw[name] = "", [error] if "ProbeError" in type(error).__name__ else []
verdict(all(told for _, told in saw.values()), **saw)
