"""Where the prompt ends in ids that continue with a response.

A model gets ids, and nothing in them says which of them are the prompt. A reducer that ranks by the
prompt's last token, as FastV does, has to know: a word of the response must never rank. `Inputs`
records the prompt length of each row under the content of the row, its ids without padding. So
`model(**inputs)` is all it takes, and copies, other devices, slices of a batch and padding on
either side give the same result. Ids that were never encoded are a prompt without a response.

>>> import torch
>>> ids = torch.tensor([[5, 6, 7, 8]])
>>> prompt_ends(ids).tolist()                                   # not known: all of it is prompt
[3]
>>> record_prompts(ids, torch.ones_like(ids).bool(), [{2}])     # 7, 8 are a response
>>> prompt_ends(ids.clone()).tolist()
[1]
>>> padded = torch.tensor([[0, 0, 5, 6, 7, 8]])
>>> prompt_ends(padded, padded != 0).tolist()
[3]
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence, Set
from threading import Lock

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.errors import ProbeError

Lengths = Set[int]  # of one row: none where it was never encoded, several where that is ambiguous

LIMIT = 2**17  # rows, of about 400 bytes each; the one that was recorded the longest ago goes first
_recorded: OrderedDict[bytes, Lengths] = OrderedDict()  # by the digest of a row's ids
_lock = Lock()


def record_prompts(
    ids: Int[Tensor, "batch token"],
    real: Bool[Tensor, "batch token"] | None,
    lengths: Sequence[Lengths],
) -> None:
    """Records how many of each row's `real` ids (those that are not padding) are its prompt."""
    with _lock:
        for row, row_lengths in zip(_digests(ids, real), lengths, strict=True):
            if row_lengths:
                _recorded[row] = _recorded.pop(row, frozenset()) | frozenset(row_lengths)
        while len(_recorded) > LIMIT:
            _recorded.popitem(last=False)


def recorded_lengths(
    ids: Int[Tensor, "batch token"], real: Bool[Tensor, "batch token"] | None
) -> list[Lengths]:
    """The prompt lengths, without padding, that each row was encoded with."""
    return [_recorded.get(row, frozenset()) for row in _digests(ids, real)]


def prompt_ends(
    ids: Int[Tensor, "batch token"], real: Bool[Tensor, "batch token"] | None = None
) -> Int[Tensor, " batch"]:
    """The position of the last token of each row's prompt; of its last real token where the row was
    never encoded.

    Raises ProbeError for a row that was encoded with several prompt lengths: its ids cannot tell
    which of them is meant.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.to(ids.device)
    count = real.long().cumsum(1)  # real ids up to each position
    ends = []
    for lengths, row_count in zip(recorded_lengths(ids, real), count, strict=True):
        if len(lengths) > 1:
            counts = " and ".join(map(str, sorted(lengths)))
            raise ProbeError(
                "inputs",
                expected="ids that were encoded with one prompt length",
                got=f"the same ids with prompts of {counts} tokens",
                fix="use only one of these encodings in a process",
            )
        length = min(lengths, default=int(row_count[-1]))
        ends.append(int((row_count < length).sum()))
    return torch.tensor(ends, device=ids.device)


def _digests(
    ids: Int[Tensor, "batch token"], real: Bool[Tensor, "batch token"] | None
) -> list[bytes]:
    """A digest of each row's ids without padding."""
    rows = ids.long().cpu()
    masks = torch.ones_like(rows, dtype=torch.bool) if real is None else real.bool().cpu()
    contents = [row[mask].numpy().tobytes() for row, mask in zip(rows, masks, strict=True)]
    return [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
