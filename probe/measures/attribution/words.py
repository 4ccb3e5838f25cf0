"""The words of a prompt, each with the tokens that it is made of.

words_of(inputs)          # [("what", [40]), ("image?", [44, 45, 46])]
"""

import numpy as np

from probe.data.token_types import INSTRUCTION, LAST
from probe.subject.inputs import Inputs

Word = tuple[str, list[int]]  # its text and its positions


def words_of(inputs: Inputs) -> list[Word]:
    """The user's side of one row, the template's own words (USER, ASSISTANT) included; not the
    system prompt, nor the last token, whose row says the answer."""
    tokenizer, ids = inputs.vocabulary.tokenizer, inputs["input_ids"][0].tolist()
    role = inputs.types.role[0]
    end = int(
        np.flatnonzero(role == LAST)[-1]
    )  # what closes an answer is instruction too, but no question
    words: list[list[int]] = []
    for position in np.flatnonzero(
        (role[:end] == INSTRUCTION) & ~inputs.types.vision[0, :end]
    ).tolist():
        if (
            words
            and words[-1][-1] == position - 1
            and not _starts_word(tokenizer, ids[position - 1], ids[position])
        ):
            words[-1].append(position)
        else:
            words.append([position])
    texts = [tokenizer.decode([ids[i] for i in word]).strip() for word in words]
    return [(text, word) for text, word in zip(texts, words, strict=True) if text]


def _starts_word(tokenizer, before: int, here: int) -> bool:
    """Whether a space stands between two tokens: read off the tokenizer, whose marks for it
    differ.
    """
    alone, both = tokenizer.decode([before]), tokenizer.decode([before, here])
    return alone[-1:].isspace() or both[len(alone) :][:1].isspace()
