"""What a model must be so that it can be observed or changed."""

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from probe.errors import ProbeError, shown
from probe.hooks.compiled import refuse_compiled
from probe.hooks.model_state import active_interventions, active_reducers


def require_subject(called: str, subject: Any) -> None:
    """Raises ProbeError for anything but a Subject, such as the name of a model or a model."""
    if hasattr(subject, "model") and hasattr(subject, "processor"):
        return
    is_model = isinstance(subject, PreTrainedModel)
    got = f"a {type(subject).__name__}" if is_model else shown(subject)
    argument = "model, processor=processor" if is_model else "..."
    if isinstance(subject, str):
        argument = repr(subject)
    fix = f"pass probe.load({argument})"
    raise ProbeError(called, expected="a Subject", got=got, fix=fix)


def require_transformers(called: str, model: Any, expected: str) -> None:
    """Raises ProbeError for anything but a transformers model, such as one in a wrapper."""
    if isinstance(model, PreTrainedModel):
        return
    is_wrapper = callable(getattr(model, "get_base_model", None))  # peft's
    fix = "pass probe.load(model, processor), which takes the wrapper off" if is_wrapper else ""
    got = f"a {type(model).__name__}" if isinstance(model, nn.Module) else shown(model)
    raise ProbeError(called, expected=expected, got=got, fix=fix)


def require_one_sequence(called: str, config: Any, kind: str) -> None:
    """Raises ProbeError for an encoder-decoder (BLIP-2 with T5, Florence-2): its decoder answers in
    a sequence of its own, in which neither the image nor the question stands.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ProbeError(
            called,
            expected="a model that answers in the sequence in which image and question stand",
            got=f"{kind}, an encoder-decoder",
        )


def require_answering(called: str, model: PreTrainedModel) -> None:
    """The same of a model in memory, and for one that does not answer word by word: it denoises
    blocks of words beside an encoder of the prompt (DiffusionGemma), or makes none (pi0).
    """
    kind = type(model).__name__
    require_one_sequence(called, model.config, kind)
    expected = "a model that answers word by word (with a generate of transformers)"
    if not model.can_generate():
        raise ProbeError(called, expected=expected, got=f"{kind}, which has none")
    parts = {name for name, _ in model.base_model.named_children()}
    if {"encoder", "decoder"} <= parts:
        got = f"{kind}, whose decoder is given no prompt but what its encoder made of it"
        raise ProbeError(called, expected=expected, got=got)


def require_observable(called: str, model: PreTrainedModel) -> None:
    """Raises ProbeError for a model in training mode (dropout), and for a compiled one, whose
    modules no longer run as they are.
    """
    if any(module.training for module in model.modules()):
        raise ProbeError(
            called, expected="a model in eval mode", got="training mode", fix="call model.eval()"
        )
    refuse_compiled(called, model)


def require_one_run(called: str, model: nn.Module) -> None:
    """Raises ProbeError for layers that gradient checkpointing runs again in the backward pass: by
    then a block may be closed, and gradients would be of another model than the logits.
    """
    for name, module in model.named_modules():
        if getattr(module, "gradient_checkpointing", False) and module.training:
            raise ProbeError(
                called,
                expected="layers that run once, in the forward",
                got=f"gradient checkpointing in {name or type(model).__name__}",
                fix="call model.gradient_checkpointing_disable(), or model.eval()",
            )


def int8_threshold(layers: Iterable[nn.Module]) -> float:
    """The largest `llm_int8_threshold` of 8-bit layers (bitsandbytes); 0 where rows keep apart.

    LLM.int8 computes the columns in which any row of a forward is above this threshold in another
    precision, and does so in all rows: rows change each other outside of attention.
    """
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:
        return 0.0
    largest = 0.0
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, bitsandbytes.nn.Linear8bitLt):
                state: Any = module.state
                largest = max(largest, float(state.threshold))
    return largest


def require_rows_apart(called: str, layers: Iterable[nn.Module]) -> None:
    """Raises ProbeError for 8-bit layers in which a token that no attention reads still has an
    influence (`int8_threshold`).
    """
    threshold = int8_threshold(layers)
    if threshold > 0:
        raise ProbeError(
            called,
            expected="rows that only attention mixes",
            got=f"8-bit layers with llm_int8_threshold={threshold:g}, where hidden vision rows "
            "change the precision of the others",
            fix="load with llm_int8_threshold=0.0, 4 bits or bfloat16, or use mode='remove'",
        )


def require_untouched(called: str, model: PreTrainedModel) -> None:
    """Raises ProbeError for a model under an intervention or a reducer."""
    if active := active_interventions(model) or active_reducers(model):
        fix = "leave that block first"
        raise ProbeError(called, expected="an untouched model", got=active, fix=fix)
