"""Between encoder and projector of a model: only the tokens that a reducer leaves are projected, and
the prompt gets as many placeholders.

The model's own `get_image_features` runs, so that pixels, views and images are divided as the model
does it:

    encoder            its features, queries and keys are tapped
    projector          runs on one token; the output is expanded to the full shape (no memory) and
                       only carries that shape on
    packing            `pack_image_features`, in models that cut images into tiles: patch indices are
                       pushed through it (`subject/token_grid.py`), which gives the number of
                       unreduced tokens and the tiles per row. Then the reduced tokens are projected
                       and returned. Models without it read each view as one image.

Everything is undone when the block ends: torch's hooks, and `pack_image_features` of this one model.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.image_placeholders import override_token_count, resize_placeholders
from probe.hooks.model_structure import image_token_id, vision_towers
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.encoder_reducer import EncoderReducer, EncoderTap, tapped
from probe.reducers.tile_order import prompt_order, source_patches
from probe.subject.token_grid import packed_indices

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass
class EncoderCall:
    """One forward of an encoder, from its end until its tokens are reduced.

    output: what the encoder returned. `full`, `left` and `patches` are set on it: of each image the
    number of unreduced tokens, of tokens that are left, and the patches that these stand for.
    tokens: how many of each view the projector was given.
    """

    output: Any
    encoder_output: EncoderOutput
    tokens: int = 0


@dataclass(frozen=True)
class PackedImage:
    """One image (or frame): its views, number of unreduced tokens, tiles per row, and whether a
    newline token ends it.
    """

    views: int
    full: int
    across: int = 1
    newline: bool = False

    @classmethod
    def of(cls, indices: Int[Tensor, " token"], views: int, tokens: int) -> "PackedImage":
        """`indices`: as of `packed_indices`, of views that have `tokens` features each."""
        if views == 1:
            return cls(1, len(indices), newline=len(indices) > tokens)
        tiles = indices[tokens:]  # after the whole image; each row of patches ends with a newline
        row_end = int((tiles < 0).long().argmax())
        return cls(views, len(indices), across=int(tiles[row_end - 1]) // tokens)


class ImageFeaturesHook:
    """One reducer between the encoders and the projector of one model."""

    def __init__(self, model: PreTrainedModel, reducer: EncoderReducer):
        self.model, self.reducer = model, reducer
        self.base: Any = model.base_model
        self.towers = vision_towers(model)
        self.projector: Any = getattr(self.base, "multi_modal_projector", None)
        self.layer: Any = getattr(model.config, "vision_feature_layer", None)
        if hasattr(self.base, "compressor"):
            raise ProbeError(
                "reduced",
                expected="a model whose LLM reads the encoder's patches",
                got=f"{type(model).__name__}, whose compressor reads the whole grid of them",
            )
        if not self.towers or self.projector is None or self.layer is None:
            raise ProbeError(
                "reduced",
                expected="a LLaVA-like model: encoder, multi_modal_projector, LLM",
                got=type(model).__name__,
            )
        self._pack: Any = getattr(self.base, "pack_image_features", None)
        self._call: EncoderCall | None = None  # from the encoder's end to the packing

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as undo:
            undo.enter_context(override_token_count(self.model, self.kept_patches))
            for tower in self.towers:
                tap = undo.enter_context(tapped(tower, self.layer, self.model))
                undo.callback(tower.register_forward_hook(partial(self._encoded, tap)).remove)
            for hook in (
                self.projector.register_forward_pre_hook(self._single_token),
                self.projector.register_forward_hook(self._projected),
                # before the hooks of interventions, which count the tokens that are left
                self.model.register_forward_pre_hook(
                    self._before_model, with_kwargs=True, prepend=True
                ),
            ):
                undo.callback(hook.remove)
            if self._pack is not None:
                undo.enter_context(_method(self.base, "pack_image_features", self._packed))
                if hasattr(self.base, "get_video_features"):
                    undo.enter_context(_method(self.base, "get_video_features", _refuse_pooling))
            yield

    # From pixels to tokens

    def _encoded(self, tap: EncoderTap, tower: nn.Module, args: tuple, output: Any) -> None:
        states = getattr(output, "hidden_states", None)
        # without the tapped states it is a call for other features
        if states is not None and all(states[index] is not None for index in tap.hidden_states):
            self._call = EncoderCall(output, tap.encoder_output(states))

    def _single_token(self, projector: nn.Module, args: tuple) -> tuple | None:
        call = self._call
        if call is None:
            return None
        features = call.encoder_output.features
        views, call.tokens = args[0].shape[:2]
        allowed = (call.encoder_output.patches, features.shape[1])  # without and with class token
        if views != len(features) or call.tokens not in allowed:
            _refuse_pooling(got=f"{call.tokens} of {call.encoder_output.patches} patches")
        return (args[0][:1, :1],)

    def _projected(
        self, projector: nn.Module, args: tuple, output: Tensor
    ) -> Tensor | list[Tensor] | None:
        call = self._call
        if call is None:
            return None
        views = len(call.encoder_output.features)
        if self._pack is not None:
            return output.expand(views, call.tokens, -1)
        tokens = self._reduced(call, [PackedImage(1, call.tokens)] * views)
        if len(set(map(len, tokens))) == 1:
            return torch.stack(tokens)
        # models that read videos take one tensor of all frames, the others a list of images
        return torch.cat(tokens)[None] if hasattr(self.base, "get_video_features") else tokens

    def _packed(self, image_features: Sequence[Tensor], image_sizes: Any, **options: Any) -> Any:
        """In place of the model's `pack_image_features`."""
        call = self._call
        if call is None:
            return self._pack(image_features, image_sizes, **options)
        packing = {name: value for name, value in options.items() if name != "image_newline"}
        images = []
        for features, size in zip(image_features, image_sizes, strict=True):
            views, tokens = features.shape[:2]
            indices = packed_indices(self._pack, views, tokens, size, **packing)
            images.append(PackedImage.of(indices, views, tokens))
        tokens = self._reduced(call, images)
        return tokens, torch.tensor(call.output.left, device=tokens[0].device)

    def _reduced(self, call: EncoderCall, images: Sequence[PackedImage]) -> list[Tensor]:
        """The projected tokens that are left of each image, in the order of the prompt."""
        self._call = None
        kept, sources, start = [], [], 0
        for image in images:
            views = call.encoder_output.of_views(start, start + image.views)
            start += image.views
            reduction = self.reducer.reduce(views)
            order = prompt_order(reduction, image.across)
            kept.append(reduction.tokens.flatten(0, 1)[order])
            sources.append(source_patches(reduction, order))
        projected = self.projector(torch.cat(kept)[None])[0].split([len(each) for each in kept])
        tokens = list(projected)
        for number, image in enumerate(images):
            if image.newline:
                newline = self.base.image_newline[None].to(tokens[number])
                tokens[number] = torch.cat([tokens[number], newline])
                sources[number] = torch.cat([sources[number], sources[number].new_full((1,), -1)])
        call.output.full = [image.full for image in images]
        call.output.left = [len(each) for each in tokens]
        call.output.patches = sources
        return tokens

    # From the prompt's placeholders to as many as tokens are left

    def _before_model(
        self, model: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        signature = inspect.signature(self.model.forward)
        kwargs = dict(signature.bind_partial(*args).arguments) | kwargs
        encoded_before = kwargs.get("mm_encoder_outputs")  # `generate` encodes first
        if encoded_before:
            outputs = dict(encoded_before)
        else:
            outputs, used = self._encode(kwargs)
            if outputs and "mm_encoder_outputs" in signature.parameters:
                kwargs = {name: value for name, value in kwargs.items() if name not in used}
                kwargs["mm_encoder_outputs"] = outputs
        generating = bool(encoded_before) or _has_cache(kwargs)
        for modality, output in outputs.items():
            if not hasattr(output, "patches"):
                raise ProbeError(
                    "reduced",
                    expected="images encoded inside the block, by the model's own layer",
                    got=f"features of {type(output).__name__}",
                )
            kwargs = self._with_placeholders(kwargs, modality, output, generating)
        return ((), kwargs) if outputs else None

    def _encode(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """The model's features of the pixels, by modality, and the names of the arguments that they
        were made from.
        """
        outputs, used = {}, set()
        for modality, pixels in PIXELS.items():
            if kwargs.get(pixels) is not None and len(kwargs[pixels]):
                method = getattr(self.base, f"get_{modality}_features")
                parameters = inspect.signature(method).parameters
                given = {name: kwargs[name] for name in parameters if kwargs.get(name) is not None}
                outputs[modality] = method(**given, return_dict=True)
                used |= {*given, pixels}
        return outputs, used

    def _with_placeholders(
        self, kwargs: dict, modality: str, output: Any, generating: bool
    ) -> dict:
        """The arguments with as many placeholders as tokens are left."""
        ids = kwargs.get("input_ids")
        if ids is None:  # embeddings: the model itself checks their number
            return kwargs
        config = self.model.config
        token = image_token_id(self.model) if modality == "image" else config.video_token_id
        placeholders = int((ids == token).sum())
        # counted in the features, which `generate` repeats for beams
        left = sum(image.shape[:-1].numel() for image in output.pooler_output)
        if placeholders == left:
            return kwargs
        if placeholders != sum(output.full) or generating:
            raise ProbeError(
                "reduced",
                expected=f"{left} placeholders, as many as vision tokens are left",
                got=str(placeholders),
                fix="encode inside the block",
            )
        pad = getattr(config.get_text_config(), "pad_token_id", None) or 0
        counts = list(zip(output.full, output.left, strict=True))
        return resize_placeholders(kwargs, token, counts, pad)

    @torch.no_grad()
    def kept_patches(self, tensors: Mapping[str, Any]) -> list[Int[np.ndarray, "_"]]:
        """For `Subject.encode`: the patches that the remaining tokens of each image stand for."""
        device = self.model.device
        on_device = {
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in tensors.items()
        }
        outputs, _ = self._encode(on_device)
        return [patches.cpu().numpy() for output in outputs.values() for patches in output.patches]


@contextmanager
def _method(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """While the block lasts `module.name` is this method; the class is not changed."""
    before = vars(module).get(name)
    setattr(module, name, method)
    try:
        yield
    finally:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)


def _refuse_pooling(*args: Any, got: str = "pooled features", **kwargs: Any) -> NoReturn:
    raise ProbeError(
        "reduced",
        expected="features that are projected and handed to the LLM one by one",
        got=got,
        fix="use images: this model averages what it sees of frames",
    )


def _has_cache(kwargs: Mapping[str, Any]) -> bool:
    return any(kwargs.get(name) is not None for name in ("past_key_values", "cache"))
