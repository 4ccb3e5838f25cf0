"""What a model offers: its stacks, layers, heads and sites; which measures, interventions and
reducers work on it; and for what does not, why.

    description = describe(subject)
    print(description)
    description.to_dataframe()          # a row for each stack and each feature
    description.to_dict()

Nothing here is a list of what which model can: each feature is tried with a drawn image and a short
question, one small forward each, and a refusal is given in the words of the feature itself.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from probe.data.image import ImageSource
from probe.errors import ProbeError
from probe.hooks.block_threads import only_this_thread
from probe.hooks.layer_sites import SITES, head_count, site_module
from probe.hooks.model_checks import require_observable, require_subject
from probe.hooks.model_structure import LayerStack, stacks
from probe.hooks.own_failure import own_failures
from probe.measures.feature_tries import Try, feature_tries
from probe.subject.subject import Subject

QUESTION = "what is in the image ?"


@dataclass(frozen=True)
class StackDescription:
    """One group of layers. `without_attention`: layers (from 0) that have no softmax attention;
    `sites`: where activations can be read and changed.
    """

    name: str
    layers: int
    heads: int
    attention: str
    without_attention: tuple[int, ...]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Feature:
    """Something that can be asked of the model. `missing`: why not; "" where it works."""

    group: str
    name: str
    missing: str

    @property
    def available(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class Description:
    """What `describe` returns."""

    model: str
    architecture: str
    stacks: tuple[StackDescription, ...]
    features: tuple[Feature, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: {"model", "architecture", "stacks", "measures", "interventions",
        "reducers"}; in the last three "yes", or why not.
        """
        groups: dict[str, dict[str, str]] = {}
        for feature in self.features:
            groups.setdefault(feature.group, {})[feature.name] = feature.missing or "yes"
        described = {stack.name: dict(vars(stack)) for stack in self.stacks}
        return {
            "model": self.model,
            "architecture": self.architecture,
            "stacks": described,
        } | groups

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each stack and each feature: group, name, available, note."""
        rows = [("stacks", stack.name, True, _in_words(stack)) for stack in self.stacks]
        rows += [(f.group, f.name, f.available, f.missing) for f in self.features]
        return pd.DataFrame(rows, columns=["group", "name", "available", "note"])

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.architecture})"]
        for group, rows in self.to_dataframe().groupby("group", sort=False):
            lines.append(f"{group}:")
            for row in rows.to_dict("records"):
                sign = "yes" if row["available"] else "no"
                note = f" ({row['note']})" if row["note"] else ""
                lines.append(f"  {row['name']}: {sign}{note}")
        return "\n".join(lines)


@only_this_thread()
def describe(
    subject: Subject, image: ImageSource | None = None, question: str = QUESTION
) -> Description:
    """Tries what the model offers, on the given image (by default a drawn one) and question.

    The model is afterwards as it was. Costs about forty forwards of one short prompt. Raises
    ProbeError for anything but a Subject, for a model that is compiled or in training mode, and for
    one that can't run the prompt itself.
    """
    from probe.models.tiny.questions import sample_image

    require_subject("describe", subject)
    require_observable("describe", subject.model)
    image = sample_image(seed=0)[0] if image is None else image
    known = stacks(subject.model)
    inputs = subject.encode(image, question)
    with own_failures("describe", subject.model, inputs), torch.no_grad():
        subject.model(**inputs)
    tries = feature_tries(subject, known, inputs, image, question)
    features = [
        Feature(group, name, _missing(run))
        for group, of_group in tries.items()
        for name, run in of_group.items()
    ]
    return Description(
        model=subject.name,
        architecture=type(subject.model).__name__,
        stacks=tuple(_described(stack) for stack in known.values()),
        features=tuple(features),
    )


def _described(stack: LayerStack) -> StackDescription:
    modules = list(stack.attention.values())
    config = getattr(modules[0], "config", None)
    return StackDescription(
        name=stack.name,
        layers=len(stack.layers),
        heads=head_count("describe", modules[0]),
        attention=str(getattr(config, "_attn_implementation", None) or "its own"),
        without_attention=stack.without_attention,
        sites=tuple(site for site in SITES if _has_site(stack, site)),
    )


def _has_site(stack: LayerStack, site: str) -> bool:
    layer = next(at for at, name in enumerate(stack.modules) if name is not None)
    return not _missing(lambda: site_module("describe", stack, layer, site))


def _in_words(stack: StackDescription) -> str:
    words = f"{stack.layers} layers of {stack.heads} heads, attention {stack.attention}"
    without = ", ".join(str(layer + 1) for layer in stack.without_attention)
    note = f"; no softmax attention in layers {without} (from 1)" if without else ""
    return f"{words}; sites: {', '.join(stack.sites) or 'none'}{note}"


def _missing(run: Try) -> str:
    """Why this does not work; "" where it does."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            run()
    except ProbeError as error:
        return f"expected {error.expected}, got {error.got}" if error.got else str(error)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""
