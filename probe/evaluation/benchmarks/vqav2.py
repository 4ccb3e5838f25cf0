"""VQAv2: open questions about COCO images (validation: 214,354 questions, 40,504 images).

`v2_OpenEnded_mscoco_val2014_questions.json` and `v2_mscoco_val2014_annotations.json`, images in
`val2014/`:

    {"questions":   [{"image_id": 262148, "question": "Where is he looking?",
                      "question_id": 262148000}, ...]}
    {"annotations": [{"question_id": 262148000, "image_id": 262148, "answer_type": "other",
      "question_type": "none of the above", "multiple_choice_answer": "down", "answers":
      [{"answer": "down", "answer_confidence": "yes", "answer_id": 1}, ... ten in all]}, ...]}

Rule: the soft score (`vqa_score`). Test splits have no annotations: they are answered and exported
for the server (LLaVA's scripts/convert_vqav2_for_submission.py: normalised answers).
"""

from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_list
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    write_json,
)
from probe.evaluation.benchmarks.prompts import SINGLE_WORD
from probe.evaluation.benchmarks.textvqa import ten_answers
from probe.evaluation.benchmarks.vqa_accuracy import normalise, score_of_people

HEADLINE = "accuracy"
FILES = "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/"
SPLITS = ("val2014", "test-dev2015", "test2015")


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads the questions of a split and, except for tests, their annotations. Raises
    ProbeError.
    """
    data = DataFolder("vqav2", folder)
    reader = RowReader("vqav2", split)
    file = data.find(f"v2_OpenEnded_mscoco_{split}_questions.json")
    tested = split.startswith("test")
    annotations_file = None if tested else data.find(f"v2_mscoco_{split}_annotations.json")
    annotations = _annotations(reader, annotations_file) if annotations_file else None
    for number, row in enumerate(json_list("vqav2", file, "questions"), 1):
        with reader.row(file, number) as official:
            identifier(row, "question_id")
            official.update(question_id=row["question_id"])
            reader.add(_sample(data, row, "test2015" if tested else split, annotations))
    return reader.finish([path for path in (file, annotations_file) if path])


def _annotations(reader: RowReader, file: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The answer type and the ten answers of each question."""
    found = {}
    for number, row in enumerate(json_list("vqav2", file, "annotations"), 1):
        with reader.row(file, number):
            answers = ten_answers(entry(row, "answers", list))
            found[identifier(row, "question_id")] = str(row.get("answer_type", "")), answers
    return found


def _sample(data: DataFolder, row: Any, images: str, annotations: dict | None) -> Sample:
    number = entry(row, "image_id", int)
    key = identifier(row, "question_id")
    if annotations is not None and key not in annotations:
        raise RowError("an annotation with ten answers for the question", f"none for {key}")
    kind, answers = annotations[key] if annotations is not None else ("", None)
    name = f"COCO_{images}_{number:012d}.jpg"
    meta = {"question_id": row["question_id"], "unit": key, "image": name, "kind": kind}
    return Sample(
        key,
        data.image(f"{images}/{name}", name),
        question_text(row) + SINGLE_WORD,
        answer=answers,
        meta=meta,
    )


def score(prediction: str, sample: Sample) -> float:
    """Agreement with the ten people, 0 to 1; NaN in test splits."""
    return score_of_people(prediction, sample)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Mean soft score in percent: all, and by answer type (yes/no, number, other)."""
    answers = Answers(rows, predictions, score)
    return {"accuracy": answers.percent(), **answers.by("type"), **answers.counts()}


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `vqav2.json` for the server, which refuses a file that lacks a question."""
    submission = [
        {"question_id": row["question_id"], "answer": normalise(text)}
        for row, text in official_answers(rows, predictions)
    ]
    return write_json(submission, Path(folder) / "vqav2.json")
