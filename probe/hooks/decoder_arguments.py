"""What a decoder is given of vision tokens: embeddings, and features that it adds to them between
its layers (DeepStack: Qwen3-VL, Granite Vision). Whoever gives it other vision tokens has to give
it other features too.

    embeddings = given_embeddings("swap_vision", decoder, kwargs)
    features = layer_features(kwargs)                  # {("deepstack_visual_embeds", 0): tensor}
    kwargs = with_layer_features(kwargs, changed)

Features are (vision token, width): the vision tokens of all rows of a batch, one after the other.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from probe.errors import ProbeError

NAMES = "deepstack"  # what names of these arguments begin with
Place = tuple[str, Any]  # the argument, and which of its tensors
LayerFeatures = dict[Place, Float[Tensor, "token width"]]


def given_embeddings(
    called: str, decoder: nn.Module, kwargs: Mapping[str, Any]
) -> Float[Tensor, "batch token width"]:
    """What the decoder is called with. Raises ProbeError for one that makes its vision tokens
    itself (Chameleon).
    """
    embeddings = kwargs.get("inputs_embeds")
    if embeddings is None:
        raise ProbeError(
            called,
            expected="an LLM that is given embeddings of its vision tokens",
            got=f"{type(decoder).__name__}, which makes them of ids and pixels itself",
        )
    return embeddings


def layer_features(kwargs: Mapping[str, Any]) -> LayerFeatures:
    """Those in the keyword arguments of a decoder; empty where it adds none."""
    found: LayerFeatures = {}
    for name, given in kwargs.items():
        if name.startswith(NAMES) and given is not None:
            parts = given.items() if isinstance(given, Mapping) else enumerate(given)
            found |= {(name, key): part for key, part in parts}
    return found


def with_layer_features(kwargs: Mapping[str, Any], features: LayerFeatures) -> dict[str, Any]:
    """The arguments with these features, one for each that they have."""
    changed = dict(kwargs)
    for name in dict.fromkeys(name for name, _ in features):
        parts = {key: part for (of, key), part in features.items() if of == name}
        changed[name] = parts if isinstance(kwargs[name], Mapping) else list(parts.values())
    return changed
