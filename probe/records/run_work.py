"""The work of one process on a run: it claims samples, measures them and writes parts.

    run = RunDirectory.open("probe-out/drop", RunFingerprint(model="tiny-llava", ...))
    run_samples(run, samples, measure)    # measure(samples) -> Dataset or DataTree with those ids

Any number of processes, on any machines that share the folder, may do this at the same time: what
one has claimed no other computes (`run_claims.py`). What is measured together does not depend on
how many there are (`run_packs.py`), so neither do the numbers.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.records.concat import Labelled, ids_of, join
from probe.records.run_claims import POLL_SECONDS, Claim, Claims
from probe.records.run_directory import RunDirectory, writing
from probe.records.run_packs import Pack, packs, packs_of_shard
from probe.records.run_process import ending_on_sigterm
from probe.records.run_settings import report

PART_SAMPLES = 64
PART_SECONDS = 30.0  # a crash loses at most the work of so long a time
MAX_FAILURES = 20  # abort after this many consecutive failures
DEATHS = 2  # of processes over one group, after which it is set aside
PATIENCE = 10.0  # seconds until a line says which process the run waits for

Measure = Callable[[list[Sample]], Labelled]
Progress = Callable[[int], None]


class Writer:
    """Collects finished samples and writes them as a part when there are `size` of them, when
    `seconds` have passed, and at the end of the block.

    with Writer(run) as writer:
        writer.add(data)
    """

    def __init__(self, run: RunDirectory, size: int = PART_SAMPLES, seconds: float = PART_SECONDS):
        self.run = run
        self.size = size
        self.seconds = seconds
        self.waiting: list[Labelled] = []
        self.since = time.monotonic()

    def __enter__(self) -> "Writer":
        return self

    def add(self, data: Labelled) -> None:
        """Takes one or more finished samples."""
        self.waiting.append(data)
        samples = sum(len(ids_of(each)) for each in self.waiting)
        if samples >= self.size or time.monotonic() - self.since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting; kept in memory until the part is on the disk."""
        if self.waiting:
            self.run.write(join(self.waiting))
            self.waiting = []
        self.since = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.flush()  # also after Ctrl-C: what is finished is kept


def run_samples(
    run: RunDirectory,
    samples: Sequence[Sample],
    measure: Measure,
    *,
    batch: int = 1,
    attempts: int = 2,
    progress: Progress | None = None,
    size: int = PART_SAMPLES,
    shard: str | None = None,
) -> None:
    """Measures the samples of a run that are not done, and returns when none is left: those that
    other processes have claimed are waited for, and taken over where such a process dies.

    A batch that fails is measured one by one; a sample that fails is listed, tried again by the
    next command, and given up after `attempts`. Samples over which `DEATHS` processes died without
    a word are listed and set aside. Ctrl-C keeps everything finished. Raises ProbeError after 20
    consecutive failures.

    Args:
        batch: samples that are measured together; those that share their images come one after
            the other.
        progress: gets the number of samples that were just finished or have failed, in this
            process or in others.
        shard: "i/n": only this part of the samples, and without waiting for other processes.
    """
    work = _Work(run, packs_of_shard(packs(samples, batch), shard), attempts, progress)
    if not work.open:
        return
    run.note(samples=len(samples))
    failures = 0
    with (
        ending_on_sigterm(),
        Claims(run.folder, run.worker, run.token) as work.claims,
        Writer(run, size) as writer,
    ):
        for pack in work.taken(wait=shard is None, before_waiting=writer.flush):
            asked = pack.samples
            for start in range(0, len(asked), batch):
                todo = [sample for sample in asked[start : start + batch] if sample.id in work.open]
                for group, outcome in _outcomes(todo, measure) if todo else ():
                    if isinstance(outcome, Exception):
                        run.fail(group[0].id, outcome)
                        failures += 1
                    else:
                        writer.add(outcome)
                        failures = 0
                    if failures >= MAX_FAILURES:
                        raise ProbeError(
                            "run",
                            expected="samples that can be measured",
                            got=f"{MAX_FAILURES} failures in a row, the last {outcome}",
                        )
                    work.finish([sample.id for sample in group])
            work.measured(pack)
            if not writer.waiting:
                work.release()
        writer.flush()
        work.release()


class _Work:
    """What is left of a run for one process."""

    claims: Claims

    def __init__(
        self,
        run: RunDirectory,
        work: Sequence[Pack],
        attempts: int,
        progress: Progress | None,
    ):
        self.run = run
        self.attempts = attempts
        self.progress = progress
        self.failed_before = run.failed_attempts()
        asked = [sample for pack in work for sample in pack.samples]
        self.open = {sample.id for sample in run.todo(asked, attempts)}
        self.left = [pack for pack in work if self._has_open(pack)]
        self.on_disk_soon: list[Pack] = []
        self.waits_since: float | None = None
        self.wait_is_told = False

    def taken(self, *, wait: bool, before_waiting: Callable[[], None]) -> Iterator[Pack]:
        """One pack after the other that this process has claimed. Those over which a process has
        died come last.
        """
        while True:
            idle = True
            for last in (False, True):
                later: list[Pack] = []
                for pack in self.left:
                    if not self._has_open(pack):
                        continue
                    for one, claimed in self._claimed(pack, last):
                        if claimed is not None:
                            idle = False
                            yield claimed
                        if self._has_open(one):  # others hold it, or some of its groups
                            later.append(one)
                self.left = later
            if not self.left or not wait:
                return
            if idle:
                before_waiting()
                self.release()
                self._wait()

    def finish(self, ids: list[str]) -> None:
        """These samples are done or have failed, here or elsewhere."""
        new = [name for name in ids if name in self.open]
        self.open.difference_update(new)
        if new and self.progress:
            self.progress(len(new))

    def measured(self, pack: Pack) -> None:
        """A pack of this process is computed; its claims end when it is on the disk."""
        for group in pack.groups:
            self.claims.mark_measured(group.name)
        self.on_disk_soon.append(pack)

    def release(self) -> None:
        """Ends the claims on everything measured, which now is on the disk."""
        for pack in self.on_disk_soon:
            for group in pack.groups:
                self.claims.release(group.name)
        self.on_disk_soon = []

    def _has_open(self, pack: Pack) -> bool:
        return any(sample.id in self.open for group in pack.groups for sample in group.samples)

    def _claimed(self, pack: Pack, last: bool) -> Iterator[tuple[Pack, Pack | None]]:
        """The pack with what of it could be claimed; None where nothing could be."""
        earlier = {group.name: self.claims.of(group.name) for group in pack.groups}
        deaths = {name: [c for c in claims if c.died] for name, claims in earlier.items()}
        if any(deaths.values()) and not last:
            yield pack, None
        elif any(_is_fatal(died) for died in deaths.values()):
            for group in pack.groups:
                if _is_fatal(deaths[group.name]):
                    self._set_aside(Pack((group,)), deaths[group.name])
                else:
                    yield Pack((group,)), None
        elif len(pack.groups) > 1 and any(len(died) >= DEATHS for died in deaths.values()):
            for one in pack.split():  # which of them it was
                yield one, None
        else:
            taken = self._take(pack)
            yield pack, Pack(taken) if taken else None

    def _take(self, pack: Pack) -> tuple:
        taken = []
        alone = len(pack.groups) == 1
        with writing(self.run.folder):
            for group in pack.groups:
                ids = [sample.id for sample in group.samples]
                if not self.claims.take(group.name, ids, alone=alone):
                    break
                taken.append(group)
        if taken:
            self._look_around()
        for group in list(taken):
            if not self._has_open(Pack((group,))):  # another process was faster
                self.claims.release(group.name)
                taken.remove(group)
        return tuple(taken)

    def _look_around(self) -> None:
        """What other processes have finished or failed in the meantime."""
        self.finish(self.run.newly_done())
        failed = self.run.failed_attempts()
        before = self.failed_before
        self.finish([name for name, count in failed.items() if count > before.get(name, 0)])

    def _set_aside(self, pack: Pack, deaths: Sequence[Claim]) -> None:
        places = ", ".join(str(claim.process) for claim in deaths)
        reason = f"the process ended without a word {len(deaths)} times in a row ({places})"
        ids = [sample.id for sample in pack.samples if sample.id in self.open]
        for name in ids:
            self.run.give_up(name, self.attempts, reason)
        shown = ", ".join(ids[:3])
        if len(ids) > 3:
            shown += f" and {len(ids) - 3} more"
        report(f"set aside {shown}: {reason}; the run goes on")
        self.claims.forget(pack.groups[0].name)
        self.finish(ids)

    def _wait(self) -> None:
        """Lets some time pass while other processes work on what is left."""
        self.waits_since = self.waits_since or time.monotonic()
        if time.monotonic() - self.waits_since > PATIENCE and not self.wait_is_told:
            self.wait_is_told = True
            holders = {str(c.process) for pack in self.left for c in self._holders(pack)}
            count = sum(len(pack.samples) for pack in self.left)
            who = ", ".join(sorted(holders)) or "other processes"
            report(f"waiting for {count} samples on which {who} work")
        time.sleep(POLL_SECONDS)
        self._look_around()

    def _holders(self, pack: Pack) -> list[Claim]:
        return [claim for group in pack.groups for claim in self.claims.of(group.name)[-1:]]


def _is_fatal(deaths: Sequence[Claim]) -> bool:
    """Whether no other samples can have been the cause."""
    return len(deaths) >= DEATHS and any(claim.alone for claim in deaths)


def _outcomes(
    group: list[Sample], measure: Measure
) -> Iterator[tuple[list[Sample], Labelled | Exception]]:
    """The results of a group, or where it fails those of each of its samples."""
    try:
        outcome: Labelled | Exception = _measured(group, measure)
    except Exception as error:
        outcome = error
    if isinstance(outcome, Exception) and len(group) > 1:
        for sample in group:
            yield from _outcomes([sample], measure)
    else:
        yield group, outcome


def _measured(group: list[Sample], measure: Measure) -> Labelled:
    data = measure(group)
    asked = [sample.id for sample in group]
    if sorted(ids_of(data)) != sorted(asked):
        raise ProbeError("run", expected=f"results for {asked}", got=f"{ids_of(data)}")
    return data
