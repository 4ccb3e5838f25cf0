"""MMBench: multiple choice, each question asked once for every rotation of its options.

A tab separated table, `mmbench_dev_20230712.tsv`, here with the image cut short:

    index   question            hint  A      B      C    D    answer  category          image
    241     Which is the dog?   nan   left   right  nan  nan  B       object_location   /9j/4AAQSkZJRg...
    1000241 Which is the dog?   nan   right  left   nan  nan  A       object_location   241

`image` is base64, or (64 characters or fewer) the index of the row that has it. The first option
that is empty, nan or none ends the list. Rows with equal `index % 1,000,000` are one question.

Rule, circular: a question counts only if every rotation is right. Vanilla: the unrotated rows
alone. The letter is read as VLMEvalKit's vlmeval/utils/matching_util.py does without a language
model: the one option letter that stands as a word of its own, else the one option whose text
occurs, else none. LLaVA itself only writes the table for the server
(llava/eval/model_vqa_mmbench.py, scripts/convert_mmbench_for_submission.py).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, table, whole_row
from probe.data.image_cache import cache_folder, stored_image
from probe.data.rows import Benchmark, RowError, RowReader, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, shown
from probe.evaluation.benchmarks.answer_files import (
    answered,
    counted,
    percent,
    weighted_percent,
    write_llava,
)
from probe.evaluation.benchmarks.prompts import OPTION_LETTER, OPTION_LETTER_CN, multiple_choice

HEADLINE, LABEL = "circular", "circular accuracy (%)"
SPLITS = (
    "mmbench_dev_20230712",
    "mmbench_dev_cn_20231003",
    "mmbench_dev_en",
    "MMBench_DEV_EN",
    "MMBench_DEV_CN",
)
COLUMNS = ("index", "question", "A", "B", "image")
LETTERS = "ABCD"
ROTATION = 1_000_000  # added to the index for each rotation
LONGEST_REFERENCE = 64  # characters; an image cell that is longer is an image
# what pandas, with which LLaVA reads the table, takes for "no value"; LLaVA adds nan and none in
# any case
MISSING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "n/a", "null"}
)
NOT_IN_WORDS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `<split>.tsv`. Chinese instructions where the split's name has "cn". Raises
    ProbeError.
    """
    data, reading = DataFolder("mmbench", folder), RowReader("mmbench", split)
    file = data.find(f"{split}.tsv")
    images = _Images(file)
    suffix = OPTION_LETTER_CN if "_cn" in split.lower() else OPTION_LETTER
    for number, cells, row in table("mmbench", file, COLUMNS):
        with reading.row(file, number):
            row = whole_row(cells, row)
            index = _index(row["index"])
            reading.add(_sample(index, row, images.find(index, row["image"]), suffix))
    return reading.finish([file])


class _Images:
    """Where the image of each row is kept. A row may refer to another's, also to one further
    down.
    """

    def __init__(self, file: Path):
        self.file, self.folder = file, cache_folder()
        self.stored: dict[int, Path] = {}
        self.ahead: dict[int, str] | None = None

    def find(self, index: int, cell: str) -> Path:
        """Raises RowError when the cell is neither an image nor the index of a row with one."""
        if len(cell) > LONGEST_REFERENCE:
            self.stored[index] = stored_image(cell, self.folder)
            return self.stored[index]
        expected = f"'image': an image in base64, or (at most {LONGEST_REFERENCE} characters) the index of its row"
        if not cell.strip().isdecimal():
            raise RowError(expected, shown(cell))
        owner = int(cell)
        if owner not in self.stored:
            self.ahead = self.ahead if self.ahead is not None else dict(_embedded(self.file))
            if owner not in self.ahead:
                raise RowError(expected, f"{owner}, a row without an image")
            self.stored[owner] = stored_image(self.ahead[owner], self.folder)
        return self.stored[owner]


def _embedded(file: Path) -> Iterator[tuple[int, str]]:
    for _, _, row in table("mmbench", file, COLUMNS):
        if row and row["index"].strip().isdecimal() and len(row["image"]) > LONGEST_REFERENCE:
            yield int(row["index"]), row["image"]


def _index(cell: str) -> int:
    if not cell.strip().isdecimal():
        raise RowError("'index': a whole number", shown(cell))
    return int(cell)


def _sample(index: int, row: dict[str, str], image: Path, suffix: str) -> Sample:
    options = options_of(row)
    if len(options) < 2:
        raise RowError("at least the options A and B", f"{len(options)}")
    answer = row.get("answer", "").strip()
    if missing(answer):  # test splits come without
        answer = ""
    elif answer not in LETTERS[: len(options)]:
        raise RowError(f"'answer': one of {', '.join(LETTERS[: len(options)])}", shown(answer))
    hint = row.get("hint", "")
    question = question_text(row) if missing(hint) else f"{hint}\n{question_text(row)}"
    meta = {
        "question_id": index,
        "unit": str(index % ROTATION),
        "image": image.name,
        "base": index < ROTATION,
        "kind": row.get("category", ""),
        "l2-category": row.get("l2-category", ""),
        "split": row.get("split", ""),
        "question": row["question"],
    }
    return Sample(
        str(index), image, multiple_choice(question, options, suffix), options, answer or None, meta
    )


def missing(cell: str) -> bool:
    """Whether a cell stands for no value."""
    return cell in MISSING or cell.lower() in ("nan", "none")


def options_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """The options A, B, ... up to the first that is missing.

    >>> options_of({"A": "left", "B": "right", "C": "nan", "D": "below"})
    ('left', 'right')
    """
    given = [row.get(letter, "") for letter in LETTERS]
    end = next((at for at, option in enumerate(given) if missing(option)), len(given))
    return tuple(given[:end])


def letter_of(prediction: str, options: Sequence[str]) -> str | None:
    """The option that a text chooses, or None.

    >>> letter_of("(B).", ("left", "right")), letter_of("It is on the right", ("left", "right"))
    ('B', 'B')
    >>> letter_of("left or right", ("left", "right")), letter_of("C", ("left", "right"))
    (None, None)
    """
    words = prediction.strip().translate(NOT_IN_WORDS).split()
    letters = LETTERS[: len(options)]
    named = [letter for letter in letters if letter in words]
    if not named:
        text = prediction.lower()
        named = [
            letter
            for letter, option in zip(letters, options, strict=True)
            if option.lower() in text
        ]
    return named[0] if len(named) == 1 else None


def score(prediction: str, sample: Sample) -> float:
    """1 where the chosen letter is the answer, of this rotation alone; NaN where the file has no
    answers.
    """
    if sample.answer is None:
        return float("nan")
    return float(letter_of(prediction, sample.choices) == sample.answer)


def circular(samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, float]:
    """For each question (its base index): 1 if all rotations that were read are right.

    A question with a rotation that was not answered is left out.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        text = predictions.get(sample.id)
        scores[sample.meta["unit"]].append(float("nan") if text is None else score(text, sample))
    return {
        unit: float(min(hits))
        for unit, hits in scores.items()
        if not any(hit != hit for hit in hits)
    }


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, "sample"],
) -> Float[np.ndarray, "case"]:
    """`HEADLINE` of each case when each question counts so often: its rotations show one image."""
    _, first, unit = np.unique(about["unit"], return_index=True, return_inverse=True)
    right = np.ones((len(first), correct.shape[1]))
    np.minimum.at(right, unit, correct)  # with a rotation that has no score, NaN: left out
    return weighted_percent(right, times[first])


def summarise(samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, float]:
    """Circular and vanilla accuracy in percent, and circular accuracy by category."""
    pairs, hits = answered(samples, predictions), circular(samples, predictions)
    kinds: dict[str, list[float]] = defaultdict(list)
    for unit, kind in {sample.meta["unit"]: sample.meta["kind"] for sample in samples}.items():
        kinds[f"circular/{kind}"] += [hits[unit]] if unit in hits else []
    return (
        {
            "circular": percent(hits.values()),
            "vanilla": percent(
                score(text, sample) for sample, text in pairs if sample.meta["base"]
            ),
        }
        | {kind: percent(kinds[kind]) for kind in sorted(kinds)}
        | counted(samples, pairs)
    )


def export(samples: Sequence[Sample], predictions: Mapping[str, str], folder: str | Path) -> Path:
    """Writes the server's `mmbench.xlsx`, and LLaVA's answers beside it. Raises ProbeError without
    openpyxl.
    """
    lines = write_llava(samples, predictions, Path(folder) / "mmbench.jsonl")
    try:
        from openpyxl import Workbook  # pyright: ignore
    except ImportError:
        raise ProbeError(
            "mmbench.export",
            expected="openpyxl, to write the server's .xlsx",
            got="no such package",
            fix=f"pip install openpyxl; the answers are in {lines}",
        ) from None
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(["index", "question", *LETTERS, "prediction", "answer"])
    for sample, text in answered(samples, predictions):
        options = [*sample.choices, *[None] * (len(LETTERS) - len(sample.choices))]
        sheet.append(
            [sample.meta["question_id"], sample.meta["question"], *options, text, sample.answer]
        )
    book.save(lines.with_suffix(".xlsx"))
    return lines.with_suffix(".xlsx")
