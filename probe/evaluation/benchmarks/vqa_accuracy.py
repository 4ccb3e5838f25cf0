"""The soft score of VQAv2, TextVQA and VizWiz: agreement with ten people.

Answer and reference answers are normalised alike. An answer is compared with the other nine people,
leaving each out in turn, and three who agree are enough:

    score = mean over i of  min(1, |{j != i : reference_j = answer}| / 3),  0 if no person gave it

>>> soft_score("Two.", ["2"] * 3 + ["3"] * 7)  # 3 x min(1, 2/3) + 7 x min(1, 3/3), over 10
0.9

Source: EvalAI's VQA scorer as LLaVA uses it (llava/eval/m4c_evaluator.py), quirks included: "'s"
becomes a word of its own, and at most 32 full stops are removed.
"""

import re
from collections.abc import Sequence

from probe.data.sample import Sample

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'  # commas and question marks are gone before it is their turn
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905

# A contraction is put right when exactly one of its apostrophes is missing.
_REPAIRED = {
    word[:at] + word[at + 1 :]: word
    for word in CONTRACTIONS
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the original's slip
_FULL_STOP = re.compile(r"\.(?!\d)")


def normalise(answer: str) -> str:
    """The answer as it is compared: lower case, no articles, digits for number words, little
    punctuation.

    >>> [normalise(text) for text in ("The two Cats!", "well-known", "1,000 dollars.", "3.5")]
    ['2 cats', 'well known', '1000 dollars', '3.5']
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = _without_punctuation(text.strip().replace("\n", " ").replace("\t", " ").strip())
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def soft_score(answer: str, references: Sequence[str]) -> float:
    """Agreement of an answer with the reference answers (ten in the official files), 0 to 1."""
    normalised = normalise(answer)
    people = [normalise(reference) for reference in references]
    agreeing = people.count(normalised)
    if not agreeing:
        return 0.0
    others = [agreeing - (person == normalised) for person in people]
    return sum(min(1.0, count / 3) for count in others) / len(people)


def score_of_people(prediction: str, sample: Sample) -> float:
    """`soft_score` of a prediction, NaN where the split has no answers."""
    if not isinstance(sample.answer, tuple):
        return float("nan")
    return soft_score(prediction, sample.answer)


def _without_punctuation(text: str) -> str:
    """A mark that stands beside a space anywhere in the text is dropped; else it becomes a
    space.
    """
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space else " ")
    # The original passes a flag (of value 32) where the count belongs.
    return _FULL_STOP.sub("", cleaned, count=32)
