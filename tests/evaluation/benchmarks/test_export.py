"""Exports as official scorers read them: joined to the questions by position, and complete.

Each benchmark is written with a row that can't be used (its image is missing) and one that was not
answered; the scorers here go by position and fail on any missing row.
"""

import json

import pytest
from official_files import FOLDERS

from probe.evaluation.benchmarks import NAMES, named
from probe.evaluation.task import BenchmarkTask

# A judge of these reads only what was answered: test_videos.py
LEAVE_OUT_ROWS = ("msvd_qa", "msrvtt_qa", "activitynet_qa", "video_chatgpt")
READ_FROM_FILES = [name for name in NAMES if name not in ("shapes", *LEAVE_OUT_ROWS)]


def exported(name, folder, out):
    """The export of a run in which the first usable question was not answered."""
    task = BenchmarkTask.read(name, folder)
    _, *rest = task.benchmark.samples
    texts = {sample.id: f"answer to {sample.id}" for sample in rest}
    assert task.benchmark.problems, "the case needs a row that can't be used"
    return task, texts, task.export(texts, out)


@pytest.mark.parametrize("name", READ_FROM_FILES)
def test_every_official_row_is_there_in_the_order_of_the_file(name, tmp_path):
    pytest.importorskip("openpyxl") if name == "mmbench" else None
    official_ids, read_export = FOLDERS[name](tmp_path)
    _, texts, path = exported(name, tmp_path, tmp_path / "out")
    rows = read_export(path)
    assert [key for key, _ in rows] == official_ids
    empty = [place for place, (_, text) in enumerate(rows) if not text.strip()]
    assert len(empty) == len(official_ids) - len(texts)  # not answered, or could not be used
    assert 0 in empty and len(texts) > 0


@pytest.mark.parametrize("name", READ_FROM_FILES)
def test_what_is_missing_is_said_in_a_line(name, tmp_path):
    official_ids, _ = FOLDERS[name](tmp_path)
    task = BenchmarkTask.read(name, tmp_path)
    _, *rest = task.benchmark.samples
    line = task.missing_answers({sample.id: "x" for sample in rest})
    missing = len(official_ids) - len(rest)
    assert line.startswith(f"{missing} of {len(official_ids)} official rows have no answer")


@pytest.mark.parametrize("text", ["a\u2028b\x85c", "=1+1", "x\ud800", "\x0b\x1b[31m y", "a\r\n\tb"])
@pytest.mark.parametrize("name", READ_FROM_FILES)
def test_no_answer_breaks_a_row_or_becomes_something_else(name, text, tmp_path):
    pytest.importorskip("openpyxl") if name == "mmbench" else None
    official_ids, read_export = FOLDERS[name](tmp_path)
    task = BenchmarkTask.read(name, tmp_path)
    path = task.export({s.id: text for s in task.benchmark.samples}, tmp_path / "out")
    rows = read_export(path)
    assert [key for key, _ in rows] == official_ids
    assert sum(bool(answer.strip()) for _, answer in rows) == len(task.benchmark.samples)


def test_an_incomplete_pope_file_is_scored_by_position(tmp_path):
    """With one answer missing a set, the official script's number on our export is ours, with the
    missing answers read as "yes".
    """
    FOLDERS["pope"](tmp_path)
    pope = named("pope")
    task = BenchmarkTask.read("pope", tmp_path)
    texts = {sample.id: sample.answer for sample in task.benchmark.samples}
    path = task.export(texts, tmp_path / "out")
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    questions = path.with_name("pope_questions.jsonl").read_text().splitlines()
    category = {q["question_id"]: q["category"] for q in map(json.loads, questions)}
    for name in pope.SETS:
        labels = (tmp_path / f"coco_pope_{name}.json").read_text().splitlines()
        labels = [json.loads(line)["label"] for line in labels]
        given = [row["text"] for row in answers if category[row["question_id"]] == name]
        assert len(given) == len(labels)
        wrong = [
            i
            for i, (text, label) in enumerate(zip(given, labels, strict=True))
            if text and text != label
        ]
        assert wrong == []
