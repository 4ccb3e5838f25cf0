"""The authors' names of tensors and fields of config.json, and what a checkpoint must hold.

Source: github.com/ictnlp/LLaVA-Mini, `llavamini/model/`; the key list of the full-size model is in
the golden files.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedModel

from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.modeling import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.weight_files import CheckpointError, one_line

Shapes = Mapping[str, torch.Size]

RENAMES = {  # the authors' name -> ours
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.prefusion_layers\.": "model.prefusion.layers.",
    r"^model\.compressor\.attn\.": "model.compressor.attention.",
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
    r"^model\.vision_model\.": "model.vision_tower.vision_model.",  # CLIP on its own
}
DISCARDED = re.compile(  # buffers that old versions saved, and CLIP's text encoder
    r"rotary_emb\.inv_freq$|position_ids$|^model\.(text_model\.|(visual|text)_projection|logit_scale$)"
)
REQUIRED_FIELDS = ("hidden_size", "num_hidden_layers", "vocab_size", "compressor_size")
SUPPORTED_VALUES = {  # of fields that LLaVA-Mini defines for some values only; None: absent
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", None),
    "mm_patch_merge_type": ("flat", "", None),
    "mm_use_im_start_end": (False, None),
}

NOT_OF_THE_LLM = re.compile(  # fields of the authors' config.json that LlamaConfig does not take
    r"mm_|tokenizer_|image_|transformers_version|torch_dtype"
    r"|^(model_type|architectures|compressor_size|prefusion_layer_num|resolution_ratio)$"
)
HINTS = {  # a part of which every tensor is missing -> what to do
    "model.vision_tower.": "it has no vision tower: give CLIP's folder too (vision= or --vision)",
    "model.language_model.": "it has no LLM: give the LLM's folder too (base= or --base)",
}


def native_config(config: dict[str, Any], vision_config: dict[str, Any]) -> LlavaMiniConfig:
    """The native config for the authors' config.json and CLIP's.

    Raises CheckpointError for a field that is missing, not supported, or refused by transformers.
    """
    if missing := [field for field in REQUIRED_FIELDS if field not in config]:
        raise CheckpointError("a LLaVA-Mini config.json", f"one without {', '.join(missing)}")
    for field, values in SUPPORTED_VALUES.items():
        if config.get(field) not in values:
            raise CheckpointError(f"{field} to be {values[0]!r}", repr(config.get(field)))
    text = {field: value for field, value in config.items() if not NOT_OF_THE_LLM.search(field)}
    vision = {field: value for field, value in vision_config.items() if field != "model_type"}
    with buildable():
        return LlavaMiniConfig(
            vision_config=CLIPVisionConfig(**vision),
            text_config=LlamaConfig(**text),
            vision_feature_layer=config.get("mm_vision_select_layer", -2),
            compressor_size=config["compressor_size"],
            num_prefusion_layers=config.get("prefusion_layer_num", 4),  # the authors' default
            tie_word_embeddings=config.get("tie_word_embeddings", False),
        )


@contextmanager
def buildable() -> Iterator[None]:
    """Turns any error of transformers or torch about a config's fields into a CheckpointError."""
    try:
        yield
    except Exception as error:  # TypeError, KeyError, ZeroDivisionError, RuntimeError ...
        raise CheckpointError(
            "config fields that a LLaVA-Mini can be built of", one_line(error)
        ) from error


def renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Native names for one of the authors' tensors (meta tensors will do), whatever prefix it was
    saved with.

    The compressor's packed q, k and v are split; tensors that no current model has are dropped.

    >>> [name for name, _ in renamed("base_model.model.model.mm_projector.2.bias", torch.zeros(1))]
    ['model.multi_modal_projector.linear_2.bias']
    """
    name = re.sub(r"^(base_model\.|model\.|module\.)*", "model.", name)
    name = name.replace("model.lm_head.", "lm_head.")
    if DISCARDED.search(name):
        return
    for pattern, native in RENAMES.items():
        name = re.sub(pattern, native, name)
    if "compressor.attention.in_proj_" not in name:
        yield name, tensor
        return
    for part, rows in zip("qkv", tensor.chunk(3), strict=True):
        # cloned, because a part that shares memory with the others cannot be saved
        yield name.replace("in_proj_", f"{part}_proj."), rows.clone()


def adapt_names(
    tensors: Mapping[str, Any], model: LlavaMiniForConditionalGeneration
) -> dict[str, Any]:
    """The names of the installed transformers (before 5.6, CLIP had one more level), and no head
    where it is tied to the embeddings.
    """
    expected = expected_shapes(model)
    level = "model.vision_tower.vision_model."
    if not any(name.startswith(level) for name in expected):
        tensors = {name.replace(level, "model.vision_tower."): x for name, x in tensors.items()}
    tied = model.config.tie_word_embeddings
    return {name: x for name, x in tensors.items() if not (tied and name == "lm_head.weight")}


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
    return "{" + ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs) + "}"
