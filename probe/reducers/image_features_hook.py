"""Between encoder and projector: what the projector gets is what a reducer leaves, and the prompt
follows.

The model's own `get_image_features` runs: the encoder under watch, then the projector on a single
token, which gives a stand-in of the full shape whose values only say which view they belong to.
However the model packs that, the image that each view belongs to, the tiles in a row and the full
number of tokens can be read off it. When the packed stand-in is assigned to the encoder's output,
the reduced tokens are projected and take its place. Everything hangs on torch's hooks of one
model's modules; no class and no method is exchanged.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from probe.errors import ProbeError
from probe.hooks.image_placeholders import override_token_count, resize_placeholders
from probe.hooks.layer_arguments import find_cache
from probe.hooks.model_structure import image_token_id, vision_towers
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.encoder_reducer import EncoderReducer, EncoderTap, watched
from probe.reducers.reduction import Reduction
from probe.reducers.tile_order import order, patches

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
MARK = 1000.0  # a stand-in's values are the number of the view above this; the values of newline tokens lie far below


@dataclass
class Call:
    """One forward of an encoder, and how many tokens of each view the projector was then given."""

    seen: EncoderOutput
    tokens: int = 0


@dataclass(frozen=True)
class Image:
    """One image (or frame) of a call: where its views begin, tokens it would have, tiles in a
    row.
    """

    start: int
    full: int
    across: int
    newline: bool


class Encoded(BaseModelOutputWithPooling):
    """An encoder's output. What is first assigned to `pooler_output`, which `get_image_features`
    does last, is packed features: it is replaced. `full`, `left` and `patches` then say of each
    image how many tokens it would have, has, and what they stand for."""

    def __setattr__(self, name: str, value: Any) -> None:
        replace = self.__dict__.get("replace")
        if name == "pooler_output" and replace is not None:
            object.__setattr__(self, "replace", None)
            value = replace(self, value)
        super().__setattr__(name, value)


class VisionSide:
    """One reducer behind the encoders of one model."""

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
        self._call: Call | None = None  # from the encoder's end to the projector's

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as undo:
            undo.enter_context(override_token_count(self.model, self.left_of))
            for tower in self.towers:
                watch = undo.enter_context(watched(tower, self.layer, self.model))
                undo.callback(tower.register_forward_hook(partial(self._encoded, watch)).remove)
            for hook in (
                self.projector.register_forward_pre_hook(self._single_token),
                self.projector.register_forward_hook(self._stand_in),
                # before the hooks of interventions, whichever came first: they count the tokens
                # that are left
                self.model.register_forward_pre_hook(
                    self._before_model, with_kwargs=True, prepend=True
                ),
            ):
                undo.callback(hook.remove)
            yield

    # From pixels to tokens

    def _encoded(
        self, watch: EncoderTap, tower: nn.Module, args: tuple, output: Any
    ) -> Encoded | None:
        states = getattr(output, "hidden_states", None)
        if states is None or any(states[index] is None for index in watch.chosen):
            return None  # somebody else's call, for other features
        self._call = Call(watch.seen(states))
        encoded = Encoded()
        for name, value in output.items():
            encoded[name] = value
        object.__setattr__(encoded, "replace", partial(self._replaced, self._call))
        return encoded

    def _single_token(self, projector: nn.Module, args: tuple) -> tuple | None:
        call = self._call
        if call is None:
            return None
        views, call.tokens = args[0].shape[:2]
        if views != len(call.seen.features) or call.tokens not in (
            call.seen.patches,
            call.seen.features.shape[1],
        ):
            _refuse_pooling(f"{call.tokens} of {call.seen.patches} patches")
        return (args[0][:1, :1],)

    def _stand_in(self, projector: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if self._call is None:
            return None
        call, self._call = self._call, None
        view = (
            torch.arange(len(call.seen.features), dtype=torch.float32, device=output.device) + MARK
        )
        return view[:, None, None].expand(-1, call.tokens, output.shape[-1])

    def _replaced(self, call: Call, encoded: Encoded, packed: Any) -> Any:
        """The reduced and projected tokens of each image in place of its packed stand-in."""
        seen = call.seen
        images = [_read(row[:, 0], call.tokens) for row in packed]
        starts = [image.start for image in images]
        tokens, sources = [], []
        for image, stop in zip(images, [*starts[1:], len(seen.features)], strict=True):
            reduction = self.reducer.reduce(seen.of_views(image.start, stop))
            chosen, source = self._chosen(reduction, image)
            tokens.append(chosen)
            sources.append(source)
        projected = self.projector(torch.cat(tokens)[None])[0].split(
            [len(chosen) for chosen in tokens]
        )
        found = [
            self._with_newline(own, image) for own, image in zip(projected, images, strict=True)
        ]
        for name, value in {
            "full": [image.full for image in images],
            "left": [len(own) for own in found],
            "patches": sources,
        }.items():
            object.__setattr__(encoded, name, value)
        if not torch.is_tensor(packed):
            return found
        same = len({len(own) for own in found}) == 1
        return torch.stack(found) if same else torch.cat(found)[None]

    def _chosen(self, reduction: Reduction, image: Image) -> tuple[Tensor, Int[Tensor, " token"]]:
        """An image's tokens as they come from the encoder, in order, and what they and a newline
        stand for.
        """
        which = order(reduction, image.across)
        source = patches(reduction, which)
        newline = source.new_full((int(image.newline),), -1)
        return reduction.tokens.flatten(0, 1)[which], torch.cat([source, newline])

    def _with_newline(self, tokens: Tensor, image: Image) -> Tensor:
        return (
            torch.cat([tokens, self.base.image_newline[None].to(tokens)])
            if image.newline
            else tokens
        )

    # From the prompt's placeholders to as many as tokens are left

    def _before_model(
        self, model: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        kwargs = dict(inspect.signature(self.model.forward).bind_partial(*args).arguments) | kwargs
        given = kwargs.get("mm_encoder_outputs")
        if given:
            outputs = dict(given)
        else:
            outputs, used = self._outputs(kwargs)
            if outputs and "mm_encoder_outputs" in inspect.signature(self.model.forward).parameters:
                kwargs = {name: value for name, value in kwargs.items() if name not in used}
                kwargs["mm_encoder_outputs"] = outputs
        for modality, encoded in outputs.items():
            if not isinstance(encoded, Encoded):
                raise ProbeError(
                    "reduced",
                    expected="images encoded inside the block, by the model's own layer",
                    got=f"features of {type(encoded).__name__}",
                )
            kwargs = self._fitted(
                kwargs,
                modality,
                encoded,
                generating=bool(given) or find_cache("reduced", (), kwargs) is not None,
            )
        return ((), kwargs) if outputs else None

    def _outputs(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """What the model's own methods make of the pixels, by modality, and the arguments that went
        into it.
        """
        outputs, used = {}, set()
        for modality, pixels in PIXELS.items():
            if kwargs.get(pixels) is not None and len(kwargs[pixels]):
                method = getattr(self.base, f"get_{modality}_features")
                names = [
                    name
                    for name in inspect.signature(method).parameters
                    if kwargs.get(name) is not None
                ]
                outputs[modality] = method(
                    **{name: kwargs[name] for name in names}, return_dict=True
                )
                used |= {*names, pixels}
        return outputs, used

    def _fitted(self, kwargs: dict, modality: str, encoded: Any, generating: bool) -> dict:
        ids = kwargs.get("input_ids")
        if ids is None:  # embeddings: the model itself checks their number
            return kwargs
        token = (
            image_token_id(self.model) if modality == "image" else self.model.config.video_token_id
        )
        there = int((ids == token).sum())
        left = sum(row.shape[:-1].numel() for row in encoded.pooler_output)  # beams repeat them
        if there == left:
            return kwargs
        if there != sum(encoded.full) or generating:
            raise ProbeError(
                "reduced",
                expected=f"{left} placeholders, as many as vision tokens are left",
                got=str(there),
                fix="encode inside the block",
            )
        pad = getattr(self.model.config.get_text_config(), "pad_token_id", None) or 0
        return resize_placeholders(
            kwargs, token, [*zip(encoded.full, encoded.left, strict=True)], pad
        )

    @torch.no_grad()
    def left_of(self, tensors: Mapping[str, Any]) -> list[Int[np.ndarray, "_"]]:
        """For `Subject.encode`: what the tokens that are left of each image stand for."""
        there = {
            n: value.to(self.model.device) if torch.is_tensor(value) else value
            for n, value in tensors.items()
        }
        outputs, _ = self._outputs(there)
        return [source.cpu().numpy() for encoded in outputs.values() for source in encoded.patches]


def _read(values: Tensor, tokens: int) -> Image:
    """What a packed stand-in says about its image. Raises ProbeError where a view has other than
    its own tokens.
    """
    views: Sequence[float] = (values - MARK).tolist()
    whole, rest = views[0], views[tokens:]
    if views[:tokens] != [whole] * tokens or whole in rest or whole != int(whole):
        _refuse_pooling("pooled features")
    if len(rest) <= 1:  # one view, and a newline behind it where the model puts one
        return Image(int(whole), len(views), 1, bool(rest))
    width = next(i for i, view in enumerate(rest) if view < 0)  # up to the first newline
    return Image(int(whole), len(views), round(rest[width - 1] - whole), False)


def _refuse_pooling(got: str) -> None:
    raise ProbeError(
        "reduced",
        expected="features that are projected and handed to the LLM one by one",
        got=got,
        fix="use images: this model averages what it sees of frames",
    )
