"""States that overflow name the layer and the dtype, and nothing is measured on them."""

import models
import pytest
from cases._overflow import overflowing

import probe
from probe.errors import ProbeError
from probe.measures.attribution.attribute import attribute
from probe.measures.logit_lens import logit_lens

ASKED = models.picture(0), "what is it?", "a red circle"
CALLS = {
    "measure": lambda subject: probe.measure(subject, *ASKED),
    "attribute": lambda subject: attribute(subject, *ASKED, over="grid", progress=False),
    "logit_lens": lambda subject: logit_lens(subject, *ASKED),
}


@pytest.mark.parametrize("name", CALLS)
def test_layer_and_dtype_are_named(name):
    model, processor = overflowing(at=2)
    subject = probe.load(model, processor=processor)
    with pytest.raises(ProbeError) as refused:
        CALLS[name](subject)
    assert str(refused.value) == (
        f"{name}: expected finite hidden states, got NaN or infinity after layer 2 (from 0) of llm "
        "in float16; load the model with dtype='bfloat16' (or 'float32'): float16 ends at 65,504"
    )


@pytest.mark.parametrize("name", CALLS)
def test_the_same_weights_in_float32_are_measured(name):
    model, processor = overflowing(at=2)
    CALLS[name](probe.load(model.float(), processor=processor))
