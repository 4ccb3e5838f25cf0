"""Whether tensors fit a model: what is missing, surplus or misshapen, named on one line.

check_shapes({"model.norm.weight": torch.Size([16]), ...}, model)
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from probe.models.original.weight_files import CheckpointError, one_line

Shapes = Mapping[str, torch.Size]

HINTS = {  # a part of which every tensor is missing -> what to do
    "model.vision_tower.": "it has no vision tower: give CLIP's folder too (vision= or --vision)",
    "model.language_model.": "it has no LLM: give the LLM's folder too (base= or --base)",
}


@contextmanager
def buildable(name: str) -> Iterator[None]:
    """Turns any error of transformers or torch about a config's fields into a CheckpointError.
    `name`: of the kind of model.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # TypeError, KeyError, ZeroDivisionError, RuntimeError ...
        expected = f"config fields that a {name} can be built of"
        raise CheckpointError(expected, one_line(error)) from error


def expected_shapes(model: PreTrainedModel) -> Shapes:
    """What a checkpoint must hold for this model, without a head that is tied."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}


def check_shapes(shapes: Shapes, model: PreTrainedModel) -> None:
    """Raises CheckpointError that names every tensor that is missing, surplus or misshapen."""
    expected = expected_shapes(model)
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "surplus": [name for name in shapes if name not in expected],
        "misshapen": [
            f"{name} {list(shape)} instead of {list(expected[name])}"
            for name, shape in shapes.items()
            if name in expected and shape != expected[name]
        ],
    }
    reasons = [
        f"{len(names)} {problem}: {_summarised(names)}"
        for problem, names in problems.items()
        if names
    ]
    for part, hint in HINTS.items():
        if not any(name.startswith(part) and name in shapes for name in expected):
            reasons.append(hint)
    if any(problems.values()):
        raise CheckpointError("the tensors of its config", "; ".join(reasons))


def _summarised(names: list[str]) -> str:
    """Names on one line, those of several layers together.

    >>> _summarised(["a.bias", *(f"layers.{i}.weight" for i in (0, 1, 2, 5))])
    'a.bias, layers.{0-2,5}.weight'
    """
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        if number:
            pattern = f"{name[: number.start()]}{{}}{name[number.end() :]}"
            layers.setdefault(pattern, []).append(int(number[0]))
        else:
            layers[name] = []
    return ", ".join(pattern.replace("{}", _ranges(found)) for pattern, found in layers.items())


def _ranges(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return "{" + ",".join(texts) + "}"
