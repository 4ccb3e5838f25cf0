"""How sure a model is of its answer: the log-probability of each of its tokens, closing included,
from the logits of the forwards that are measured anyway.

    log p(token_t | prompt, token_0, ..., token_{t-1})        nats, of the model's own logits

Temperature, suppressed words and other options of `generate` choose tokens; they are not in it.

    decoding = DecodedLogprob()
    with decoding.following(model):
        responses = subject.generate_ids(prompts, 32)
    decoding.of(responses)                       # an array for each row; None where it is not known

    padded = collate(rows, side="right")         # prompts with their responses, in one forward
    output = subject.model(**padded, logits_to_keep=logits_needed(padded))
    logprob_of_rows(output.logits, rows, padding_after(padded))
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.data.token_types import PADDING
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.layer_arguments import by_name
from probe.subject.inputs import Ids, Inputs

CHUNK = 256  # tokens whose distributions are in memory at once, in float32

Logprob = Float[np.ndarray, "_"]  # of answers, whose lengths differ


def token_logprob(
    logits: Float[Tensor, "token vocabulary"], ids: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """The log-probability of each id under its own row of logits, in float32.

    >>> token_logprob(torch.zeros(1, 4), torch.tensor([2])).exp().tolist()
    [0.25]
    """
    ids = ids.to(logits.device)
    parts = [
        rows.float().log_softmax(-1).gather(-1, said[:, None])[:, 0]
        for rows, said in zip(logits.split(CHUNK), ids.split(CHUNK), strict=True)
    ]
    return torch.cat(parts)


def logits_needed(padded: Inputs) -> int:
    """The last positions of a batch padded on the right that predict any token of a response."""
    width = padded["input_ids"].shape[1]
    return width - int(padded.types.prompt_length.min()) + 1


def padding_after(padded: Inputs) -> list[int]:
    """Tokens of padding after each row of a batch padded on the right."""
    return (padded.types.role == PADDING).sum(1).tolist()


def logprob_of_rows(
    logits: Float[Tensor, "row kept vocabulary"], rows: Sequence[Inputs], padding: Sequence[int]
) -> list[Logprob]:
    """Of one forward over prompts and responses. `logits`: those of the last positions, enough for
    the responses; `padding`: tokens that follow each row's last one.
    """
    found = []
    for row_logits, row, after in zip(logits, rows, padding, strict=True):
        ids = _response_ids(row)
        last = len(row_logits) - after - 1  # what it predicts is not in the row
        predicting = row_logits[last - len(ids) : last]
        found.append(token_logprob(predicting, ids).cpu().numpy())
    return found


def _response_ids(row: Inputs) -> Int[Tensor, " token"]:
    return row["input_ids"][0, int(row.types.prompt_length[0]) :]


class DecodedLogprob:
    """Follows one `generate`. It keeps the logits of one step: those of the token that is fed
    next.
    """

    def __init__(self) -> None:
        self._last: Float[Tensor, "row vocabulary"] | None = None
        self._fed: list[Int[Tensor, " row"]] = []
        self._logprob: list[Float[Tensor, " row"]] = []
        self._is_whole = True

    @model_block
    def following(self, model: PreTrainedModel) -> Iterator[None]:
        """Reads the logits of each step, and which token it led to."""

        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            logits = getattr(output, "logits", None)
            if not isinstance(logits, Tensor):
                self._is_whole = False
                return
            if self._last is not None:
                self._feed(by_name(module, args, kwargs).get("input_ids"))
            self._last = logits[:, -1].detach()

        with ExitStack() as undo:
            add_hook(undo, model.register_forward_hook, after, with_kwargs=True)
            yield

    def _feed(self, ids: Any) -> None:
        """The token of each row that the last step's logits led to."""
        assert self._last is not None
        if not isinstance(ids, Tensor) or ids.shape != (len(self._last), 1):
            self._is_whole = False
            return
        said = ids[:, 0].to(self._last.device)  # a model may lie on several devices
        self._fed.append(said)
        self._logprob.append(token_logprob(self._last, said))

    def of(self, responses: Sequence[Ids]) -> list[Logprob] | None:
        """The log-probability of each row's tokens; None where decoding did not feed them one by
        one.
        """
        if not self._is_whole or self._last is None or len(self._last) != len(responses):
            return None
        ids = [torch.as_tensor(response).cpu() for response in responses]
        # the last token is not fed: what ends before is followed by padding
        final = torch.stack([said[-1] if len(said) else torch.tensor(0) for said in ids])
        steps = [*self._logprob, token_logprob(self._last, final)]
        logprob = torch.stack(steps).cpu()
        fed = torch.stack([*self._fed, final.to(self._last.device)]).cpu()
        if any(
            len(said) > len(fed) or (fed[: len(said), row] != said).any()
            for row, said in enumerate(ids)
        ):
            return None
        return [logprob[: len(said), row].numpy() for row, said in enumerate(ids)]
