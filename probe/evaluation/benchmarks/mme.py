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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, lines
from probe.data.rows import Benchmark, RowError, RowReader
from probe.data.sample import Sample
from probe.errors import ProbeError, shown
from probe.evaluation.benchmarks.answer_files import answered, counted, percent, weighted_percent
from probe.evaluation.benchmarks.prompts import SINGLE_WORD

HEADLINE, LABEL, TOP = "perception", "perception (points of 2000)", 2000
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
    if split not in SPLITS:
        raise ProbeError("mme", expected=f"a split among {', '.join(SPLITS)}", got=repr(split))
    data, reading = DataFolder("mme", folder), RowReader("mme", split)
    files = [file for name in CATEGORIES[split] for file in _files(data.root / name)]
    if not files:
        raise ProbeError(
            "mme",
            expected=f"folders such as {PERCEPTION[0]}/ with .txt files",
            got=f"none in {folder}",
        )
    for file in files:
        for number, line in lines("mme", file):
            with reading.row(file, number):
                reading.add(_sample(data, file, line, number))
    return reading.finish(files)


def _files(category: Path) -> list[Path]:
    folder = category / "questions_answers_YN"
    return sorted((folder if folder.is_dir() else category).glob("*.txt"))


def _sample(data: DataFolder, file: Path, line: bytes, number: int) -> Sample:
    cells = line.decode("utf-8", "replace").strip().split("\t")
    if len(cells) != 2 or cells[1].strip().lower() not in ("yes", "no"):
        raise RowError("a question, a tab, and Yes or No", shown("\t".join(cells)))
    inside = file.relative_to(data.root)
    category = inside.parts[0]
    images = f"{category}/images" if inside.parent.name == "questions_answers_YN" else category
    path = data.image(*(f"{images}/{file.stem}{suffix}" for suffix in (".jpg", ".png", ".jpeg")))
    name = f"{images}/{path.name}"
    meta = {
        "question_id": name,
        "unit": name,
        "image": name,
        "kind": category,
        "file": file.name,
        "question": cells[0],
        "label": cells[1].strip(),
    }
    question = cells[0].replace(THEIR_INSTRUCTION, "").strip() + SINGLE_WORD
    return Sample(f"{name}/{number}", path, question, ("yes", "no"), cells[1].strip().lower(), meta)


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


def summarise(samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, float]:
    """Points: perception (of 2000), cognition (of 800), and each category (of 200), its acc and
    acc_plus.

    A category that was not read at all is NaN, and with it the sum it belongs to.
    """
    numbers: dict[str, float] = {}
    for name in PERCEPTION + COGNITION:
        acc, plus = _category(
            [sample for sample in samples if sample.meta["kind"] == name], predictions
        )
        numbers |= {name: acc + plus, f"{name}/acc": acc, f"{name}/acc_plus": plus}
    sums = {
        split: sum(numbers[name] for name in CATEGORIES[split])
        for split in ("perception", "cognition")
    }
    return sums | numbers | counted(samples, answered(samples, predictions))


def _category(samples: Sequence[Sample], predictions: Mapping[str, str]) -> tuple[float, float]:
    """acc and acc_plus. An image without both of its questions and answers counts for acc alone."""
    scores: dict[str, list[float]] = defaultdict(list)
    for sample, text in answered(samples, predictions):
        scores[sample.meta["unit"]].append(score(text, sample))
    pairs = [all(hits) for hits in scores.values() if len(hits) == QUESTIONS_A_IMAGE]
    return percent(hit for hits in scores.values() for hit in hits), percent(pairs)


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, "sample"],
) -> Float[np.ndarray, "case"]:
    """`HEADLINE` of each case when each sample counts so often, an image's two questions
    equally.
    """
    total = np.zeros(correct.shape[1])
    for name in PERCEPTION:
        here = about["kind"] == name
        _, first, pair, size = np.unique(
            about["unit"][here], return_index=True, return_inverse=True, return_counts=True
        )
        right = np.ones((len(first), correct.shape[1]))
        np.minimum.at(right, pair, correct[here])
        whole = np.where(size == QUESTIONS_A_IMAGE, times[here][first], 0)
        total += weighted_percent(correct[here], times[here]) + weighted_percent(right, whole)
    return total


def export(samples: Sequence[Sample], predictions: Mapping[str, str], folder: str | Path) -> Path:
    """Writes a `<category>.txt` each (file, question, label, answer) into `mme/`: calculation.py's
    --results_dir.
    """
    out = Path(folder) / "mme"
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = defaultdict(list)
    for sample, text in answered(samples, predictions):
        meta = sample.meta
        rows[meta["kind"]].append(
            "\t".join((meta["file"], meta["question"], meta["label"], " ".join(text.split())))
        )
    for category, written in rows.items():
        (out / f"{category}.txt").write_text("\n".join(written) + "\n", encoding="utf-8")
    return out
