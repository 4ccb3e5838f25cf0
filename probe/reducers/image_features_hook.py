"""Between encoder and projector of a model: only the tokens that a reducer leaves are projected,
and the prompt gets as many placeholders.

The model's own `get_image_features` runs, so that pixels, views and images are divided as the model
does it:

    encoder            its features, queries and keys are tapped
    projector          runs on the reduced tokens; in models that pack, on one token: the output
                       is expanded to the full shape (no memory) and only carries that shape on
    packing            `pack_image_features`, in models that cut images into tiles: patch indices
                       are pushed through it (`subject/token_grid.py`), which gives the number of
                       unreduced tokens and the tiles per row. Then the reduced tokens are projected
                       and returned. Models without it read each view as one image.

In a forward the pixels are encoded before the model runs, because the prompt's placeholders depend
on the result; the model's own call of `get_image_features` then gets that result.

Everything is undone when the block ends: torch's hooks, and these methods of this one model.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial, update_wrapper
from operator import ge
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.image_placeholders import (
    KeptTokens,
    override_token_count,
    resize_placeholders,
)
from probe.hooks.layer_arguments import by_name, find_cache
from probe.hooks.model_state import override_method, own_method
from probe.hooks.model_structure import image_token_id, video_tower, vision_encoder
from probe.hooks.offload import input_device, own_values
from probe.reducers.chosen_tokens import ChosenTokens, EncoderCall, choose
from probe.reducers.encoder_reducer import EncoderReducer, EncoderTap, tapped
from probe.reducers.projector_checks import (
    projector_of,
    refuse_merging,
    refuse_pooling,
    require_single,
)
from probe.reducers.reduction import NONE
from probe.reducers.single_images import by_image, joined_outputs
from probe.subject.token_grid import packed_indices

PIXELS = {  # names of a forward's arguments
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}


class _Running(local):
    """What a thread's forward has come to. Each thread has its own values."""

    call: EncoderCall | None = None  # from the encoder's end to the packing
    is_video: bool = False  # whether its features are those of frames

    def __init__(self):
        self.prepared: dict[str, tuple[Any, Any]] = {}  # by modality: pixels, features of them


class ImageFeaturesHook:
    """One reducer between the encoders and the projector of one model."""

    def __init__(self, model: PreTrainedModel, reducer: EncoderReducer):
        self.model = model
        self.reducer = reducer
        self.base: Any = model.base_model
        self.projector: Any = projector_of(model)
        towers = vision_encoder(model), video_tower(model)  # without those that make images (Janus)
        self.towers: Any = [tower for tower in towers if tower is not None]
        # None: the encoder's output, after its last norm
        self.layer: Any = getattr(model.config, "vision_feature_layer", None)
        self.pack: Any = own_method(self.base, "pack_image_features")
        methods = {name: own_method(self.base, f"get_{name}_features") for name in PIXELS}
        self.methods: dict[str, Any] = {name: method for name, method in methods.items() if method}
        self._running = _Running()
        self._is_warned = False

    @model_block
    def attached(self) -> Iterator[None]:
        with ExitStack() as undo:
            undo.enter_context(override_token_count(self.model, self.kept_patches))
            for tower in self.towers:
                tap = undo.enter_context(tapped(tower, self.layer, self.reducer, self.model))
                tap.views = 1 if self.pack is None else None
                encoded = partial(self._encoded, tap)
                add_hook(undo, tower.register_forward_hook, encoded, always=True)
            projector = self.projector
            add_hook(undo, projector.register_forward_pre_hook, self._before_projector, always=True)
            add_hook(undo, projector.register_forward_hook, self._projected, always=True)
            # before the hooks of interventions, which count the tokens that are left
            first = {"with_kwargs": True, "prepend": True, "always": True}
            add_hook(undo, self.model.register_forward_pre_hook, self._before_model, **first)
            if self.pack is not None:
                undo.enter_context(override_method(self.base, "pack_image_features", self._packed))
            for modality, method in self.methods.items():  # `generate` looks at their signatures
                features = update_wrapper(partial(self._features, modality), method)
                undo.enter_context(override_method(self.base, method.__name__, features))
            yield

    # From pixels to tokens

    def _features(self, modality: str, *args: Any, **kwargs: Any) -> Any:
        """In place of the model's `get_image_features` and `get_video_features`."""
        if modality == "video" and self.pack is not None:
            refuse_pooling("pooled features")
        pixels, prepared = self._running.prepared.pop(modality, (None, None))
        if prepared is not None and any(value is pixels for value in (*args, *kwargs.values())):
            return prepared
        self._running.is_video = modality == "video"
        method = self.methods[modality]
        if self.pack is None or not hasattr(self.reducer, "shrunk"):
            return method(*args, **kwargs)
        outputs = [method(**one) for one in by_image(method, args, kwargs)]
        return outputs[0] if len(outputs) == 1 else joined_outputs(outputs)

    def _encoded(self, tap: EncoderTap, tower: nn.Module, args: tuple, output: Any) -> None:
        states = getattr(output, "hidden_states", None)
        if self.layer is None:
            states = (output.last_hidden_state,)
            if states[0].ndim != 3:
                refuse_merging("patches of all images in one sequence")
        # without the tapped states it is a call for other features
        if states is not None and all(states[index] is not None for index in tap.hidden_states):
            self._running.call = EncoderCall(output, tap.encoder_output(states, self.projector))

    def _before_projector(self, projector: nn.Module, args: tuple) -> tuple | None:
        call = self._running.call
        if call is None:
            return None
        features = call.encoder_output.features
        views, call.tokens = args[0].shape[:2]
        patches = call.encoder_output.patches
        full_patches = call.encoder_output.full_patches
        allowed = (patches, features.shape[1])  # without and with class token
        if views != len(features) or call.tokens not in allowed:
            if self._running.is_video:
                refuse_pooling(f"{call.tokens} of {patches} patches")
            refuse_merging(f"{call.tokens} merged tokens of {patches} patches")
        call.tokens += full_patches - patches  # of a view that was shrunk
        require_single(projector, args[0][:1, :1])
        if self.pack is not None:
            return (args[0][:1, :1],)
        self._running.call = None  # reducers may project as well
        call.chosen = choose(self.reducer, call, [(1, torch.arange(call.tokens))] * views)
        self._running.call = call
        return (args[0][:1, :1] if call.chosen.is_projected else call.chosen.tokens[None],)

    def _projected(
        self, projector: nn.Module, args: tuple, output: Tensor
    ) -> Tensor | list[Tensor] | None:
        call = self._running.call
        if call is None:
            return None
        if call.chosen is None:  # packing follows
            return output.expand(len(call.encoder_output.features), call.tokens, -1)
        self._running.call = None
        tokens = self._placed(call, call.chosen, output[0])
        if len(set(map(len, tokens))) == 1:
            return torch.stack(tokens)
        # models that read videos take one tensor of all frames, the others a list of images
        return torch.cat(tokens)[None] if "video" in self.methods else tokens

    def _packed(self, image_features: Sequence[Tensor], image_sizes: Any, **options: Any) -> Any:
        """In place of the model's `pack_image_features`."""
        call = self._running.call
        if call is None:
            return self.pack(image_features, image_sizes, **options)
        options.pop("image_newline", None)
        images = []
        for features, size in zip(image_features, image_sizes, strict=True):
            views, tokens = features.shape[:2]
            images.append((views, packed_indices(self.pack, views, tokens, size, **options)))
        self._running.call = None
        chosen = choose(self.reducer, call, images)
        projected = None if chosen.is_projected else self.projector(chosen.tokens[None])[0]
        tokens = self._placed(call, chosen, projected)
        return tokens, torch.tensor(call.output.left, device=tokens[0].device)

    def _placed(
        self, call: EncoderCall, chosen: ChosenTokens, projected: Tensor | None
    ) -> list[Tensor]:
        """The projected tokens of each image, with a newline where one ends it."""
        made = chosen.tokens if chosen.is_projected or projected is None else projected
        tokens = list(made.split(list(chosen.counts)))
        sources = chosen.sources
        for number, (views, indices) in enumerate(chosen.images):
            if views == 1 and indices[-1] < 0:
                newline = self.base.image_newline[None].to(made)
                tokens[number] = torch.cat([tokens[number], newline])
                sources[number] = pad(sources[number], (0, 1), value=NONE)
        call.output.full = [len(indices) for _, indices in chosen.images]
        call.output.left = [len(each) for each in tokens]
        call.output.patches = sources
        call.output.tokens_of_patches = chosen.tokens_of_patches
        is_whole = chosen.fewest >= call.encoder_output.full_patches  # only newlines may be fewer
        self._warn_unreduced(call.output.full, call.output.left, is_whole)
        return tokens

    def _warn_unreduced(self, full: Sequence[int], left: Sequence[int], is_whole: bool) -> None:
        """Says once where the reducer leaves as many tokens as there were."""
        if not self._is_warned and (is_whole or any(map(ge, left, full))):
            self._is_warned = True
            got = f"{max(left)} vision tokens of {max(full)}"
            warnings.warn(f"reduced: {self.reducer} leaves {got}: nothing is reduced", stacklevel=2)

    # From the prompt's placeholders to as many as tokens are left

    def _before_model(
        self, model: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        kwargs = dict(by_name(model, args, kwargs))
        outputs = dict(kwargs.get("mm_encoder_outputs") or {})  # `generate` encodes first
        generating = bool(outputs) or find_cache("reduced", (), kwargs) is not None
        if not outputs:
            self._running.prepared = self._encode(kwargs)
            outputs = {modality: output for modality, (_, output) in self._running.prepared.items()}
        for modality, output in outputs.items():
            if not hasattr(output, "patches"):
                raise ProbeError(
                    "reduced",
                    expected="images encoded inside the block, by the model's own layer",
                    got=f"features of {type(output).__name__}",
                )
            kwargs = self._with_placeholders(kwargs, modality, output, generating)
        return ((), kwargs) if outputs else None

    def _encode(self, arguments: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """By modality: the pixels among a forward's arguments, and the features of them."""
        outputs = {}
        for modality, method in self.methods.items():
            given = {name: arguments[name] for name in arguments if arguments[name] is not None}
            pixels = next((given[name] for name in PIXELS[modality] if name in given), None)
            if pixels is None or not len(pixels):
                continue
            accepted = {*inspect.signature(method).parameters} - {*PIXELS[modality]}
            options = {name: given[name] for name in given if name in accepted}
            with own_values(self.model):
                features = self._features(modality, pixels, **options, return_dict=True)
            if not hasattr(features, "patches"):  # Llama 4
                self._running.call = None
                refuse_merging(f"{type(self.model).__name__}, which projects features later")
            outputs[modality] = (pixels, features)
        return outputs

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
        pad_token = getattr(config.get_text_config(), "pad_token_id", None) or 0
        counts = list(zip(output.full, output.left, strict=True))
        return resize_placeholders(kwargs, token, counts, pad_token)

    @torch.no_grad()
    def kept_patches(self, tensors: Mapping[str, Any]) -> list[KeptTokens]:
        """For `Subject.encode`: what is left of each image."""
        device = input_device(self.model)
        on_device = {
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in tensors.items()
        }
        outputs = self._encode(on_device).values()
        return [
            KeptTokens(patches.cpu().numpy(), tokens.cpu().numpy())
            for _, output in outputs
            for patches, tokens in zip(output.patches, output.tokens_of_patches, strict=True)
        ]
