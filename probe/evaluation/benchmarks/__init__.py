"""Benchmarks: official local files in, samples out; a scorer; and the official answer format back
out.

    gqa = named("gqa")
    benchmark = gqa.read("data/gqa")                       # .samples; .problems: rows that can't be used
    gqa.score("Yes.", benchmark.samples[0])                # 0.0 ... 1.0 for one answer
    gqa.summarise(benchmark.samples, predictions)          # {"accuracy": 61.9, ...}, in percent
    gqa.export(benchmark.samples, predictions, "out/")     # what the official scorer reads

Every module has these four functions, `HEADLINE` (the number that papers print) and `SPLITS` (the
first is the default). Where `HEADLINE` is no mean of `score` there is `weighted`, the same number
when each sample counts so often, as a bootstrap needs it, and its `LABEL`. `predictions` maps a
sample's id to the generated text. This file is the map; nothing is loaded by it.
"""

from importlib import import_module
from types import ModuleType

from probe.errors import ProbeError

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
}


def named(name: str) -> ModuleType:
    """The module of one benchmark. Raises ProbeError with the names there are.

    >>> named("gqa").HEADLINE
    'accuracy'
    """
    if name not in NAMES:
        raise ProbeError("benchmark", expected=f"one of {', '.join(NAMES)}", got=repr(name))
    module = {"seed": "seed_bench", "llava_w": "llava_bench"}.get(name, name)
    return import_module(f"probe.evaluation.benchmarks.{module}")
