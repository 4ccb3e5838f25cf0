"""SEED-Bench: multiple choice about images (14,233 questions) and about the middle frame of videos
(5,009).

`SEED-Bench.json`, images in `SEED-Bench-image/`, frames in
`SEED-Bench-video-image/<type>_<question>.png` as LLaVA's extract_video_frames.py writes them:

    {"questions": [{"question_id": "101669", "question": "How many towels are in the image?",
      "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four", "answer": "A",
      "data_type": "image", "data_id": "1454426_2591111986", "question_type_id": 5}, ...],
     "question_type": {"Instances Counting": 5, ...}}

Rule: LLaVA's scripts/convert_seed_for_submission.py, text equals letter, a missing answer is wrong.
lmms-eval takes the first character instead, in upper or lower case; both are reported.
"""

from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, read_json
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, one_of, shown
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    write_lines,
)
from probe.evaluation.benchmarks.prompts import multiple_choice

HEADLINE = "accuracy"
FILES = "SEED-Bench.json, SEED-Bench-image/; SEED-Bench-video-image/ if there"
SPLITS = ("all", "image", "video")
LETTERS = "ABCD"


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads all questions, or those about images or videos. Raises ProbeError."""
    one_of("seed", "a split among", split, SPLITS)
    data = DataFolder("seed", folder)
    reader = RowReader("seed", split)
    file = data.find("SEED-Bench.json")
    content, _ = read_json("seed", file)
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise ProbeError(
            "seed",
            expected=f"an object with a list of 'questions' in {file.name}",
            got=shown(content),
        )
    types = content.get("question_type")
    names = {number: name for name, number in types.items()} if isinstance(types, dict) else {}
    for number, row in enumerate(content["questions"], 1):
        with reader.row(file, number) as official:
            if split in ("all", entry(row, "data_type")):
                identifier(row, "question_id")
                official.update(question_id=row["question_id"])
                reader.add(_sample(data, row, names))
    return reader.finish([file])


def _sample(data: DataFolder, row: Any, types: dict[int, str]) -> Sample:
    key = identifier(row, "question_id")
    medium = entry(row, "data_type")
    kind = entry(row, "question_type_id", int)
    options = tuple(question_text(row, f"choice_{letter.lower()}") for letter in LETTERS)
    answer = entry(row, "answer")
    if answer not in tuple(LETTERS):
        raise RowError("'answer': A, B, C or D", shown(answer))
    name = question_text(row, "data_id")
    is_image = medium == "image"
    path = data.image(f"SEED-Bench-image/{name}") if is_image else _frame(data, medium, kind, key)
    meta = {
        "question_id": row["question_id"],
        "unit": key,
        "image": name,
        "kind": str(types.get(kind, kind)),
        "medium": medium,
    }
    return Sample(key, path, multiple_choice(question_text(row), options), options, answer, meta)


def _frame(data: DataFolder, medium: str, kind: int, key: str) -> Path:
    if medium != "video":
        raise RowError("'data_type': image or video", shown(medium))
    return data.image(f"SEED-Bench-video-image/{kind}_{key}.png")


def score(prediction: str, sample: Sample) -> float:
    """1 where the text is the letter and nothing else."""
    return float(prediction.strip() == sample.answer)


def first_character(prediction: str, sample: Sample) -> float:
    """1 where the text starts with the letter, in upper or lower case: lmms-eval's rule.

    >>> first_character("b) three", Sample("1", None, "?", answer="B"))
    1.0
    """
    return float(prediction.strip()[:1].upper() == sample.answer)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Accuracy in percent: all, images, videos, by question type; with missing answers as wrong, as
    the official script counts; by lmms-eval's rule; and how many answers are not a single letter.
    """
    answers = Answers(rows, predictions, score)
    return {
        "accuracy": answers.percent(),
        "image": answers.percent(lambda sample: sample.meta["medium"] == "image"),
        "video": answers.percent(lambda sample: sample.meta["medium"] == "video"),
        "accuracy_missing_as_wrong": answers.missing_as_wrong(),
        "first_character": Answers(rows, predictions, first_character).percent(),
        **answers.by("type"),
        **answers.counts(),
        "no_letter": answers.count(lambda text, sample: text.strip() not in tuple(LETTERS)),
    }


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `seed.jsonl` for the leaderboard."""
    answers = (
        {"question_id": row["question_id"], "prediction": text}
        for row, text in official_answers(rows, predictions)
    )
    return write_lines(answers, Path(folder) / "seed.jsonl")
