"""Options that several verbs have, so that they are called and explained the same everywhere."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.subject.subject import Subject

Model = Annotated[str, typer.Option(help="tiny-llava, a hub id or a local folder")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...", show_default="the fastest there is")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16", show_default="as the checkpoint was saved"),
]
Attn = Annotated[
    str | None,
    typer.Option(help="sdpa, eager or flash_attention_2", show_default="the model's own"),
]
Quantization = Annotated[
    Literal["4bit", "8bit"] | None,
    typer.Option(help="load the weights in 4 or 8 bits, on a GPU", show_default="no"),
]
Aspect = Annotated[
    Literal["pad", "crop"] | None,
    typer.Option(
        help="pad the image to a square, as the paper, or crop it",
        show_default="the processor's own",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks, and what the libraries log")]
Data = Annotated[
    Path | None,
    typer.Option(help="folder with the benchmark's official files", show_default="none"),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="ask so many questions", show_default="all; 90 of shapes")
]
Split = Annotated[
    str | None,
    typer.Option(help="split of the benchmark", show_default="the one that papers report"),
]
Benchmark = Annotated[
    str, typer.Option(help="shapes (drawn, needs no files), gqa, mmbench, pope, textvqa, ...")
]
Longest = Annotated[int, typer.Option(min=1, help="longest answer, in tokens")]
RunFolder = Annotated[
    Path, typer.Option(help="folder of the run; the same command goes on with it")
]


def load_subject(
    model: str,
    *,
    dtype: str | None,
    device: str | None,
    attn: str | None,
    quantization: str | None,
    aspect: str | None = None,
) -> "Subject":
    """The subject that these options ask for."""
    from probe.subject.loading import load

    return load(
        model,
        dtype=dtype,
        device=device,
        attn_implementation=attn,
        quantization_config=quantization_config(quantization),
        aspect=aspect,
    )


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
