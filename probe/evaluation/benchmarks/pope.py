"""POPE: does the model see things that are not there? Three sets of yes-or-no questions about COCO
images.

`coco_pope_{random,popular,adversarial}.json` (JSON lines), images in `val2014/`; one line:

    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg",
     "text": "Is there a snowboard in the image?", "label": "yes"}

Rule: LLaVA's llava/eval/eval_pope.py. Of the text up to the first full stop, commas dropped: "No",
"no" or "not" as a word between spaces means no, anything else yes. Accuracy, precision, recall, F1
and the share of yes in each set; papers print the mean F1 of the three. The script joins answers to
labels by position within a set.

Papers use the files of POPE's commit e3e3926 (2,910 random questions, and "imange" for "image" in
some); today's repository has 3,000 in each set. Both are read, and `Benchmark.note` says which it
was: their numbers are not comparable.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, json_line, lines
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import one_of, shown
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    write_lines,
    write_llava,
)
from probe.evaluation.benchmarks.prompts import SINGLE_WORD

HEADLINE = "f1"
LABEL = "F1 (%)"
FILES = "coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json, val2014/"
SETS = ("random", "popular", "adversarial")
SPLITS = ("all", *SETS)
LABELS = ("yes", "no")
EDITIONS = {
    2910: "the files of commit e3e3926, which papers use (2,910 random questions)",
    3000: "today's files (3,000 random questions): not comparable with the 2,910 of papers",
}
NUMBERS = ("f1", "accuracy", "precision", "recall", "yes")
NEGATIONS = frozenset({"No", "no", "not"})


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads one set or all three. Raises ProbeError."""
    one_of("pope", "a split among", split, SPLITS)
    data = DataFolder("pope", folder)
    reader = RowReader("pope", split)
    names = {name: f"coco_pope_{name}.json" for name in (SETS if split == "all" else (split,))}
    files = {name: data.find(file, f"coco/{file}") for name, file in names.items()}
    for name, file in files.items():
        for number, line in lines("pope", file):
            with reader.row(file, number) as official:
                official.update(question_id=f"{name}/{number}", image="", kind=name)
                row = json_line(line)
                official.update(_official(name, row))
                reader.add(_sample(data, name, row))
    return reader.finish(list(files.values()), _edition(reader.rows))


def _official(name: str, row: Any) -> dict[str, Any]:
    """What the official file says of a row, whether or not it can be used."""
    key = f"{name}/{identifier(row, 'question_id')}"  # each set counts from 1
    image = str(row.get("image", ""))
    text = str(row.get("text", ""))
    return {"question_id": key, "image": image, "prompt": text + SINGLE_WORD}


def _edition(rows: Rows) -> str:
    """Which of the two editions was read; "" for neither, or without the random set."""
    kinds = [row.meta["kind"] if isinstance(row, Sample) else row.official["kind"] for row in rows]
    return EDITIONS.get(kinds.count("random"), "")


def _sample(data: DataFolder, name: str, row: Any) -> Sample:
    label = entry(row, "label")
    image = entry(row, "image")
    if label not in LABELS:
        raise RowError("'label': yes or no", shown(label))
    key = f"{name}/{identifier(row, 'question_id')}"  # each set counts from 1
    meta = {"question_id": key, "unit": key, "image": image, "kind": name}
    return Sample(
        key,
        data.image(f"val2014/{image}", image),
        question_text(row, "text") + SINGLE_WORD,
        choices=LABELS,
        answer=label,
        meta=meta,
    )


def reading_of(prediction: str) -> str:
    """What the text is taken to say.

    >>> [reading_of(text) for text in ("No, none.", "Yes. No dog though.", "nothing", "NO")]
    ['no', 'yes', 'yes', 'yes']
    """
    sentence = prediction.strip().split(".")[0]
    words = sentence.replace(",", "").split(" ")
    return "yes" if NEGATIONS.isdisjoint(words) else "no"


def score(prediction: str, sample: Sample) -> float:
    """1 where the reading is the label."""
    return float(reading_of(prediction) == sample.answer)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Five numbers in percent for each set that was asked (`random/f1`, ...), and their means over
    the sets.
    """
    answers = Answers(rows, predictions, score)
    by_set: dict[str, dict[str, float]] = {}
    detail: dict[str, float] = {}
    for kind in SETS:
        pairs = [(sample, text) for sample, text in answers.pairs if sample.meta["kind"] == kind]
        if pairs:
            by_set[kind] = _numbers(pairs)
            detail |= {f"{kind}/{name}": number for name, number in by_set[kind].items()}
    means = {
        name: float(np.mean([numbers[name] for numbers in by_set.values()]))
        for name in NUMBERS
        if by_set
    }
    return means | detail | answers.counts()


def _numbers(pairs: Sequence[tuple[Sample, str]]) -> dict[str, float]:
    predicted = np.array([reading_of(text) == "yes" for _, text in pairs])
    true = np.array([sample.answer == "yes" for sample, _ in pairs])
    hits = int((predicted & true).sum())
    wrong = int((predicted != true).sum())
    shares = (
        _share(2 * hits, 2 * hits + wrong),
        _share(len(pairs) - wrong, len(pairs)),
        _share(hits, int(predicted.sum())),
        _share(hits, int(true.sum())),
        _share(int(predicted.sum()), len(pairs)),
    )
    return dict(zip(NUMBERS, shares, strict=True))


def _share(part: int, whole: int) -> float:
    return float(100 * part / whole) if whole else float("nan")


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, " sample"],
) -> Float[np.ndarray, " case"]:
    """`HEADLINE` of each case when each sample counts `times` times: what was answered follows from
    what is right.
    """
    is_yes = about["gold"] == "yes"
    scores = []
    for name in SETS:
        counts = np.where(about["kind"] == name, times, 0)
        if not counts.any():
            continue
        hits = (counts * is_yes) @ (correct == 1)
        wrong = counts @ (correct == 0)
        nothing = np.full(hits.shape, np.nan)
        has_answers = hits + wrong > 0
        f1 = np.divide(2 * hits, 2 * hits + wrong, out=nothing, where=has_answers)
        scores.append(100 * f1)
    return np.mean(scores, axis=0)


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `pope.jsonl` (--result-file of eval_pope.py) and `pope_questions.jsonl`
    (--question-file).
    """
    questions = (
        {
            "question_id": row["question_id"],
            "image": row["image"],
            "text": row["prompt"],
            "category": row["kind"],
        }
        for row, _ in official_answers(rows, predictions)
    )
    write_lines(questions, Path(folder) / "pope_questions.jsonl")
    return write_llava(rows, predictions, Path(folder) / "pope.jsonl")
