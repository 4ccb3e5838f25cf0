"""Whatever other threads do: a block concerns its own threads, and the model is as it was."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import Queue

import models
import numpy as np
import pytest
import torch
import xarray as xr

import probe
from probe.hooks.attention_tap import tap
from probe.hooks.model_state import active_interventions, is_clear
from probe.hooks.model_structure import stacks
from probe.measures.verify import state
from probe.reducers.fastv import FastV
from probe.reducers.visionzip import VisionZip

QUESTION = "what is in the picture?"


@pytest.fixture(scope="module")
def subject():
    model, processor = models.llava15()
    return probe.load(model, processor=processor)


@pytest.fixture(scope="module")
def inputs(subject):
    return subject.encode(models.picture(), QUESTION, response="a red circle")


@contextmanager
def looping(work: Callable[[], torch.Tensor]):
    """`work` again and again in another thread. Fails where it failed or its result changed."""
    stop, results, errors = threading.Event(), [], []

    def loop():
        try:
            while not stop.is_set():
                results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not errors, errors
    assert results and all(torch.equal(result, results[0]) for result in results)


def in_thread(work: Callable):
    """The result of `work` in a thread that starts now."""
    results = Queue()
    thread = threading.Thread(target=lambda: results.put(work()))
    thread.start()
    thread.join()
    return results.get_nowait()


def logits(subject, inputs):
    with torch.no_grad():
        return subject.model(**inputs).logits


BLOCKS = {
    "tap": lambda subject: tap(stacks(subject.model)["llm"].attention, lambda call: None),
    "mask": lambda subject: probe.drop_vision(subject, (1, 2)),
    "mask_frozen": lambda subject: probe.drop_vision(subject, (1, 2), mode="mask_frozen"),
    "remove": lambda subject: probe.drop_vision(subject, (1, 2), mode="remove"),
    "zero": lambda subject: probe.drop_vision(subject, (1, 2), mode="zero"),
    "knockout": lambda subject: probe.knockout(subject.model, "text", "vision", (0, 1)),
    "swap": lambda subject: probe.swap_vision(subject, (1, 2), models.picture(3)),
    "FastV": lambda subject: probe.reduced(subject, FastV(1, 0.5)),
    "VisionZip": lambda subject: probe.reduced(subject, VisionZip(dominant=2, contextual=1)),
}


def arrays(record: xr.DataTree) -> dict[str, np.ndarray]:
    return {
        f"{node.path}/{name}": variable.values
        for node in record.subtree
        for name, variable in node.dataset.data_vars.items()
    }


def same_records(one: xr.DataTree, other: xr.DataTree) -> bool:
    one, other = arrays(one), arrays(other)
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f")
        for name in one
    )


def measured(subject):
    return probe.measure(subject, models.picture(), QUESTION, response="a red circle")


def test_measuring_next_to_a_looping_thread(subject, inputs):
    """The fault: the model was left corrupt, and records were silently wrong."""
    plain, record = logits(subject, inputs), measured(subject)
    answer = subject.answer(models.picture(), QUESTION, max_new_tokens=4)
    before = state(subject.model)  # transformers keeps hooks of its own from the first use on
    with looping(lambda: logits(subject, inputs)):
        records = [measured(subject) for _ in range(25)]
    assert all(same_records(record, each) for each in records)
    assert state(subject.model) == before
    assert all(is_clear(module) for module in subject.model.modules())
    assert torch.equal(logits(subject, inputs), plain)
    assert subject.answer(models.picture(), QUESTION, max_new_tokens=4) == answer
    assert same_records(measured(subject), record)


def test_two_threads_measure_at_once(subject, inputs):
    """Each record is of its own forward."""
    responses = ["a red circle", "it is a blue square and a red circle"]

    def of(response):
        return probe.measure(subject, models.picture(), QUESTION, response=response)

    expected, before = [of(response) for response in responses], state(subject.model)
    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(of, responses * 5))
    assert all(same_records(expected[n % 2], record) for n, record in enumerate(records))
    assert state(subject.model) == before


@pytest.mark.parametrize("name", BLOCKS)
def test_foreign_threads_run_on_the_untouched_model(subject, inputs, name):
    plain = logits(subject, inputs)
    with BLOCKS[name](subject):
        alone = logits(subject, inputs)
    before = state(subject.model)
    with looping(lambda: logits(subject, inputs)):
        for _ in range(3):
            with BLOCKS[name](subject):
                assert torch.equal(logits(subject, inputs), alone)
    assert name == "tap" or not torch.equal(alone, plain)
    assert state(subject.model) == before
    assert torch.equal(logits(subject, inputs), plain)


@pytest.mark.parametrize("name", BLOCKS)
def test_threads_started_in_a_block_belong_to_it(subject, inputs, name):
    with ThreadPoolExecutor(1) as pool:
        plain = pool.submit(logits, subject, inputs).result()  # the worker lives from here on
        with (block := BLOCKS[name](subject)):
            alone = logits(subject, inputs)
            started = in_thread(lambda: logits(subject, inputs))
            nested = in_thread(lambda: in_thread(lambda: logits(subject, inputs)))
            foreign = pool.submit(logits, subject, inputs).result()

            def joined():
                with block.in_this_thread():
                    return logits(subject, inputs)

            adopted = pool.submit(joined).result()
            foreign_again = pool.submit(logits, subject, inputs).result()
    assert all(torch.equal(alone, each) for each in (started, nested, adopted))
    assert all(torch.equal(plain, each) for each in (foreign, foreign_again))


@pytest.mark.parametrize("mode", ["mask", "remove"])
def test_blocks_of_two_threads_do_not_meet(subject, inputs, mode):
    """Other layers in each thread, on the same model at the same time."""

    def dropped(layer):
        with probe.drop_vision(subject, layer, mode=mode):
            return logits(subject, inputs), active_interventions(subject.model)

    expected = [dropped(layer) for layer in (0, 2)]
    with ThreadPoolExecutor(2) as pool:
        both_live = threading.Barrier(2)
        list(pool.map(lambda _: both_live.wait(), range(2)))
        results = list(pool.map(dropped, [0, 2] * 5))
    for n, (result, interventions) in enumerate(results):
        assert torch.equal(result, expected[n % 2][0]) and interventions == expected[n % 2][1]
    assert all(is_clear(module) for module in subject.model.modules())


def test_blocks_that_overlap_in_time_end_in_any_order(subject, inputs):
    plain, before = logits(subject, inputs), state(subject.model)
    entered, leave = threading.Event(), threading.Event()

    def other():
        with ExitStack() as blocks:
            for name in ("mask", "remove", "FastV"):
                blocks.enter_context(BLOCKS[name](subject))
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    calls = []
    block = tap(stacks(subject.model)["llm"].attention, calls.append)
    with block:
        leave.set()
        thread.join()
        assert torch.equal(logits(subject, inputs), plain)
    assert len(calls) == 3 and state(subject.model) == before
    assert torch.equal(logits(subject, inputs), plain)


def test_an_encoding_in_a_foreign_thread_keeps_all_placeholders(subject):
    whole = subject.encode(models.picture(), QUESTION)["input_ids"]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with BLOCKS["VisionZip"](subject):
            own = subject.encode(models.picture(), QUESTION)["input_ids"]
            encoded = pool.submit(subject.encode, models.picture(), QUESTION).result()
    assert torch.equal(encoded["input_ids"], whole) and own.shape != whole.shape


def test_a_streamed_answer_is_observed(subject):
    """`TextIteratorStreamer`: generate runs in a thread, the main thread reads."""
    prompt = subject.encode(models.picture(), QUESTION)
    calls = []
    with tap(stacks(subject.model)["llm"].attention, calls.append):
        ids = in_thread(lambda: subject.generate_ids(prompt, 3))
    assert torch.equal(ids[0], subject.generate_ids(prompt, 3)[0]) and len(calls) == 9


def test_the_config_is_the_users_own_outside_an_attention_call(subject, inputs):
    """Nothing but the tapped module's own look-up of its kernel sees another name."""
    attention = stacks(subject.model)["llm"].attention
    module = next(iter(attention.values()))
    own, seen = module.config, []

    def look(*_):
        seen.append((module.config._attn_implementation, vars(module.config) is vars(own)))

    with tap(attention, look):
        look()
        logits(subject, inputs)
        look()
    assert set(seen) == {("sdpa", True)} and len(seen) == 5
    assert module.config is own
