"""TextVQA: questions that need the text in the image to be read (validation: 5,000 questions).

`TextVQA_0.5.1_val.json`, images in `train_images/`; one entry of its `data`:

    {"question_id": 34602, "image_id": "003a8ae2ef43b901",
     "question": "what is the brand of this camera?",
     "answers": ["nous les gosses", "dakota", ... ten in all]}

LLaVA's number (58.2) is with an OCR system's words in the prompt ("Reference OCR token: DAKOTA,
DIGITAL, ..."). They are taken from `llava_textvqa_val_v051_ocr.jsonl` or
`TextVQA_Rosetta_OCR_v0.2_val.json`, whichever is in the folder; with neither (or `ocr=False`) the
question is asked alone, which is some 12 points harder. `meta["ocr"]` says which it was.

Rule: the soft score (`vqa_score`), as in LLaVA's llava/eval/eval_textvqa.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_line, json_list, lines
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import shown
from probe.evaluation.benchmarks.answer_files import Answers, Predictions, Rows, write_llava
from probe.evaluation.benchmarks.prompts import SINGLE_WORD
from probe.evaluation.benchmarks.vqa_accuracy import score_of_people

HEADLINE = "accuracy"
FILES = "TextVQA_0.5.1_val.json, train_images/; llava_textvqa_val_v051_ocr.jsonl if there"
SPLITS = ("val",)
PEOPLE = 10


def read(folder: str | Path, split: str = SPLITS[0], ocr: bool = True) -> Benchmark:
    """Reads the questions, and LLaVA's prompts or the OCR words where the folder has them. Raises
    ProbeError.
    """
    data = DataFolder("textvqa", folder)
    reader = RowReader("textvqa", split)
    file = data.find(f"TextVQA_0.5.1_{split}.json")
    prompts = data.look(f"llava_textvqa_{split}_v051_ocr.jsonl") if ocr else None
    rosetta = data.look(f"TextVQA_Rosetta_OCR_v0.2_{split}.json") if ocr and not prompts else None
    by_question = _llava_prompts(reader, prompts) if prompts else {}
    by_image = _ocr_words(reader, rosetta) if rosetta else {}
    for number, row in enumerate(json_list("textvqa", file, "data"), 1):
        with reader.row(file, number) as official:
            official.update(question_id=identifier(row, "image_id"))
            official.update(answer_id=identifier(row, "question_id"))
            reader.add(_sample(data, row, by_question, by_image))
    return reader.finish([path for path in (file, prompts, rosetta) if path])


def _llava_prompts(reader: RowReader, file: Path) -> dict[tuple[str, str], str]:
    """LLaVA's prompt of each (image, question in lower case): the key by which its scorer joins."""
    prompts = {}
    for number, line in lines("textvqa", file):
        with reader.row(file, number):
            row = json_line(line)
            text = question_text(row, "text")
            prompts[identifier(row, "question_id"), text.split("\n")[0].lower()] = text
    return prompts


def _ocr_words(reader: RowReader, file: Path) -> dict[str, str]:
    words = {}
    for number, row in enumerate(json_list("textvqa", file, "data"), 1):
        with reader.row(file, number):
            words[identifier(row, "image_id")] = ", ".join(map(str, entry(row, "ocr_tokens", list)))
    return words


def _sample(
    data: DataFolder, row: Any, prompts: dict[tuple[str, str], str], words: dict[str, str]
) -> Sample:
    image = identifier(row, "image_id")
    question = question_text(row)
    key = identifier(row, "question_id")
    prompt = prompts.get((image, question.lower()))
    source = "llava"
    if prompt is None:
        reference = f"\nReference OCR token: {words[image]}" if image in words else ""
        prompt = question.capitalize() + reference + SINGLE_WORD
        source = "rosetta" if reference else "none"
    meta = {"question_id": image, "unit": key, "image": image, "kind": "all", "ocr": source}
    path = data.image(f"train_images/{image}.jpg", f"train_val_images/train_images/{image}.jpg")
    return Sample(key, path, prompt, answer=ten_answers(entry(row, "answers", list)), meta=meta)


def ten_answers(given: Sequence[object]) -> tuple[str, ...]:
    """The ten people's answers, from a list of text or of {"answer": text}. Raises RowError."""
    answers = [each.get("answer") if isinstance(each, Mapping) else each for each in given]
    if len(answers) != PEOPLE or not all(isinstance(answer, str) for answer in answers):
        raise RowError(f"'answers': {PEOPLE} texts", f"{len(answers)}: {shown(answers)}")
    return tuple(map(str, answers))


def score(prediction: str, sample: Sample) -> float:
    """Agreement with the ten people, 0 to 1."""
    return score_of_people(prediction, sample)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Mean soft score in percent, and how many prompts had OCR words."""
    answers = Answers(rows, predictions, score)
    with_ocr = sum(sample.meta["ocr"] != "none" for sample in answers.samples)
    return {"accuracy": answers.percent(), **answers.counts(), "with_ocr": float(with_ocr)}


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `textvqa.jsonl`, the --result-file of eval_textvqa.py (its question_id is the
    image's).
    """
    return write_llava(rows, predictions, Path(folder) / "textvqa.jsonl")
