"""Options that several verbs have, so that they are called and explained the same everywhere.

A verb takes groups of them as one argument each:

    @with_options
    def verify(loading: ModelOptions) -> None:
        subject = loading.subject()
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from probe.cli.output import quieten_libraries, stage
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.subject.subject import Subject

Images = Annotated[
    list[Path] | None,
    typer.Option(
        help="an image, a video file (.mp4 ...) or a folder of its frames; given again, several of "
        "ONE prompt",
        show_default="a drawn sample image",
    ),
]
Question = Annotated[str | None, typer.Option(help="what to ask", show_default="one that fits")]
Response = Annotated[
    str | None, typer.Option(help="the answer to measure", show_default="the model's own")
]
Seed = Annotated[int, typer.Option(help="of everything that is drawn at random")]
Out = Annotated[Path, typer.Option(help="folder of the results")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks, and what the libraries log")]
Data = Annotated[
    Path | None,
    typer.Option(help="folder with the benchmark's official files", show_default="none"),
]
Split = Annotated[
    str | None,
    typer.Option(help="split of the benchmark", show_default="the one that papers report"),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="questions to ask at most", show_default="all; 90 of shapes"),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16", show_default="as the checkpoint was saved"),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...", show_default="the fastest there is")
]
CacheGB = Annotated[
    float,
    typer.Option(
        min=0, help="GB of keys and values kept for more questions about an image; at least one"
    ),
]
Longest = Annotated[int, typer.Option(min=1, help="longest answer, in tokens")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, loaded how."""

    model: Annotated[str, typer.Option(help="tiny-llava, a hub id or a local folder")] = (
        "tiny-llava"
    )
    aspect: Annotated[
        Literal["pad", "crop"] | None,
        typer.Option(
            help="pad the image to a square, as the paper, or crop it",
            show_default="the processor's own",
        ),
    ] = None
    exif: Annotated[
        Literal["upright", "ignore"],
        typer.Option(help="turn photographs upright, or take them as stored, as LLaVA's scripts"),
    ] = "upright"
    dtype: Dtype = None
    device: Device = None
    attn: Annotated[
        str | None,
        typer.Option(help="sdpa, eager or flash_attention_2", show_default="the model's own"),
    ] = None
    quantization: Annotated[
        Literal["4bit", "8bit"] | None,
        typer.Option(help="load the weights in 4 or 8 bits, on a GPU", show_default="no"),
    ] = None
    device_map: Annotated[
        str | None,
        typer.Option(help="auto: spread the layers over all GPUs there are", show_default="one"),
    ] = None
    debug: Debug = False

    def subject(self, name: str | None = None) -> "Subject":
        """The subject that these options ask for, or another one loaded in the same way."""
        from probe.subject.loading import load

        quieten_libraries(self.debug)
        with stage(f"loading {name or self.model}"), _alone(self.device_map):
            return load(
                name or self.model,
                dtype=self.dtype,
                device=self.device,
                device_map=self.device_map,
                attn_implementation=self.attn,
                quantization_config=quantization_config(self.quantization),
                aspect=self.aspect if name is None else None,
                exif=self.exif,
            )


@contextmanager
def _alone(device_map: str | None) -> Iterator[None]:
    """While a model is loaded over several GPUs: transformers takes WORLD_SIZE for a process group
    of its own.
    """
    world = os.environ.pop("WORLD_SIZE", None) if device_map else None
    try:
        yield
    finally:
        if world is not None:
            os.environ["WORLD_SIZE"] = world


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which questions."""

    benchmark: Annotated[
        str, typer.Option(help="shapes (drawn, needs no files), gqa, mmbench, pope, textvqa, ...")
    ] = "shapes"
    data: Data = None
    split: Split = None
    limit: Limit = None


@dataclass(frozen=True)
class VideoOptions:
    """Which frames of a video."""

    fps: Annotated[
        float | None,
        typer.Option(help="of a video: frames taken a second", show_default="1; a folder's: all"),
    ] = None
    start: Annotated[
        float | None, typer.Option(help="of a video: from this second on", show_default="0")
    ] = None
    end: Annotated[
        float | None, typer.Option(help="of a video: up to this second", show_default="its end")
    ] = None

    def check(self, has_video: bool) -> None:
        """Raises ProbeError where frames of a video are chosen and there is none."""
        given = given_options(self)
        if given and not has_video:
            raise ProbeError(given[0], expected="a video with it (--image clip.mp4)", got="none")


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb for typer: each argument that is a dataclass of options becomes the options in it."""
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, type] = {
        name: hint for name, hint in hints.items() if inspect.isclass(hint) and is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        group = groups[parameter.name]
        for field_ in fields(group):
            kind = get_type_hints(group, include_extras=True)[field_.name]
            option = inspect.Parameter(
                field_.name, parameter.KEYWORD_ONLY, default=field_.default, annotation=kind
            )
            parameters.append(option)

    @wraps(verb)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            own = {field_.name: values.pop(field_.name) for field_ in fields(group)}
            values[name] = group(**own)
        verb(**values)

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    flat.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in keyword_only} | {"return": None}
    return flat


def given_options(group: Any) -> list[str]:
    """The words of a command line that give these options: all that are not None, and flags.

    >>> given_options(BenchmarkOptions("gqa", limit=5))
    ['--benchmark', 'gqa', '--limit', '5']
    """
    words: list[str] = []
    for field_ in fields(group):
        value = getattr(group, field_.name)
        name = f"--{field_.name.replace('_', '-')}"
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return words


def what_to_ask(
    images: list[Path] | None,
    question: str | None,
    frames: VideoOptions = VideoOptions(),
    exif: str = "upright",
) -> tuple[list, str]:
    """The user's images, opened videos and question; what is missing comes from the drawn sample.

    Raises ProbeError for a file that is no image or no video, before a model is loaded for it.
    """
    from probe.data.clip import Clip
    from probe.data.image import Video, open_image
    from probe.data.video import is_video_file, open_video
    from probe.models.tiny.questions import sample_image

    image, sample_question, _ = sample_image(seed=0)
    shown: list[Path | Clip] = []
    for path in images or ():
        if is_video_file(path) or path.expanduser().is_dir():
            video = Video(path, fps=frames.fps, start=frames.start, end=frames.end)
            shown.append(open_video(video, exif))
        else:
            open_image(path)
            shown.append(path)
    has_video = any(isinstance(one, Clip) for one in shown)
    frames.check(has_video)
    if question is None:
        what = "video" if has_video else "image"
        question = f"Describe the {what}." if images else sample_question
    return shown or [image], question


def quantization_config(quantization: str | None) -> Any:
    """The BitsAndBytesConfig of "4bit" (computing in bfloat16) or "8bit"; None for None.

    Raises ProbeError where its packages are not installed.
    """
    if quantization is None:
        return None
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if missing:
        raise ProbeError(
            "load",
            expected=f"the packages that --quantization {quantization} needs",
            got=f"no {' and no '.join(missing)}",
            fix="pip install 'probe-llava[quantization]'",
        )
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    return BitsAndBytesConfig(load_in_8bit=True)


def several_numbers(option: str, given: str | None) -> list[int] | None:
    """Raises ProbeError for anything that is not whole numbers with commas between them.

    >>> several_numbers("--frames", "1,4,16")
    [1, 4, 16]
    """
    words = given.split(",") if given is not None else []
    if not all(word.strip().isdecimal() and len(word) < 12 for word in words):
        raise ProbeError(option, expected="numbers with commas between them", got=repr(given))
    return [int(word) for word in words] if words else None
