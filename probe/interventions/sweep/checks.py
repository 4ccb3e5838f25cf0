"""What a sweep must be given: told before anything runs.

check_subject(subject, "llm", ["llm", "vision"], max_new_tokens=32)
check_mode("mask", subject, "llm", queries=None, parts=False)
"""

import torch

from probe.errors import ProbeError, at_least, one_of
from probe.hooks.model_checks import require_observable
from probe.hooks.model_state import active_interventions
from probe.interventions.drop import drop_vision
from probe.interventions.sweep.visibility import SWEEP_MODES
from probe.subject.subject import Subject


def check_subject(subject: Subject, stack: str, known: list[str], max_new_tokens: int) -> None:
    """Raises ProbeError for another stack than the `known`, and for a model that is compiled, in
    training mode or under an intervention.
    """
    one_of("drop_sweep", "a stack of", stack, known)
    require_observable("drop_sweep", subject.model)
    if active := active_interventions(subject.model):
        raise ProbeError(
            "drop_sweep",
            expected="a model without interventions",
            got=f"one under {active}",
            fix="leave that block first",
        )
    at_least("drop_sweep", "max_new_tokens", max_new_tokens, 1)


def check_mode(
    mode: str, subject: Subject, stack: str, queries: tuple[str, ...] | None, parts: bool
) -> None:
    """Raises ProbeError for an unknown mode, and for what `drop_vision` refuses in this stack.
    `parts`: whether any case drops a part of vision.
    """
    one_of("drop_sweep", "mode of", mode, SWEEP_MODES)
    if mode != "swap":
        tokens = torch.zeros(1, 1, dtype=torch.bool) if parts else None
        with drop_vision(subject.model, (), mode, stack=stack, queries=queries, tokens=tokens):
            return
    if parts:
        raise ProbeError(
            "drop_sweep",
            expected="all vision with mode='swap'",
            got="a part of it (frames or images)",
            fix="use another mode",
        )
    if stack != "llm" or queries is not None:
        raise ProbeError(
            "drop_sweep",
            expected="mode='swap' in the LLM, for all text",
            got=f"stack={stack!r}, queries={queries!r}",
            fix="use another mode",
        )
