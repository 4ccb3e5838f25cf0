"""What a reducer is given of the encoder: its features, and queries and keys of some layers, never
a whole attention map.

    output.features                                # (view, position, width)
    output.patch_attention(output.output_layer)    # (view, head, patch): what patches receive
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, attention_weights, known_rule

CHUNK = 2**20  # attention weights that are computed at a time: few enough for a CPU's cache


@dataclass(frozen=True)
class LayerAttention:
    """Queries and keys of the heads of one layer (from 0)."""

    query: Float[Tensor, "view head position dim"]
    key: Float[Tensor, "view head position dim"]
    scaling: float
    layer: int

    @classmethod
    def of(cls, called: str, call: AttentionCall, layer: int) -> "LayerAttention":
        """Of one call. Raises ProbeError where its weights are no softmax of scaled products."""
        if not known_rule(called, call).is_plain:
            raise ProbeError(
                called,
                expected="an encoder whose attention is a softmax of scaled products",
                got=f"caps, sinks or biases in {call.name}",
                fix="use a reducer inside the LLM",
            )
        return cls(call.query, call.key, call.scaling, layer)

    def of_views(self, start: int, stop: int) -> "LayerAttention":
        return LayerAttention(
            self.query[start:stop], self.key[start:stop], self.scaling, self.layer
        )

    def as_one_head(self) -> "LayerAttention":
        """The outputs of the query and key projections before they are split into heads."""
        query = self.query.transpose(1, 2).flatten(2)[:, None]
        key = self.key.transpose(1, 2).flatten(2)[:, None]
        return LayerAttention(query, key, query.shape[-1] ** -0.5, self.layer)

    @torch.no_grad()
    def given_by(self, position: int) -> Float[Tensor, "view head position"]:
        """The attention that one position gives to each, in float32."""
        query = self.query[:, :, position : position + 1]
        return attention_weights(query, self.key, self.scaling)[:, :, 0]

    @torch.no_grad()
    def received(self) -> Float[Tensor, "view head position"]:
        """The attention that each position receives, averaged over all positions (itself included),
        in float32.
        """
        _, heads, positions, _ = self.query.shape
        chunk = max(1, CHUNK // (heads * positions))
        total = []
        for query, key in zip(self.query, self.key, strict=True):
            parts = query.split(chunk, 1)
            sums = [attention_weights(part, key, self.scaling).sum(1) for part in parts]
            total.append(torch.stack(sums).sum(0))
        return torch.stack(total) / positions


@dataclass(frozen=True)
class EncoderOutput:
    """One forward of the encoder over some views.

    features: what the LLM would read; the class token first where there is one.
    output_layer: the layer whose output the features are.
    next_layer: the layer after it, which reads them; the same one where there is none.
    first_patch: the position of the first patch: 1 after a class token, else 0.
    depth: the number of the encoder's layers.
    layers: by its number, from 0, each layer that the reducer asked for (`encoder_layers`).
    full_patches: the number of patches of a view whose pixels were not shrunk.
    last_hidden: the output of the last layer.
    projector: the model's own, None where an encoder is run alone.
    """

    features: Float[Tensor, "view position width"]
    output_layer: LayerAttention
    next_layer: LayerAttention
    first_patch: int
    depth: int
    full_patches: int
    last_hidden: Float[Tensor, "view position last_width"]
    layers: Mapping[int, LayerAttention] = field(default_factory=dict)
    projector: Callable[[Tensor], Tensor] | None = None

    @property
    def patches(self) -> int:
        """The number of patches of a view."""
        return self.features.shape[1] - self.first_patch

    @property
    def patch_features(self) -> Float[Tensor, "view patch width"]:
        """The features without the class token."""
        return self.features[:, self.first_patch :]

    @torch.no_grad()
    def projected(self) -> Float[Tensor, "view patch llm_width"]:
        """The patches as the LLM would read them.

        Raises ProbeError where there is no projector.
        """
        if self.projector is None:
            raise ProbeError(
                "encode",
                expected="a projector: this reducer compares what the LLM reads",
                got="an encoder alone",
                fix="give encode(..., projector=model.model.multi_modal_projector)",
            )
        return self.projector(self.patch_features)

    def of_views(self, start: int, stop: int) -> "EncoderOutput":
        return EncoderOutput(
            self.features[start:stop],
            self.output_layer.of_views(start, stop),
            self.next_layer.of_views(start, stop),
            self.first_patch,
            self.depth,
            self.full_patches,
            self.last_hidden[start:stop],
            {number: layer.of_views(start, stop) for number, layer in self.layers.items()},
            self.projector,
        )

    def patch_attention(self, attention: LayerAttention) -> Float[Tensor, "view head patch"]:
        """The attention that each patch gets in each head: from the class token, or the mean over
        all positions where there is none.
        """
        weights = attention.given_by(0) if self.first_patch else attention.received()
        return weights[:, :, self.first_patch :]
