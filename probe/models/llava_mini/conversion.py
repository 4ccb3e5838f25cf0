"""The authors' names and config fields, and a model from a checkpoint in memory. `folder.py` does
it on disk.

    model = from_original(state_dict, config, vision_config)      # what torch.load and json.load gave

Source: github.com/ictnlp/LLaVA-Mini, `llavamini/model/`; the key list of the full-size model is in
the golden files.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.initialization import no_init_weights

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
IGNORED = re.compile(  # buffers that old versions saved, and CLIP's text half
    r"rotary_emb\.inv_freq$|position_ids$|^model\.(text_model\.|(visual|text)_projection|logit_scale$)"
)
REQUIRED = ("hidden_size", "num_hidden_layers", "vocab_size", "compressor_size")
SUPPORTED = {  # field -> the values that LLaVA-Mini is defined for, None: absent
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", None),
    "mm_patch_merge_type": ("flat", "", None),
    "mm_use_im_start_end": (False, None),
}

HINTS = {  # what is missing as a whole -> where it may be
    "model.vision_tower.": "the vision tower is not in it: give CLIP's folder too (vision= or --vision)",
    "model.language_model.": "the LLM is not in it: give the LLM's folder too (base= or --base)",
}


def from_original(
    state_dict: Mapping[str, Tensor],
    config: dict[str, Any],
    vision_config: dict[str, Any],
    vision_state_dict: Mapping[str, Tensor] | None = None,
) -> LlavaMiniForConditionalGeneration:
    """The authors' model, in eval mode and the dtype of its word embeddings.

    config: their config.json (model_type "llava_mini_llama"). vision_config: the CLIP vision
    tower's. vision_state_dict: CLIP's own weights, for a checkpoint that has none (the authors load
    the tower by its name). Raises CheckpointError that names missing, surplus and misshapen
    tensors, and fields that this model does not know.
    """
    native = {}
    for source in (vision_state_dict or {}, state_dict):
        for name, tensor in source.items():
            native |= renamed(name, tensor)
    dtype = next((t.dtype for name, t in native.items() if "embed_tokens" in name), torch.float32)
    model = empty_model(native_config(config, vision_config), dtype)
    native = fitted(native, model)
    check({name: tensor.shape for name, tensor in native.items()}, model)
    model.load_state_dict(native, strict=False)
    model.tie_weights()
    return model.eval()


def empty_model(
    config: LlavaMiniConfig, dtype: torch.dtype, device: str = "cpu"
) -> LlavaMiniForConditionalGeneration:
    """A model whose weights are still to be read."""
    with torch.device(device), no_init_weights():
        return LlavaMiniForConditionalGeneration._from_config(config, dtype=dtype)


def native_config(config: dict[str, Any], vision_config: dict[str, Any]) -> LlavaMiniConfig:
    """Our config for theirs. Raises CheckpointError for a field that is missing or not
    supported.
    """
    if missing := [field for field in REQUIRED if field not in config]:
        raise CheckpointError("a LLaVA-Mini config.json", f"one without {', '.join(missing)}")
    for field, values in SUPPORTED.items():
        if config.get(field) not in values:
            raise CheckpointError(f"{field} to be {values[0]!r}", repr(config.get(field)))
    text = {field: value for field, value in config.items() if not _about_vision(field)}
    vision = {field: value for field, value in vision_config.items() if field != "model_type"}
    with buildable():
        return LlavaMiniConfig(
            vision_config=CLIPVisionConfig(**vision),
            text_config=LlamaConfig(**text),
            vision_feature_layer=config.get("mm_vision_select_layer", -2),
            compressor_size=config["compressor_size"],
            num_prefusion_layers=config.get(
                "prefusion_layer_num", 4
            ),  # as the authors' code has it
            tie_word_embeddings=config.get("tie_word_embeddings", False),
        )


@contextmanager
def buildable() -> Iterator[None]:
    """Turns whatever a config's fields make transformers and torch stumble over into one line
    (CheckpointError).
    """
    try:
        yield
    except (
        Exception
    ) as error:  # of their own, TypeError, KeyError, ZeroDivisionError, RuntimeError ...
        raise CheckpointError(
            "config fields that a LLaVA-Mini can be built of", one_line(error)
        ) from error


def _about_vision(field: str) -> bool:
    others = (
        "model_type",
        "architectures",
        "compressor_size",
        "prefusion_layer_num",
        "resolution_ratio",
        "use_mm_proj",
    )
    return (
        field in others
        or re.search(r"mm_|tokenizer_|image_|transformers_version|torch_dtype", field) is not None
    )


def renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Our names for one of the authors' tensors (meta tensors will do), whatever prefix the file
    was saved with.

    torch's packed q, k and v of the compressor come apart; what no model of today has is left out.

    >>> [name for name, _ in renamed("base_model.model.model.mm_projector.2.bias", torch.zeros(1))]
    ['model.multi_modal_projector.linear_2.bias']
    """
    name = re.sub(r"^(base_model\.|model\.|module\.)*", "model.", name).replace(
        "model.lm_head.", "lm_head."
    )
    if IGNORED.search(name):
        return
    for pattern, ours in RENAMES.items():
        name = re.sub(pattern, ours, name)
    if "compressor.attention.in_proj_" in name:
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            yield (
                name.replace("in_proj_", f"{part}_proj."),
                rows.clone(),
            )  # a part alone can be saved
    else:
        yield name, tensor


def fitted(tensors: Mapping[str, Any], model: LlavaMiniForConditionalGeneration) -> dict[str, Any]:
    """Names for this version of transformers (before 5.6, CLIP had one more level), without a head
    that is tied.
    """
    names = model.state_dict().keys()
    flat = not any(name.startswith("model.vision_tower.vision_model.") for name in names)
    if flat:
        level = "model.vision_tower.vision_model."
        tensors = {
            name.replace(level, "model.vision_tower."): tensor for name, tensor in tensors.items()
        }
    tied = model.config.tie_word_embeddings
    return {
        name: tensor for name, tensor in tensors.items() if not (tied and name == "lm_head.weight")
    }


def expected_shapes(model: LlavaMiniForConditionalGeneration) -> Shapes:
    """What a checkpoint must hold for this model, a tied head left out."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}


def check(found: Shapes, model: LlavaMiniForConditionalGeneration) -> None:
    """Raises CheckpointError that names every tensor that is missing, surplus or of another
    shape.
    """
    expected = expected_shapes(model)
    problems = {
        "missing": [name for name in expected if name not in found],
        "surplus": [name for name in found if name not in expected],
        "misshapen": [
            f"{name} {list(shape)} instead of {list(expected[name])}"
            for name, shape in found.items()
            if name in expected and shape != expected[name]
        ],
    }
    if any(problems.values()):
        told = [
            f"{len(names)} {kind}: {_grouped(names)}" for kind, names in problems.items() if names
        ]
        absent = [
            part
            for part in HINTS
            if all(n in problems["missing"] for n in expected if n.startswith(part))
        ]
        raise CheckpointError(
            "the tensors of its config", "; ".join([*told, *(HINTS[part] for part in absent)])
        )


def _grouped(names: list[str]) -> str:
    """Names on one line, however many: those of several layers together.

    >>> _grouped(["a.bias", "layers.0.weight", "layers.1.weight", "layers.2.weight", "layers.5.weight"])
    'a.bias, layers.{0-2,5}.weight'
    """
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = f"{name[: number.start()]}{{}}{name[number.end() :]}" if number else name
        layers.setdefault(pattern, []).extend([int(number[0])] if number else [])
    return ", ".join(pattern.replace("{}", _ranges(found)) for pattern, found in layers.items())


def _ranges(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs = [
        list(run) for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    ]
    told = ",".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)
    return f"{{{told}}}"
