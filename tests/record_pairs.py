"""Two records that should be equal, and what to measure both under."""

import numpy as np

import probe
from probe.reducers import FastV, VisionZip

TOLERANCE = 1e-5
INTERVENTIONS = {
    "mask": lambda subject: probe.drop_vision(subject, [0, 1]),
    "remove": lambda subject: probe.drop_vision(subject, [1], "remove"),
    "zero": lambda subject: probe.drop_vision(subject, [0], "zero"),
    "knock-out": lambda subject: probe.knockout(subject, "text", "vision", [1]),
    "VisionZip": VisionZip(4, 2),
    "FastV": FastV(1, 0.25),
}


def subject_of(factory, **options):
    model, processor = factory(**{"layers": 2} | options)
    return probe.load(model, processor=processor)


def conversation(text, images):
    if images == 1:
        return text
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def assert_equal(one, two):
    """Every variable of every stack: numbers to 1e-5, all else exactly."""
    assert one.children.keys() == two.children.keys()
    for name in one.children:
        first, second = (record[name].to_dataset(inherit=False) for record in (one, two))
        assert first.variables.keys() == second.variables.keys()
        for variable in first.variables:
            values, others = first[variable].values, second[variable].values
            if values.dtype.kind == "f":
                np.testing.assert_allclose(
                    values, others, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name} {variable}"
                )
            else:
                np.testing.assert_array_equal(values, others, err_msg=f"{name} {variable}")
    for name in ("response_ids", "token_type", "tokens"):
        np.testing.assert_array_equal(one[name].values, two[name].values)
    logprob = one["response_logprob"].values
    np.testing.assert_allclose(logprob, two["response_logprob"].values, atol=TOLERANCE)
    np.testing.assert_array_equal(np.isnan(logprob), one["response_ids"].values < 0)
