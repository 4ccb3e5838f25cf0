"""`probe reproduce`: the figures and tables of a paper, on one's own model and data.

Each is made by another verb in a folder of its own below `--out`, which resumes and runs on any
engine; the figures are copied under the paper's numbers.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probe.cli.benchmark_run import read_task
from probe.cli.engine import EngineOptions
from probe.cli.options import (
    BenchmarkOptions,
    Longest,
    ModelOptions,
    given_options,
    with_options,
)
from probe.cli.output import say
from probe.cli.result_folder import results
from probe.errors import ProbeError, one_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from probe.evaluation.task import BenchmarkTask

Paper = Annotated[
    Literal["llava-mini", "visionzip"],
    typer.Argument(help="llava-mini: arXiv 2501.03895; visionzip: arXiv 2412.04467"),
]
Figures = Annotated[
    str | None,
    typer.Option("--figure", help="numbers, several with commas", show_default="all, and tables"),
]
Mini = Annotated[
    str | None,
    typer.Option(help="the LLaVA-Mini that is compared", show_default="the shipped, with it"),
]
Out = Annotated[
    Path | None,
    typer.Option(help="folder of the results", show_default="probe-out/reproduce, or -visionzip"),
]
WITH_PUBLISHED = {"7", "8"}  # of LLaVA-Mini: costs that the paper prints as numbers, too
TINY, TINY_MINI = "tiny-llava", "tiny-llava-mini"
NEXT_TOKENS = 2880  # of the published table for LLaVA-NeXT
# One a paper, as results replace those that a folder had
FOLDERS = {"llava-mini": "probe-out/reproduce", "visionzip": "probe-out/reproduce-visionzip"}


@dataclass(frozen=True)
class Step:
    """A verb that makes some of a paper's figures: {number: file that the verb writes}."""

    folder: str
    verb: str
    figures: Mapping[str, str]
    options: Callable[["Request"], list[str]]
    needs_mini: bool = False


@dataclass(frozen=True)
class Request:
    """What was asked for, and the sample that stands for the paper's example image."""

    loading: ModelOptions
    asked: BenchmarkOptions
    engine: EngineOptions
    mini: str | None
    max_new_tokens: int
    images: tuple[Path, ...]
    question: str

    def model(self, name: str | None = None) -> list[str]:
        """The options that load the model, or another one in the same way."""
        other = {} if name is None else {"model": name, "aspect": None}
        return given_options(replace(self.loading, **other))

    def samples(self) -> list[str]:
        """The options of a verb over the benchmark."""
        words = [*given_options(self.asked), *given_options(self.engine)]
        return [*words, "--max-new-tokens", str(self.max_new_tokens)]

    def example(self) -> list[str]:
        """The options of a verb about the example image."""
        images = [word for image in self.images for word in ("--image", str(image))]
        return [*images, "--question", self.question]


LLAVA_MINI = (
    Step(
        "attention",
        "attention",
        {"2": "llm-mass", "3": "llm-entropy"},
        lambda asked: [*asked.model(), *asked.samples()],
    ),
    Step(
        "example",
        "attention",
        {"4": "llm-heatmaps"},
        lambda asked: [*asked.model(), *asked.example()],
    ),
    Step(
        "drop",
        "drop",
        {"5": "dropped"},
        lambda asked: [*asked.model(), *asked.samples(), "--mode", "mask", "--no-depth"],
    ),
    Step(
        "compression",
        "attention",
        {"12": "compressor-compression"},
        lambda asked: [*asked.model(asked.mini), *asked.example(), "--figures", "all"],
        needs_mini=True,
    ),
    Step(
        "cost",
        "cost",
        {"7": "flops", "8": "latency", "9": "memory-frames"},
        lambda asked: ["--model", asked.loading.model, "--model", str(asked.mini)],
        needs_mini=True,
    ),
    Step(
        "methods",
        "reduce",
        {"table 1": "reduce"},
        lambda asked: [
            *(*asked.model(), *asked.samples(), "--beside", str(asked.mini)),
            *("--reducers", "downsample", "--keep", "0.25"),
        ],
        needs_mini=True,
    ),
)
VISIONZIP = (
    Step(
        "reduce",
        "reduce",
        {"1": "reduce", "table 1": "reduce"},
        lambda asked: [
            *(*asked.model(), *asked.samples(), "--keep", "0.333,0.222,0.111"),
            *("--reducers", "visionzip,fastv,sparsevlm,random", "--published"),
            "visionzip_llava15_7b",
        ],
    ),
)
PAPERS = {"llava-mini": LLAVA_MINI, "visionzip": VISIONZIP}
CONCENTRATION = {"2": "concentration", "4": "softmax-gradient"}  # of VisionZip: of the encoder


@with_options
def reproduce(
    loading: ModelOptions,
    asked: BenchmarkOptions,
    engine: EngineOptions,
    paper: Paper = "llava-mini",
    figure: Figures = None,
    mini: Mini = None,
    max_new_tokens: Longest = 32,
    out: Out = None,
) -> None:
    """Make a paper's figures and tables on a model and a benchmark, published numbers beside them.
    It resumes.
    """
    from probe.cli import run_verb

    mini = mini or (TINY_MINI if loading.model == TINY else None)
    numbers = _numbers(paper, figure, mini)
    out = out or Path(FOLDERS[paper])
    task = read_task(asked)
    with results("reproduce", out) as folder:
        example = _example(task, out)
        request = Request(loading, asked, engine, mini, max_new_tokens, *example)
        for step in PAPERS[paper]:
            wanted = {number: name for number, name in step.figures.items() if number in numbers}
            if not wanted:
                continue
            place = out / step.folder
            say("figure" if len(wanted) == 1 else "figures", ", ".join(wanted))
            code = run_verb([step.verb, *step.options(request), "--out", str(place)])
            if code:
                raise typer.Exit(code)
            if WITH_PUBLISHED & wanted.keys():
                folder.figures(_beside_published(place))
            for number, name in wanted.items():
                if (place / f"{name}.png").is_file():
                    for ending in ("png", "svg"):
                        target = folder.file(f"{number.replace(' ', '-')}.{ending}")
                        shutil.copyfile(place / f"{name}.{ending}", target)
        if paper == "visionzip" and engine.worker.first:
            drawn = set(CONCENTRATION) & set(numbers)
            if drawn:
                folder.figures(_concentration(request, task, drawn))
        if "table 1" in numbers:
            table = _table(paper, task, out)
            if table is not None:
                folder.table("table-1", table)
        _note_missing(paper, numbers, mini)
    folder.announce()


def _numbers(paper: str, figure: str | None, mini: str | None) -> list[str]:
    """The figures that were asked for; all, where none are named. Raises ProbeError for one that
    the paper does not have here, or that needs a LLaVA-Mini where there is none.
    """
    steps = PAPERS[paper]
    known = {number: step for step in steps for number in step.figures}
    known |= dict.fromkeys(CONCENTRATION if paper == "visionzip" else ())
    able = [
        number
        for number, step in known.items()
        if mini is not None or step is None or not step.needs_mini
    ]
    if figure is None:
        return able
    numbers = [word.strip().lower() for word in figure.split(",") if word.strip()]
    if not numbers:
        raise ProbeError("--figure", expected=f"numbers of {', '.join(known)}", got=repr(figure))
    for number in numbers:
        one_of("--figure", f"of {paper}:", number, known)
        one_of("--figure", "without --mini:", number, able, fix="pass --mini MODEL")
    return numbers


def _example(task: "BenchmarkTask", out: Path) -> tuple[tuple[Path, ...], str]:
    """The first sample's images, as files, and its question."""
    from probe.data.image import open_image

    sample = task.with_images[0]
    folder = out / "example-image"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(sample.images):
        path = folder / f"{number}.png"
        open_image(image).save(path)
        paths.append(path)
    return tuple(paths), str(sample.question)


def _concentration(request: Request, task: "BenchmarkTask", drawn: set[str]) -> dict:
    """VisionZip's Fig. 2 and 4: on how few patches the encoder looks, and why."""
    from probe import plots
    from probe.measures.encoder_concentration import concentration
    from probe.plots.style import unmanaged

    say("figures", ", ".join(sorted(drawn)))
    subject = request.engine.placed(request.loading).subject()
    images = list({sample.meta["image"]: sample.images[0] for sample in task.with_images}.values())
    found = concentration(subject, images[:32])
    figures = {"2": plots.concentration, "4": plots.softmax_gradient}
    return {number: unmanaged(figures[number](found)) for number in sorted(drawn)}


def _beside_published(place: Path) -> "dict[str, Figure]":
    """What LLaVA-Mini costs in percent of the model, with the paper's own percentages."""
    from probe import plots
    from probe.measures.cost import read
    from probe.plots.style import unmanaged

    file = place / "costs.json"
    if not file.is_file():  # another worker goes on with the results
        return {}
    return {"7-8-published": unmanaged(plots.relative_cost(read(file)))}


def _table(paper: str, task: "BenchmarkTask", out: Path) -> "pd.DataFrame | None":
    """This run's methods beside the published ones, on this benchmark where the paper has it."""
    import pandas as pd

    from probe.records.published import published

    step = next(step for step in PAPERS[paper] if "table 1" in step.figures)
    file = out / step.folder / "reduce.csv"
    if not file.is_file():  # another worker goes on with the results
        return None
    ours = pd.read_csv(file)
    columns = [name for name in ("method", "vision_tokens", "accuracy") if name in ours]
    columns += [name for name in ours if name.startswith("official_")]
    table = pd.DataFrame(ours[columns]).assign(source="this run")
    if paper == "visionzip":
        printed = published("visionzip_llava15_7b").assign(source="published, LLaVA-1.5-7B")
        first = ours["accuracy"].iloc[0]
        table["percent_of_vanilla"] = 100 * ours["accuracy"] / first
    else:
        names = {"scienceqa": "sciqa", "mmbench": "mmb"}
        name = names.get(task.benchmark.name, task.benchmark.name)
        printed = published("llava_mini_table1").assign(source="published")
        kept = ["method", "llm", "resolution", "vision_tokens", "source"]
        printed = pd.DataFrame(printed[[*kept, *([name] if name in printed else [])]])
    return pd.concat([table, printed], ignore_index=True)


def _note_missing(paper: str, numbers: list[str], mini: str | None) -> None:
    if paper == "llava-mini" and mini is None and "12" not in numbers:
        say("note", "figures 7 to 9 and 12 and table 1 need a LLaVA-Mini: pass --mini MODEL")
