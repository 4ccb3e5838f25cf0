"""Training data as people have it: what is understood, and that every bad row is one line with file
and row.
"""

import json

import pytest
from PIL import Image

from probe.errors import ProbeError
from probe.models.instructions import read_instructions

IMAGE, VIDEO = {"type": "image"}, {"type": "image"}  # a video's frames are images to the model


def text(words):
    return {"type": "text", "text": words}


def talk(*said, **fields):
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(said)]
    return {"id": "1", "conversations": turns, **fields}


@pytest.fixture
def read(tmp_path):
    """Reads these rows; images a.jpg and sub/b.png, a video clip.mp4 and the frames of v_1 are
    there.
    """
    folder = tmp_path / "images"
    for name in ("a.jpg", "sub/b.png", "v_1/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "clip.mp4").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")

    def rows(*given):
        (tmp_path / "data.json").write_text(json.dumps(given))
        found, problems = read_instructions(tmp_path / "data.json", folder)
        files = [
            [(v.kind, v.source.relative_to(folder).as_posix()) for v in row.visuals]
            for row in found
        ]
        return [list(row.messages) for row in found], files, [str(problem) for problem in problems]

    return rows


def test_a_conversation_about_a_image(read):
    messages, files, problems = read(
        talk("What is it?\n<image>", "A cat.", "Sure?", "Yes.", image="a.jpg")
    )
    assert problems == [] and files == [[("image", "a.jpg")]]
    assert [message["role"] for message in messages[0]] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    contents = [message["content"] for message in messages[0]]
    assert contents == [
        [IMAGE, text("What is it?")],
        [text("A cat.")],
        [text("Sure?")],
        [text("Yes.")],
    ]


def test_videos_several_images_and_none(read):
    messages, files, problems = read(
        {"video_id": "v_1", "q": "What happens?", "a": "Nothing."},
        {"video_id": "clip", "q": "What <now>?", "a": "Nothing."},
        talk("<video>\nWhy?", "So.", video="clip.mp4"),
        talk("<image>\nWhy?", "So.", video="v_1"),
        talk("<image> or <image>?", "Both.", image=["a.jpg", "sub/b.png"]),
        talk("Hello", "Hi."),
    )
    assert problems == []
    assert files == [
        [("video", "v_1")],
        [("video", "clip.mp4")],
        [("video", "clip.mp4")],
        [("video", "v_1")],
        [("image", "a.jpg"), ("image", "sub/b.png")],
        [],
    ]
    assert messages[0][0]["content"] == [VIDEO, text("What happens?")]
    assert messages[4][0]["content"] == [IMAGE, IMAGE, text("or ?")]
    assert messages[5][0]["content"] == [text("Hello")]


def test_what_gpt_says_before_any_question_is_left_out(read):
    row = talk("Hello", "Hi.")
    row["conversations"].insert(0, {"from": "gpt", "value": "Well"})
    assert len(read(row)[0][0]) == 2


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("words", "expected an object with 'conversations', got 'words'"),
        ({"id": 1}, "expected 'conversations': a list, got only 'id'"),
        (talk("Hello"), "expected 'conversations': human and gpt in turn, gpt last, got ['user']"),
        (talk(), "gpt last, got []"),
        (talk("Hello", "Hi.", "Bye"), "human and gpt in turn"),
        (talk("Hello", ""), "expected 'value': text, got nothing"),
        (
            {"conversations": [{"from": "system", "value": "x"}]},
            "expected 'from': human or gpt, got 'system'",
        ),
        (
            talk("<image>", "Hi.", image="none.jpg"),
            "expected the image 'none.jpg', got no such file",
        ),
        (
            talk("<image>", "Hi.", image="../secret.png"),
            "expected an image inside the data folder, got '../secret.png'",
        ),
        (
            talk("<image>", "Hi.", image="out.png"),
            "expected an image inside the data folder, got 'out.png'",
        ),
        (
            talk("<image>", "Hi.", image="/etc/passwd"),
            "expected an image inside the data folder, got '/etc/passwd'",
        ),
        (talk("<image>", "Hi.", video=".."), "expected a video inside the data folder, got '..'"),
        (
            talk("<image>", "Hi.", image=3),
            "expected 'image': a file name, or a list of them, got 3",
        ),
        (talk("<image>", "Hi."), "expected an <image> for each of 0 images and videos, got 1"),
        (
            talk("What?", "Hi.", image="a.jpg"),
            "expected an <image> for each of 1 images and videos, got 0",
        ),
        (
            talk("What?", "<image>", image="a.jpg"),
            "expected no <image> in what gpt says, got '<image>'",
        ),
        (
            {"video_id": "../secret", "q": "What?", "a": "So."},
            "expected a video inside the data folder",
        ),
        (
            {"video_id": "none", "q": "What?", "a": "So."},
            "expected the video 'none', got no such file",
        ),
        ({"video_id": "v_1", "a": "So."}, "expected 'q': text, got only 'video_id', 'a'"),
        ({"video_id": None, "q": "What?", "a": "So."}, "expected 'video_id': an id, got None"),
    ],
)
def test_a_bad_row_is_one_line_and_left_out(read, row, told):
    messages, _, problems = read(talk("Hello", "Hi."), row)
    assert len(messages) == 1
    assert problems[0].startswith("data.json, row 2: expected ")
    assert told in problems[0] and "\n" not in problems[0]


def test_files_that_hold_nothing_usable(read, tmp_path):
    with pytest.raises(
        ProbeError, match=r"at least one row that can be used, got data.json, row 1: expected"
    ):
        read("words")
    with pytest.raises(ProbeError, match=r"got an empty list in data\.json"):
        read()
    (tmp_path / "data.json").write_text('[{"id": ')
    with pytest.raises(ProbeError, match=r"train: expected whole JSON in data.json, got .* line 1"):
        read_instructions(tmp_path / "data.json", tmp_path)
    with pytest.raises(
        ProbeError, match=r"expected the folder with the images .*nowhere', which is none"
    ):
        read_instructions(tmp_path / "data.json", tmp_path / "nowhere")
