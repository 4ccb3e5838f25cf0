"""What a model must be so that it can be observed or changed."""

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
    fix = "pass its get_base_model(), in which the adapters act too" if is_wrapper else ""
    got = f"a {type(model).__name__}" if isinstance(model, nn.Module) else shown(model)
    raise ProbeError(called, expected=expected, got=got, fix=fix)


def require_observable(called: str, model: PreTrainedModel) -> None:
    """Raises ProbeError for a model in training mode (dropout), and for a compiled one, whose
    modules no longer run as they are.
    """
    if any(module.training for module in model.modules()):
        raise ProbeError(
            called, expected="a model in eval mode", got="training mode", fix="call model.eval()"
        )
    refuse_compiled(called, model)


def require_untouched(called: str, model: PreTrainedModel) -> None:
    """Raises ProbeError for a model under an intervention or a reducer."""
    if active := active_interventions(model) or active_reducers(model):
        fix = "leave that block first"
        raise ProbeError(called, expected="an untouched model", got=active, fix=fix)
