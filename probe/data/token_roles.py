"""The role of every token, from the role of every character, also where placeholders are expanded.

A tokenizer may merge the end of one role with the start of the next ("e" + " " before "USER:"): a
token of two roles has the role of its last character. A processor replaces each image placeholder
by as many as the image has vision tokens, often with markers around and between them, and leaves
the words alone, which is checked, not assumed. Most tokenize the text as a whole; LLaVA-Mini's,
like the authors' code, tokenizes the pieces between placeholders one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from jaxtyping import Int

from probe.data.chat_template import Rendering
from probe.data.token_types import BOS, INSTRUCTION, LAST, MARKER, RESPONSE
from probe.errors import ProbeError


@dataclass(frozen=True)
class Roles:
    """Tokens of one row with their fine role (index into FINE, vision not marked yet) and turn."""

    ids: Int[np.ndarray, "token"]
    role: Int[np.ndarray, "token"]
    turn: Int[np.ndarray, "token"]


def adds_special_tokens(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer may add BOS: not where the template has already written it."""
    return tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)


def roles_of(tokenizer: Any, rendering: Rendering) -> Roles:
    """The tokens of a rendering, its images still one placeholder each.

    Raises ProbeError for a tokenizer that does not say which characters a token covers.
    """
    return _labelled(*_tokenized(tokenizer, rendering.text), rendering, tokenizer.bos_token_id)


def piecewise_roles(
    tokenizer: Any, rendering: Rendering, placeholder: str, image_token: int
) -> Roles:
    """The same for the pieces of text between placeholders, tokenized one by one; only the first
    may begin with BOS.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    position = 0
    for number, piece in enumerate(rendering.text.split(placeholder)):
        if number:
            ids.append(image_token)
            spans.append((position, position + len(placeholder)))
            position += len(placeholder)
        special = number == 0 and adds_special_tokens(tokenizer, piece)
        piece_ids, piece_spans = _tokenized(tokenizer, piece, special)
        ids += piece_ids
        spans += [(position + start, position + end) for start, end in piece_spans]
        position += len(piece)
    return _labelled(ids, spans, rendering, tokenizer.bos_token_id)


def _tokenized(
    tokenizer: Any, text: str, special: bool | None = None
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and the characters (start, end) that each covers."""
    if not getattr(tokenizer, "is_fast", False):
        raise ProbeError(
            "tokenizer",
            expected="a fast one (tokenizer.json), which knows the characters of a token",
            got=type(tokenizer).__name__,
        )
    special = adds_special_tokens(tokenizer, text) if special is None else special
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    return encoded["input_ids"], encoded["offset_mapping"]


def _labelled(
    tokens: list[int], spans: list[tuple[int, int]], rendering: Rendering, bos: int | None
) -> Roles:
    ids = np.array(tokens, dtype=np.int64)
    role = np.full(len(ids), INSTRUCTION)
    turn = np.zeros(len(ids), dtype=np.int64)
    for position, (start, end) in enumerate(spans):
        if end > start:  # tokens that the tokenizer itself adds cover no characters
            role[position] = rendering.role[end - 1]
            turn[position] = rendering.turn[end - 1]
    if ids[0] == bos:
        role[0] = BOS
    current = int(rendering.turn.max())
    answer = np.flatnonzero((role == RESPONSE) & (turn == current))
    last = answer[0] - 1 if len(answer) else len(ids) - 1
    role[last] = LAST
    turn[last:] = current
    return Roles(ids, role, turn)


def expanded(
    roles: Roles, ids: Int[np.ndarray, "expanded_token"], image_token: int | Sequence[int]
) -> Roles:
    """The roles of the tokens that a processor made, where each placeholder (any of `image_token`)
    has become many.

    Raises ProbeError where the other tokens are not the same.
    """
    if not same_words(roles, ids, image_token):
        raise ProbeError(
            "processor",
            expected="one that changes nothing but the placeholders",
            got="other tokens",
        )
    is_text = ~np.isin(ids, image_token)
    was_text = ~np.isin(roles.ids, image_token)
    role = np.full(len(ids), INSTRUCTION)
    turn = np.zeros(len(ids), dtype=np.int64)
    role[is_text] = roles.role[was_text]
    turn[is_text] = roles.turn[was_text]
    # an image belongs to the turn of the text before it
    previous_text = np.maximum.accumulate(np.where(is_text, np.arange(len(ids)), 0))
    # the prompt ends where the text after it begins
    prompt_end = np.flatnonzero(roles.role == LAST)[0]
    text_after_prompt = was_text[prompt_end + 1 :].sum()
    role[len(ids) - text_after_prompt - 1] = LAST
    return replace(roles, ids=ids, role=role, turn=turn[previous_text])


def same_words(
    roles: Roles, ids: Int[np.ndarray, "expanded_token"], image_token: int | Sequence[int]
) -> bool:
    """Whether these are the same tokens, placeholders left out."""
    words = roles.ids[~np.isin(roles.ids, image_token)]
    return np.array_equal(words, ids[~np.isin(ids, image_token)])


def with_replacements(rendering: Rendering, replacements: Sequence[Mapping[str, Any]]) -> Rendering:
    """The rendering after a processor has put its own text in the place of placeholders: `span`
    (characters of the rendered text) becomes `replacement`, whose characters are markers.

    Source: `return_text_replacement_offsets` of transformers' processors.
    """
    texts = []
    roles = []
    turns = []
    position = 0
    for each in sorted(replacements, key=lambda each: each["span"][0]):
        start, end = each["span"]
        added = len(each["replacement"])
        texts += [rendering.text[position:start], each["replacement"]]
        roles += [rendering.role[position:start], np.full(added, MARKER)]
        turns += [rendering.turn[position:start], np.full(added, rendering.turn[start])]
        position = end
    return replace(
        rendering,
        text="".join([*texts, rendering.text[position:]]),
        role=np.concatenate([*roles, rendering.role[position:]]),
        turn=np.concatenate([*turns, rendering.turn[position:]]),
    )


def aligned(roles: Roles, ids: Int[np.ndarray, "expanded_token"], tokenizer: Any) -> Roles:
    """The roles of the tokens that a processor made, where it has added tokens of its own: the
    words are found again in their order, and what is between them are markers.

    Raises ProbeError where a word is missing.
    """
    pairs = _equal_words(roles.ids, ids)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    found = {place for place, _ in pairs}
    lost = [int(id) for place, id in enumerate(roles.ids) if place not in found]
    if any(id not in special for id in lost):
        raise ProbeError(
            "processor",
            expected="one that changes nothing but the placeholders",
            got="other tokens",
        )
    role = np.full(len(ids), MARKER)
    turn = np.full(len(ids), -1)
    for place, position in pairs:
        role[position] = roles.role[place]
        turn[position] = roles.turn[place]
    known = np.maximum.accumulate(np.where(turn >= 0, np.arange(len(ids)), 0))
    turn = np.maximum(turn[known], 0)
    if not (role == LAST).any():  # the prompt's last token has changed: the one before the answer
        answer = np.flatnonzero((role == RESPONSE) & (turn == turn.max()))
        after_prompt = answer[0] if len(answer) else len(ids)
        role[after_prompt - 1] = LAST
    elif not (role == RESPONSE).any():
        # What a processor adds after the prompt is read before the answer.
        role[role == LAST] = INSTRUCTION
        role[-1] = LAST
    return Roles(ids, role, turn)


def _equal_words(
    old: Int[np.ndarray, "token"], new: Int[np.ndarray, "expanded_token"]
) -> list[tuple[int, int]]:
    """The places in both of the ids that are found again, in order."""
    shorter = min(len(old), len(new))
    start = 0  # ids before the first difference, and after the last, need no search
    while start < shorter and old[start] == new[start]:
        start += 1
    end = 0
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    old_end = len(old) - end
    new_end = len(new) - end
    old_part = old[start:old_end].tolist()
    new_part = new[start:new_end].tolist()
    pairs = [(place, place) for place in range(start)]
    for block in SequenceMatcher(None, old_part, new_part, autojunk=False).get_matching_blocks():
        old_place = start + block.a
        new_place = start + block.b
        pairs += [(old_place + i, new_place + i) for i in range(block.size)]
    pairs += [(old_end + i, new_end + i) for i in range(end)]
    return pairs
