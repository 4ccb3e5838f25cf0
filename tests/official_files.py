"""Small folders of official files: three questions a benchmark, the second one without its image.

Each function of `FOLDERS` fills a folder and gives the official ids in the order of the file, and a
reader of our export: [(id, text), ...] in the order that a scorer which goes by position sees.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

TEN = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
Reader = Callable[[Path], list[tuple[object, str]]]


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path, "JPEG")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def json_lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def from_lines(text: str = "text") -> Reader:
    """Reads JSON lines: `question_id` and the field that holds the answer."""

    def read(path: Path) -> list[tuple[object, str]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [(row["question_id"], row[text]) for row in rows]

    return read


def from_list(key: str, text: str) -> Reader:
    return lambda path: [(row[key], row[text]) for row in json.loads(path.read_text())]


def gqa(root: Path) -> tuple[list, Reader]:
    types = {"structural": "query", "semantic": "attr", "detailed": "x"}
    row = {"question": "What?", "answer": "red", "isBalanced": True, "types": types}
    rows = {f"q{i}": row | {"imageId": f"n{i}"} for i in range(3)}
    rows["unbalanced"] = row | {"imageId": "n0", "isBalanced": False}
    write(root / "testdev_balanced_questions.json", rows)
    for i in (0, 2):
        jpeg(root / f"images/n{i}.jpg")
    return ["q0", "q1", "q2"], from_list("questionId", "prediction")


def mmbench(root: Path) -> tuple[list, Reader]:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "JPEG")
    image = base64.b64encode(file.getvalue() * 2).decode()
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    rows = [
        [str(i), "Which?", "nan", "left", "right", "nan", "nan", "A", "x", image] for i in (7, 8, 9)
    ]
    rows[1][-1] = "12345"  # refers to a row that isn't there
    write(
        root / "mmbench_dev_20230712.tsv", "\n".join("\t".join(r) for r in [header, *rows]) + "\n"
    )

    def read(path: Path) -> list[tuple[object, str]]:
        from openpyxl import load_workbook  # pyright: ignore

        _, *cells = load_workbook(path).active.iter_rows(values_only=True)
        return [(row[0], row[-2] or "") for row in cells]

    return [7, 8, 9], read


def pope(root: Path) -> tuple[list, Reader]:
    names = ("random", "popular", "adversarial")
    for name in names:
        images = ["a.jpg", "b.jpg" if name == "popular" else "a.jpg", "a.jpg"]
        labels = ("no", "yes", "no")
        rows = [
            {"question_id": i, "image": image, "text": "Is there a cat?", "label": label}
            for i, (image, label) in enumerate(zip(images, labels, strict=True), 1)
        ]
        write(root / f"coco_pope_{name}.json", json_lines(rows))
    jpeg(root / "val2014/a.jpg")
    return [f"{name}/{i}" for name in names for i in (1, 2, 3)], from_lines()


def textvqa(root: Path) -> tuple[list, Reader]:
    rows = [
        {"question_id": i, "image_id": f"i{i}", "question": "what?", "answers": ["red"] * 10}
        for i in range(3)
    ]
    write(root / "TextVQA_0.5.1_val.json", {"data": rows})
    for i in (0, 2):
        jpeg(root / f"train_images/i{i}.jpg")
    return ["i0", "i1", "i2"], from_lines()


def scienceqa(root: Path) -> tuple[list, Reader]:
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 0, "image": "image.png"}
    problems = {str(i): row | {"split": "test", "subject": "x", "hint": ""} for i in range(3)}
    write(root / "problems.json", problems)
    write(root / "pid_splits.json", {"test": ["2", "1", "0"]})
    for i in (0, 2):
        jpeg(root / f"images/test/{i}/image.png")
    return ["2", "1", "0"], from_lines()


def vqav2(root: Path) -> tuple[list, Reader]:
    rows = [{"image_id": i, "question": "What?", "question_id": 10 * i} for i in range(3)]
    notes = [{"question_id": 10 * i, "answer_type": "other", "answers": TEN} for i in range(3)]
    write(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": rows})
    write(root / "v2_mscoco_val2014_annotations.json", {"annotations": notes})
    for i in (0, 2):
        jpeg(root / f"val2014/COCO_val2014_{i:012d}.jpg")
    return [0, 10, 20], from_list("question_id", "answer")


def vizwiz(root: Path) -> tuple[list, Reader]:
    rows = [
        {"image": f"v{i}.jpg", "question": "What?", "answers": TEN, "answerable": 1}
        for i in range(3)
    ]
    write(root / "val.json", rows)
    for i in (0, 2):
        jpeg(root / f"val/v{i}.jpg")
    return ["v0.jpg", "v1.jpg", "v2.jpg"], from_list("image", "answer")


def mme(root: Path) -> tuple[list, Reader]:
    for i in range(3):
        text = "".join(f"Is it {i}? Please answer yes or no.\t{a}\n" for a in ("Yes", "No"))
        write(root / f"count/{i}.txt", text)
    for i in (0, 2):
        jpeg(root / f"count/{i}.jpg")

    def read(path: Path) -> list[tuple[object, str]]:
        cells = [line.split("\t") for line in (path / "count.txt").read_text().splitlines()]
        return [(f"{file} {label}", text) for file, _, label, text in cells]

    return [f"{i}.txt {label}" for i in range(3) for label in ("Yes", "No")], read


def seed(root: Path) -> tuple[list, Reader]:
    choices = {f"choice_{letter}": letter for letter in "abcd"}
    rows = [
        {"question_id": str(i), "question": "Which?", "answer": "A", "data_type": "image"}
        | {"data_id": f"d{i}", "question_type_id": 1, **choices}
        for i in range(3)
    ]
    write(root / "SEED-Bench.json", {"questions": rows, "question_type": {"Counting": 1}})
    for i in (0, 2):
        jpeg(root / f"SEED-Bench-image/d{i}")
    return ["0", "1", "2"], from_lines("prediction")


def llava_w(root: Path) -> tuple[list, Reader]:
    rows = [
        {"question_id": i, "image": f"{i}.jpg", "category": "conv", "text": "What?"}
        for i in range(3)
    ]
    write(root / "questions.jsonl", json_lines(rows))
    for i in (0, 2):
        jpeg(root / f"images/{i}.jpg")
    return [0, 1, 2], from_lines()


def mm_vet(root: Path) -> tuple[list, Reader]:
    row = {"question": "What?", "answer": "red", "capability": ["ocr"]}
    write(root / "mm-vet.json", {f"v1_{i}": row | {"imagename": f"{i}.png"} for i in range(3)})
    for i in (0, 2):
        jpeg(root / f"images/{i}.png")
    return ["v1_0", "v1_1", "v1_2"], lambda path: list(json.loads(path.read_text()).items())


def choices_about_videos(file: str, folder: str) -> Callable[[Path], tuple[list, Reader]]:
    def write_files(root: Path) -> tuple[list, Reader]:
        row = {"question": "Which?", "candidates": ["red", "blue"], "answer": "red"}
        write(root / f"json/{file}.json", [row | {"video": f"{i}.mp4"} for i in range(3)])
        for i in (0, 2):
            write(root / f"video/{folder}/{i}.mp4", "")
        task = file.split("_", 1)[1] if file[0].isdigit() else file
        return [f"{task}/{i}" for i in range(3)], from_lines("pred")

    return write_files


def egoschema(root: Path) -> tuple[list, Reader]:
    options = {f"option {i}": f"it is {i}" for i in range(5)}
    rows = [{"q_uid": f"u{i}", "question": "Which?", "answer": i, **options} for i in range(3)]
    write(root / "mc.json", rows)
    for i in (0, 2):
        write(root / f"videos/u{i}.mp4", "")

    def read(path: Path) -> list[tuple[object, str]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [(row["q_uid"], row["pred"]) for row in rows]

    return ["u0", "u1", "u2"], read


FOLDERS = {
    f.__name__: f for f in (gqa, mmbench, pope, textvqa, scienceqa, vqav2, vizwiz, mme, seed)
}
FOLDERS |= {"llava_w": llava_w, "mm_vet": mm_vet, "egoschema": egoschema}
FOLDERS["mvbench"] = choices_about_videos("action_count", "perception/videos")
FOLDERS["mlvu"] = choices_about_videos("4_count", "4_count")
