"""The promises are kept on every shape of model, and a broken one is told."""

import models
import numpy as np
import pytest
import torch
from cases._overflow import overflowing

import probe.measures.verify
from probe.hooks.attention_tap import routed
from probe.measures import verify_decoding, verify_model
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.statistic import AttentionStatistic
from probe.measures.verify import Report, verify
from probe.measures.verify_model import devices, shares_prefix
from probe.subject.image_prefix import ImagePrefix
from probe.subject.loading import load
from probe.subject.prefix_check import SharingCheck


@pytest.mark.parametrize("factory", [models.llava15, models.llava_next_mistral])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_promises_are_kept(factory, dtype):
    model, processor = factory()
    report = verify(
        load(model, processor=processor, dtype=dtype), models.picture(0, 70, 50), "what is it?"
    )
    assert report.passed, report.appendix
    assert len(report.checks) == 15
    assert dtype in report.appendix and "promised: exactly 0" in report.appendix
    assert model.config._attn_implementation == "sdpa", "switched to eager and back"


def test_a_broken_promise_is_told(monkeypatch):
    """A tap that changes the logits, and a statistic that is off."""
    model, processor = models.llava15()
    subject = load(model, processor=processor)
    tap, table = probe.measures.verify.tap, AttentionStatistic.table

    def meddling(modules, observe):
        def meddle(call):
            call.value.mul_(1.5)
            observe(call)

        return routed(modules, lambda call, kernel: (meddle(call), kernel(call))[1])

    monkeypatch.setattr(probe.measures.verify, "tap", meddling)
    report = verify(subject, models.picture(), "what is it?")
    assert not report.passed and not report.checks[0].passed and float(report.checks[0].value) > 0
    monkeypatch.setattr(probe.measures.verify, "tap", tap)

    def off(self, *args):
        return {name: value + 1e-3 for name, value in table(self, *args).items()}

    monkeypatch.setattr(AttentionStatistic, "table", off)
    failed = [
        check.name
        for check in verify(subject, models.picture(), "what is it?").checks
        if not check.passed
    ]
    assert "statistic of the LLM against whole maps" in failed


def test_the_plain_computation_on_a_map_worked_out_by_hand():
    """Two heads, three keys: text, vision, vision; the last query gives (0.5, 0.5, 0) and (0.5, 0,
    0.5).
    """
    weights = torch.tensor(
        [[[1, 0, 0], [0.2, 0.8, 0], [0.5, 0.5, 0]], [[1, 0, 0], [0.6, 0.4, 0], [0.5, 0, 0.5]]]
    )
    visible = torch.ones(3, 3, dtype=torch.bool).tril()
    ids = np.array([0, 1, 1])
    table = probe.measures.attention.reference.plain_table(
        weights, visible, ("text", "vision"), ids, ids, ids == 1
    )
    assert table["mass"][:, 1, 1] == pytest.approx([(0.8 + 0.5) / 2, (0.4 + 0.5) / 2])
    assert table["mass"][:, 1, 0] == pytest.approx([0.35, 0.55])
    assert table["share"][:, 1, 1] == pytest.approx([0.65, 0.45])
    assert np.isnan(table["mass"][:, 0, 1]).all() and np.isnan(table["share"][:, 0]).all()
    assert table["lift"][:, 1, 1] == pytest.approx(
        [(0.8 / (1 / 2) + 0.5 / (2 / 3)) / 2, (0.4 / 0.5 + 0.75) / 2]
    )
    assert table["entropy"][1, 1] == pytest.approx(np.log(2)), "the mean over heads is (0.25, 0.25)"
    assert table["head_entropy"][:, 1, 1] == pytest.approx([0, 0])
    assert table["received"][1] == pytest.approx([(0.6 + 0.25) / 2, 0.25])


def test_a_report_passes_only_whole():
    check = probe.measures.verify.Check
    assert Report([check("a", 0.0, "0", True)]).passed
    assert not Report([check("a", 0.0, "0", True), check("b", 1.0, "0", False)]).passed


def test_a_cache_that_goes_unnoticed_is_reported(monkeypatch):
    """Each decoding step taken for a new prompt, as on transformers 5.24 before the cache was found
    by its class: what was dropped comes back.
    """
    import probe.hooks.sequence_tracker as tracker

    model, processor = models.llava15()
    subject = load(model, processor=processor)
    name = "vision dropped in all layers"
    kept = [c for c in verify(subject, models.picture(), "what is it?").checks if name in c.name]
    monkeypatch.setattr(tracker, "find_cache", lambda *_: None)
    monkeypatch.setattr(tracker, "output_cache", lambda *_: None)
    monkeypatch.setattr(tracker.SequenceTracker, "_check_mask", lambda *_: None)
    lost = [c for c in verify(subject, models.picture(), "what is it?").checks if name in c.name]
    assert [check.passed for check in (*kept, *lost)] == [True, False]


def test_steps_that_are_measured_wrong_are_not_the_models_own(monkeypatch):
    """Also where a model decodes to other numbers by itself: its steps have whole maps too."""
    model, processor = models.llava15()
    table = AttentionStatistic.table

    class Off(AttentionStatistic):
        def table(self, *args):
            return {name: value + 1e-3 for name, value in table(self, *args).items()}

    def statistic(subject, inputs):
        made = stack_statistics(subject, inputs, ["llm"])["llm"].statistic
        made.__class__ = Off
        return made

    monkeypatch.setattr(verify_decoding, "_llm_statistic", statistic)
    report = verify(load(model, processor=processor), models.picture(), "what is it?")
    (failed,) = [check for check in report.checks if not check.passed]
    assert "steps of decoding" in failed.name
    assert failed.value.startswith("0.001, not the model's own: its steps against their whole maps")


def test_a_model_that_does_not_read_its_image_is_told():
    model, processor = models.llava15()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
    report = verify(load(model, processor=processor), models.picture(), "what is it?")
    (check,) = [check for check in report.checks if "by image" in check.name]
    assert not check.passed and "this model does not read its image" in check.value
    assert {check.name for check in report.checks if not check.passed} == {check.name}


def check_of(report: Report, name: str):
    (check,) = [check for check in report.checks if check.name == name]
    return check


def test_inputs_that_go_to_another_device_than_their_reader_fail_before_any_forward(monkeypatch):
    model, processor = models.llava15()
    subject = load(model, processor=processor)
    prompt = subject.encode(models.picture(), "what is it?")
    model.model.vision_tower.to("meta")
    check = devices(subject, prompt)
    assert not check.passed and check.value == "pixel_values on cpu, read on meta"
    model, processor = models.llava15()
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    monkeypatch.setattr(probe.measures.verify, "devices", lambda *_: check)
    report = verify(load(model, processor=processor), models.picture(), "what is it?")
    assert report.checks == [check] and "read on meta" in report.appendix


def test_devices_of_the_inputs_are_named(subject):
    check = devices(subject, subject.encode(models.picture(), "what is it?"))
    assert check.passed and check.value == "input_ids on cpu, pixel_values on cpu"


@pytest.fixture(scope="module")
def subject():
    model, processor = models.llava15()
    return load(model, processor=processor)


def test_sharing_is_exact_and_a_wrong_share_fails(subject, monkeypatch):
    prompt = subject.encode(models.picture(), "what is it?")
    assert shares_prefix(subject, prompt).passed
    assert shares_prefix(subject, prompt).value.startswith("exact")
    monkeypatch.setattr(ImagePrefix, "masked", ImagePrefix.unmodified)  # vision comes back
    wrong = shares_prefix(subject, prompt)
    assert not wrong.passed and wrong.value.startswith("not exact: logits differ by")


def test_a_model_that_cannot_share_says_why(subject, monkeypatch):
    reason = "its image prefix depends on the question"
    monkeypatch.setattr(verify_model, "check_sharing", lambda *_: SharingCheck(reason, 0.1))
    check = shares_prefix(subject, subject.encode(models.picture(), "what is it?"))
    assert check.passed and check.value == f"not used: {reason}"


def test_a_sum_of_attention_that_is_nan_is_no_kept_promise(subject, monkeypatch):
    inputs = subject.encode(models.picture(), "what is it?", "a cat")
    statistic = probe.measures.verify._measured(subject, inputs)
    assert probe.measures.verify._identity(inputs, statistic).passed
    table = AttentionStatistic.table

    def with_nan(self, *args):
        values = table(self, *args)
        return values | {"mass": np.full_like(values["mass"], np.nan)}

    monkeypatch.setattr(AttentionStatistic, "table", with_nan)
    check = probe.measures.verify._identity(inputs, statistic)
    assert np.isnan(check.value) and not check.passed


def test_states_that_overflow_fail_and_are_named():
    model, processor = overflowing()
    report = verify(load(model, processor=processor), models.picture(), "what is it?")
    failed = {check.name: check.value for check in report.checks if not check.passed}
    assert "after layer 1 (from 0) of llm in float16" in failed["hidden states"]
    assert "bfloat16" in failed["hidden states"]
    assert not report.passed
