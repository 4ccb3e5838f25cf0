"""What LLaVA appends to a question, and how it lists options. Source: LLaVA, docs/Evaluation.md and
its jsonl files.

>>> print(multiple_choice("What is it?", ("a cat", "a dog")))
What is it?
A. a cat
B. a dog
Answer with the option's letter from the given choices directly.
"""

from collections.abc import Sequence

SINGLE_WORD = "\nAnswer the question using a single word or phrase."
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
OPTION_LETTER_CN = "\n请直接回答选项字母。"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
LETTERS = "ABCDE"


def multiple_choice(question: str, options: Sequence[str], suffix: str = OPTION_LETTER) -> str:
    """The question, one lettered option a line, and the instruction."""
    listed = (f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return question + "".join(listed) + suffix
