"""Methods side by side: each answers as it does alone, counts its own tokens, and goes on where it
was stopped.
"""

# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

import numpy as np
import pytest

import probe
from probe import plots
from probe.errors import ProbeError
from probe.evaluation.method_comparison import Comparison, Method, tokens_by_layer
from probe.evaluation.method_scores import method_scores
from probe.evaluation.task import BenchmarkTask
from probe.reducers import FastV, Grid, VisionZip

ZIP, FAST = (VisionZip(3, 1),), (Grid(9), FastV(2, 1 / 3))


@pytest.fixture(scope="module")
def subject():
    return probe.load("tiny-llava")


@pytest.fixture(scope="module")
def comparison(subject):
    methods = [
        Method("all", subject),
        Method("VisionZip", subject, ZIP, "zip"),
        Method("both", subject, FAST, "both"),
    ]
    return Comparison(methods, BenchmarkTask.read("shapes", limit=8), max_new_tokens=8)


@pytest.fixture(scope="module")
def answers(comparison, tmp_path_factory):
    return comparison.results(comparison.run(tmp_path_factory.mktemp("run")))


def test_every_method_answers_as_it_does_alone(subject, comparison, answers):
    for case, reducers in (("all", ()), ("VisionZip", ZIP), ("both", FAST)):
        for sample in comparison.task.with_images:
            with Method(case, subject, reducers).applied():
                alone = subject.answer(sample.image, sample.question, max_new_tokens=8)
            told = answers.sel(case=case, sample=sample.id)
            assert str(told["answer"].values) == alone
            assert float(told["correct"]) == comparison.task.score(alone, sample)


def test_tokens_are_those_that_each_layer_had(answers):
    assert (answers["vision_tokens"].sel(case="all") == 36).all()
    assert (answers["vision_tokens"].sel(case="VisionZip") == 4).all()
    assert answers["vision_tokens"].sel(case="both").values[0].tolist() == [9, 9, 3, 3, 3, 3, 3, 3]
    assert tokens_by_layer(5, [], depth=3).tolist() == [5, 5, 5]


def test_costs_follow_the_tokens_and_the_clock_runs(comparison, answers):
    costs = comparison.costs(answers, repeats=2)
    total = costs["flops"].sum(["component", "operation"])
    assert total.sel(case="VisionZip") < total.sel(case="both") < total.sel(case="all")
    assert costs.sel(case="both")["llm_tokens"].diff("layer").values.tolist() == [
        0,
        -6,
        0,
        0,
        0,
        0,
        0,
    ]
    assert costs["latency"].shape == (3, 6) and (costs["latency"] > 0).all()
    axes = plots.reductions(answers, costs).axes
    assert [axis.get_ylabel() for axis in axes] == ["accuracy (%)"] * 2


def test_scores_are_of_the_answers_and_paired_with_the_first(answers):
    table = method_scores(answers).set_index("method")
    mean = 100 * answers["correct"].mean("sample").values
    np.testing.assert_allclose(table["accuracy"], mean)
    np.testing.assert_allclose(table["difference"], mean - mean[0])
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert table.loc["all", "difference_low"] == table.loc["all", "difference_high"] == 0
    with pytest.raises(ProbeError, match="answers of a comparison"):
        method_scores(answers.drop_vars("correct"))


def test_published_numbers_are_an_overlay_in_shares(answers, tmp_path):
    file = tmp_path / "published.csv"
    file.write_text("method,vision_tokens,percent_of_vanilla\nzip,64,94.0\nzip,192,98.5\n")
    (axis,) = plots.reductions(answers, published=file).axes
    drawn = {line.get_label(): line for line in axis.lines}["zip, published"]
    np.testing.assert_allclose(drawn.get_xdata(), [100 * 64 / 576, 100 * 192 / 576])
    file.write_text("method,tokens\nzip,64\n")
    with pytest.raises(ProbeError, match="no vision_tokens"):
        plots.reductions(answers, published=file)


def test_one_image_gives_no_intervals_and_the_caption_claims_none(answers):
    few = answers.isel(sample=[0]).assign_attrs(answers.attrs)
    for data, told in ((few, "on one image, which gives no intervals"), (answers, "95 %")):
        said = plots.reductions(data).figure._supxlabel.get_text()
        assert told in " ".join(said.split())


def test_it_goes_on_and_refuses_other_methods(comparison, subject, tmp_path, monkeypatch):
    first = comparison.task.with_images[:3]
    stopped = Comparison(comparison.methods, comparison.task, max_new_tokens=8)
    asked, answer = [], Comparison.__call__

    def until_the_third(self, samples):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(samples[0].id)
        return answer(self, samples)

    monkeypatch.setattr(Comparison, "batch", 1)
    monkeypatch.setattr(Comparison, "__call__", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path)
    monkeypatch.undo()
    assert asked == [sample.id for sample in first]
    run = comparison.run(tmp_path)
    assert comparison.results(run).sizes["sample"] == 8
    others = [Method("all", subject), Method("VisionZip", subject, (VisionZip(8, 1),), "zip")]
    with pytest.raises(ProbeError, match=r"plan\.methods"):
        Comparison(others, comparison.task, max_new_tokens=8).run(tmp_path)
    with pytest.raises(ProbeError, match="different names"):
        Comparison([Method("a", subject), Method("a", subject)], comparison.task)
