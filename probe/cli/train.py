"""`probe train`: make a shipped model again, or a LLaVA-Mini of one's own."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from probe.cli.options import Debug, Seed
from probe.cli.output import quieten_libraries, say
from probe.cli.result_folder import results
from probe.errors import ProbeError

What = Annotated[
    Literal["tiny-llava", "tiny-llava-mini"] | None,
    typer.Argument(help="the shipped model to make again", show_default="tiny-llava"),
]
Data = Annotated[
    Path | None,
    typer.Option(help="instead: LLaVA's conversations or Video-ChatGPT's questions (JSON)"),
]
Images = Annotated[
    Path | None, typer.Option(help="with --data: the folder that its images and videos are in")
]
Model = Annotated[str, typer.Option(help="with --data: the LLaVA or LLaVA-Mini to begin with")]
Stage = Annotated[
    int,
    typer.Option(min=1, max=2, help="with --data: 1 the projector, 2 all but the vision encoder"),
]
Batch = Annotated[int, typer.Option(min=1, help="with --data: rows a step")]
AtOnce = Annotated[int, typer.Option(min=1, help="with --data: rows at once on each device")]
Out = Annotated[Path, typer.Option(help="folder of the new model")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="stop after this many steps", show_default="the recipe's"),
]

SHOWN = 3  # bad rows on the terminal


def train(
    what: What = None,
    data: Data = None,
    images: Images = None,
    model: Model = "tiny-llava",
    stage: Stage = 2,
    batch: Batch = 256,
    at_once: AtOnce = 1,
    out: Out = Path("probe-out/train"),
    steps: Steps = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Make a shipped model again from a seed, or train LLaVA-Mini on your data; a run that was
    stopped goes on.
    """
    if (data is None) != (images is None) or (data is not None and what is not None):
        expected = "the name of a shipped model, or both --data and --images"
        got = f"{what} and --data" if what else "one of them"
        raise ProbeError("train", expected=expected, got=got)
    job = str(data) if data is not None else what or "tiny-llava"
    with results(f"train {job}", out) as folder:
        folder.claim({})  # another training into the same folder is refused from now on
        quieten_libraries(debug)
        if data is not None and images is not None:
            _train_on(data, images, model, out, stage, steps, seed, batch, at_once)
        elif what == "tiny-llava-mini":
            from probe.models.tiny.training.mini_recipe import MiniRecipe
            from probe.models.tiny.training.train_mini import train_mini

            train_mini(out, recipe=MiniRecipe(seed=seed), steps=steps)
        else:
            from probe.models.tiny.training.recipe import Recipe
            from probe.models.tiny.training.train import train as train_tiny

            train_tiny(out, recipe=Recipe(seed=seed), steps=steps)
    if steps is None:
        say("written to", f"{out}/")
    else:
        say(
            "stopped",
            f"after at most {steps} steps, as --steps asks; the state is in {out}/ and the same "
            "command without --steps goes on",
        )


def _train_on(
    data: Path,
    images: Path,
    model: str,
    out: Path,
    number: int,
    steps: int | None,
    seed: int,
    batch: int,
    at_once: int,
) -> None:
    from probe.models.instructions import read_instructions
    from probe.models.llava_mini.from_llava import processor_for
    from probe.models.llava_mini.training import STAGES
    from probe.models.llava_mini.training import train as train_stage
    from probe.subject.loading import load

    instructions, problems = read_instructions(data, images)
    for problem in problems[:SHOWN]:
        say("left out", problem)
    say(f"{len(instructions)} rows,", f"{len(problems)} left out")
    # Trainer moves it to its device; bfloat16 would lose updates of 1e-5
    started = load(model, device="cpu", dtype="float32")
    arguments = {"max_steps": steps or -1, "seed": seed, "per_device_train_batch_size": at_once}
    stage = STAGES[number]
    try:
        mini = stage.prepare(started.model, seed)
        processor = processor_for(mini, started.processor)
        train_stage(mini, processor, instructions, out, stage, batch, **arguments)
    except ValueError as error:  # the model's own package knows no ProbeError
        raise ProbeError("train", fix=str(error).removeprefix("train: ")) from error
