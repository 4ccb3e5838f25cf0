"""Benchmarks: official local files in, samples out; a scorer; and the official answer format back
out.

    gqa = named("gqa")
    benchmark = gqa.read("data/gqa")                # .samples; .problems: rows that can't be used
    gqa.score("Yes.", benchmark.samples[0])         # 0.0 ... 1.0 for one answer
    gqa.summarise(benchmark.samples, predictions)   # {"accuracy": 61.9, ...}, in percent
    gqa.export(benchmark.official_rows, predictions, "out/")   # what the official scorer reads

Every file has these four functions (`BenchmarkModule`), `HEADLINE` (the number that papers print),
`FILES` (what the folder holds) and `SPLITS` (the first is the default). Where `HEADLINE` is not a
mean of `score` there is `weighted`, the same number when each sample counts several times, as a
bootstrap needs it, and its `LABEL`. `predictions` maps a sample's id to the generated text. Images
are turned upright as their EXIF data says; LLaVA's own scripts do not do that, nor does
`load(exif="ignore")`, which runs record.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from probe.data.rows import Benchmark
from probe.data.sample import Sample
from probe.errors import one_of

NAMES = {
    "shapes": "the tiny models' own task, drawn from a seed",
    "gqa": "GQA, compositional questions",
    "mmbench": "MMBench, circular multiple choice",
    "pope": "POPE, object hallucination",
    "textvqa": "TextVQA, reading",
    "scienceqa": "ScienceQA, school science",
    "vqav2": "VQAv2",
    "vizwiz": "VizWiz, blind people's images",
    "mme": "MME, yes or no",
    "seed": "SEED-Bench, multiple choice",
    "llava_w": "LLaVA-Bench in the wild, scored by a judge",
    "mm_vet": "MM-Vet, scored by a judge",
    "mvbench": "MVBench, multiple choice about short videos",
    "mlvu": "MLVU, multiple choice about long videos",
    "egoschema": "EgoSchema, first-person videos",
    "msvd_qa": "MSVD-QA, videos, scored by a judge",
    "msrvtt_qa": "MSRVTT-QA, videos, scored by a judge",
    "activitynet_qa": "ActivityNet-QA, videos, scored by a judge",
    "video_chatgpt": "Video-ChatGPT's five scores, by a judge",
}


FILE_NAMES = {  # where they differ from the name; "file:object" where a file has several
    "seed": "seed_bench",
    "llava_w": "llava_bench",
    "mvbench": "mvbench:MVBENCH",
    "mlvu": "mlvu:MLVU",
    "msvd_qa": "video_qa:MSVD_QA",
    "msrvtt_qa": "video_qa:MSRVTT_QA",
    "activitynet_qa": "video_qa:ACTIVITYNET_QA",
}


@runtime_checkable
class BenchmarkModule(Protocol):
    """What every file of this folder offers."""

    HEADLINE: str
    FILES: str
    SPLITS: tuple[str, ...]
    read: Callable[..., Benchmark]
    score: Callable[[str, Sample], float]
    summarise: Callable[..., dict[str, float]]
    export: Callable[..., Path]


def named(name: str) -> BenchmarkModule:
    """The file of one benchmark, or its part of it. Raises ProbeError with the names there are.

    >>> named("gqa").HEADLINE
    'accuracy'
    """
    one_of("benchmark", "one of", name, NAMES)
    file, _, part = FILE_NAMES.get(name, name).partition(":")
    module = import_module(f"probe.evaluation.benchmarks.{file}")
    return cast(BenchmarkModule, getattr(module, part) if part else module)
