"""What a sweep must be given, told before anything runs; and what a model can't share.

check_subject(subject, "llm", ["llm", "vision"], max_new_tokens=32)
check_mode("mask", subject, "llm", queries=None, parts=False)
"""

import torch
from transformers import PreTrainedModel

from probe.errors import ProbeError, at_least, one_of
from probe.hooks.model_checks import require_observable
from probe.hooks.model_state import active_interventions, active_text_guided_reducers
from probe.hooks.model_structure import cross_attention, stacks
from probe.interventions.drop import drop_vision
from probe.interventions.layer_target import LayerTarget
from probe.interventions.sweep.visibility import SWEEP_MODES
from probe.subject.greedy_words import other_rules
from probe.subject.subject import Subject

READS_ACROSS = "words read the image by cross-attention"  # nothing of it stands among them


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
    """Raises ProbeError for an unknown mode, and for what `drop_vision` or `swap_vision` refuses in
    the layers of this stack: the case without any vision is always run. `parts`: whether any case
    drops a part of vision.
    """
    one_of("drop_sweep", "mode of", mode, SWEEP_MODES)
    model = subject.model
    layers = range(len(stacks(model)[stack].layers))
    if mode != "swap":
        tokens = torch.zeros(1, 1, dtype=torch.bool) if parts else None
        with drop_vision(model, layers, mode, stack=stack, queries=queries, tokens=tokens):
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
    if not cross_attention(model):
        target = LayerTarget.of("swap_vision", model, layers)
        with target.routed(lambda call, kernel: kernel(call), reports=False):
            return


def alone_reason(model: PreTrainedModel) -> str:
    """Why a model's cases are run each alone, as far as the model says it itself; "" where nothing
    speaks against one batch of all.
    """
    if guided := active_text_guided_reducers(model):
        return f"{guided} chooses vision tokens by the question"
    if rules := other_rules(model):
        return f"the checkpoint chooses words by {rules}"
    return READS_ACROSS if cross_attention(model) else ""
