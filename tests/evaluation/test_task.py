"""Questions that are asked, in which order, and whose image stands in for another."""

import json

import pytest
from PIL import Image

from probe.errors import ProbeError
from probe.evaluation.task import BenchmarkTask


def gqa(folder, rows: dict, images=("one", "two", "three")):
    """A folder with official files: questions, and images of different sizes."""
    (folder / "images").mkdir(exist_ok=True)
    for size, name in enumerate(images, 20):
        Image.new("RGB", (size, 20), "teal").save(folder / "images" / f"{name}.jpg")
    kinds = {"structural": "query", "semantic": "attr", "detailed": "x"}
    usual = {"question": "What is it?", "answer": "red", "isBalanced": True, "types": kinds}
    whole = {key: usual | row for key, row in rows.items()}
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(whole))
    return folder


def test_questions_about_one_image_come_together(tmp_path):
    rows = {
        "1": {"imageId": "one"},
        "2": {"imageId": "two"},
        "3": {"imageId": "one"},
        "4": {"imageId": "three"},
    }
    task = BenchmarkTask.read("gqa", gqa(tmp_path, rows))
    assert [sample.id for sample in task.samples] == ["1", "3", "2", "4"]
    assert [sample.id for sample in BenchmarkTask.read("gqa", tmp_path, limit=2).samples] == [
        "1",
        "2",
    ]
    assert task.score("Red.", task.samples[0]) == 1
    assert task.summarise({"1": "red", "2": "blue"})["accuracy"] == 50


def test_the_donor_is_the_next_image_whatever_the_limit(tmp_path):
    rows = {"1": {"imageId": "one"}, "2": {"imageId": "two"}, "3": {"imageId": "three"}}
    gqa(tmp_path, rows)
    for limit in (None, 1):
        task = BenchmarkTask.read("gqa", tmp_path, limit=limit)
        donor = task.donor(task.samples[0])
        assert donor is not None and donor[0].size == (21, 20)
    last = BenchmarkTask.read("gqa", tmp_path).samples[-1]
    task = BenchmarkTask.read("gqa", tmp_path)
    assert [image.size for image in task.donor(last) or ()] == [(20, 20)]
    assert [image.size for image in task.donor(last, same_size=True) or ()] == [(22, 20)]


def test_a_donor_is_turned_as_its_subject_says(tmp_path):
    rows = {"1": {"imageId": "one"}, "2": {"imageId": "two"}}
    task = BenchmarkTask.read("gqa", gqa(tmp_path, rows, ("one", "two")))
    quarter_turn = Image.Exif()
    quarter_turn[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "two.jpg", exif=quarter_turn)
    sizes = {exif: task.donor(task.samples[0], exif=exif)[0].size for exif in ("upright", "ignore")}
    assert sizes == {"upright": (6, 8), "ignore": (8, 6)}


def test_a_image_that_cannot_be_opened_is_no_donor(tmp_path):
    rows = {"1": {"imageId": "one"}, "2": {"imageId": "two"}}
    task = BenchmarkTask.read("gqa", gqa(tmp_path, rows, ("one", "two")))
    (tmp_path / "images" / "two.jpg").write_text("no image")
    assert task.donor(task.samples[0]) is None
    assert task.donor(task.samples[1]) is not None


def test_bad_rows_are_listed_and_the_rest_is_asked(tmp_path):
    task = BenchmarkTask.read(
        "gqa",
        gqa(tmp_path, {"1": {"imageId": "one"}, "2": {"imageId": "../one"}, "3": {"answer": 4}}),
    )
    assert [sample.id for sample in task.samples] == ["1"]
    assert [problem.row for problem in task.benchmark.problems] == ["2", "3"]


@pytest.mark.parametrize(
    ("name", "data", "limit", "told"),
    [
        ("nope", None, None, "expected one of shapes, gqa"),
        ("gqa", None, None, "pass --data"),
        ("gqa", "/nowhere", None, "no such folder"),
        ("shapes", None, 0, "a number of questions of 1 or more"),
    ],
)
def test_a_mistake_is_one_line(name, data, limit, told):
    with pytest.raises(ProbeError, match=told):
        BenchmarkTask.read(name, data, limit)


def test_a_file_without_one_usable_row_is_a_mistake(tmp_path):
    with pytest.raises(ProbeError, match=r"at least one row .* 1 bad"):
        BenchmarkTask.read("gqa", gqa(tmp_path, {"1": {"imageId": "missing"}}))


def test_shapes_are_drawn_and_donors_do_not_depend_on_the_limit():
    few, many = BenchmarkTask.read("shapes", limit=7), BenchmarkTask.read("shapes", limit=13)
    assert [sample.id for sample in few.samples] == [sample.id for sample in many.samples][:7]
    last = few.samples[-1]
    assert few.donor(last) == many.donor(last)
    assert few.with_images == few.samples
