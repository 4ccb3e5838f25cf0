"""Run a vision encoder and give a reducer its features, with queries and keys of some layers.

    model = probe.load("tiny-llava").model
    reduction = encode(model.model.vision_tower, pixel_values, VisionZip(dominant=5, contextual=2))

The encoder runs with its own kernel (sdpa, flash, eager) and is left as it was; no attention map is
kept.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from threading import local
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.layer_stack import LayerStack
from probe.hooks.model_structure import first_patch, layers_of
from probe.hooks.offload import execution_device, own_values
from probe.reducers.encoder_output import EncoderOutput, LayerAttention
from probe.reducers.projector_checks import refuse_merging
from probe.reducers.reduction import Reduction

# Index (or indices) into the encoder's hidden states, as `vision_feature_layer` of a config
FeatureLayer = int | Sequence[int]


@runtime_checkable
class EncoderReducer(Protocol):
    """Chooses or merges tokens of an encoder's output. Methods are frozen dataclasses: their `repr`
    names the reducer in records.
    """

    def reduce(self, seen: EncoderOutput) -> Reduction: ...


def encode(
    vision_tower: nn.Module,
    pixel_values: Float[Tensor, "*view channel height width"],
    reducer: EncoderReducer,
    layer: FeatureLayer = -2,
    projector: nn.Module | None = None,
) -> Reduction:
    """What a reducer leaves of these views. `layer`: the hidden states that the LLM would read
    (LLaVA: -2); `projector`: for reducers that compare what the LLM reads.

    The views are one call, as in the authors' code (PruMerge shares its number of centres over a
    call). Raises ProbeError for a compiled encoder, one whose queries and keys are not visible, and
    pixels of another shape.
    """
    if not hasattr(reducer, "reduce"):
        raise ProbeError(
            "encode",
            expected="a reducer of the encoder's output (VisionZip, PruMerge, ...)",
            got=type(reducer).__name__,
        )
    is_tensor = torch.is_tensor(pixel_values)
    if not is_tensor or pixel_values.ndim < 4:
        got = tuple(pixel_values.shape) if is_tensor else type(pixel_values).__name__
        expected = "pixel_values of (view, channel, height, width)"
        raise ProbeError("encode", expected=expected, got=str(got))
    parameter = next(vision_tower.parameters())
    device = execution_device(vision_tower)
    pixels = pixel_values.flatten(0, -4).to(device, parameter.dtype)
    with tapped(vision_tower, layer, reducer) as tap:
        output = vision_tower(pixels, output_hidden_states=True)
    return reducer.reduce(tap.encoder_output(output.hidden_states, projector))


class _Running(local):
    """The calls of a thread's forward, by layer. Each thread has its own."""

    full_patches = 0  # of a view as the model's image processor made it
    patches = 0  # of a view that the encoder is given, 0 where its pixels don't say
    last_hidden: Any = None

    def __init__(self):
        self.calls: dict[int, LayerAttention] = {}


class EncoderTap:
    """Keeps queries and keys of the layer that makes an encoder's features, of the next one, and of
    those that the reducer asks for.
    """

    def __init__(
        self,
        tower: nn.Module,
        layer: FeatureLayer | None,
        reducer: EncoderReducer,
        model: nn.Module | None = None,
    ):
        """`layer`: None for what the encoder gives at its end."""
        stack = layers_of(tower, model)
        count = len(stack.layers)
        layer = -1 if layer is None else layer
        self.hidden_states = [layer] if isinstance(layer, int) else list(layer)
        outside = [index for index in self.hidden_states if not -count - 1 <= index <= count]
        if outside:
            expected = f"a layer of the {count + 1} hidden states of the encoder"
            raise ProbeError("reduced", expected=expected, got=str(outside[0]))
        self.first_patch = first_patch(tower)
        self.encoder = type(tower).__name__
        deepest = max(index % (count + 1) for index in self.hidden_states)
        self.output_layer = max(deepest - 1, 0)  # hidden states start with the embeddings
        self.next_layer = min(self.output_layer + 1, count - 1)
        self.reducer = reducer
        self.depth = count
        self.last_layer = stack.layers[-1]
        self.views: int | None = None  # of an image; None: all views of a call are one image's
        self.asked = layers_asked(reducer, count)
        needed = sorted({self.output_layer, self.next_layer, *self.asked})
        self._require_attention(stack, needed)
        self.attention = stack.attention_of(needed)
        by_layer = stack.attention_by_layer(needed)
        self._index = {module: layer for layer, module in by_layer.items()}
        self._running = _Running()

    def _require_attention(self, stack: LayerStack, needed: Sequence[int]) -> None:
        """Raises ProbeError where one of these layers has another way to mix patches."""
        for layer in needed:
            if stack.modules[layer] is None:
                raise ProbeError(
                    "reduced",
                    expected="an encoder with softmax attention in the layers that rank patches",
                    got=f"{self.encoder}, whose layer {layer} (from 0) has none",
                    fix="use a method inside the LLM: FastV, PyramidDrop, SparseVLM",
                )

    def shrink(self, tower: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The encoder's arguments, with the pixels that the reducer gives it instead."""
        name = next(iter(inspect.signature(tower.forward).parameters))
        kwargs = dict(kwargs)
        given = args[0] if args else kwargs.pop(name)
        patch_size = patch_embedding(tower).stride[0]
        self._running.full_patches = given[0, 0].numel() // patch_size**2
        kwargs["interpolate_pos_encoding"] = True
        reducer: Any = self.reducer
        return (reducer.shrunk(given, patch_size, self.views), *args[1:]), kwargs

    def note_pixels(self, tower: nn.Module, args: tuple, kwargs: dict) -> None:
        """How many patches the encoder makes of a view, where it is given views as pixels."""
        given = next((each for each in (*args, *kwargs.values()) if torch.is_tensor(each)), None)
        embeddings = [module for module in tower.modules() if isinstance(module, nn.Conv2d)]
        self._running.patches = 0
        if given is not None and given.ndim == 4 and embeddings:
            rows, columns = embeddings[0].stride
            self._running.patches = (given.shape[2] // rows) * (given.shape[3] // columns)

    def around(self, call: AttentionCall, kernel: Kernel) -> Output:
        layer = self._index[call.module]  # names differ where a model is tapped too
        self._running.calls[layer] = LayerAttention.of("reduced", call, layer)
        return kernel(call)

    def ended(self, layer: nn.Module, args: tuple, output: Any) -> None:
        """The last layer's output: models ask their encoder for some hidden states only."""
        self._running.last_hidden = output[0] if isinstance(output, tuple) else output

    def refuse(self, weights: AttentionCall | AttentionWeights) -> None:
        raise ProbeError(
            "reduced",
            expected="an encoder whose queries and keys are visible",
            got=f"{type(weights.module).__name__}, which returns attention weights only",
        )

    def encoder_output(
        self, hidden_states: Sequence[Any], projector: nn.Module | None = None
    ) -> EncoderOutput:
        """The forward that has just ended; its queries and keys are released."""
        features = torch.cat([hidden_states[index] for index in self.hidden_states], -1)
        calls = self._running.calls
        self._running.calls = {}
        last_hidden = self._running.last_hidden
        self._running.last_hidden = None
        full_patches = self._running.full_patches or features.shape[1] - self.first_patch
        needed = (self.output_layer, self.next_layer, *self.asked)
        missing = [index for index in needed if index not in calls]
        if missing:
            raise ProbeError(
                "reduced",
                expected="an encoder whose attention calls it can observe",
                got=f"no call in layer {missing[0]} (from 0), although it ran",
                fix="use the model as it was before it was compiled or wrapped",
            )
        if features.shape[1] != calls[self.output_layer].key.shape[2]:
            refuse_merging(f"{self.encoder}, which makes tokens of several patches")
        self._require_patches(features.shape[1] - self.first_patch)
        return EncoderOutput(
            features,
            calls[self.output_layer],
            calls[self.next_layer],
            self.first_patch,
            self.depth,
            full_patches,
            last_hidden,
            {index: calls[index] for index in self.asked},
            projector,
        )

    def _require_patches(self, tokens: int) -> None:
        """Raises ProbeError where some of the tokens behind the class token are no patches."""
        patches = self._running.patches
        if patches and tokens > patches:
            raise ProbeError(
                "reduced",
                expected="an encoder that makes a token of each patch, and a class token at most",
                got=f"{self.encoder} with {tokens - patches} others (registers) of its own",
                fix="use a method inside the LLM: FastV, PyramidDrop, SparseVLM",
            )


def layers_asked(reducer: EncoderReducer, depth: int) -> tuple[int, ...]:
    """The further layers of an encoder of `depth` layers whose attention a reducer ranks by.

    Raises ProbeError for one that the encoder does not have.
    """
    asked = tuple(getattr(reducer, "encoder_layers", lambda depth: ())(depth))
    for index in asked:
        if not 0 <= index < depth:
            raise ProbeError(
                "reduced",
                expected=f"{reducer!r} with layers of the encoder, 0 to {depth - 1}",
                got=str(index),
            )
    return asked


@model_block
def tapped(
    tower: nn.Module,
    layer: FeatureLayer | None,
    reducer: EncoderReducer,
    model: nn.Module | None = None,
) -> Iterator[EncoderTap]:
    """Taps an encoder (of a model) while the block lasts, also in forwards that are hidden from
    other taps.
    """
    tap = EncoderTap(tower, layer, reducer, model)
    options: dict[str, Any] = {"required": False, "innermost": True, "always": True}
    with ExitStack() as undo:
        undo.enter_context(routed(tap.attention, tap.around, weights=tap.refuse, **options))
        add_hook(undo, tap.last_layer.register_forward_hook, tap.ended, always=True)
        noted = {"with_kwargs": True, "always": True}
        add_hook(undo, tower.register_forward_pre_hook, tap.note_pixels, **noted)
        if hasattr(reducer, "shrunk"):
            _check_interpolates(tower)
            tables = [part for part in tower.modules() if isinstance(part, nn.Embedding)]
            undo.enter_context(own_values(*tables))  # interpolated: read, and not called
            options = {"with_kwargs": True, "prepend": True, "always": True}
            add_hook(undo, tower.register_forward_pre_hook, tap.shrink, **options)
        yield tap


def patch_embedding(tower: nn.Module) -> nn.Conv2d:
    """The convolution that makes patches of pixels."""
    found = [module for module in tower.modules() if isinstance(module, nn.Conv2d)]
    if not found:
        raise ProbeError(
            "reduced", expected="an encoder that embeds patches", got=type(tower).__name__
        )
    return found[0]


def _check_interpolates(tower: nn.Module) -> None:
    if "interpolate_pos_encoding" not in inspect.signature(tower.forward).parameters:
        raise ProbeError(
            "reduced",
            expected="an encoder that interpolates its position embeddings, for smaller images",
            got=type(tower).__name__,
        )
