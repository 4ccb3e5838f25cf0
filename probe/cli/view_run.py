"""The page of a run, for `probe view RUN`: the table of its samples, a folder to publish.

Small pictures, the right answers and the scores of a run that has none come from the benchmark's
official files: in the folder where the run read them, or in `--data`. The drawn benchmark needs
none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from probe.cli.benchmark_run import show_progress
from probe.cli.output import say, stage
from probe.cli.result_folder import ResultFolder, results
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.data.sample import Sample
    from probe.evaluation.task import BenchmarkTask
    from probe.records.run_directory import RunDirectory


def view_run(files: Sequence[Path], data: Path | None, out: Path, opens: bool) -> None:
    """Writes the page of the run in `files[0]`. Raises ProbeError for more than one."""
    if len(files) > 1:
        raise ProbeError("view", expected="the folder of one run", got=", ".join(map(str, files)))
    from probe.interventions.sweep.result_table import gold_answer
    from probe.records.run_directory import RunDirectory
    from probe.viewer.page import page
    from probe.viewer.picture_sheets import write_sheets
    from probe.viewer.run_payload import require_answers, run_payload

    run = RunDirectory(files[0])
    with results("view", out) as folder:
        with stage("reading"):
            found = run.load()
            require_answers(found)
            task, note = _task_of(run, data)
        ids = [str(name) for name in found.coords["sample"].values]
        known = {} if task is None else {sample.id: sample for sample in task.benchmark.samples}
        samples = [known[name] for name in ids if name in known]
        images = {_image_name(s): s.images[0] for s in samples if s.images}
        with show_progress("pictures", len(images)) as step:
            sheets = write_sheets(list(images.values()), folder.unfinished, step)
        number = {name: place for place, name in enumerate(images)}
        header, packed = run_payload(
            found,
            gold={sample.id: gold_answer(sample) for sample in samples},
            correct=_scores(found, samples, task),
            places={s.id: number[_image_name(s)] for s in samples if s.images},
            sheets=sheets,
            note=note,
        )
        title = f"{header['benchmark']} {header['model']} · probe"
        text = page("run.html", title, header, packed)
        folder.file("index.html").write_text(text, encoding="utf-8")
    show_page(folder, "index.html", opens)


def show_page(folder: ResultFolder, name: str, opens: bool) -> None:
    """Says what was written and where to look, or opens it in the browser."""
    folder.announce()
    if opens:
        typer.launch(str(folder.out / name))
    else:
        say("look at it", f"open {folder.out / name} in a browser")


def _task_of(run: "RunDirectory", data: Path | None) -> "tuple[BenchmarkTask | None, str]":
    """The questions of the run; None where their files are not found, with a note that says so.

    Raises ProbeError for a folder that was given and can't be read.
    """
    from probe.evaluation.task import WITHOUT_DATA, BenchmarkTask

    facts = run.fingerprint()["data"]
    name, split = str(facts["benchmark"]), facts.get("split")
    if name == WITHOUT_DATA and data is None:
        return BenchmarkTask.read(name), ""
    if data is not None:
        return BenchmarkTask.read(name, data, split=split), ""
    noted = run.data_folder()
    try:
        if noted:
            return BenchmarkTask.read(name, noted, split=split), ""
        reason = "it is not known where the run read them"
    except ProbeError as error:
        reason = str(error)
    note = f"without pictures: give the files of {name} with --data FOLDER ({reason})"
    say("note", note)
    return None, f"{note[0].upper()}{note[1:]}."


def _image_name(sample: "Sample") -> str:
    return str(sample.meta.get("image", sample.id))


def _scores(
    found: Any, samples: Sequence["Sample"], task: "BenchmarkTask | None"
) -> dict[str, float]:
    """Of the answers of a record, which holds no scores; {} where they are in the results."""
    if task is None or "response" not in found:
        return {}
    ids = map(str, found.coords["sample"].values)
    answers = dict(zip(ids, found["response"].values.tolist(), strict=True))
    return {sample.id: task.score(answers[sample.id], sample) for sample in samples}
