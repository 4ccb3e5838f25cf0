"""Where a verb over a benchmark runs: here, in several workers, on a cluster; the options for it.

    engine.launch()                        # workers that run this command, if they were asked for
    loading = engine.placed(loading)       # each on its own GPUs
    answers, problems = finished(dropping, folder, engine)

Every way runs the same command in the same run directory. One worker (rank 0, or whichever shard
finds everything done) goes on to the results; for the others the command ends after the measuring.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.cli.benchmark_run import show_progress, write_problems
from probe.cli.options import ModelOptions
from probe.cli.output import say
from probe.cli.result_folder import ResultFolder
from probe.cli.worker import Worker, command_line, device_of, this_worker, use_gpus
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.data.sample import Sample
    from probe.evaluation.sample_run import SampleRun
    from probe.records.run_directory import RunDirectory


@dataclass(frozen=True)
class EngineOptions:
    """Which processes do the work."""

    workers: Annotated[
        int | None,
        typer.Option(min=1, help="processes, each with a model of its own", show_default="this"),
    ] = None
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="GPUs of this machine: a worker each, or shared out among --workers"
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(help="only the part i/n of the work: --shard $SLURM_ARRAY_TASK_ID/64"),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(help="workers on Ray: local, or the address of a cluster (extra: ray)"),
    ] = None

    @property
    def worker(self) -> Worker:
        return this_worker()

    @property
    def count(self) -> int:
        """How many workers are asked for."""
        return self.workers or self.gpus or 1

    @property
    def gpus_each(self) -> int:
        """GPUs of a worker; 0 where none are asked for."""
        return (self.gpus or 0) // self.count

    def launch(self) -> None:
        """Runs this command in the workers that are asked for, and ends with their exit code; does
        nothing in such a worker, and where none are asked for.

        Raises ProbeError for options that contradict each other.
        """
        self._check()
        if self.worker.count > 1 or (self.count == 1 and self.ray is None):
            return
        arguments = list(command_line.get())
        if self.ray is not None:
            from probe.cli.on_ray import run_on_ray

            code = run_on_ray(arguments, self.ray, self.count, self.gpus_each)
        else:
            from probe.cli.launcher import run_workers

            code = run_workers(arguments, self.count)
        raise typer.Exit(code)

    def placed(self, loading: ModelOptions) -> ModelOptions:
        """How this worker loads the model: on GPUs of its own, over several where it has them."""
        if self.gpus_each > 1:
            use_gpus(self.worker, self.gpus_each)
            return replace(loading, device_map=loading.device_map or "auto")
        if loading.device_map is not None:
            return loading
        return replace(loading, device=device_of(self.worker, loading.device))

    def _check(self) -> None:
        if self.gpus and self.gpus % self.count:
            expected = f"as many GPUs for each of {self.count} workers"
            raise ProbeError("--gpus", expected=expected, got=str(self.gpus))
        if self.shard is not None:
            from probe.records.run_packs import packs_of_shard

            packs_of_shard([], self.shard)
            if self.count > 1 or self.worker.count > 1 or self.ray is not None:
                fix = "leave --shard out: workers share the work by themselves"
                raise ProbeError("--shard", expected="one process", got="several workers", fix=fix)


def measured(
    sample_run: "SampleRun",
    folder: ResultFolder,
    engine: EngineOptions,
    *,
    to: str = "",
    estimate: "Callable[[Sequence[Sample]], Iterable[str]] | None" = None,
) -> "RunDirectory":
    """The run over a benchmark, finished; says first how much there is to do (`to`: by whom), and
    what it will cost. For a worker that is not the one to go on with the results, and for a shard
    while others still run, the command ends here (typer.Exit).

    In a folder that can't be written it is as it was finished. Raises ProbeError where that leaves
    samples that were never tried.
    """
    from probe.records.run_directory import RunDirectory
    from probe.records.run_packs import shard_of

    worker = engine.worker
    samples = sample_run.samples
    fingerprint = sample_run.fingerprint()
    name = str(worker.rank) if engine.shard is None else engine.shard.replace("/", "of")
    run = RunDirectory.open(folder.out, fingerprint, name)
    todo = run.todo(samples)
    if folder.refusal is not None:
        tried = {failure.id for failure in run.failures()}
        if any(sample.id not in tried for sample in todo):
            raise folder.refusal
        return run
    mine = {sample.id for sample in shard_of(samples, sample_run.batch, engine.shard)}
    left = [sample for sample in todo if sample.id in mine]
    if worker.first:
        count = f"{len(samples)} questions{to}, {len(samples) - len(todo)} done"
        say(sample_run.task.benchmark.name, f"{count}; Ctrl-C keeps what is finished")
        for line in estimate(left) if left and estimate else ():
            say("about", line)
    label = str(fingerprint.plan["verb"])
    with show_progress(label, len(left) if worker.first else 0) as progress:
        sample_run.run(run, progress, shard=engine.shard)
    if not worker.first:
        raise typer.Exit
    if engine.shard is not None:
        remaining = len(run.todo(samples, attempts=1))  # those that failed are for the next command
        if remaining:
            say("shard", f"{engine.shard} is done; {remaining} questions are left to other shards")
            raise typer.Exit
    return run


def finished(
    sample_run: "SampleRun", folder: ResultFolder, engine: EngineOptions, **options: Any
) -> tuple[Any, str]:
    """The results of a run over a benchmark, with `final.zarr` beside its parts, and what was left
    out. `options`: of `measured`, which says when the command ends instead.
    """
    run = measured(sample_run, folder, engine, **options)
    problems = write_problems(run, sample_run.task, folder)
    if folder.refusal is None:
        run.compact([sample.id for sample in sample_run.samples])
    return sample_run.results(run), problems
