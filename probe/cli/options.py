"""Options that several verbs have, so that they are called and explained the same everywhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
