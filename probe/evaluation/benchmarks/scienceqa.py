"""ScienceQA: multiple choice from school books; about half of the questions have an image.

`problems.json` and `pid_splits.json` ({"test": ["4", "5", ...]}), images in
`images/test/<id>/image.png`; an entry:

    {"11": {"question": "What is the name of the colony shown?", "choices": ["Maryland",
     "New Hampshire", "Rhode Island", "Vermont"], "answer": 1, "hint": "", "image": "image.png",
     "split": "test", "subject": "social science", ...}}

LLaVA's own prompts (`llava_test_CQM-A.json`) are used where the folder has them, else built the
same way: the hint as "Context: ...", the question, one lettered option a line.

Rule: LLaVA's llava/eval/eval_science_qa.py. The text is one letter, or starts with "X. ", or says
"The answer is X." exactly once; else it is wrong. A letter beyond the options is wrong. Papers
print the accuracy over questions with an image. The script counts a missing answer as wrong.
LLaVA-Mini's own scripts feed each image twice; ours is fed once.
"""

import re
from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_list, json_object
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import one_of, shown
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    llava_line,
    official_answers,
    write_lines,
)
from probe.evaluation.benchmarks.prompts import LETTERS, OPTION_LETTER, multiple_choice

HEADLINE = "image_accuracy"
FILES = "problems.json, pid_splits.json, images/test/; llava_test_CQM-A.json if there"
SPLITS = ("test", "val", "train", "minitest", "minival")
_LETTER = re.compile(r"The answer is ([A-Z]).")  # the original's last full stop takes any character


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads the problems of a split. Raises ProbeError."""
    data = DataFolder("scienceqa", folder)
    reader = RowReader("scienceqa", split)
    file = data.find("problems.json")
    splits_file = data.find("pid_splits.json")
    prompts_file = data.look(f"llava_{split}_CQM-A.json")
    problems, repeated = json_object("scienceqa", file)
    reader.repeated(file, repeated)
    splits, _ = json_object("scienceqa", splits_file)
    there = [name for name, ids in splits.items() if isinstance(ids, list)]
    one_of("scienceqa", "a split among", split, there)
    prompts = _llava_prompts(reader, prompts_file) if prompts_file else {}
    for key in map(str, splits[split]):
        with reader.row(file, key) as official:
            official.update(question_id=key)
            if key not in problems:
                raise RowError(f"a problem for the id in {splits_file.name}", "none")
            reader.add(_sample(data, key, problems[key], prompts.get(key)))
    return reader.finish([path for path in (file, splits_file, prompts_file) if path])


def _llava_prompts(reader: RowReader, file: Path) -> dict[str, str]:
    prompts = {}
    for number, row in enumerate(json_list("scienceqa", file), 1):
        with reader.row(file, number):
            turns = entry(row, "conversations", list)
            if not turns:
                raise RowError("'conversations': a question", "an empty list")
            prompts[identifier(row, "id")] = (
                question_text(turns[0], "value").replace("<image>", "").strip()
            )
    return prompts


def _sample(data: DataFolder, key: str, row: Any, prompt: str | None) -> Sample:
    choices = entry(row, "choices", list)
    answer = entry(row, "answer", int)
    if not 2 <= len(choices) <= len(LETTERS) or not 0 <= answer < len(choices):
        raise RowError(
            "'answer': the place of one of 2 to 5 choices", f"{answer} of {shown(choices)}"
        )
    options = tuple(map(str, choices))
    has_image = bool(row.get("image"))
    path = _image(data, key, row, entry(row, "image")) if has_image else None
    meta = {"question_id": key, "unit": key, "image": key, "kind": str(row.get("subject", ""))}
    asked = prompt + OPTION_LETTER if prompt else multiple_choice(_with_hint(row), options)
    return Sample(key, path, asked, options, LETTERS[answer], meta)


def _image(data: DataFolder, key: str, row: Any, name: str) -> Path:
    split = row.get("split", "test")
    return data.image(f"images/{split}/{key}/{name}", f"{split}/{key}/{name}")


def _with_hint(row: Any) -> str:
    hint = row.get("hint") or ""
    question = question_text(row)
    return f"Context: {hint}\n{question}" if hint else question


def letter_of(prediction: str) -> str | None:
    """The letter that a text chooses, or None.

    >>> [letter_of(text) for text in ("B", "B. New Hampshire", "The answer is B.", "(B)", "B.")]
    ['B', 'B', 'B', None, None]
    """
    text = prediction.strip()
    if text in tuple(LETTERS):
        return text
    if text[:1] in tuple(LETTERS) and text[1:3] == ". ":
        return text[0]
    letters = _LETTER.findall(text)
    return letters[0] if len(letters) == 1 else None


def score(prediction: str, sample: Sample) -> float:
    """1 where the chosen letter is the answer."""
    return float(letter_of(prediction) == sample.answer)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Accuracy in percent: questions with an image, without one, all, and by subject; the same with
    missing answers as wrong, as the official script counts; and how many answers name no letter.
    """
    answers = Answers(rows, predictions, score)
    return {
        "image_accuracy": answers.percent(lambda sample: bool(sample.images)),
        "text_accuracy": answers.percent(lambda sample: not sample.images),
        "accuracy": answers.percent(),
        "image_accuracy_missing_as_wrong": answers.missing_as_wrong(lambda s: bool(s.images)),
        "accuracy_missing_as_wrong": answers.missing_as_wrong(),
        **answers.by("subject"),
        **answers.counts(),
        "no_letter": answers.count(lambda text, sample: letter_of(text) is None),
    }


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `scienceqa.jsonl`, the --result-file of eval_science_qa.py, which finds questions with
    an image by <image> in their prompt.
    """
    with_image = {row.id for row in rows if isinstance(row, Sample) and row.images}
    lines = []
    for row, text in official_answers(rows, predictions):
        prompt = row["prompt"]
        if row["answer_id"] in with_image:
            prompt = f"<image>\n{prompt}"
        lines.append(llava_line({**row, "prompt": prompt}, text))
    return write_lines(lines, Path(folder) / "scienceqa.jsonl")
