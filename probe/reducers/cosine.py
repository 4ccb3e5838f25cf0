"""Cosines between the tokens of one view, a row at a time, in bounded memory.

Up to 4,096 tokens the whole matrix is computed once (at most 64 MB); beyond that each row is
computed when it is asked for, so that a large image never needs N x N numbers.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

WHOLE = 4096  # tokens up to which the matrix is kept
CHUNK = 512  # rows that are computed at a time


class Cosines:
    """The cosines of `features` (token, width), in float32."""

    def __init__(self, features: Float[Tensor, "token width"]):
        self._unit = normalize(features.float(), dim=-1)
        whole = len(features) <= WHOLE
        self._matrix = self._unit @ self._unit.T if whole else None

    def row(self, token: Int[Tensor, ""]) -> Float[Tensor, " token"]:
        """Of one token, given as a tensor so that nothing waits for a GPU."""
        if self._matrix is not None:
            return self._matrix.index_select(0, token[None])[0]
        return self._unit @ self._unit.index_select(0, token[None])[0]

    def nearest_other(self) -> Float[Tensor, " token"]:
        """The cosine of each token and the other token that is most similar to it."""
        best = []
        for start in range(0, len(self._unit), CHUNK):
            stop = start + CHUNK
            kept = self._matrix
            rows = (
                self._unit[start:stop] @ self._unit.T if kept is None else kept[start:stop].clone()
            )
            rows.diagonal(start).fill_(-torch.inf)
            best.append(rows.amax(1))
        return torch.cat(best)
