"""The option that a free text chooses, as VLMEvalKit reads answers to MMBench without a language
model (vlmeval/utils/matching_util.py).

    letter_of("It is on the right", ("left", "right"))                      # "B"
    letter_of("It is on the right", ("left", "right"), rule="2026-06")      # by the newer rule
"""

import re
from collections.abc import Sequence

from probe.errors import one_of

LETTERS = "ABCD"
RULES = ("2024-03", "2026-06")  # of VLMEvalKit; the first is the default
REFUSALS = (
    "Failed to obtain answer via API",
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_STATED = re.compile(r"answer is \**([A-D])\**", re.IGNORECASE)
NOT_IN_WORDS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def letter_of(prediction: str, options: Sequence[str], rule: str = RULES[0]) -> str | None:
    """The option that a text chooses, or None. By the rule of 2024-03:

    1. where exactly one option letter stands as a word of its own, it;
    2. else, where the text of exactly one option occurs, its letter.

    That of 2026-06 takes the letter only among the last four words, then looks for "answer is X",
    and reads options' texts only in an answer of at most twice their length together.

    >>> letter_of("(B).", ("left", "right")), letter_of("It is on the right", ("left", "right"))
    ('B', 'B')
    >>> letter_of("left or right", ("left", "right")), letter_of("C", ("left", "right"))
    (None, None)
    >>> bus = "A picture of a blue bus, C", ("a red car", "a blue bus", "two dogs")
    >>> letter_of(*bus)  # two letters, so the text decides
    'B'
    >>> long = "B, because the animal on the left of the picture barks", ("a cat", "a dog")
    >>> letter_of(*long), letter_of(*long, rule="2026-06")
    ('B', None)
    """
    one_of("mmbench", "a rule of", rule, RULES)
    newer = rule == "2026-06"
    if any(refusal in prediction for refusal in REFUSALS):
        return None
    letters = LETTERS[: len(options)]
    words = prediction.strip().translate(NOT_IN_WORDS).split()
    mentioned = [letter for letter in letters if letter in words]
    if len(mentioned) == 1 and (not newer or words.index(mentioned[0]) > len(words) - 5):
        return mentioned[0]
    if not mentioned and "Z" in words:  # the original's own letter for "none of them"
        return None
    stated = _STATED.search(prediction) if newer else None
    if stated and stated[1].upper() in letters:
        return stated[1].upper()
    if newer and len(prediction) > 2 * sum(map(len, options)):
        return None
    text = prediction.lower()
    spelled = [
        letter for letter, option in zip(letters, options, strict=True) if option.lower() in text
    ]
    return spelled[0] if len(spelled) == 1 else None
