"""`probe train`: make the shipped model again."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from probe.cli.options import Debug
from probe.cli.output import all_or_nothing, console, quieten_libraries

What = Annotated[Literal["tiny-llava"], typer.Argument(help="the model to make")]
Out = Annotated[Path, typer.Option(help="folder of the new model")]
Steps = Annotated[int | None, typer.Option(min=1, help="stop after so many", show_default="the recipe's")]
Seed = Annotated[int, typer.Option(help="of weights and pictures")]


def train(
    what: What = "tiny-llava",
    out: Out = Path("probe-out/train"),
    steps: Steps = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Make the shipped model from a seed, on drawn pictures; a run that was stopped goes on from there."""
    with all_or_nothing(out):
        pass  # hours of work must not end at a folder that cannot be written
    from probe.models.tiny.recipe import Recipe
    from probe.models.tiny.training import train as train_tiny

    quieten_libraries(debug)
    train_tiny(out, recipe=Recipe(seed=seed), steps=steps)
    console.print(f"[bold]written to[/] {out}/", highlight=False)
