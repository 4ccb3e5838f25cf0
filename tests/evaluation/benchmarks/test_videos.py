"""Benchmarks about videos: read, scored by every rule, exported for a judge and its scores read."""

import json

import numpy as np
import pytest
from official_files import write

from probe.data.image import Video
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.benchmarks import mm_vet, named
from probe.evaluation.benchmarks.egoschema import reading_of
from probe.evaluation.benchmarks.video_choices import (
    before_bracket,
    first_letter,
    letter_read,
    notebook_rule,
)
from probe.evaluation.benchmarks.video_judge import verdicts

CANDIDATES = ("red car", "blue car", "green car", "no car")
CAR = Sample("1", None, "?", CANDIDATES, "blue car")
VECTORS = [  # answer; by LLaVA-Mini's print, its file (letter), EgoSchema, MVBench's notebook
    ("B", True, "B", 1, True),
    ("(B) blue car", True, "B", 1, True),
    ("B.", False, "B", 1, True),
    ("B) blue car", True, "B", 1, True),
    ("B: blue car", False, "B", 1, False),
    ("The answer is B", False, "B", 1, False),
    ("Answer: B", False, "A", 0, False),
    ("I see a man (B)", True, "B", 1, False),
    ("B (because)", False, "B", 1, True),
    ("(A) or (B)", False, "A", 0, False),
    ("b", False, "A", -1, True),
    ("(b)", False, "A", -1, True),
    ("N/A", False, "A", 0, False),
    ("None", False, "A", -1, False),
    ("", False, "A", -1, True),
    ("Both", False, "B", 1, False),
]


@pytest.mark.parametrize(("answer", "printed", "letter", "place", "notebook"), VECTORS)
def test_rules_read_answers_as_the_authors_code_does(answer, printed, letter, place, notebook):
    assert before_bracket(answer, CAR) == printed
    assert letter_read(answer, "ABCD", otherwise="A") == letter
    assert first_letter(answer, CAR) == (letter == "B")
    assert reading_of(answer) == place
    assert notebook_rule(answer, CAR) == notebook
    for name in ("mvbench", "mlvu"):
        assert named(name).score(answer, CAR) == printed
    assert named("egoschema").score(answer, Sample("1", None, "?", answer="1")) == (place == 1)


def mvbench(root):
    row = {"question": "Which?", "candidates": ["a", "b", "b"], "answer": "b"}
    rows = [row | {"video": "1.mp4"}, row | {"video": "2.mp4"}, row | {"answer": "z"}]
    rows[2]["video"] = "1.mp4"
    write(root / "json/action_count.json", rows)
    write(root / "json/action_sequence.json", [row | {"video": "3.mp4", "start": 1.5, "end": 4}])
    write(root / "json/episodic_reasoning.json", [row | {"video": "show"}])
    write(root / "video/perception/videos/1.mp4", "")
    write(root / "video/star/Charades_segment/3.mp4", "")
    write(root / "video/tvqa/frames_fps3_hq/show/00001.jpg", "")
    return named("mvbench").read(root)


def test_mvbench_is_read_and_scored_by_task(tmp_path):
    found = mvbench(tmp_path)
    samples = {sample.id: sample for sample in found.samples}
    assert list(samples) == [
        "action_sequence/0",
        "action_count/0",
        "action_count/2",
        "episodic_reasoning/0",
    ]
    assert "17 of 20 tasks have no file" in found.note
    assert "2.mp4" in str(found.problems[0])
    first = samples["action_sequence/0"]
    assert first.question == (
        "Question: Which?\nOptions:\n(A) a\n(B) b\n(C) b\nAnswer with one letter."
    )
    assert first.image == Video(first.image.path, max_frames=1000)  # start and end aren't used
    assert (first.meta["start"], first.meta["end"]) == (1.5, 4)
    assert samples["episodic_reasoning/0"].image.max_frames is None  # all frames of a folder
    texts = {"action_sequence/0": "C", "action_count/0": "C", "action_count/2": "C"}
    texts["episodic_reasoning/0"] = "The answer is C"
    numbers = named("mvbench").summarise(found.official_rows, texts)
    # the last of equal candidates counts; an answer that is no candidate is never right
    assert numbers["task/action_sequence"] == 100 and numbers["task/action_count"] == 50
    assert numbers["task/episodic_reasoning"] == 0
    assert numbers["first_letter/episodic_reasoning"] == 100
    assert numbers["accuracy"] == pytest.approx(50)
    assert numbers["first_letter"] == pytest.approx(250 / 3)
    about = {"kind": np.array([row.meta["kind"] for row in found.samples])}
    scores = np.array([[named("mvbench").score(texts[row.id], row)] for row in found.samples])
    ones = np.ones(len(scores), dtype=int)
    assert named("mvbench").weighted(about, scores, ones) == pytest.approx([50])
    with pytest.raises(ProbeError, match="no task's file"):
        named("mlvu").read(tmp_path)


def test_an_unreadable_video_is_read_as_a_in_llava_minis_file(tmp_path):
    found = mvbench(tmp_path)
    numbers = named("mvbench").summarise(found.official_rows, {})
    assert np.isnan(numbers["accuracy"]) and numbers["first_letter_missing_as_a"] == 0
    assert numbers["accuracy_missing_as_wrong"] == 0 and numbers["unreadable_rows"] == 1


def test_egoschema_joins_its_official_files(tmp_path):
    options = {f"option {place}": f"it is {place}" for place in range(5)}
    rows = [{"q_uid": name, "question": "Why?", **options} for name in ("a", "b", "c")]
    write(tmp_path / "questions.json", rows)
    write(tmp_path / "subset_answers.json", {"a": 3, "b": 0})
    for name in ("a.mkv", "c.mp4"):
        write(tmp_path / "videos" / name, "")
    ego = named("egoschema")
    found = ego.read(tmp_path)
    (sample,) = found.samples
    assert sample.image.path.name == "a.mkv" and sample.answer == "D"
    assert sample.question.endswith("E: it is 4\n\nAnswer with one letter.")
    numbers = ego.summarise(found.official_rows, {"a": "Answer: D"})
    assert numbers["accuracy"] == 0  # the A of "Answer" comes first
    assert numbers["accuracy_missing_as_wrong"] == 0
    everything = ego.read(tmp_path, split="all")
    assert np.isnan(ego.score("A", everything.samples[1]))
    path = ego.export(everything.official_rows, {"a": "D", "c": "who knows"}, tmp_path)
    submission = json.loads((path.parent / "egoschema_submission.json").read_text())
    assert submission == {"a": 3, "b": -1, "c": -1}


def activitynet(root):
    names = ("x", "y", "x")
    keys = [f"v_{name}_{place}" for place, name in enumerate(names)]
    questions = [
        {"video_name": name, "question": "is it red", "question_id": key}
        for name, key in zip(names, keys, strict=True)
    ]
    answers = [{"answer": "yes", "type": 3, "question_id": key} for key in keys]
    write(root / "test_q.json", questions)
    write(root / "test_a.json", answers)
    write(root / "videos/v_x.avi", "")
    return named("activitynet_qa"), keys


def test_a_video_whose_own_name_begins_like_the_prefix(tmp_path):
    """ActivityNet's files are named v_ and the id, and an id may begin with v_."""
    qa, keys = activitynet(tmp_path)
    named_so = ("v_x", "v_z")
    rows = [
        {"video_name": name, "question": "is it red", "question_id": key}
        for name, key in zip(named_so, keys, strict=False)
    ]
    write(tmp_path / "test_q.json", rows)
    write(
        tmp_path / "test_a.json",
        [{"answer": "yes", "question_id": row["question_id"]} for row in rows],
    )
    write(tmp_path / "videos/v_v_z.mp4", "")
    found = [sample.image.path.name for sample in qa.read(tmp_path).samples]
    assert found == ["v_x.avi", "v_v_z.mp4"]


def test_open_questions_are_exported_for_a_judge_and_its_words_read(tmp_path):
    qa, keys = activitynet(tmp_path)
    found = qa.read(tmp_path)
    assert [sample.id for sample in found.samples] == [keys[0], keys[2]]
    assert found.samples[0].image.path.name == "v_x.avi" and found.note == ""
    assert found.samples[0].question.endswith("one complete sentence:\nis it red")
    path = qa.export(found.official_rows, {keys[0]: "It is.", keys[2]: "No."}, tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "id": keys[0],
        "question": "is it red",
        "answer": "yes",
        "pred": "It is.",
    }
    assert len(lines) == 2  # the question without a video is left out
    write(tmp_path / "prompt.txt", "Answer like this: ")
    assert qa.read(tmp_path).samples[0].question == "Answer like this: is it red"


def test_verdicts_count_as_in_the_protocol(tmp_path):
    qa, keys = activitynet(tmp_path)
    said = {
        keys[0]: [{"pred": "Yes", "score": 4.8}, {"q": "is it red"}],
        keys[2]: [{"pred": "no, not at all", "score": 1}],
        "fails": [{"pred": "yes", "score": "4.5"}],
        "neither": [{"pred": "perhaps", "score": 5}],
    }
    write(tmp_path / "judged.json", said)
    assert qa.judged(tmp_path / "judged.json") == {keys[0]: 1.0, keys[2]: 0.0}
    rows = [Sample(key, None, "?", meta={"kind": "3"}) for key in said]
    found = verdicts("qa", tmp_path / "judged.json")
    numbers = qa.summarise(rows, dict.fromkeys(said, "x"), found)
    assert numbers["accuracy"] == 50  # neither, and what fails, are left out
    assert numbers["score"] == (4 + 1 + 0 + 5) / 4  # what fails still counts
    assert numbers["type/3"] == 50
    write(tmp_path / "judged.json", {"a": "yes"})
    with pytest.raises(ProbeError, match="a list that begins with the judge's object for 'a'"):
        qa.judged(tmp_path / "judged.json")
    twice = '{"a": [{"pred": "yes", "score": 4}], "a": [{"pred": "no", "score": 0}]}'
    (tmp_path / "judged.json").write_text(twice)
    for read in (qa.judged, mm_vet.judged):
        with pytest.raises(ProbeError, match=r"each key of judged\.json once, got 'a' several"):
            read(tmp_path / "judged.json")


def test_answers_are_joined_by_position_and_the_note_says_where_ids_differ(tmp_path):
    qa, _ = activitynet(tmp_path)
    answers = json.loads((tmp_path / "test_a.json").read_text())
    write(tmp_path / "test_a.json", answers[::-1])
    assert "2 answers have another id" in qa.read(tmp_path).note


def test_the_five_scores_count_questions_by_video(tmp_path):
    rows = [
        {"video_name": name, "Q1": f"what {place}", "Q2": f"which {place}", "A": "a dog"}
        for place, name in enumerate(("x", "y", "x"))
    ]
    write(tmp_path / "consistency_qa.json", rows)
    write(tmp_path / "generic_qa.json", [{"video_name": "x", "Q": "what", "A": "a dog"}])
    write(tmp_path / "Test_Videos/x.mp4", "")
    bench = named("video_chatgpt")
    found = bench.read(tmp_path, split="consistency")
    assert [sample.id for sample in found.samples] == ["x_0", "x_0/2", "x_1", "x_1/2"]
    path = bench.export(found.official_rows, {"x_0": "dog", "x_0/2": "cat"}, tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"id": "x_0", **rows[0], "pred1": "dog", "pred2": "cat"}
    write(tmp_path / "judged.json", {"x_0": [{"score": 3}], "x_1": [{"score": 4.9}]})
    found_marks = verdicts("video_chatgpt", tmp_path / "judged.json")
    numbers = bench.summarise(found.official_rows, {"x_0": "dog", "x_1": "cat"}, found_marks)
    assert numbers["score"] == 3.5
    assert bench.judged(tmp_path / "judged.json") == {"x_0": 0.6, "x_1": 0.8}
    assert bench.weighted({}, np.array([[0.6], [0.8]]), np.array([1, 1])) == pytest.approx([3.5])
    (generic,) = bench.read(tmp_path).samples
    assert (generic.id, generic.question) == ("x_0", "what")
