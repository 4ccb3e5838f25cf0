"""The words of a prompt, each with the tokens that it is made of.

words_of(inputs)          # [("what", [40]), ("image?", [44, 45, 46])]
"""

from typing import Any

import numpy as np

from probe.data.token_types import INSTRUCTION, LAST
from probe.subject.inputs import Inputs

Word = tuple[str, list[int]]  # text and positions


def words_of(inputs: Inputs) -> list[Word]:
    """The words of one row's prompt, the template's (USER, ASSISTANT) included, without the system
    prompt and the last token, which predicts the answer.
    """
    tokenizer = inputs.vocabulary.tokenizer
    ids = inputs["input_ids"][0].tolist()
    role = inputs.types.role[0]
    # The tokens that close an answer are instruction too, but come after the prompt.
    end = int(np.flatnonzero(role == LAST)[-1])
    is_text = (role[:end] == INSTRUCTION) & ~inputs.types.vision[0, :end]
    words: list[list[int]] = []
    for position in np.flatnonzero(is_text).tolist():
        follows = words and words[-1][-1] == position - 1
        if follows and not _starts_word(tokenizer, ids[position - 1], ids[position]):
            words[-1].append(position)
        else:
            words.append([position])
    with_text: list[Word] = []
    for word in words:
        text = tokenizer.decode([ids[position] for position in word]).strip()
        if text:
            with_text.append((text, word))
    return with_text


def _starts_word(tokenizer: Any, previous_id: int, token_id: int) -> bool:
    """Whether the decoded text has a space between two tokens. Tokenizers mark it differently, so
    the text decides.
    """
    previous = tokenizer.decode([previous_id])
    both = tokenizer.decode([previous_id, token_id])
    next_character = both[len(previous) :][:1]
    return previous[-1:].isspace() or next_character.isspace()
