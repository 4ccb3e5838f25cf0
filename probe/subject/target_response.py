"""The response whose log-probability is explained, or some of its tokens.

target = TargetResponse.of(subject, subject.encode(image, question), response=None)
target.inputs                               # prompt and response, one row without padding
target.logprob(logits)                      # (batch, chosen token), in nats
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.data.image import ImageSource
from probe.data.token_types import FINE, RESPONSE
from probe.errors import ProbeError
from probe.hooks.model_checks import require_subject
from probe.subject.inputs import Ids, Inputs, at_positions, with_response
from probe.subject.subject import Subject


@dataclass(frozen=True)
class TargetResponse:
    """One row whose last tokens are the answer, its closing left out. `positions`: of the chosen
    tokens.
    """

    inputs: Inputs
    positions: Int[Tensor, " chosen"]

    @property
    def kept(self) -> int:
        """Logits that are needed, counted from the last: the row before a token predicts it."""
        return self.inputs["input_ids"].shape[1] - int(self.positions.min()) + 1

    @property
    def rows(self) -> list[int]:
        """The positions whose logits are the chosen tokens'."""
        return (self.positions - 1).tolist()

    @property
    def ids(self) -> Int[Tensor, " chosen"]:
        return self.inputs["input_ids"][0, self.positions]

    @property
    def tokens(self) -> list[str]:
        return [self.inputs.tokens[0][i] for i in self.positions.tolist()]

    def logprob(
        self, logits: Float[Tensor, "batch kept vocabulary"]
    ) -> Float[Tensor, "batch chosen"]:
        """log p of the chosen tokens from the last logits, in float32."""
        length = self.inputs["input_ids"].shape[1]
        first_kept = length - logits.shape[1]
        predicting = self.positions - 1 - first_kept
        logprob = logits[:, predicting].float().log_softmax(-1)
        ids = self.ids.to(logprob.device).expand(len(logprob), -1)
        return logprob.gather(-1, ids[..., None])[..., 0]

    @classmethod
    def of(
        cls,
        subject: Subject,
        image: ImageSource | Sequence[ImageSource] | Inputs | None,
        question: Any = None,
        response: str | Ids | None = None,
        tokens: Sequence[int] | None = None,
        max_new_tokens: int = 32,
    ) -> "TargetResponse":
        """The model's own greedy answer, or the one given. `image` may be inputs that are encoded
        already (one row, with the answer or without). `tokens`: which of the answer's tokens,
        counted from 0; all by default.

        Raises ProbeError for an answer without tokens, and for tokens that it does not have.
        """
        require_subject("answer", subject)
        if isinstance(image, Inputs):
            if question is not None or len(image.prompt) != 1:
                raise ProbeError(
                    "answer",
                    expected="inputs of one row, without a question",
                    got=f"{len(image.prompt)} rows" if question is None else "both",
                )
            inputs = unpadded(image)
            if response is not None:
                inputs = with_response(inputs, response)  # pyright: ignore[reportArgumentType]
        else:
            if question is None:
                raise ProbeError(
                    "answer", expected="a question", got="none", fix="pass it after the image"
                )
            inputs = subject.encode(image, question, response)
        if inputs.types.role[0, -1] == FINE.index("last"):
            (ids,) = subject.generate_ids(inputs, max_new_tokens)
            inputs = with_response(inputs, ids)
        inputs = _without_closing(inputs)
        start = int(inputs.types.prompt_length[0])
        count = inputs["input_ids"].shape[1] - start
        if not count:
            raise ProbeError(
                "answer",
                expected="an answer of at least one token",
                got="none",
                fix="pass response=",
            )
        chosen = list(range(count)) if tokens is None else list(tokens)
        if not chosen or not all(0 <= token < count for token in chosen):
            raise ProbeError(
                "answer", expected=f"tokens of the answer, 0 to {count - 1}", got=str(chosen)
            )
        return cls(inputs, torch.tensor([start + token for token in chosen]))


def unpadded(inputs: Inputs) -> Inputs:
    """One row without its padding: alone it needs none, and attention goes by the distance of
    positions.
    """
    return at_positions(inputs, np.flatnonzero(inputs.types.role[0] >= 0))


def _without_closing(inputs: Inputs) -> Inputs:
    """The row up to the last token of its answer; nothing before depends on what follows."""
    prompt_length = int(inputs.types.prompt_length[0])
    response = np.flatnonzero(inputs.types.role[0] == RESPONSE)
    return at_positions(inputs, np.arange(max([prompt_length, *(response[-1:] + 1)])))
