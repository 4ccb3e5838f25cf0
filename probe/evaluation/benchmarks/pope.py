"""POPE: does the model see things that are not there? Three sets of 3,000 yes-or-no questions about
COCO images.

`coco_pope_{random,popular,adversarial}.json` (JSON lines), images in `val2014/`; one line:

    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
     "label": "yes"}

Rule: LLaVA's llava/eval/eval_pope.py. Of the text up to the first full stop, commas dropped: "No",
"no" or "not" as a word between spaces means no, anything else yes. Accuracy, precision, recall, F1
and the share of yes in each set; papers print the mean F1 of the three.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, json_line, lines
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, shown
from probe.evaluation.benchmarks.answer_files import answered, counted, write_lines, write_llava
from probe.evaluation.benchmarks.prompts import SINGLE_WORD

HEADLINE, LABEL = "f1", "F1 (%)"
SETS = ("random", "popular", "adversarial")
SPLITS = ("all", *SETS)
LABELS = ("yes", "no")


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads one set or all three. Raises ProbeError."""
    if split not in SPLITS:
        raise ProbeError("pope", expected=f"a split among {', '.join(SPLITS)}", got=repr(split))
    data, reading = DataFolder("pope", folder), RowReader("pope", split)
    names = {name: f"coco_pope_{name}.json" for name in (SETS if split == "all" else (split,))}
    files = {name: data.find(file, f"coco/{file}") for name, file in names.items()}
    for name, file in files.items():
        for number, line in lines("pope", file):
            with reading.row(file, number):
                reading.add(_sample(data, name, json_line(line)))
    return reading.finish(list(files.values()))


def _sample(data: DataFolder, name: str, row: Any) -> Sample:
    label, image = entry(row, "label"), entry(row, "image")
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

    >>> [reading_of(text) for text in ("No, there is none.", "Yes. No dog though.", "nothing", "NO")]
    ['no', 'yes', 'yes', 'yes']
    """
    words = prediction.strip().split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def score(prediction: str, sample: Sample) -> float:
    """1 where the reading is the label."""
    return float(reading_of(prediction) == sample.answer)


def summarise(samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, float]:
    """Five numbers in percent for each set that was asked (`random/f1`, ...), and their means over
    the sets.
    """
    pairs = answered(samples, predictions)
    by_set = {
        name: _numbers([pair for pair in pairs if pair[0].meta["kind"] == name]) for name in SETS
    }
    asked = {name: numbers for name, numbers in by_set.items() if numbers}
    means = {
        name: float(np.mean([numbers[name] for numbers in asked.values()]))
        for name in _numbers(pairs)
    }
    detail = {
        f"{name}/{what}": value
        for name, numbers in asked.items()
        for what, value in numbers.items()
    }
    return means | detail | counted(samples, pairs)


def _numbers(pairs: Sequence[tuple[Sample, str]]) -> dict[str, float]:
    if not pairs:
        return {}
    said = np.array([reading_of(text) == "yes" for _, text in pairs])
    true = np.array([sample.answer == "yes" for sample, _ in pairs])
    hits, wrong = int((said & true).sum()), int((said != true).sum())
    return {
        "f1": _share(2 * hits, 2 * hits + wrong),
        "accuracy": _share(len(pairs) - wrong, len(pairs)),
        "precision": _share(hits, int(said.sum())),
        "recall": _share(hits, int(true.sum())),
        "yes": _share(int(said.sum()), len(pairs)),
    }


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, "sample"],
) -> Float[np.ndarray, "case"]:
    """`HEADLINE` of each case when each sample counts so often: what was said follows from what is
    right.
    """
    yes, f1 = about["gold"] == "yes", []
    for name in SETS:
        here = np.where(about["kind"] == name, times, 0)
        hits, wrong = (here * yes) @ (correct == 1), here @ (correct == 0)
        if here.any():
            f1.append(
                100
                * np.divide(
                    2 * hits,
                    2 * hits + wrong,
                    out=np.full(hits.shape, np.nan),
                    where=hits + wrong > 0,
                )
            )
    return np.mean(f1, axis=0)


def _share(part: int, whole: int) -> float:
    return float(100 * part / whole) if whole else float("nan")


def export(samples: Sequence[Sample], predictions: Mapping[str, str], folder: str | Path) -> Path:
    """Writes `pope.jsonl` (--result-file of eval_pope.py) and `pope_questions.jsonl`
    (--question-file).
    """
    asked = (
        {
            "question_id": s.meta["question_id"],
            "image": s.meta["image"],
            "text": s.question,
            "category": s.meta["kind"],
        }
        for s in samples
    )
    write_lines(asked, Path(folder) / "pope_questions.jsonl")
    return write_llava(samples, predictions, Path(folder) / "pope.jsonl")
