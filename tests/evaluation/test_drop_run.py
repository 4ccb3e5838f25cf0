"""Runs over a benchmark: on a model whose truth is planted; interrupted and resumed; with bad
images.
"""

# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from planted_sweeps import ALWAYS

from probe.data.rows import Benchmark, SkippedRow
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.attention_run import AttentionRun
from probe.evaluation.benchmarks import shapes
from probe.evaluation.drop_effects import effects, tables_of, window_cases
from probe.evaluation.drop_run import DropRun, predictions
from probe.evaluation.sample_run import load_run
from probe.evaluation.task import BenchmarkTask
from probe.interventions.sweep import windows
from probe.interventions.sweep.layer_sets import ALWAYS as THEIRS
from probe.interventions.sweep.visibility import SWEEP_MODES
from probe.models.planted import CHANNELS, planted
from probe.records.run_directory import RunDirectory
from probe.records.run_final import OWNER
from probe.subject.loading import load

LAYERS, READ = 3, 1


@pytest.fixture(scope="module")
def known():
    return planted(read_layers=(READ,), patches=(14,), layers=LAYERS)


@pytest.fixture(scope="module")
def subject(known):
    return load(known.model, processor=known.processor)


def made_up(
    known, count: int = 4, bad: tuple[int, ...] = (), folder: Path | None = None
) -> BenchmarkTask:
    """Two questions an image, colours in turn; `bad` images are text files."""
    samples = []
    for number, colour in zip(range(count), itertools.cycle(CHANNELS)):
        image: Image.Image | Path = known.image(colour, seed=number)
        if number in bad and folder is not None:
            image = folder / f"{number}.png"
            image.write_text("no image")
        for which in "ab":
            meta = {
                "image": f"p{number}",
                "kind": which,
                "unit": f"{number}{which}",
                "question_id": f"{number}{which}",
            }
            samples.append(
                Sample(f"{number}{which}", image, known.question, answer=colour, meta=meta)
            )
    problem = SkippedRow("made-up.json", 7, "an answer", "none")
    return BenchmarkTask(shapes, Benchmark("made-up", "test", tuple(samples), (problem,), ()))


def dropping(subject, task, modes=("mask",), **options) -> DropRun:
    return DropRun(subject, task, dict.fromkeys(modes, windows(1)), max_new_tokens=3, **options)


def test_every_mode_finds_the_layer_that_reads_vision(subject, known, tmp_path):
    task = made_up(known, 3)
    run = dropping(subject, task, SWEEP_MODES, attention=True).run(tmp_path)
    found = load_run(run, task)
    assert found["sample"].values.tolist() == ["0a", "0b", "1a", "1b", "2a", "2b"]
    for name, table in tables_of(found).items():
        accuracy = table["correct"].mean("sample").to_series()
        gone = name == "remove_for_good"  # everything from the first layer on
        assert accuracy[["untouched", "no vision", "another image"]].tolist() == [1, 0, 0], name
        assert accuracy[window_cases(table, 1)].tolist() == [0.0 if gone else 1.0, 0.0, 1.0], name
    swap = tables_of(found)["swap"]
    assert swap["donor_answer_given"].mean("sample").sel(case=["1", "2", "3"]).values.tolist() == [
        0,
        1,
        0,
    ]
    share = found["attention"]["share"].sel(query_type="response").mean("sample")
    assert share.values.argmax() == READ
    assert predictions(swap, "untouched")["1a"] == "green"
    assert effects(found)["questions"].max() == 6


def test_interrupted_and_resumed_it_is_the_run_that_nobody_disturbed(subject, known, tmp_path):
    task, asked = made_up(known, 3), []
    calm = dropping(subject, task).run(tmp_path / "calm")

    class Interrupted(DropRun):
        def __call__(self, samples):
            asked.extend(sample.id for sample in samples)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return super().__call__(samples)

    with pytest.raises(KeyboardInterrupt):
        Interrupted(subject, task, {"mask": windows(1)}, max_new_tokens=3).run(tmp_path / "rough")
    assert RunDirectory(tmp_path / "rough").done() == {"0a", "0b", "1a"}
    rough = dropping(subject, task).run(tmp_path / "rough")
    assert load_run(calm, task).identical(load_run(rough, task))
    finals = [run.compact([sample.id for sample in task.samples]) for run in (calm, rough)]
    files = [
        {
            file.relative_to(final): file.read_bytes()
            for file in final.rglob("*")
            if file.is_file() and file.name != OWNER  # which names the run
        }
        for final in finals
    ]
    assert files[0] == files[1]


def test_workers_share_a_folder(subject, known, tmp_path):
    task = made_up(known)
    work = dropping(subject, task, attention=False)
    for worker in (0, 1):
        run = work.run(
            tmp_path, samples=task.samples[4 * worker : 4 * worker + 4], worker=str(worker)
        )
    assert sorted(run.done()) == sorted(sample.id for sample in task.samples)  # pyright: ignore


def test_a_bad_image_is_listed_and_is_nobodys_donor(subject, known, tmp_path):
    task = made_up(known, 3, bad=(1,), folder=tmp_path)
    work = dropping(subject, task, ("swap",), attention=False)
    assert work.estimate(), "the first image that can be opened"
    run = work.run(tmp_path / "run")
    assert {failure.id for failure in run.failures()} == {"1a", "1b"}
    assert all("1.png" in failure.reason for failure in run.failures())
    assert load_run(run, task)["sample"].values.tolist() == ["0a", "0b", "2a", "2b"]
    swapped = load_run(run, task)["swap"]["answer"].sel(case="another image").values.tolist()
    assert swapped == ["blue", "blue", "red", "red"]


def test_another_plan_is_refused_by_name(subject, known, tmp_path):
    task = made_up(known, 2)
    dropping(subject, task, attention=False).run(tmp_path)
    with pytest.raises(ProbeError, match="attention"):
        dropping(subject, task, attention=True).run(tmp_path)
    with pytest.raises(ProbeError, match="modes"):
        dropping(subject, task, ("zero",), attention=False).run(tmp_path)
    with pytest.raises(ProbeError, match="max_new_tokens"):
        DropRun(subject, task, {"mask": windows(1)}, max_new_tokens=4, attention=False).run(
            tmp_path
        )


def test_other_weights_are_another_run(subject, known, tmp_path):
    task = made_up(known, 2)
    dropping(subject, task, attention=False).run(tmp_path)
    trained = copy.deepcopy(known.model)
    trained.lm_head.weight.data += 1e-3
    other = load(trained, processor=known.processor)
    with pytest.raises(ProbeError, match=r"plan\.weights"):
        dropping(other, task, attention=False).run(tmp_path)


def test_mistakes_are_told_before_any_work(subject, known):
    with pytest.raises(ProbeError, match="modes of mask"):
        DropRun(subject, made_up(known), {"fog": windows(1)})
    with pytest.raises(ProbeError, match="about images"):
        DropRun(subject, made_up(known, 0), {"mask": windows(1)})


def test_attention_over_a_benchmark_is_one_record_without_pixels(subject, known, tmp_path):
    task = made_up(known, 2, bad=(1,), folder=tmp_path)
    attention = AttentionRun(subject, task, max_new_tokens=3)
    run = attention.run(tmp_path / "run")
    assert {failure.id for failure in run.failures()} == {"1a", "1b"}
    record = attention.results(run)
    assert record["sample"].values.tolist() == ["0a", "0b"]
    assert "images" not in record and "received" not in record["llm"]
    hashes = record["image_sha256"].values[:, 0].tolist()
    assert hashes[0] == hashes[1] and len(hashes[0]) == 64
    share = record["llm"]["share"].sel(query_type="response", key_type="vision")
    assert np.isfinite(share).all()
    scores = [
        task.score(answer, sample)
        for answer, sample in zip(record["response"].values.tolist(), task.samples, strict=False)
    ]
    assert record["correct"].values.tolist() == scores
    assert record["gold"].values.tolist() == [str(sample.answer) for sample in task.samples[:2]]
    again = AttentionRun(subject, task, max_new_tokens=3).run(tmp_path / "run")
    assert len(again.parts()) == len(run.parts())
    assert isinstance(attention.results(again), xr.DataTree)


def test_the_first_cases_are_those_that_every_sweep_has():
    assert THEIRS == ALWAYS


def test_photographs_as_they_are_stored_are_another_run(subject, known, tmp_path):
    task = made_up(known, 2)
    dropping(subject, task, attention=False).run(tmp_path)
    ignoring = replace(subject, exif="ignore")
    with pytest.raises(ProbeError, match="exif"):
        dropping(ignoring, task, attention=False).run(tmp_path)
