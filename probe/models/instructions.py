"""LLaVA's conversations and Video-ChatGPT's questions, two common formats of training data, as
`Instruction`s.

    instructions, problems = read_instructions("llava_v1_5_mix665k.json", "images")

    LLaVA          [{"image": "coco/train2017/0.jpg",       also a list, or "video", or neither
                     "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                       {"from": "gpt", "value": "A cat."}]}, ...]
    Video-ChatGPT  [{"video_id": "v_p1QGn0IzfW0", "q": "What happens?", "a": "A man sings."}, ...]

One file may mix both. A video is a file, or a folder of its frames. As in LLaVA's training, an
`<image>` is moved to the front of its turn, and an assistant turn before the first question is
dropped. Rows that cannot be used are skipped and listed. File names are untrusted: none may point
outside the folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from probe.data.files import DataFolder, json_list
from probe.data.image import open_raster
from probe.data.rows import RowError, RowReader, SkippedRow, entry, identifier, question_text
from probe.errors import ProbeError, shown
from probe.models.llava_mini.training_data import Instruction, VisualSource

MARKS = ("<image>", "<video>")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
VIDEOS = ("", ".mp4", ".mkv", ".webm", ".avi", ".mov")  # what a video's id may lack


def read_instructions(
    file: str | Path, folder: str | Path
) -> tuple[list[Instruction], list[SkippedRow]]:
    """The rows of a file, with images and videos from `folder`; and the rows that cannot be used.

    Raises ProbeError where file or folder cannot be read, or no row can be used.
    """
    if not Path(folder).expanduser().is_dir():
        expected = "the folder with the images and videos"
        raise ProbeError("train", expected=expected, got=f"{str(folder)!r}, which is none")
    path = Path(file).expanduser()
    data = DataFolder("train", folder)
    reader = RowReader("train", path.stem)
    instructions: list[Instruction] = []
    for number, row in enumerate(json_list("train", path), 1):
        with reader.row(path, number):
            convert = _video_question if _is_video_question(row) else _conversation
            instructions.append(convert(row, data))
    if not instructions:
        got = f"{reader.problems[0]}" if reader.problems else f"an empty list in {path.name}"
        raise ProbeError("train", expected="at least one row that can be used", got=got)
    return instructions, reader.problems


def _is_video_question(row: Any) -> bool:
    return isinstance(row, dict) and "video_id" in row


def _video_question(row: dict[str, Any], data: DataFolder) -> Instruction:
    question = question_text(row, "q")
    answer = question_text(row, "a")
    video = VisualSource(
        "video", data.video(*(identifier(row, "video_id") + ending for ending in VIDEOS))
    )
    return Instruction((_turn("user", question, 1), _turn("assistant", answer)), (video,))


def _conversation(row: Any, data: DataFolder) -> Instruction:
    turns = [
        (_role(turn), question_text(turn, "value")) for turn in entry(row, "conversations", list)
    ]
    if turns and turns[0][0] == "assistant":
        turns = turns[1:]
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        raise RowError("'conversations': human and gpt in turn, gpt last", shown(roles))
    visuals = [VisualSource("image", _image(data, name)) for name in _names(row, "image")]
    visuals += [VisualSource("video", data.video(name)) for name in _names(row, "video")]
    messages = [_message(role, text) for role, text in turns]
    marks = sum(part["type"] == "image" for message in messages for part in message["content"])
    if marks != len(visuals):
        raise RowError(f"an <image> for each of {len(visuals)} images and videos", f"{marks}")
    return Instruction(tuple(messages), tuple(visuals))


def _role(turn: Any) -> Literal["user", "assistant"] | str:
    speaker = entry(turn, "from")
    if speaker not in ROLES:
        raise RowError("'from': human or gpt", shown(speaker))
    return ROLES[speaker]


def _names(row: dict[str, Any], key: str) -> Sequence[str]:
    """The files under a key: none, one, or a list of them."""
    value = row.get(key) or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RowError(f"{key!r}: a file name, or a list of them", shown(value))
    return names


def _image(data: DataFolder, name: str) -> Path:
    """The image's file. Its header is read now: a damaged file would end a long training."""
    path = data.image(name)
    try:
        with open_raster(path):
            return path
    except (OSError, Image.DecompressionBombError):
        raise RowError(f"an image in the file {shown(name)}", "something else") from None


def _message(role: str, text: str) -> dict[str, Any]:
    """A turn with an image part in front for each of its marks."""
    marks = sum(text.count(mark) for mark in MARKS)
    if marks and role == "assistant":
        raise RowError("no <image> in what gpt says", shown(text))
    for mark in MARKS:
        text = text.replace(mark, "")
    return _turn(role, text.strip(), marks)


def _turn(role: str, text: str, images: int = 0) -> dict[str, Any]:
    return {
        "role": role,
        "content": [{"type": "image"}] * images + [{"type": "text", "text": text}],
    }
