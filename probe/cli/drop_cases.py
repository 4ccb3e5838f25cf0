"""Which cases `probe drop` sweeps: sets of layers (and parts of videos) in each mode of dropping.

cases = cases_of_modes(subject, task, size=4, mode="all", depth=True)
cases["mask"]           # windows of 4 layers, from each on, and up to each
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probe.cli.output import say
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.evaluation.task import BenchmarkTask
    from probe.subject.subject import Subject


def cases_of_modes(
    subject: "Subject",
    task: "BenchmarkTask",
    size: int | None,
    mode: str,
    depth: bool,
    stack: str = "llm",
    parts: int | None = None,
) -> dict[str, list]:
    """The cases of each mode: of all that are defined in the stack, or of one. `parts`: of the
    frames of videos, in every mode but "swap".

    Raises ProbeError for a stack that the model does not have, and for a window of more layers than
    are in it.
    """
    from probe.hooks.model_structure import stacks
    from probe.interventions.drop import PREFUSION_MODES
    from probe.interventions.sweep import frame_parts, from_layer, until_layer, windows
    from probe.interventions.sweep.visibility import SWEEP_MODES

    available = stacks(subject.model)
    if stack not in available:
        raise ProbeError(
            "--stack",
            expected=f"a stack of {subject.name}: llm",
            got=stack,
            fix="take a LLaVA-Mini",
        )
    layers = len(available[stack].layers)
    size = size or min(4, max(1, layers // 4))
    if size > layers:
        expected = f"1 to {layers}, the layers of {subject.name}"
        raise ProbeError("--windows", expected=expected, got=str(size))
    defined = SWEEP_MODES if stack == "llm" else PREFUSION_MODES
    if mode == "all" and "swap" in defined and not task.has_donors:
        say("note", "swap is left out: the questions are about one image, and it needs another")
        defined = [name for name in defined if name != "swap"]
    chosen = _possible(subject, defined, stack) if mode == "all" else [mode]
    cases: dict[str, list] = {name: [windows(size)] for name in chosen}
    if depth:  # from a layer to the last one, all modes that hide vision are equal
        cases[chosen[0]] += [from_layer(size), until_layer(size)]
    if parts is not None:
        for name in set(chosen) - {"swap"}:
            cases[name].append(frame_parts(parts))
    return cases


def _possible(subject: "Subject", modes: Sequence[str], stack: str) -> list[str]:
    """The modes that the model can be swept in; of the others it is said why not. Raises ProbeError
    where there is none.
    """
    from probe.interventions.sweep.checks import check_mode

    possible = []
    refused: dict[str, list[str]] = {}
    first: ProbeError | None = None
    for mode in modes:
        try:
            check_mode(mode, subject, stack, queries=None, parts=False)
            possible.append(mode)
        except ProbeError as error:
            first = first or error
            refused.setdefault(f"expected {error.expected}, got {error.got}", []).append(mode)
    if first is not None and not possible:
        raise first
    for reason, of_reason in refused.items():
        say("note", f"left out: {', '.join(of_reason)} ({reason})")
    return possible


def check_frame_parts(task: "BenchmarkTask", mode: str, stack: str) -> None:
    """Raises ProbeError where there are no frames, or none of them can be dropped alone."""
    from probe.data.image import Video

    if not any(isinstance(image, Video) for sample in task.samples for image in sample.images):
        expected = "questions about videos"
        got = f"{task.benchmark.name}, which has none"
        raise ProbeError("--frame-parts", expected=expected, got=got)
    if stack != "llm":
        raise ProbeError("--frame-parts", expected="--stack llm", got=stack)
    if mode == "swap":
        raise ProbeError("--frame-parts", expected="a --mode that drops tokens", got=mode)
