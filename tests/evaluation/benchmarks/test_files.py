"""Official-format files: what is read from good rows, what is said of bad ones, and what goes back
out.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false,
# reportOptionalMemberAccess=false pyright: reportIndexIssue=false Fields of a sample and results of
# a run are unions; a test knows which it has.

import base64
import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from probe.data.files import DataFolder, json_line, read_json
from probe.data.rows import RowError
from probe.errors import ProbeError
from probe.evaluation.benchmarks import (
    gqa,
    llava_bench,
    mm_vet,
    mmbench,
    mme,
    pope,
    scienceqa,
    seed_bench,
    shapes,
    textvqa,
    vizwiz,
    vqav2,
)
from probe.measures.cost.dataset import read

SINGLE = "\nAnswer the question using a single word or phrase."
OPTION = "\nAnswer with the option's letter from the given choices directly."
TEN = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path, format="PNG")
    return path.name


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def lines(path: Path, rows) -> Path:
    return write(
        path, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )


def problems(benchmark) -> list[str]:
    return [str(problem) for problem in benchmark.problems]


# GQA
# --------------------------------------------------------------------------------------------------


def gqa_row(**change):
    types = {"structural": "choose", "semantic": "attr", "detailed": "chooseAttr"}
    row = {
        "question": "Is it blue or brown?",
        "imageId": "n1",
        "answer": "brown",
        "isBalanced": True,
        "types": types,
    }
    return row | change


def test_gqa_reads_the_prompt_and_lists_bad_rows(tmp_path):
    picture(tmp_path / "images/n1.jpg")
    picture(tmp_path.parent / "secret.jpg")
    file = write(
        tmp_path / "testdev_balanced_questions.json",
        {
            "20": gqa_row(),
            "21": gqa_row(imageId="n2"),
            "22": gqa_row(question=None),
            "23": gqa_row(isBalanced=False),
            "24": gqa_row(imageId="../../secret"),
            "25": gqa_row(imageId="/etc/passwd"),
            "26": "no object",
            "27": {"question": "Is it red?"},
            "28": gqa_row(types=[]),
            "29": gqa_row(imageId="n1\0"),
            "30": gqa_row(imageId="n" * 300),
            "31": gqa_row(answer=" "),
        },
    )
    benchmark = gqa.read(tmp_path)
    (sample,) = benchmark.samples
    assert sample.question == "Is it blue or brown?" + SINGLE
    assert (sample.id, sample.answer, sample.image) == ("20", "brown", tmp_path / "images/n1.jpg")
    assert sample.meta["image"] == "n1"
    assert benchmark.files == (file,)
    where = "testdev_balanced_questions.json, row "
    assert problems(benchmark) == [
        where + "21: expected the image 'images/n2.jpg', got no such file",
        where + "22: expected 'question': text, got None",
        where + "24: expected an image inside the data folder, got 'images/../../secret.jpg'",
        where + "25: expected the image 'images//etc/passwd.jpg', got no such file",
        where + "26: expected an object with 'isBalanced', got 'no object'",
        where + "27: expected 'isBalanced': true or false, got only 'question'",
        where + "28: expected 'types': an object, got []",
        where + r"29: expected the name of an image, got 'images/n1\x00.jpg'",
        where + f"30: expected the image 'images/{'n' * 49}..., got no such file",
        where + "31: expected 'answer': text, got nothing",
    ]


def test_gqa_keeps_the_first_of_two_equal_ids(tmp_path):
    picture(tmp_path / "images/n1.jpg")
    rows = [json.dumps(gqa_row()), json.dumps(gqa_row(answer="blue"))]
    write(tmp_path / "testdev_balanced_questions.json", f'{{"20": {rows[0]}, "20": {rows[1]}}}')
    benchmark = gqa.read(tmp_path)
    assert [sample.answer for sample in benchmark.samples] == ["brown"]
    assert problems(benchmark)[0].endswith("row 20: expected an id not used before, got '20'")


def test_gqa_export_is_what_the_official_scorer_reads(tmp_path):
    picture(tmp_path / "images/n1.jpg")
    write(tmp_path / "testdev_balanced_questions.json", {"20": gqa_row()})
    path = gqa.export(gqa.read(tmp_path).samples, {"20": " Brown. "}, tmp_path / "out")
    assert path.name == "testdev_balanced_predictions.json"
    assert json.loads(path.read_text()) == [{"questionId": "20", "prediction": "brown"}]


# files that cannot be read at all
# --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            '{"20": {"question": "Is',
            "whole JSON in testdev_balanced_questions.json, got unterminated string",
        ),
        (
            '{"20": {"question": "a"}',
            r"at line 1, column 2\d, where the file ends; download it again",
        ),
        ("", "expecting value at line 1, column 1, where the file ends"),
        ("[1, 2]", "expected an object in testdev_balanced_questions.json, got"),
        ("[" * 200_000, "brackets nested without end"),
        ("{}", "expected at least one question, got none in testdev"),
    ],
)
def test_an_unreadable_file_is_one_line(tmp_path, content, complaint):
    write(tmp_path / "testdev_balanced_questions.json", content)
    with pytest.raises(ProbeError, match=complaint) as told:
        gqa.read(tmp_path)
    assert "\n" not in str(told.value)


def test_numbers_without_end_are_told_in_a_line(tmp_path):
    digits = "1" * 5_000_000
    (tmp_path / "questions.json").write_text(f'{{"a": {digits}}}')
    with pytest.raises(ProbeError, match=r"JSON in questions\.json, got a number") as error:
        read_json("gqa", tmp_path / "questions.json")
    assert len(str(error.value)) < 300
    with pytest.raises(RowError, match="one JSON object on a line"):
        json_line(f'{{"a": {digits}}}'.encode())


@pytest.mark.parametrize("content", ["1" * 5_000_000, "[" * 100_000, "[]", "3", ""])
def test_damaged_costs_are_told_in_a_line(tmp_path, content):
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(ProbeError, match=r"cost\.read: expected a file") as error:
        read(tmp_path / "costs.json")
    assert "\n" not in str(error.value)


def test_a_missing_folder_or_file_is_told_with_what_there_is(tmp_path):
    with pytest.raises(ProbeError, match=r"a folder with the official files, got .*no such folder"):
        gqa.read(tmp_path / "nowhere")
    write(tmp_path / "questions.json", "{}")
    with pytest.raises(
        ProbeError, match=r"testdev_balanced_questions\.json or .*, got questions\.json in"
    ):
        gqa.read(tmp_path)
    (tmp_path / "testdev_balanced_questions.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ProbeError, match=r"UTF-8 text in .*, got byte 0: not UTF-8"):
        gqa.read(tmp_path)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json("x", tmp_path / "x.json") == ({"a": 1}, set())


# images stay inside
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/hostname", "link.png", "dir/../../outside.png", "way/out.png"]
)
def test_images_outside_the_folder_are_refused(tmp_path, name):
    root = tmp_path / "data"
    picture(root / "in.png")
    picture(tmp_path / "outside.png")
    picture(tmp_path / "far/out.png")
    (root / "dir").mkdir()
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "way").symlink_to(tmp_path / "far")
    folder = DataFolder("test", root)
    with pytest.raises(RowError, match="an image inside the data folder"):
        folder.image(name)
    assert folder.image("dir/../in.png") == root.resolve() / "in.png"


def test_links_in_a_circle_and_folders_are_no_images(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "folder.png").mkdir()
    for name in ("a", "folder.png"):
        with pytest.raises(RowError):
            DataFolder("test", tmp_path).image(name)


def test_the_folder_itself_may_be_a_link(tmp_path):
    picture(tmp_path / "real/in.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert DataFolder("test", tmp_path / "link").image("in.png").is_file()


# MMBench
# --------------------------------------------------------------------------------------------------


def encoded(side=12) -> str:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 80).convert("RGB").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


HEADER = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "l2-category",
    "image",
    "comment",
]


def table(path: Path, rows, header=HEADER) -> Path:
    return write(path, "\n".join("\t".join(map(str, row)) for row in [header, *rows]) + "\n")


def mmbench_row(index, image, **change):
    cells = [
        index,
        "Which is the dog?",
        "nan",
        "left",
        "right",
        "nan",
        "x",
        "B",
        "loc",
        "fp",
        image,
        "",
    ]
    row = dict(zip(HEADER, cells, strict=True))
    return list((row | change).values())


def test_mmbench_reads_images_references_options_and_hints(tmp_path):
    cell = encoded()
    table(
        tmp_path / "mmbench_dev_20230712.tsv",
        [
            mmbench_row(1_000_241, "241", A="right", B="left", answer="A"),
            mmbench_row(241, cell),
            mmbench_row(7, "241", hint="Look.", A="p", C="q", D="None"),
        ],
    )
    rotated, first, hinted = mmbench.read(tmp_path).samples
    assert first.question == "Which is the dog?\nA. left\nB. right" + OPTION
    assert hinted.question == "Look.\nWhich is the dog?\nA. p\nB. right\nC. q" + OPTION
    assert (first.choices, first.answer, rotated.answer) == (("left", "right"), "B", "A")
    assert rotated.meta["unit"] == first.meta["unit"] == "241"
    assert (first.meta["base"], rotated.meta["base"]) == (True, False)
    assert first.image == rotated.image == hinted.image
    assert Image.open(first.image).size == (12, 12)
    assert Path(os.environ["PROBE_CACHE"]) in first.image.parents


def test_mmbench_lists_bad_rows(tmp_path):
    cell = encoded()
    file = table(
        tmp_path / "mmbench_dev_20230712.tsv",
        [
            mmbench_row(1, cell),
            mmbench_row(2, cell[:-3]),
            mmbench_row(3, cell[: len(cell) // 8 * 4]),
            mmbench_row(4, "99"),
            mmbench_row(5, "short"),
            mmbench_row("six", cell),
            mmbench_row(1, cell),
            mmbench_row(8, cell, A=""),
            mmbench_row(9, cell, answer="C"),
            ["10", "cut"],
            mmbench_row(11, "2"),
        ],
    )
    with file.open("ab") as raw:
        raw.write(
            "\t".join(map(str, mmbench_row(12, cell, question="Q?")))
            .encode()
            .replace(b"Q?", b"\xff?")
            + b"\n"
        )
    benchmark = mmbench.read(tmp_path)
    assert [sample.id for sample in benchmark.samples] == ["1"]
    found = {
        problem.row: f"{problem.expected}, got {problem.got}" for problem in benchmark.problems
    }
    assert list(found) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert "an image in base64" in found[3]
    assert "characters: " in found[3]
    assert "a whole image in base64" in found[4]
    assert "the index of its row, got 99, a row without an image" in found[5]
    assert found[6].endswith("got 'short'")
    assert found[7] == "'index': a whole number, got 'six'"
    assert found[8] == "an id not used before, got '1'"
    assert "options A and B, got 0" in found[9]
    assert found[10] == "'answer': one of A, B, got 'C'"
    assert found[11] == "a cell for every column, got 2 cells, the first '10'"
    assert "an image in base64" in found[12]  # row 2's image is as broken here
    assert "UTF-8 text in column 'question'" in found[13]
    assert list(Path(os.environ["PROBE_CACHE"]).rglob("*.tmp")) == []


def test_mmbench_names_a_missing_column(tmp_path):
    table(
        tmp_path / "mmbench_dev_20230712.tsv", [], header=["index", "question", "A", "B", "picture"]
    )
    with pytest.raises(
        ProbeError, match=r"with the columns index, question, A, B, image, got .* without image"
    ):
        mmbench.read(tmp_path)


def test_mmbench_reads_quoted_cells_and_survives_a_quote_that_never_closes(tmp_path):
    cell = encoded()
    table(
        tmp_path / "mmbench_dev_20230712.tsv",
        [
            mmbench_row(1, cell, question='"What does ""stop""\nmean?"'),
            mmbench_row(2, cell),
            mmbench_row(3, cell, question='"never closed'),
            mmbench_row(4, cell),
        ],
    )
    benchmark = mmbench.read(tmp_path)
    assert benchmark.samples[0].question.startswith('What does "stop"\nmean?\nA. left')
    assert [sample.id for sample in benchmark.samples] == ["1", "2"]
    assert [problem.row for problem in benchmark.problems] == [5]


def test_mmbench_asks_in_chinese(tmp_path):
    table(tmp_path / "mmbench_dev_cn_20231003.tsv", [mmbench_row(1, encoded())])
    (sample,) = mmbench.read(tmp_path, "mmbench_dev_cn_20231003").samples
    assert sample.question.endswith("\n请直接回答选项字母。")


def test_mmbench_exports_for_the_server_or_says_what_is_missing(tmp_path, monkeypatch):
    table(tmp_path / "mmbench_dev_20230712.tsv", [mmbench_row(1, encoded())])
    samples = mmbench.read(tmp_path).samples
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(
        ProbeError, match=r"openpyxl, to write the server's \.xlsx.*pip install openpyxl"
    ):
        mmbench.export(samples, {"1": "B"}, tmp_path)
    assert json.loads((tmp_path / "mmbench.jsonl").read_text())["text"] == "B"
    rows = []
    book = type(
        "Workbook",
        (),
        {
            "__init__": lambda self, write_only: None,
            "create_sheet": lambda self: rows,
            "save": lambda self, path: None,
        },
    )
    monkeypatch.setitem(sys.modules, "openpyxl", type("module", (), {"Workbook": book}))
    cell = type(
        "WriteOnlyCell", (), {"__init__": lambda self, sheet, value: setattr(self, "value", value)}
    )
    monkeypatch.setitem(sys.modules, "openpyxl.cell", type("module", (), {"WriteOnlyCell": cell}))
    assert mmbench.export(samples, {"1": "B"}, tmp_path).name == "mmbench.xlsx"
    header, (*cells,) = rows
    assert header == ["index", "question", *"ABCD", "prediction", "answer"]
    values = [each.value for each in cells]
    assert values == [1, "Which is the dog?", "left", "right", None, None, "B", "B"]
    assert cells[-2].data_type == "s"


def test_limited_keeps_rotations_together(tmp_path):
    cell = encoded()
    rows = [mmbench_row(i, cell) for i in (1, 2, 3)] + [
        mmbench_row(1_000_000 + i, str(i)) for i in (1, 2, 3)
    ]
    table(tmp_path / "mmbench_dev_20230712.tsv", rows)
    assert [s.id for s in mmbench.read(tmp_path).limited(2).samples] == [
        "1",
        "2",
        "1000001",
        "1000002",
    ]


# POPE
# --------------------------------------------------------------------------------------------------


def pope_row(number=1, **change):
    return {
        "question_id": number,
        "image": "a.jpg",
        "text": "Is there a dog?",
        "label": "yes",
    } | change


def test_pope_reads_three_sets_and_lists_bad_lines(tmp_path):
    picture(tmp_path / "val2014/a.jpg")
    for name in pope.SETS:
        lines(tmp_path / f"coco/coco_pope_{name}.json", [pope_row(1), "", pope_row(2, label="no")])
    lines(
        tmp_path / "coco_pope_random.json",
        [
            pope_row(1),
            '{"question_id": 2, "ima',
            pope_row(3, label="maybe"),
            pope_row(1),
            pope_row(5, image="b.jpg"),
            pope_row(6, question=1) | {"text": 5},
            pope_row(None),
            pope_row(8, image="../../x.jpg"),
        ],
    )
    benchmark = pope.read(tmp_path)
    assert [s.id for s in benchmark.samples] == [
        "random/1",
        "popular/1",
        "popular/2",
        "adversarial/1",
        "adversarial/2",
    ]
    assert benchmark.samples[0].question == "Is there a dog?" + SINGLE
    assert [problem.row for problem in benchmark.problems] == [2, 3, 4, 5, 6, 7, 8]
    assert problems(benchmark)[0].endswith(
        """expected one JSON object on a line, got '{"question_id": 2, "ima'"""
    )
    assert problems(benchmark)[1].endswith("expected 'label': yes or no, got 'maybe'")
    assert problems(benchmark)[5].endswith("expected 'question_id': an id, got None")
    assert len(pope.read(tmp_path, "popular").samples) == 2
    with pytest.raises(
        ProbeError, match="a split among all, random, popular, adversarial, got 'easy'"
    ):
        pope.read(tmp_path, "easy")


@pytest.mark.parametrize("row", [5, None, "text", [], {}])
def test_a_row_that_is_no_object_is_listed(tmp_path, row):
    for file, value in {
        "coco_pope_random.json": json.dumps(row),
        "TextVQA_0.5.1_val.json": {"data": [row]},
        "val.json": [row],
        "SEED-Bench.json": {"questions": [row]},
        "questions.jsonl": json.dumps(row),
        "mm-vet.json": {"v1_0": row},
        "problems.json": {"1": row},
        "pid_splits.json": {"test": ["1"]},
        "v2_OpenEnded_mscoco_val2014_questions.json": {"questions": [row]},
        "v2_mscoco_val2014_annotations.json": {"annotations": [row]},
        "testdev_balanced_questions.json": {"1": row},
    }.items():
        write(tmp_path / file, value)
    for module in (textvqa, vizwiz, seed_bench, llava_bench, mm_vet, scienceqa, vqav2, gqa):
        benchmark = module.read(tmp_path)
        assert benchmark.samples == ()
        assert benchmark.problems, module
    assert pope.read(tmp_path, "random").problems


def test_pope_exports_questions_and_answers_that_fit_each_other(tmp_path):
    picture(tmp_path / "val2014/a.jpg")
    for name in pope.SETS:
        lines(tmp_path / f"coco_pope_{name}.json", [pope_row(1)])
    samples = pope.read(tmp_path).samples
    path = pope.export(samples, {"random/1": "Yes", "popular/1": "No"}, tmp_path / "out")
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    asked = [
        json.loads(line)
        for line in (tmp_path / "out/pope_questions.jsonl").read_text().splitlines()
    ]
    assert [(row["question_id"], row["text"]) for row in answers] == [
        ("random/1", "Yes"),
        ("popular/1", "No"),
        ("adversarial/1", ""),
    ]
    assert answers[0].keys() == {
        "question_id",
        "prompt",
        "text",
        "answer_id",
        "model_id",
        "metadata",
    }
    assert {row["question_id"]: row["category"] for row in asked}["popular/1"] == "popular"


# TextVQA, VQAv2, VizWiz
# ------------------------------------------------------------------------------------


def textvqa_row(number=1, **change):
    row = {
        "question_id": number,
        "image_id": "p1",
        "question": "what brand is it?",
        "answers": ["dakota"] * 10,
    }
    return row | change


def test_textvqa_takes_llavas_prompt_then_ocr_words_then_the_question_alone(tmp_path):
    picture(tmp_path / "train_images/p1.jpg")
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [textvqa_row()]})
    alone = textvqa.read(tmp_path).samples[0]
    assert (alone.question, alone.meta["ocr"]) == ("What brand is it?" + SINGLE, "none")
    write(
        tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json",
        {"data": [{"image_id": "p1", "ocr_tokens": ["DA", "KO"]}]},
    )
    rosetta = textvqa.read(tmp_path).samples[0]
    expected = "What brand is it?\nReference OCR token: DA, KO" + SINGLE
    assert (rosetta.question, rosetta.meta["ocr"]) == (expected, "rosetta")
    theirs = "What brand is it?\nReference OCR token: DAKOTA" + SINGLE
    row = {"question_id": "p1", "image": "p1.jpg", "text": theirs, "category": "default"}
    lines(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", [row])
    benchmark = textvqa.read(tmp_path)
    assert (benchmark.samples[0].question, benchmark.samples[0].meta["ocr"]) == (theirs, "llava")
    assert len(benchmark.files) == 2
    assert textvqa.read(tmp_path, ocr=False).samples[0].question == alone.question
    assert textvqa.summarise(benchmark.samples, {"1": "The Dakota!"})["accuracy"] == 100
    exported = json.loads(textvqa.export(benchmark.samples, {"1": "Dakota"}, tmp_path).read_text())
    assert (exported["question_id"], exported["prompt"], exported["text"]) == (
        "p1",
        theirs,
        "Dakota",
    )


def test_textvqa_needs_ten_answers(tmp_path):
    picture(tmp_path / "train_images/p1.jpg")
    rows = [
        textvqa_row(1),
        textvqa_row(2, answers=["a"] * 9),
        textvqa_row(3, answers=[1] * 10),
        textvqa_row(4, answers="a"),
    ]
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    benchmark = textvqa.read(tmp_path)
    assert len(benchmark.samples) == 1
    assert [problem.expected for problem in benchmark.problems] == ["'answers': 10 texts"] * 2 + [
        "'answers': a list"
    ]
    write(tmp_path / "TextVQA_0.5.1_val.json", {"rows": rows})
    with pytest.raises(ProbeError, match="expected a list under 'data' in TextVQA"):
        textvqa.read(tmp_path)


def test_vqav2_joins_annotations_and_exports_for_the_server(tmp_path):
    picture(tmp_path / "val2014/COCO_val2014_000000000042.jpg")
    asked = [
        {"image_id": 42, "question": "What color?", "question_id": 420},
        {"image_id": 42, "question": "Why?", "question_id": 421},
        {"image_id": "42", "question": "Who?", "question_id": 422},
    ]
    write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    found = [{"question_id": 420, "answer_type": "other", "answers": TEN}]
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": found})
    benchmark = vqav2.read(tmp_path)
    (sample,) = benchmark.samples
    assert (sample.question, sample.answer) == ("What color?" + SINGLE, ("red",) * 10)
    assert (
        "an annotation with ten answers for the question, got none for 421"
        in problems(benchmark)[0]
    )
    assert "'image_id': a whole number, got '42'" in problems(benchmark)[1]
    assert vqav2.summarise(benchmark.samples, {"420": "red"})["type/other"] == 100
    exported = json.loads(
        vqav2.export(benchmark.samples, {"420": "The Red."}, tmp_path).read_text()
    )
    assert exported == [{"question_id": 420, "answer": "red"}]
    assert json.loads(vqav2.export(benchmark.samples, {}, tmp_path).read_text())[0]["answer"] == ""


def test_vqav2_tests_have_no_answers(tmp_path):
    picture(tmp_path / "test2015/COCO_test2015_000000000042.jpg")
    asked = [{"image_id": 42, "question": "What color?", "question_id": 420}]
    write(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": asked})
    (sample,) = vqav2.read(tmp_path, "test-dev2015").samples
    assert sample.answer is None


def test_vizwiz_asks_llavas_way_and_exports_for_the_server(tmp_path):
    picture(tmp_path / "val/v0.jpg")
    picture(tmp_path / "test/t0.jpg")
    row = {"image": "v0.jpg", "question": "What is this? ", "answers": TEN, "answerable": 1}
    write(tmp_path / "val.json", [row, row, row | {"image": "v1.jpg"}])
    benchmark = vizwiz.read(tmp_path)
    (sample,) = benchmark.samples
    unanswerable = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    assert sample.question == "What is this? " + unanswerable + SINGLE
    assert [problem.row for problem in benchmark.problems] == [2, 3]
    assert vizwiz.summarise(benchmark.samples, {"v0.jpg": "Red"})["answerable"] == 100
    write(tmp_path / "test.json", [{"image": "t0.jpg", "question": "What?"}])
    tested = vizwiz.read(tmp_path, "test").samples
    assert json.loads(vizwiz.export(tested, {"t0.jpg": "Unanswerable."}, tmp_path).read_text()) == [
        {"image": "t0.jpg", "answer": "unanswerable"}
    ]


# ScienceQA, SEED, MME
# --------------------------------------------------------------------------------------


def test_scienceqa_builds_llavas_prompt_or_takes_it(tmp_path):
    picture(tmp_path / "images/test/11/image.png")
    problem = {
        "question": "Which colony?",
        "choices": ["Maryland", "New Hampshire"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
        "split": "test",
        "subject": "social science",
    }
    write(
        tmp_path / "problems.json",
        {
            "11": problem,
            "12": problem | {"image": None, "hint": ""},
            "13": problem,
            "14": problem | {"answer": 2},
        },
    )
    write(tmp_path / "pid_splits.json", {"test": ["11", "12", "13", "14", "99"], "val": []})
    benchmark = scienceqa.read(tmp_path)
    first, text_only = benchmark.samples
    assert first.question == "Context: Look.\nWhich colony?\nA. Maryland\nB. New Hampshire" + OPTION
    assert text_only.question == "Which colony?\nA. Maryland\nB. New Hampshire" + OPTION
    assert (first.answer, text_only.images) == ("B", ())
    assert [problem.row for problem in benchmark.problems] == ["13", "14", "99"]
    assert "'answer': the place of one of 2 to 5 choices, got 2 of" in problems(benchmark)[1]
    theirs = [
        {
            "id": "11",
            "image": "11/image.png",
            "conversations": [{"from": "human", "value": "<image>\nTheirs?"}],
        }
    ]
    write(tmp_path / "llava_test_CQM-A.json", theirs)
    assert scienceqa.read(tmp_path).samples[0].question == "Theirs?" + OPTION
    path = scienceqa.export(benchmark.samples, {"11": "B", "12": "A"}, tmp_path)
    prompts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    assert [prompt.startswith("<image>\n") for prompt in prompts] == [
        True,
        False,
    ]  # eval_science_qa.py looks for it
    with pytest.raises(ProbeError, match="a split among test, val, got 'dev'"):
        scienceqa.read(tmp_path, "dev")


def seed_row(number=1, **change):
    row = {
        "question_id": number,
        "question": "How many?",
        "answer": "A",
        "data_type": "image",
        "data_id": "p1",
        "question_type_id": 5,
    } | {f"choice_{letter}": letter * 2 for letter in "abcd"}
    return row | change


def test_seed_reads_images_and_frames(tmp_path):
    picture(tmp_path / "SEED-Bench-image/p1")
    picture(tmp_path / "SEED-Bench-video-image/10_v2.png")
    rows = [
        seed_row(1),
        seed_row("v2", data_type="video", question_type_id=10, data_id="x.webm"),
        seed_row(3, answer="E"),
        seed_row(4, data_type="audio"),
        seed_row(5, choice_d=None),
        seed_row(6, data_id="../../p1"),
        seed_row(1),
    ]
    write(tmp_path / "SEED-Bench.json", {"questions": rows, "question_type": {"Counting": 5}})
    benchmark = seed_bench.read(tmp_path)
    assert [s.id for s in benchmark.samples] == ["1", "v2"]
    assert benchmark.samples[0].question == "How many?\nA. aa\nB. bb\nC. cc\nD. dd" + OPTION
    assert [s.meta["kind"] for s in benchmark.samples] == ["Counting", "10"]
    assert [problem.row for problem in benchmark.problems] == [3, 4, 5, 6, 7]
    assert [s.id for s in seed_bench.read(tmp_path, "image").samples] == ["1"]
    exported = (
        seed_bench.export(benchmark.samples, {"1": "A", "v2": "B"}, tmp_path)
        .read_text()
        .splitlines()
    )
    assert json.loads(exported[1]) == {"question_id": "v2", "prediction": "B"}
    write(tmp_path / "SEED-Bench.json", [])
    with pytest.raises(ProbeError, match="an object with a list of 'questions'"):
        seed_bench.read(tmp_path)


def test_mme_reads_both_layouts_and_exports_for_its_tool(tmp_path):
    picture(tmp_path / "color/0001.jpg")
    write(
        tmp_path / "color/0001.txt",
        "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n",
    )
    picture(tmp_path / "artwork/images/0002.png")
    write(
        tmp_path / "artwork/questions_answers_YN/0002.txt",
        "Is it old?\tYes\nno tab here\nIs it new?\tPerhaps\n",
    )
    write(tmp_path / "color/0009.txt", "Is it red?\tYes\n")
    benchmark = mme.read(tmp_path)
    assert [s.id for s in benchmark.samples] == [
        "color/0001.jpg/1",
        "color/0001.jpg/2",
        "artwork/images/0002.png/1",
    ]
    assert benchmark.samples[0].question == "Is it red?" + SINGLE  # as in LLaVA's llava_mme.jsonl
    assert [(problem.file, problem.row) for problem in benchmark.problems] == [
        ("0009.txt", 1),
        ("0002.txt", 2),
        ("0002.txt", 3),
    ]
    out = mme.export(
        benchmark.samples,
        {"color/0001.jpg/1": "Yes", "color/0001.jpg/2": "No\t!"},
        tmp_path / "out",
    )
    assert (out / "color.txt").read_text() == (
        "0001.txt\tIs it red? Please answer yes or no.\tYes\tYes\n"
        "0001.txt\tIs it blue? Please answer yes or no.\tNo\tNo !\n"
    )
    with pytest.raises(ProbeError, match="folders such as existence/"):
        mme.read(tmp_path / "color")


# scored by a judge
# -----------------------------------------------------------------------------------------


def test_llava_w_is_read_exported_and_judged(tmp_path):
    picture(tmp_path / "images/001.jpg")
    row = {"question_id": 0, "image": "001.jpg", "category": "conv", "text": "What is it?"}
    lines(tmp_path / "questions.jsonl", [row, row | {"question_id": 1, "image": "002.jpg"}])
    benchmark = llava_bench.read(tmp_path)
    (sample,) = benchmark.samples
    assert (sample.question, sample.answer, len(benchmark.problems)) == ("What is it?", None, 1)
    assert (
        json.loads(llava_bench.export([sample], {"0": "A hill."}, tmp_path).read_text())[
            "question_id"
        ]
        == 0
    )
    reviews = lines(
        tmp_path / "reviews.jsonl",
        [{"question_id": 0, "category": "llava_bench_conv", "tuple": [8, 6]}],
    )
    assert (
        llava_bench.summarise([sample], {"0": "A hill."}, llava_bench.judged(reviews))["relative"]
        == 75
    )
    lines(reviews, [{"question_id": 0, "tuple": [8]}])
    with pytest.raises(
        ProbeError,
        match=r"the scores of GPT-4 and of the model in line 1 of reviews\.jsonl, got \[8\]",
    ):
        llava_bench.judged(reviews)


def test_mm_vet_is_read_exported_and_judged(tmp_path):
    picture(tmp_path / "images/v1_0.png")
    row = {
        "imagename": "v1_0.png",
        "question": "What is x?",
        "answer": "-1<AND>-5",
        "capability": ["ocr", "math"],
    }
    write(tmp_path / "mm-vet.json", {"v1_0": row, "v1_1": row | {"imagename": "gone.png"}})
    benchmark = mm_vet.read(tmp_path)
    (sample,) = benchmark.samples
    assert problems(benchmark) == [
        "mm-vet.json, row v1_1: expected the image 'images/gone.png', got no such file"
    ]
    assert json.loads(mm_vet.export([sample], {"v1_0": "x"}, tmp_path / "out").read_text()) == {
        "v1_0": "x"
    }
    grades = write(
        tmp_path / "grades.json", {"v1_0": {"model": ["gpt-4"] * 2, "score": [0.5, 1.0]}}
    )
    assert mm_vet.summarise([sample], {"v1_0": "x"}, mm_vet.judged(grades))["math"] == 75
    write(grades, {"v1_0": {"score": [2]}})
    with pytest.raises(ProbeError, match=r"'score': numbers from 0 to 1 for 'v1_0', got \[2\]"):
        mm_vet.judged(grades)


def test_shapes_need_no_files(tmp_path):
    benchmark = shapes.read(questions=7)
    assert len(benchmark.samples) == 7
    path = shapes.export(benchmark.samples, {s.id: "x" for s in benchmark.samples}, tmp_path)
    assert len(path.read_text().splitlines()) == 7


def test_a_line_that_is_no_json_is_shown():
    with pytest.raises(RowError, match="got 'not json'"):
        json_line(b"not json\n")
