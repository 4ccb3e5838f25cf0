"""What a model must be so that it can be observed or changed."""

from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.compiled import refuse_compiled


def require_observable(called: str, model: PreTrainedModel) -> None:
    """Raises ProbeError for a model in training mode (dropout), and for a compiled one, whose
    modules no longer run as they are.
    """
    if any(module.training for module in model.modules()):
        raise ProbeError(
            called, expected="a model in eval mode", got="training mode", fix="call model.eval()"
        )
    refuse_compiled(called, model)
