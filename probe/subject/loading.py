"""`load`: a Subject from the name of a model, or from a model in memory.

    load("tiny-llava")                                  # a shipped model
    load("llava-hf/llava-1.5-7b-hf", revision="8c85e9a", device_map="auto")
    load("llava-mini-llama-3.1-8b")                     # a folder, also in the original layout
    load("my-lora")                                     # a folder of peft's, with its base model
    load(model, processor=processor)                    # in memory, also in peft's wrapper

No code of a checkpoint is ever run: weights are read from safetensors, and .bin files of a folder
without unpickling code. The network is used for hub ids only.
"""

import copy
import os
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

from probe.data.image import EXIF
from probe.data.image_views import aspect_of
from probe.errors import ProbeError, one_of
from probe.hooks.compiled import refuse_compiled
from probe.hooks.model_checks import (
    require_answering,
    require_transformers,
)
from probe.hooks.model_state import state_of
from probe.hooks.model_structure import cls_tokens, image_token_id
from probe.hooks.offload import require_values
from probe.models.original import CheckpointError, load_original
from probe.models.original.layout import Layout
from probe.subject.adapter_source import AdapterSource, fill_embedded, inner_model
from probe.subject.attention_implementation import check_attention, set_attention
from probe.subject.config_parts import require_parts
from probe.subject.device_and_dtype import as_device, as_dtype
from probe.subject.model_source import (
    ModelSource,
    config_of,
    load_error,
    processor_of,
)
from probe.subject.model_weights import (
    has_only_pickles,
    require_all_weights,
    warn_unread_layers,
)
from probe.subject.subject import Subject


def load(
    model: str | os.PathLike[str] | PreTrainedModel | Any = "tiny-llava",
    processor: Any = None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | dict[str, str] | None = None,
    quantization_config: Any = None,
    aspect: str | None = None,
    exif: str = "upright",
) -> Subject:
    """A subject from a name (a shipped model, a folder, a hub id), or from a model and its
    processor.

    `revision`, `device_map`, `dtype`, `attn_implementation` and `quantization_config` have the
    names and the meaning of `from_pretrained`, to which they are passed; the first, second and last
    need a name. By default a model by name goes to the GPU in the checkpoint's own precision, or
    to the CPU in float32. A model in memory is put in eval mode, and is otherwise changed only as
    the arguments say.

    Args:
        device: one device for the whole model; not together with `device_map`.
        aspect: for models with one square view, "pad" as LLaVA-1.5 was trained or "crop" as
            Hugging Face's processor does it; by default the processor's own (`subject.aspect`).
        exif: "upright" turns photographs as their EXIF orientation says, "ignore" takes them as
            they are stored, as LLaVA's own scripts do.

    Raises ProbeError for an unknown name, a checkpoint that transformers cannot load, a model that
    does not answer word by word in the sequence in which image and question stand (an
    encoder-decoder, a diffusion model), one without an image token or a processor, a compiled
    model, an unknown dtype, a device or an attention implementation that is not available, an
    aspect that the image processor cannot produce, and an unknown exif.
    """
    one_of("load", "exif", exif, EXIF)
    if device is not None and device_map is not None:
        raise ProbeError("load", expected="device= or device_map=", got="both")
    while_loading = {
        "revision": revision,
        "device_map": device_map,
        "quantization_config": quantization_config,
    }
    if isinstance(model, str | os.PathLike):
        opened = _from_name(model, processor, device, dtype, attn_implementation, while_loading)
    else:
        for name, value in while_loading.items():
            if value is not None:
                raise ProbeError(
                    "load", expected=f"a name where {name} is given", got="a model in memory"
                )
        opened = _from_memory(model, processor, device, dtype, attn_implementation)
    model, processor, name, revision, toy = opened
    return Subject(model, processor, name, revision, _aspect(aspect, processor), toy, exif)


Opened = tuple[PreTrainedModel, Any, str, str, bool]  # the fields of a Subject without `aspect`


def _from_name(
    name: str | os.PathLike[str],
    processor: Any,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    attn_implementation: str | dict[str, str] | None,
    options: dict[str, Any],
) -> Opened:
    source = ModelSource.of(name)
    check_attention(attn_implementation)
    local = source.local_files_only()
    adapter = AdapterSource.of(source.location, options["revision"], local)
    if adapter is not None:
        return _adapted(adapter, processor, device, dtype, attn_implementation, options)
    target = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = None if dtype == "auto" else as_dtype(dtype)
    if dtype is None and target.type != "cuda":
        precision = torch.float32
    if source.is_folder and _layout_of(source.location) is not None:
        model, processor = _from_original(source.location, processor, precision, options)
        model.to(target)  # pyright: ignore[reportArgumentType]
        set_attention(model, attn_implementation)
    else:
        if options["quantization_config"] is not None and options["device_map"] is None:
            options = options | {"device_map": {"": target}}
        where = {
            "revision": options.pop("revision") or "main",
            "local_files_only": local,
            "trust_remote_code": False,
        }
        config = config_of(source, str(name), where)  # other kinds of model are refused first
        if source.is_folder:
            require_parts(Path(source.location), config)
        if processor is None:
            processor = processor_of(source, str(name), where)
        try:
            opened: Any = AutoModelForImageTextToText.from_pretrained(
                source.location,
                use_safetensors=not has_only_pickles(source),
                dtype=precision or "auto",
                attn_implementation=attn_implementation,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the shapes
                **options,
                **where,
            )
            model, loaded = opened
            if options["device_map"] is None and not getattr(model, "is_quantized", False):
                model = model.to(target)  # type: ignore[arg-type]
        except Exception as error:  # transformers, safetensors and json raise many kinds
            raise load_error(str(name), error) from error
        require_answering("load", model)
        missing = fill_embedded(model, source.location, local, loaded["missing_keys"])
        require_all_weights(str(name), missing, loaded["mismatched_keys"])
        warn_unread_layers(str(name), model, loaded["unexpected_keys"])
        _note_image_token(model, processor)
    processor = _complete(processor, model)
    return model.eval(), processor, str(name), source.revision(model.config), source.toy


def _adapted(
    adapter: AdapterSource,
    processor: Any,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    attn_implementation: str | dict[str, str] | None,
    options: dict[str, Any],
) -> Opened:
    """The model that an adapter names, with the adapter in it."""
    adapter.require_peft()
    own = processor
    try:
        if processor is None and adapter.has_processor:
            own = AutoProcessor.from_pretrained(adapter.location, trust_remote_code=False)
    except Exception as error:  # transformers and json raise many kinds
        raise load_error(adapter.location, error) from error
    options = options | {"revision": adapter.base_revision}
    try:
        if AdapterSource.of(adapter.base, adapter.base_revision) is not None:
            raise ProbeError("load", expected="a whole model", got=f"{adapter.base!r}, an adapter")
        opened = _from_name(adapter.base, own, device, dtype, attn_implementation, options)
    except ProbeError as error:
        got = f"{error.got} (the base model of the adapter {adapter.location!r})"
        raise ProbeError("load", expected=error.expected, got=got, fix=error.fix) from error
    model, processor, _, base_revision, toy = opened
    adapted = adapter.on(model).eval()
    return adapted, processor, adapter.location, f"{adapter.revision} on {base_revision}", toy


def _from_memory(
    model: Any,
    processor: Any,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    attn_implementation: str | dict[str, str] | None,
) -> Opened:
    refuse_compiled("load", model)
    model = inner_model("load", model)
    require_transformers("load", model, "a name or a transformers model")
    require_answering("load", model)
    require_values("load", model)
    _note_image_token(model, processor)
    processor = _complete(processor, model)
    if device is not None:
        device = as_device(device)
    if device is not None or dtype is not None:
        model.to(device=device, dtype=as_dtype(dtype))  # type: ignore[call-overload]
    set_attention(model, attn_implementation)
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    revision = getattr(model.config, "_commit_hash", None) or "in memory"
    return model.eval(), processor, name, revision, False


def _layout_of(folder: str) -> Layout | None:
    """The authors' layout of a folder, None for one in transformers' own."""
    from probe.models.original.layouts import layout_of  # registers their models with transformers

    try:
        return layout_of(folder)
    except CheckpointError as error:
        raise ProbeError("load", expected=error.expected, got=error.got) from error


def _from_original(
    folder: str, processor: Any, dtype: torch.dtype | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    """A LLaVA-Mini or a rival of it in its authors' layout, converted in memory."""
    for name in ("quantization_config", "device_map"):
        if options[name] is not None:
            raise ProbeError(
                "load",
                expected=f"a folder in transformers' layout to load with {name}",
                got=f"its authors' layout in {folder!r}",
                fix=f"probe convert {folder} --out NATIVE, then load NATIVE",
            )
    try:
        model, own_processor = load_original(folder, dtype=dtype)
    except CheckpointError as error:
        raise ProbeError("load", expected=error.expected, got=error.got) from error
    return model, processor or own_processor


def _note_image_token(model: PreTrainedModel, processor: Any) -> None:
    """Notes the image token of a model whose config names none (Idefics): the processor's. Raises
    ProbeError where neither does.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    word = getattr(processor, "image_token", None)
    token = getattr(processor, "image_token_id", None)  # all that Idefics' processor has
    takes_pixels = any(n.startswith("pixel_values") for n in signature(model.forward).parameters)
    if tokenizer is not None and takes_pixels:
        if word is not None:
            token = tokenizer.convert_tokens_to_ids(str(word))
        if token is not None and token != tokenizer.unk_token_id:
            state_of(model).image_token = int(token)
    image_token_id(model)


def _complete(processor: Any, model: PreTrainedModel) -> Any:
    """The processor, with the fields that older checkpoints store only in the model's config."""
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise ProbeError(
            "load",
            expected="a processor with a tokenizer and an image processor",
            got="none" if processor is None else type(processor).__name__,
            fix="pass processor=AutoProcessor.from_pretrained(...)",
        )
    if getattr(processor, "patch_size", 0) is None:
        processor = copy.copy(processor)  # the caller's object stays unchanged
        processor.patch_size = model.config.vision_config.patch_size
        processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
        processor.num_additional_image_tokens = cls_tokens(model)
    return processor


def _aspect(aspect: str | None, processor: Any) -> str:
    native = aspect_of(processor)
    if aspect is None or aspect == native:
        return native
    if aspect == "pad" and native in ("crop", "squash"):
        return "pad"
    kind = type(processor.image_processor).__name__
    raise ProbeError(
        "load", expected=f"aspect=None or {native!r}, which is what {kind} does", got=repr(aspect)
    )
