"""Where the prompt ends in ids that go on with a response.

A model is handed ids, and nothing in them says which are its prompt. Whoever chooses by the
prompt's last token, as FastV does, has to know: never by a word of the answer. `Inputs` tells it
for its own tensor of ids, and the tensor is the key, so that `model(**inputs)` is all it takes.

>>> import torch
>>> ids = torch.tensor([[5, 6, 7, 8]])
>>> prompt_end(ids, None).tolist()            # nothing is known: the last token that there is
[3]
>>> remember(ids, torch.tensor([1]))          # 7, 8 are a response
>>> prompt_end(ids, None).tolist(), prompt_end(ids.clone(), None).tolist()
([1], [3])
"""

from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_ends: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remember(ids: Int[Tensor, "batch token"], end: Int[Tensor, " batch"]) -> None:
    """Says at which position each row's prompt ends, for as long as this tensor lives."""
    _ends[ids] = end


def prompt_end(rows: Tensor, real: Bool[Tensor, "batch token"] | None) -> Int[Tensor, " batch"]:
    """The position of the last token of each row's prompt: as remembered for these ids (batch,
    token), else the last one that is `real`. `rows` may be embeddings (batch, token, hidden)."""
    if rows in _ends:
        return _ends[rows].to(rows.device)
    batch, length = rows.shape[:2]
    if real is None:
        return rows.new_full((batch,), length - 1).long()
    return (length - 1 - real.flip(1).long().argmax(1)).to(rows.device)
