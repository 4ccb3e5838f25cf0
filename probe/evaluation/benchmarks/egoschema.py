"""EgoSchema: multiple choice about three minutes of first-person video, five options.

`mc.json` (LLaVA-Mini's file), or the official `questions.json` (5,031 rows) with
`subset_answers.json` ({q_uid: 0 to 4}, 500 rows), videos in `videos/`; one entry:

    {"q_uid": "0074f737-11cb-497d-8d07-77c3a8127391", "google_drive_id": "...",
     "question": "Taking into account all the actions performed by c, what can you deduce ...?",
     "option 0": "C is cooking.", "option 1": "C is doing laundry.", ..., "answer": 3}

Rule: the first character of the answer among A to E, none is wrong. So "Answer: D" reads A.
Official files join to the 500 rows with a public answer (split "subset"); of the others (split
"all") only the submission is written. A missing video counts in LLaVA-Mini's denominator:
`accuracy_missing_as_wrong`.

LLaVA-Mini's script for this benchmark alone shows every frame twice (its `split_image` lacks the
case of one view) and uses the template "v1": its number is made under other conditions than those
of the other benchmarks. Neither is imitated here; the prompt's first sentence is in our own words.

Source: llavamini/eval/video/egoschema_mc.py; egoschema/EgoSchema, validate.py.
"""

from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_list, json_object
from probe.data.image import Video
from probe.data.rows import Benchmark, RowError, RowReader, identifier, question_text
from probe.data.sample import Sample
from probe.errors import one_of, shown
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    write_json,
    write_lines,
)
from probe.evaluation.benchmarks.video_choices import letter_read

HEADLINE = "accuracy"
FILES = "mc.json, or questions.json and subset_answers.json; videos/"
SPLITS = ("subset", "all")
LETTERS = "ABCDE"
NONE = -1  # no letter in an answer
SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
TASK = (
    "You are an expert in understanding videos that a person recorded of their own activities. "
    "Choose the best of five answers to the question and reply with a single letter, A to E."
)


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads the rows with a public answer, or all. Raises ProbeError."""
    one_of("egoschema", "a split among", split, SPLITS)
    data = DataFolder("egoschema", folder)
    reader = RowReader("egoschema", split)
    file = data.find("mc.json", "questions.json")
    answers: dict[str, Any] = {}
    files = [file]
    public = data.look("subset_answers.json") if file.name == "questions.json" else None
    if public is not None:
        answers, repeated = json_object("egoschema", public)
        reader.repeated(public, repeated)
        files.append(public)
    for number, row in enumerate(json_list("egoschema", file), 1):
        if split == "subset" and not _answered(row, answers):
            continue
        with reader.row(file, number) as official:
            official.update(question_id=identifier(row, "q_uid"))
            reader.add(_sample(data, row, answers))
    return reader.finish(files)


def _answered(row: Any, answers: dict[str, Any]) -> bool:
    """Whether an answer is known; what is not a row is left for the reader to list."""
    return not isinstance(row, dict) or "answer" in row or row.get("q_uid") in answers


def _sample(data: DataFolder, row: Any, answers: dict[str, Any]) -> Sample:
    key = identifier(row, "q_uid")
    options = tuple(question_text(row, f"option {place}") for place in range(len(LETTERS)))
    answer = row.get("answer", answers.get(key))
    is_place = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < 5
    if answer is not None and not is_place:
        raise RowError("'answer': a whole number from 0 to 4", shown(answer))
    path = data.video(*(f"videos/{key}{suffix}" for suffix in SUFFIXES))
    meta = {"question_id": key, "unit": key, "image": key, "kind": ""}
    known = None if answer is None else LETTERS[answer]
    return Sample(key, Video(path), _prompt(row, options), options, known, meta)


def _prompt(row: Any, options: tuple[str, ...]) -> str:
    listed = [f"{letter}: {text}" for letter, text in zip(LETTERS, options, strict=True)]
    return "\n".join([TASK, question_text(row), "Choices:", *listed, "", "Answer with one letter."])


def reading_of(prediction: str) -> int:
    """The option that the text is taken to say, from 0; -1 for none.

    >>> [reading_of(text) for text in ("B.", "Answer: D", "None", "Both")]
    [1, 0, -1, 1]
    """
    letter = letter_read(prediction, LETTERS, otherwise="")
    return LETTERS.index(letter) if letter else NONE


def score(prediction: str, sample: Sample) -> float:
    """1 where the reading is the answer (a letter, or its number from 0); NaN where it is not
    public.
    """
    if sample.answer is None:
        return float("nan")
    answer = str(sample.answer)
    gold = LETTERS.index(answer) if answer in LETTERS else int(answer)
    return float(reading_of(prediction) == gold)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Accuracy in percent over the rows with a public answer; with missing answers as wrong, as
    LLaVA-Mini's script counts; and how many answers have no letter.
    """
    answers = Answers(rows, predictions, score)
    public = [row for row in rows if not isinstance(row, Sample) or row.answer is not None]
    return {
        "accuracy": answers.percent(),
        "accuracy_missing_as_wrong": Answers(public, predictions, score).missing_as_wrong(),
        **answers.counts(),
        "no_letter": answers.count(lambda text, sample: reading_of(text) == NONE),
    }


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `egoschema.jsonl` (the answers) and, beside it, `egoschema_submission.json` for
    validate.py: {q_uid: 0 to 4}, -1 where the answer has no letter.
    """
    submission: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for row, text in official_answers(rows, predictions):
        key = row["question_id"]
        submission[key] = reading_of(text)
        lines.append({"q_uid": key, "pred": text})
    write_json(submission, Path(folder) / "egoschema_submission.json")
    return write_lines(lines, Path(folder) / "egoschema.jsonl")
