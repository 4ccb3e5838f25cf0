"""Questions that are asked, in which order, and whose image stands in for another."""

import json

import pytest
from PIL import Image

import probe
from probe.cli.drop_cases import cases_of_modes, check_frame_parts
from probe.data.donors import replacement
from probe.errors import ProbeError
from probe.evaluation.drop_effects import effects
from probe.evaluation.drop_run import DropRun
from probe.evaluation.task import BenchmarkTask
from probe.hooks.model_structure import stacks
from tests.families.video_models import VIDEO_FAMILIES


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


@pytest.fixture
def mvbench(tmp_path):
    """Two questions about folders of three and five frames, of other sizes."""
    rows = []
    for name, count in (("long", 5), ("short", 3)):
        rows.append({"video": name, "question": "Which?", "candidates": ["a", "b"], "answer": "b"})
        folder = tmp_path / "video/tvqa/frames_fps3_hq" / name
        folder.mkdir(parents=True)
        for number in range(count):
            frame = Image.new("RGB", (20 + count, 20), (40 * number, 0, 0))
            frame.save(folder / f"{number + 1:05d}.png")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/episodic_reasoning.json").write_text(json.dumps(rows))
    return tmp_path


def test_the_donor_of_a_video_has_its_frames_times_and_on_request_its_size(mvbench):
    task = BenchmarkTask.read("mvbench", mvbench)
    short = task.samples[1]
    (donor,) = task.donor(short)
    assert [round(frame.getpixel((0, 0))[0] / 40) for frame in donor.frames] == [0, 2, 3]
    assert donor.times.tolist() == [0, 1, 2] and donor.frames[0].size == (25, 20)
    (donor,) = task.donor(short, same_size=True)
    assert {frame.size for frame in donor.frames} == {(23, 20)}
    (donor,) = task.donor(task.samples[0])
    assert len(donor.frames) == 5  # a shorter one repeats frames
    with pytest.raises(ProbeError, match="a video in its place, got an image"):
        replacement(short.image, Image.new("RGB", (4, 4)))


def test_frames_are_dropped_where_there_are_frames(mvbench):
    task = BenchmarkTask.read("mvbench", mvbench)
    check_frame_parts(task, "all", "llm")
    for mode, stack, message in (
        ("swap", "llm", "a --mode that drops tokens, got swap"),
        ("all", "prefusion", "expected --stack llm, got prefusion"),
    ):
        with pytest.raises(ProbeError, match=message):
            check_frame_parts(task, mode, stack)


def test_text_reads_another_video_and_frames_are_dropped_over_a_benchmark(mvbench, tmp_path):
    task = BenchmarkTask.read("mvbench", mvbench)
    model, processor = VIDEO_FAMILIES["internvl"]()
    subject = probe.load(model, processor=processor)
    layers = len(stacks(subject.model)["llm"].layers)
    modes = cases_of_modes(subject, task, layers, "all", depth=False, parts=2)
    asked = {name: modes[name] for name in ("remove", "swap")}
    dropping = DropRun(subject, task, asked, max_new_tokens=1, attention=False)
    run = dropping.run(tmp_path / "run")
    found = dropping.results(run)
    swapped = found["swap"].to_dataset()
    assert swapped["donor_answer_given"].notnull().all() and "part" not in swapped
    changed = found["remove"].to_dataset()["kl"].sel(case=["part 1 of 2", "part 2 of 2"])
    assert (changed > 0).all()
    assert "part 1 of 2" in set(effects(found)["case"])


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
