"""The gradient's estimate is right where the model is linear; steering curves are forwards under
the block; and all of it can be drawn.
"""

import matplotlib.pyplot as plt
import models
import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe import plots
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.interventions import direction, steer
from probe.models.planted import planted
from tests.families.checks import QUESTION, picture
from tests.families.models import FAMILIES


@pytest.fixture(scope="module")
def known():
    return planted(read_layers=(2, 4))


@pytest.fixture(scope="module")
def subject(known):
    return probe.load(known.model, processor=known.processor)


@pytest.fixture(scope="module")
def samples(known):
    return [
        Sample(str(seed), known.image("red", seed), known.question, answer="red",
               corrupted=known.image("blue", seed))
        for seed in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_a_gradient_that_is_not_the_models_own_is_refused(name):
    model, processor = FAMILIES[name]()
    subject = probe.load(model, processor=processor)
    sample = Sample("a", picture(0), QUESTION, answer="red red", corrupted=picture(5))
    with pytest.raises(ProbeError, match="makes its logits of tokens and positions alone, got"):
        probe.attribution_patching(subject, sample, progress=False)


def test_the_estimate_is_exact_for_a_small_change():
    model, processor = models.llava15(layers=3)
    subject = probe.load(model, processor=processor)
    whole = models.picture(0)
    near = np.clip(np.asarray(whole, dtype=int) + 1, 0, 255).astype(np.uint8)
    corrupted = Image.fromarray(near)
    sample = Sample("a", whole, "what?", answer="a red circle", corrupted=corrupted)
    estimate = probe.attribution_patching(subject, sample, [1, 2], site="head", progress=False)
    exact = probe.patch_sweep(subject, sample, [1, 2], site="head", progress=False)
    assert estimate.attrs["agreement_pearson"] > 0.98
    assert np.isnan(estimate["correct"]).all()
    for name in ("clean", "corrupted"):
        np.testing.assert_allclose(estimate[name], exact[name], atol=1e-4)


def test_a_planted_layer_comes_first_in_the_estimate(subject, samples, capsys):
    estimate = probe.attribution_patching(subject, samples, site="attention", progress=True)
    moved = (estimate["patched"] - estimate["corrupted"]).mean("sample").squeeze()
    largest = np.argsort(-np.abs(moved.sel(group="last").values))
    assert set(largest[:2].tolist()) == {2, 4}
    assert "Spearman" in capsys.readouterr().err


def test_a_steering_curve_is_a_forward_under_the_block(known, subject, samples):
    groups = [
        [Sample(f"{c}{s}", known.image(c, s), known.question) for s in range(2)]
        for c in ("blue", "red")
    ]
    towards = direction(subject, *groups, "attention", 2)
    curve = probe.steering_curve(
        subject, samples, towards, scales=np.arange(0, 4, 2), progress=False
    )
    assert curve["kl"].values[:, 0] == pytest.approx([0, 0], abs=1e-6)
    assert curve["correct"].values.tolist() == [[1, 0], [1, 0]]
    inputs = subject.encode(samples[0].image, samples[0].question)
    gold = subject.processor.tokenizer.convert_tokens_to_ids("red")
    with steer(subject, towards, scale=2), torch.no_grad():
        logprob = subject.model(**inputs).logits[0, -1].log_softmax(-1)[gold]
    assert float(curve["steered_logprob"][0, 1]) == pytest.approx(float(logprob), rel=1e-5)
    drawn = plots.steering(curve)
    assert len(drawn.axes) == 3
    said = " ".join(drawn._supxlabel.get_text().split())
    assert "direction of layer 3 added in layers 3;" in said
    with pytest.raises(ProbeError, match=r"what probe.direction returned, got Tensor"):
        probe.steering_curve(subject, samples, towards.vector, 2, progress=False)
    plt.close("all")


def test_figures_say_what_they_show(subject, samples):
    sweep = probe.head_sweep(subject, samples, {2: [0, 1], 4: [0]}, "no_vision", progress=False)
    record = probe.measure_samples(subject, samples, contribution=True, progress=False)
    figure = plots.head_effects(sweep, record)
    ranked, *beside = figure.axes
    assert [text.get_text() for text in ranked.get_yticklabels()][2] == "layer 3, head 2"
    assert [axis.get_title(loc="left").split(",")[0] for axis in beside] == [
        "mass", "head_entropy", "contribution",
    ]  # fmt: skip
    assert "(nat)" in ranked.get_xlabel() and ranked.get_legend() is not None
    assert plots.heads(sweep).axes[0].get_xlabel() == ranked.get_xlabel()
    patches = probe.patch_sweep(subject, samples, direction="both", progress=False)
    figure = plots.recovered(patches)
    said = " ".join(figure._supxlabel.get_text().split())
    assert "corrupted by each question's own counterpart" in said
    left, right, *_ = figure.axes
    assert left.get_title(loc="left").startswith("denoise: largest 1.00")
    assert right.get_title(loc="left").startswith("noise: largest 1.00")
    with pytest.raises(ProbeError, match="a patch sweep"):
        plots.recovered(sweep)
    plt.close("all")
