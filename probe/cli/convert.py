"""`probe convert`: a checkpoint of LLaVA-Mini's authors, or of a rival's, to a folder that
transformers opens.
"""

from pathlib import Path
from typing import Annotated

import typer

from probe.cli.options import Debug
from probe.cli.output import quieten_libraries, say
from probe.cli.result_folder import not_writable
from probe.errors import ProbeError

Folder = Annotated[
    Path, typer.Argument(help="the authors' folder: config.json and weights, .safetensors or .bin")
]
Out = Annotated[Path, typer.Option(help="folder of the native model; new, or empty")]
Vision = Annotated[
    Path | None,
    typer.Option(
        help="the vision tower's folder or file, where the checkpoint is without it",
        show_default="as config.json says",
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(help="the LLM's folder, for an adapter (mm_projector.bin)", show_default="none"),
]


def convert(
    folder: Folder,
    out: Out = Path("probe-out/convert"),
    vision: Vision = None,
    base: Base = None,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint of LLaVA-Mini's, MQT-LLaVA's, TokenPacker's, VoCo-LLaMA's or LLaMA-VID's
    authors, shard by shard; what does not fit is named.
    """
    from probe.models.original import CheckpointError
    from probe.models.original import convert as convert_folder

    quieten_libraries(debug)
    try:
        convert_folder(folder, out, vision, base)
    except CheckpointError as error:
        raise ProbeError("convert", expected=error.expected, got=error.got) from error
    except OSError as error:
        raise not_writable(out, error) from error
    say("written to", f"{out}/: {', '.join(sorted(file.name for file in out.iterdir()))}")
    if not (out / "processor_config.json").is_file():
        say(
            "note",
            "there was no tokenizer: copy its files into the authors' folder and convert again "
            "to ask questions",
        )
