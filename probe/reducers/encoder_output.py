"""What a reducer sees of the encoder: its features, and queries and keys of two layers. Never a
whole attention map.

A reducer is any frozen dataclass with a method `reduce(seen) -> Reduction`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**24  # attention weights that are held at a time


@dataclass(frozen=True)
class Attention:
    """Queries and keys of one layer's heads."""

    query: Float[Tensor, "view head position dim"]
    key: Float[Tensor, "view head position dim"]
    scaling: float
    layer: int  # from 0

    def of_views(self, start: int, stop: int) -> "Attention":
        return Attention(self.query[start:stop], self.key[start:stop], self.scaling, self.layer)

    def as_one_head(self) -> "Attention":
        """The outputs of the query and key projections as they were before they were split into
        heads.
        """
        query, key = (x.transpose(1, 2).flatten(2)[:, None] for x in (self.query, self.key))
        return Attention(query, key, query.shape[-1] ** -0.5, self.layer)

    @torch.no_grad()
    def given_by(self, position: int) -> Float[Tensor, "view head position"]:
        """The attention that one position gives to each, in float32."""
        query, key = self.query[:, :, position : position + 1].float(), self.key.float()
        return torch.softmax(query @ key.transpose(-1, -2) * self.scaling, -1)[:, :, 0]

    @torch.no_grad()
    def received(self) -> Float[Tensor, "view head position"]:
        """The attention that each position gets from one on average, itself included; in float32,
        rows in chunks.
        """
        views, heads, positions, _ = self.query.shape
        key = self.key.float().transpose(-1, -2)
        total = key.new_zeros(views, heads, positions)
        step = max(1, CHUNK // (views * heads * positions))
        for rows in self.query.float().split(step, 2):
            total += torch.softmax(rows @ key * self.scaling, -1).sum(2)
        return total / positions


@dataclass(frozen=True)
class EncoderOutput:
    """One forward of the encoder over some views."""

    features: Float[
        Tensor, "view position width"
    ]  # what the LLM would read; the class token first where there is one
    made: Attention  # of the layer whose output the features are
    read: Attention  # of the layer behind, that reads them; of the same one where there is none
    first_patch: int  # 1 behind a class token, else 0

    @property
    def patches(self) -> int:
        return self.features.shape[1] - self.first_patch

    def of_views(self, start: int, stop: int) -> "EncoderOutput":
        made, read = self.made.of_views(start, stop), self.read.of_views(start, stop)
        return EncoderOutput(self.features[start:stop], made, read, self.first_patch)

    def sought(self, attention: Attention) -> Float[Tensor, "view head patch"]:
        """The attention that each patch gets in each head: from the class token, or from all where
        there is none.
        """
        found = attention.given_by(0) if self.first_patch else attention.received()
        return found[:, :, self.first_patch :]
