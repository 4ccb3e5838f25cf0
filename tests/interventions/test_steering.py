"""A direction is a difference of means, and steering adds it: nothing more."""

import models
import numpy as np
import pytest
import torch
from prompts import decoded, logits, row, six_layers

import probe
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.hooks.model_state import is_clear
from probe.interventions import direction, steer
from probe.interventions.edit_report import EditReport
from probe.models.planted import planted


@pytest.fixture(scope="module")
def subject():
    return six_layers()


def samples(seeds):
    return [Sample(str(s), models.picture(s), "what is in the picture?") for s in seeds]


def test_a_direction_is_a_difference_of_means(subject):
    positives, negatives = samples((0, 1)), samples((2, 3, 4))
    found = direction(subject, positives, negatives, "residual", 3)
    means = []
    for group in (positives, negatives):
        inputs = [subject.encode(sample.image, sample.question) for sample in group]
        with torch.no_grad():
            states = [subject.model(**each, output_hidden_states=True) for each in inputs]
        means.append(torch.stack([state.hidden_states[4][0, -1] for state in states]).mean(0))
    torch.testing.assert_close(found.vector, means[0] - means[1], atol=1e-6, rtol=0)
    assert (found.site, found.layer, found.positives, found.negatives) == ("residual", 3, 2, 3)
    encoded = [subject.encode(sample.image, sample.question) for sample in positives]
    again = direction(subject, encoded, negatives, "residual", 3)
    assert torch.equal(found.vector, again.vector)


@pytest.mark.parametrize("positions", ["all", "vision", "text"])
def test_steering_adds_it(subject, positions):
    inputs = row(subject)
    vision = torch.as_tensor(inputs.types.vision)[0]
    vector = torch.linspace(-1, 1, 48)
    where = {"all": torch.ones_like(vision), "vision": vision, "text": ~vision}[positions]

    def add(module, args, output):
        return output + 2.0 * where[:, None] * vector

    handle = subject.model.get_decoder().layers[2].register_forward_hook(add)
    expected = logits(subject, inputs)
    handle.remove()
    with steer(subject, vector, 2, 2.0, positions=positions) as report:
        torch.testing.assert_close(logits(subject, inputs), expected, atol=1e-5, rtol=0)
    assert (report.calls, report.calls_changed) == (1, 1)
    assert report.largest_change == pytest.approx(2.0, rel=1e-5)
    with steer(subject, vector, 2, np.int64(2), positions=positions):
        torch.testing.assert_close(logits(subject, inputs), expected, atol=1e-5, rtol=0)
    with steer(subject, vector, (1, 2), positions=positions) as report:
        with_cache = decoded(subject, inputs)[1]
        torch.testing.assert_close(
            decoded(subject, inputs, use_cache=False)[1], with_cache, atol=1e-4, rtol=0
        )
    assert all(is_clear(module) for module in subject.model.modules())


def test_the_planted_colour_is_steered():
    known = planted(read_layers=(2,))
    subject = probe.load(known.model, processor=known.processor)
    groups = [
        [Sample(f"{c}{s}", known.image(c, s), known.question) for s in range(3)]
        for c in ("red", "blue")
    ]
    towards_red = direction(subject, *groups, "attention", 2)
    assert subject.answer(known.image("blue"), known.question) == "blue"
    with steer(subject, towards_red):
        assert subject.answer(known.image("blue"), known.question, max_new_tokens=1) == "red"
    with steer(subject, towards_red, scale=0.0) as report:
        assert subject.answer(known.image("blue"), known.question) == "blue"
    assert report.calls_changed == 0 < report.calls


def test_mistakes_are_told(subject):
    vector = torch.ones(48)
    some = samples((0,))
    with pytest.raises(ProbeError, match="at least one negative"):
        direction(subject, some, [], "mlp", 1)
    with pytest.raises(ProbeError, match="layers from 0 to 5"):
        direction(subject, some, some, "mlp", 9)
    with pytest.raises(ProbeError, match="samples with vision tokens"):
        direction(subject, some, [Sample("t", None, "what?")], "mlp", 1, positions="vision")
    for arguments, options, message in (
        ((vector,), {}, "layers, for a bare vector"),
        ((vector, 1), {"site": "norm"}, "a site of"),
        ((vector, 1), {"positions": "last"}, "positions of all, vision, text"),
        ((vector * torch.nan, 1), {}, "finite numbers"),
        ((vector[:3], 1), {}, "a direction of 48 numbers"),
        ((vector, 1, float("nan")), {}, "a finite number as scale, got nan"),
    ):
        with pytest.raises(ProbeError, match=message), steer(subject, *arguments, **options):
            logits(subject, row(subject))


def test_a_change_to_nan_is_the_largest_that_is_reported():
    report = EditReport.of("steer", [0, 1])
    for layer, after in ((0, 1.0), (1, torch.nan), (1, 3.0)):
        report.note(layer, torch.zeros(2), torch.tensor([0.5, after]))
    assert report.calls_changed == report.calls == 3
    assert report.layers[0].largest_change == 1 and str(report).endswith("by at most nan")
