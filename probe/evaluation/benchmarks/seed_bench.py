"""SEED-Bench: multiple choice about images (14,233 questions) and about the middle frame of videos
(5,009).

`SEED-Bench.json`, images in `SEED-Bench-image/`, frames in
`SEED-Bench-video-image/<type>_<question>.png` as LLaVA's extract_video_frames.py writes them:

    {"questions": [{"question_id": "101669", "question": "How many towels are in the image?",
      "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four", "answer": "A",
      "data_type": "image", "data_id": "1454426_2591111986", "question_type_id": 5}, ...],
     "question_type": {"Instances Counting": 5, ...}}

Rule: LLaVA's scripts/convert_seed_for_submission.py, text equals letter. lmms-eval takes the first
character instead; both are reported.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, read_json
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, shown
from probe.evaluation.benchmarks.answer_files import answered, counted, percent, write_lines
from probe.evaluation.benchmarks.prompts import multiple_choice

HEADLINE = "accuracy"
SPLITS = ("all", "image", "video")
LETTERS = "ABCD"


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads all questions, or those about images or videos. Raises ProbeError."""
    if split not in SPLITS:
        raise ProbeError("seed", expected=f"a split among {', '.join(SPLITS)}", got=repr(split))
    data, reading = DataFolder("seed", folder), RowReader("seed", split)
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
        with reading.row(file, number):
            if split in ("all", entry(row, "data_type")):
                reading.add(_sample(data, row, names))
    return reading.finish([file])


def _sample(data: DataFolder, row: Any, types: dict[int, str]) -> Sample:
    key, medium, kind = (
        identifier(row, "question_id"),
        entry(row, "data_type"),
        entry(row, "question_type_id", int),
    )
    options = tuple(question_text(row, f"choice_{letter.lower()}") for letter in LETTERS)
    answer = entry(row, "answer")
    if answer not in tuple(LETTERS):
        raise RowError("'answer': A, B, C or D", shown(answer))
    name = question_text(row, "data_id")
    path = (
        data.image(f"SEED-Bench-image/{name}")
        if medium == "image"
        else _frame(data, medium, kind, key)
    )
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
    """1 where the text starts with the letter: lmms-eval's rule."""
    return float(prediction.strip()[:1] == sample.answer)


def summarise(samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, float]:
    """Accuracy in percent: all, images, videos, by question type; and by lmms-eval's rule."""
    pairs = answered(samples, predictions)
    numbers = {"accuracy": percent(score(text, s) for s, text in pairs)}
    for medium in ("image", "video"):
        numbers[medium] = percent(score(text, s) for s, text in pairs if s.meta["medium"] == medium)
    numbers["first_character"] = percent(first_character(text, s) for s, text in pairs)
    for kind in sorted({sample.meta["kind"] for sample in samples}):
        numbers[f"type/{kind}"] = percent(
            score(text, s) for s, text in pairs if s.meta["kind"] == kind
        )
    return numbers | counted(samples, pairs)


def export(samples: Sequence[Sample], predictions: Mapping[str, str], folder: str | Path) -> Path:
    """Writes `seed.jsonl` for the leaderboard."""
    rows = (
        {"question_id": sample.meta["question_id"], "prediction": text}
        for sample, text in answered(samples, predictions)
    )
    return write_lines(rows, Path(folder) / "seed.jsonl")
