"""The plan of a measurement against the bytes of what is then there."""

from functools import partial

import models
import pytest
import torch

import probe
from probe.data.rows import Benchmark
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.attention_run import AttentionRun
from probe.evaluation.benchmarks import shapes
from probe.evaluation.task import BenchmarkTask
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from probe.measures.attention import memory_plan as planning
from probe.measures.attention.expected_memory import expected_memory, in_words, is_large
from probe.measures.attention.memory_plan import memory_plan
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.stack_statistic import MeasureOptions
from probe.measures.attention.tensor_sums import BLOCK_ELEMENTS, block_elements

ASKED = models.picture(0), "what is it?", "a red circle"
ALL = {"maps": "heads", "received_head": True, "contribution": True}
COUNTS = ("query_count", "share_count", "received_count", "map_count")  # shared, or a view
CUDA = torch.device("cuda", 0)


def subject_of(make):
    model, processor = make()
    return probe.load(model, processor=processor)


@pytest.fixture(scope="module", params=[models.llava15, models.llava_mini])
def subject(request):
    return subject_of(request.param)


@pytest.mark.parametrize("options", [{}, {"maps": True}, ALL], ids=["least", "maps", "all"])
def test_the_plan_is_what_a_record_takes(subject, options):
    plan = memory_plan(subject, [subject.encode(*ASKED)], options=MeasureOptions(**options))
    record = probe.measure(subject, *ASKED, **options)
    taken = {
        name: sum(values.nbytes for values in node.data_vars.values())
        for name, node in record.children.items()
    }
    for name, size in taken.items():
        assert plan.record[name] == size, name
    # LLaVA-Mini's compressor always keeps the map of each query
    assert (plan.maps > 0) == ("compressor" in taken or bool(options.get("maps")))


@pytest.mark.parametrize("options", [{}, ALL], ids=["least", "all"])
def test_the_plan_is_what_statistics_hold(subject, options):
    inputs, options = subject.encode(*ASKED), MeasureOptions(**options)
    names = list(stacks(subject.model))
    statistics = stack_statistics(subject, inputs, names, options)
    for name, made in statistics.items():
        with torch.no_grad(), tap(stacks(subject.model)[name].attention, made.statistic):
            subject.model(**inputs, use_cache=False)
    held = sum(
        values.nbytes
        for made in statistics.values()
        for module in made.statistic.modules
        for row in made.statistic.sums(module)
        for variable, values in row.items()
        if variable not in COUNTS
    )
    assert memory_plan(subject, [inputs], options=options).held == held


def test_a_question_is_planned_with_the_longest_answer_that_may_come(subject, monkeypatch):
    image, question, answer = ASKED
    options = MeasureOptions(maps=True)
    given = expected_memory(subject, image, question, answer, options=options)
    assert given == memory_plan(subject, [subject.encode(*ASKED)], options=options)
    record = probe.measure(subject, image, question, maps=True, max_new_tokens=5)
    plan = expected_memory(subject, image, question, new_tokens=5, options=options)
    taken = {name: sum(v.nbytes for v in node.values()) for name, node in record.children.items()}
    assert all(plan.record[name] >= size for name, size in taken.items())
    assert f"maps {plan.maps / 2**20:.1f} MB" in in_words(plan) and not is_large(plan)
    monkeypatch.setattr(planning, "MAPS_LIMIT", 100)
    about = {"image": "one", "kind": "x", "unit": "x", "question_id": "x"}
    asked = tuple(Sample(name, image, question, meta=about) for name in "ab")
    task = BenchmarkTask(shapes, Benchmark("made-up", "test", asked, (), ()))
    attention = AttentionRun(subject, task, maps=True)
    with pytest.raises(ProbeError, match=r"maps of at most 0 MB, got \d+ MB for 2 samples"):
        attention.estimate(attention.samples)


def test_sums_and_records_are_there_at_the_same_time():
    """With the maps of 24 layers and 32 heads 339 MB were measured beside the forward: 183 of sums,
    92 of the record, and its parts as they are joined. Without the record the plan said 200.
    """
    subject = subject_of(partial(models.llava15, side=128, max_positions=4096))
    asked = subject.encode(ASKED[0], "what is it?", "a red circle " * 300)
    plan = memory_plan(subject, [asked] * 2, options=MeasureOptions(maps="heads"))
    record = sum(plan.record.values())
    assert plan.largest == record / 2 and record + plan.largest > plan.at_once
    assert plan.peak == plan.held + record + plan.largest
    assert plan.beside_model == plan.held + plan.at_once < plan.peak, "records are on the host"


def test_memory_grows_with_the_sequence_and_not_with_its_square():
    subject = subject_of(models.llava15)
    plans = [
        memory_plan(subject, [subject.encode(ASKED[0], "what is it? " * times)])
        for times in (1, 100, 200)
    ]
    first, second, third = (plan.peak for plan in plans)
    assert first < second and third - second <= 2 * (second - first)
    assert plans[0].record["llm"] == plans[2].record["llm"]  # vision keys and types are the same


def test_what_does_not_fit_is_told_before_any_forward(monkeypatch):
    subject = subject_of(models.llava15)
    monkeypatch.setattr(planning, "free_memory", lambda device: 2**20)
    subject.model.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    expected = (
        r"expected \d+ MB free beside the model for 1 samples at once, got 1 MB on cpu; lower"
    )
    with pytest.raises(ProbeError, match=expected):
        probe.measure(subject, *ASKED)


def test_blocks_are_smaller_where_little_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**19)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**37))
    assert block_elements(CUDA) == BLOCK_ELEMENTS["cuda"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**19, 2**37))
    assert block_elements(CUDA) == 2**20 // 32
    assert block_elements(torch.device("cpu")) == BLOCK_ELEMENTS["cpu"]
