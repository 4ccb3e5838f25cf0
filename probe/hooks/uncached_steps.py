"""Which tokens of a forward without a cache are its prompt, where each step of decoding brings all
tokens again.
"""

from dataclasses import replace
from threading import local

from jaxtyping import Int
from torch import Tensor

from probe.hooks.tracked_sequence import TrackedSequence


class UncachedSteps(local):
    """The last forward of a thread without a cache: its ids, and how many of their columns are the
    prompt. Ids that are those of the last forward and one more token continue its prompt.
    """

    last_ids: Int[Tensor, "batch token"] | None = None
    prompt_length: int = 0

    def continued(self, sequence: TrackedSequence) -> TrackedSequence:
        """The same sequence, whose last tokens do not count as prompt where they were generated
        step by step without a cache.
        """
        ids = sequence.prompt_ids
        assert ids is not None
        prompt_length = ids.shape[1]
        if self.last_ids is not None and is_next_step(self.last_ids, ids):
            prompt_length = self.prompt_length
        self.last_ids, self.prompt_length = ids, prompt_length
        if prompt_length == ids.shape[1]:
            return sequence
        vision = sequence.vision.clone()
        vision[:, prompt_length:] = False  # an image token that was generated stands for no image
        real = None if sequence.real is None else sequence.real[:, :prompt_length]
        return replace(sequence, vision=vision, real=real, prompt_ids=ids[:, :prompt_length])


def is_next_step(before: Int[Tensor, "batch position"], ids: Int[Tensor, "row token"]) -> bool:
    """Whether each row of `ids` is a row of the step before and one more token. Beams may have
    changed places.

    >>> import torch
    >>> before = torch.tensor([[5, 6], [5, 7]])
    >>> is_next_step(before, torch.tensor([[5, 7, 8], [5, 7, 9]]))
    True
    """
    if ids.shape[1] != before.shape[1] + 1 or len(ids) != len(before):
        return False
    same = (ids[:, None, :-1] == before.to(ids.device)).all(-1)  # (row of ids, row before)
    return bool(same.any(1).all())
