"""`probe patch`: put activations of one run into another, layer by layer, and see what brings the
right answer back.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probe.cli.benchmark_run import SHAPES_LIMIT, read_task
from probe.cli.engine import EngineOptions, finished
from probe.cli.options import BenchmarkOptions, CacheGB, ModelOptions, Out, Seed, with_options
from probe.cli.output import number, say, show_table, stage
from probe.cli.result_folder import results

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Site = Annotated[
    Literal["residual", "attention", "mlp", "head"],
    typer.Option(help="what is put in: a layer's output, what its attention or MLP adds, or heads"),
]
Positions = Annotated[
    Literal["types", "cells"], typer.Option(help="types of token, or 3 x 3 cells of the image")
]
Change = Annotated[
    Literal["all", "colour", "position", "object"],
    typer.Option(help="of shapes: the one thing in which drawn pairs differ"),
]
Corruption = Annotated[
    Literal["image", "blank", "noise"] | None,
    typer.Option(
        help="the other run: another image, a grey one, or noise",
        show_default="the drawn pair; image of other benchmarks",
    ),
]
Direction = Annotated[
    Literal["both", "denoise", "noise"],
    typer.Option(help="clean into corrupted, or corrupted into clean"),
]
Where = Annotated[
    Literal["llm", "cross", "prefusion"],
    typer.Option(
        help="the layers: the LLM's, its cross-attention to the image, LLaVA-Mini's pre-fusion"
    ),
]


@with_options
def patch(
    loading: ModelOptions,
    asked: BenchmarkOptions,
    engine: EngineOptions,
    site: Site = "residual",
    positions: Positions = "types",
    change: Change = "all",
    corruption: Corruption = None,
    direction: Direction = "both",
    stack: Where = "llm",
    seed: Seed = 0,
    cache_gb: CacheGB = 2.0,
    out: Out = Path("probe-out/patch"),
) -> None:
    """Patch each layer at each group of positions: the share of the right answer's log-probability
    that comes back, patches.csv, a dataset. It resumes.
    """
    with results("patch", out, shows_finished=True) as folder:
        task = read_task(asked)
        engine.launch()
        from probe.evaluation.causal_runs import PatchRun, pairs_task
        from probe.records.patch_effects import recovered

        if asked.benchmark == "shapes" and corruption is None:
            task = pairs_task(change, asked.limit or SHAPES_LIMIT, seed)
        subject = engine.placed(loading).subject()
        of_pairs = task.benchmark.name == "scene_pairs"
        sweeping = PatchRun(
            subject,
            task,
            site=site,
            positions=positions,
            corruption=corruption or ("given" if of_pairs else "image"),
            direction=direction,
            stack=stack,
            seed=seed,
            cache_gb=cache_gb,
        )
        dataset, problems = finished(sweeping, folder, engine)
        table = recovered(dataset)
        folder.table("patches", table)
        with stage("drawing"):
            from probe import plots

            folder.figures({"patches": plots.recovered(dataset)})
    show_shares(table, dataset)
    say("left out", problems)
    folder.announce("final.zarr", "run.json")


def show_shares(table: "pd.DataFrame", dataset: "xr.Dataset") -> None:
    """A row a layer, a column a group of positions: the share of the first direction."""
    first = str(dataset["direction"].values[0])
    shown = table[table["direction"] == first]
    groups = list(dict.fromkeys(shown["group"]))
    shares = shown.set_index(["layer", "group"])["recovered"].to_dict()
    layers = list(dict.fromkeys(shown["layer"]))
    rows = [
        [str(layer + 1), *(number(shares[layer, group], 2) for group in groups)] for layer in layers
    ]
    show_table(
        f"{first}: share of the difference that a patch at {dataset.attrs['site']} moves",
        {"layer": "left"} | dict.fromkeys(groups, "right"),
        rows,
        f"{dataset.sizes['sample']} pairs; layers count from 1; intervals are in patches.csv",
    )
