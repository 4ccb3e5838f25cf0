"""MME: two yes-or-no questions about each image, one of each answer, in 14 categories.

A folder a category; `code_reasoning/0020.txt` beside `code_reasoning/0020.png` (or
`questions_answers_YN/` and `images/` within the category):

    Is a python code shown in the image? Please answer yes or no.<TAB>Yes
    Is a c++ code shown in the image? Please answer yes or no.<TAB>No

LLaVA asks without "Please answer yes or no." and with its own instruction (its llava_mme.jsonl),
and so do we.

Rule: MME's eval_tool/calculation.py. In lower case, "yes" or "no" within the first four characters,
else "other", which is wrong. A category's score is 100 x (share of right answers) + 100 x (share of
images with both right). Perception sums ten categories (to 2000), cognition four (to 800); papers
print perception.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, lines
from probe.data.rows import Benchmark, RowError, RowReader
from probe.data.sample import Sample
from probe.errors import ProbeError, one_of, shown
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    percent,
    weighted_percent,
    write_text,
)
from probe.evaluation.benchmarks.prompts import SINGLE_WORD

HEADLINE = "perception"
LABEL = "perception (points of 2000)"
TOP = 2000
FILES = "a folder a category, such as existence/, with .txt files and images"
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SPLITS = ("all", "perception", "cognition")
CATEGORIES = {"all": PERCEPTION + COGNITION, "perception": PERCEPTION, "cognition": COGNITION}
THEIR_INSTRUCTION = "Please answer yes or no."
QUESTIONS_A_IMAGE = 2


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads the categories that are there. Raises ProbeError when none is, or on a name that is no
    split.
    """
    one_of("mme", "a split among", split, SPLITS)
    data = DataFolder("mme", folder)
    reader = RowReader("mme", split)
    files = [file for name in CATEGORIES[split] for file in _files(data.root / name)]
    if not files:
        raise ProbeError(
            "mme",
            expected=f"folders such as {PERCEPTION[0]}/ with .txt files",
            got=f"none in {folder}",
        )
    for file in files:
        for number, line in lines("mme", file):
            with reader.row(file, number) as official:
                cells = line.decode("utf-8", "replace").strip().split("\t")
                official.update(_official(data, file, cells))
                reader.add(_sample(data, file, cells, number))
    return reader.finish(files)


def _files(category: Path) -> list[Path]:
    folder = category / "questions_answers_YN"
    return sorted((folder if folder.is_dir() else category).glob("*.txt"))


def _official(data: DataFolder, file: Path, cells: list[str]) -> dict[str, str]:
    """What the official file says of a row: the columns of calculation.py, and the category."""
    category = file.relative_to(data.root).parts[0]
    question, label = [*cells, ""][:2]
    return {"kind": category, "file": file.name, "question": question, "label": label.strip()}


def _sample(data: DataFolder, file: Path, cells: list[str], number: int) -> Sample:
    answer = cells[-1].strip().lower()
    if len(cells) != 2 or answer not in ("yes", "no"):
        raise RowError("a question, a tab, and Yes or No", shown("\t".join(cells)))
    inside = file.relative_to(data.root)
    category = inside.parts[0]
    has_subfolders = inside.parent.name == "questions_answers_YN"
    images = f"{category}/images" if has_subfolders else category
    path = data.image(*(f"{images}/{file.stem}{suffix}" for suffix in (".jpg", ".png", ".jpeg")))
    name = f"{images}/{path.name}"
    meta = {"question_id": name, "unit": name, "image": name, **_official(data, file, cells)}
    question = cells[0].replace(THEIR_INSTRUCTION, "").strip() + SINGLE_WORD
    return Sample(f"{name}/{number}", path, question, ("yes", "no"), answer, meta)


def reading_of(prediction: str) -> str:
    """What the text is taken to say.

    >>> [reading_of(text) for text in ("Yes, it is.", "no", "It is not", "Unknown", "a no")]
    ['yes', 'no', 'other', 'other', 'no']
    """
    start = prediction.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def score(prediction: str, sample: Sample) -> float:
    """1 where the reading is the label."""
    return float(reading_of(prediction) == sample.answer)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Points: perception (of 2000), cognition (of 800), and each category (of 200), its acc and
    acc_plus; and how many answers are neither yes nor no.

    A category that was not read at all is NaN, and with it the sum it belongs to.
    """
    answers = Answers(rows, predictions, score)
    numbers: dict[str, float] = {}
    for name in PERCEPTION + COGNITION:
        acc, plus = _category(answers, name)
        numbers |= {name: acc + plus, f"{name}/acc": acc, f"{name}/acc_plus": plus}
    sums = {
        split: sum(numbers[name] for name in CATEGORIES[split])
        for split in ("perception", "cognition")
    }
    neither = answers.count(lambda text, sample: reading_of(text) == "other")
    return sums | numbers | answers.counts() | {"neither_yes_nor_no": neither}


def _category(answers: Answers, name: str) -> tuple[float, float]:
    """acc and acc_plus. An image without both of its questions and answers counts for acc alone."""
    hits: dict[str, list[float]] = defaultdict(list)
    for (sample, _), hit in zip(answers.pairs, answers.scores, strict=True):
        if sample.meta["kind"] == name:
            hits[sample.meta["unit"]].append(hit)
    every = [hit for of_image in hits.values() for hit in of_image]
    pairs = [of_image for of_image in hits.values() if len(of_image) == QUESTIONS_A_IMAGE]
    return percent(every), percent(all(pair) for pair in pairs)


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, " sample"],
) -> Float[np.ndarray, " case"]:
    """`HEADLINE` of each case when each sample counts `times` times, an image's two questions
    equally.
    """
    total = np.zeros(correct.shape[1])
    for name in PERCEPTION:
        rows = about["kind"] == name
        _, first, pair, size = np.unique(
            about["unit"][rows], return_index=True, return_inverse=True, return_counts=True
        )
        right = np.ones((len(first), correct.shape[1]))
        np.minimum.at(right, pair, correct[rows])
        whole = np.where(size == QUESTIONS_A_IMAGE, times[rows][first], 0)
        total += weighted_percent(correct[rows], times[rows]) + weighted_percent(right, whole)
    return total


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes a `<category>.txt` each (file, question, label, answer) into `mme/`: calculation.py's
    --results_dir. It pairs neighbouring lines, so every official row has one.
    """
    categories: dict[str, list[str]] = defaultdict(list)
    for row, text in official_answers(rows, predictions):
        answer = " ".join(text.split())
        cells = (row["file"], row["question"], row["label"], answer)
        categories[row["kind"]].append("\t".join(cells) + "\n")
    out = Path(folder) / "mme"
    for category, written in categories.items():
        write_text("".join(written), out / f"{category}.txt")
    return out
