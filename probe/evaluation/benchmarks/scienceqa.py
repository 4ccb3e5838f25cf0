"""ScienceQA: multiple choice from school books; about half of the questions have an image.

`problems.json` and `pid_splits.json` ({"test": ["4", "5", ...]}), images in
`images/test/<id>/image.png`; an entry:

    {"11": {"question": "What is the name of the colony shown?", "choices": ["Maryland", "New Hampshire",
     "Rhode Island", "Vermont"], "answer": 1, "hint": "", "image": "image.png", "split": "test",
     "subject": "social science", ...}}

LLaVA's own prompts (`llava_test_CQM-A.json`) are used where the folder has them, else built the
same way: the hint as "Context: ...", the question, one lettered option a line.

Rule: LLaVA's llava/eval/eval_science_qa.py. The text is one letter, or starts with "X. ", or says
"The answer is X." exactly once; else it is wrong. A letter beyond the options is wrong. Papers
print the accuracy over questions with an image.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_list, json_object
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, shown
from probe.evaluation.benchmarks.answer_files import answered, counted, percent, write_llava
from probe.evaluation.benchmarks.prompts import LETTERS, OPTION_LETTER, multiple_choice

HEADLINE = "image_accuracy"
SPLITS = ("test", "val", "train", "minitest", "minival")
_SAID = re.compile(r"The answer is ([A-Z]).")  # the original's last full stop takes any character


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads the problems of a split. Raises ProbeError."""
    data, reading = DataFolder("scienceqa", folder), RowReader("scienceqa", split)
    file, splits_file = data.find("problems.json"), data.find("pid_splits.json")
    prompts_file = data.look(f"llava_{split}_CQM-A.json")
    problems, repeated = json_object("scienceqa", file)
    reading.repeated(file, repeated)
    splits, _ = json_object("scienceqa", splits_file)
    if not isinstance(splits.get(split), list):
        raise ProbeError(
            "scienceqa", expected=f"a split among {', '.join(splits)}", got=repr(split)
        )
    prompts = _llava_prompts(reading, prompts_file) if prompts_file else {}
    for key in map(str, splits[split]):
        with reading.row(file, key):
            if key not in problems:
                raise RowError(f"a problem for the id in {splits_file.name}", "none")
            reading.add(_sample(data, key, problems[key], prompts.get(key)))
    return reading.finish([path for path in (file, splits_file, prompts_file) if path])


def _llava_prompts(reading: RowReader, file: Path) -> dict[str, str]:
    prompts = {}
    for number, row in enumerate(json_list("scienceqa", file), 1):
        with reading.row(file, number):
            turns = entry(row, "conversations", list)
            if not turns:
                raise RowError("'conversations': a question", "an empty list")
            prompts[identifier(row, "id")] = (
                question_text(turns[0], "value").replace("<image>", "").strip()
            )
    return prompts


def _sample(data: DataFolder, key: str, row: Any, prompt: str | None) -> Sample:
    choices, answer = entry(row, "choices", list), entry(row, "answer", int)
    if not 2 <= len(choices) <= len(LETTERS) or not 0 <= answer < len(choices):
        raise RowError(
            "'answer': the place of one of 2 to 5 choices", f"{answer} of {shown(choices)}"
        )
    options = tuple(map(str, choices))
    picture = row.get("image") or None
    path = _image(data, key, row, entry(row, "image")) if picture else None
    meta = {"question_id": key, "unit": key, "image": key, "kind": str(row.get("subject", ""))}
    asked = prompt + OPTION_LETTER if prompt else multiple_choice(_with_hint(row), options)
    return Sample(key, path, asked, options, LETTERS[answer], meta)


def _image(data: DataFolder, key: str, row: Any, name: str) -> Path:
    split = row.get("split", "test")
    return data.image(f"images/{split}/{key}/{name}", f"{split}/{key}/{name}")


def _with_hint(row: Any) -> str:
    hint, question = row.get("hint") or "", question_text(row)
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
    said = _SAID.findall(text)
    return said[0] if len(said) == 1 else None


def score(prediction: str, sample: Sample) -> float:
    """1 where the chosen letter is the answer."""
    return float(letter_of(prediction) == sample.answer)


def summarise(samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, float]:
    """Accuracy in percent: all questions, those with and without an image, and by subject."""
    pairs = answered(samples, predictions)
    numbers = {
        "image_accuracy": percent(score(text, s) for s, text in pairs if s.images),
        "text_accuracy": percent(score(text, s) for s, text in pairs if not s.images),
        "accuracy": percent(score(text, s) for s, text in pairs),
    }
    for kind in sorted({sample.meta["kind"] for sample in samples}):
        numbers[f"subject/{kind}"] = percent(
            score(text, s) for s, text in pairs if s.meta["kind"] == kind
        )
    return numbers | counted(samples, pairs)


def export(samples: Sequence[Sample], predictions: Mapping[str, str], folder: str | Path) -> Path:
    """Writes `scienceqa.jsonl`, the --result-file of eval_science_qa.py, which finds images by
    <image>.
    """
    marked = [
        Sample(
            s.id,
            s.image,
            f"<image>\n{s.question}" if s.images else s.question,
            s.choices,
            s.answer,
            s.meta,
        )
        for s in samples
    ]
    return write_llava(marked, predictions, Path(folder) / "scienceqa.jsonl")
