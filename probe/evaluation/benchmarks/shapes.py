"""Shapes: the tiny models' own task, drawn from a seed. No files are needed.

    Sample("shapes-0-00005", <60 x 60 image>, "Is there a red circle?", answer="no", meta={...})

Each scene is asked one question of every kind but the caption, so that questions share images as in
GQA. Training draws from other seeds: these images are in no training set
(`probe.models.tiny.training.recipe`).

Rule: equal after stripping, lower-casing and dropping a full stop at the end.
"""

from pathlib import Path

import numpy as np

from probe.data.rows import Benchmark
from probe.data.sample import Sample
from probe.errors import at_least, one_of
from probe.evaluation.benchmarks.answer_files import Answers, Predictions, Rows, write_llava
from probe.models.tiny.questions import QUESTION_KINDS, ask
from probe.models.tiny.scenes import draw, sample_scene

HEADLINE = "accuracy"
FILES = "none: it is drawn"
SPLITS = ("test",)
ASKED = tuple(kind for kind in QUESTION_KINDS if kind != "caption")
STREAM = 1000  # first number of the seed; `drawing.stream` counts its purposes from 1


def read(
    folder: str | Path | None = None, split: str = SPLITS[0], questions: int = 1200, seed: int = 0
) -> Benchmark:
    """Draws `questions` questions. `folder` is not used: every other benchmark needs one.

    >>> read(questions=6).samples[0].meta["kind"]
    'shape'
    """
    one_of("shapes", "a split among", split, SPLITS)
    at_least("shapes", "a number of questions", questions, 1)
    samples: list[Sample] = []
    while len(samples) < questions:
        samples += _scene(seed, len(samples) // len(ASKED))
    return Benchmark("shapes", f"{split}-{seed}", tuple(samples[:questions]), (), ())


def _scene(seed: int, number: int) -> list[Sample]:
    rng = np.random.default_rng([STREAM, seed, number])
    scene = sample_scene(rng)
    image = draw(scene)
    samples = []
    for place, kind in enumerate(ASKED):
        asked = ask(scene, kind, rng)
        key = f"shapes-{seed}-{number * len(ASKED) + place:05d}"
        meta = {
            "question_id": key,
            "unit": key,
            "image": f"scene-{seed}-{number:05d}",
            "kind": kind,
            "key": asked.key,
            "distractors": asked.distractors,
        }
        samples.append(Sample(key, image, asked.question, answer=asked.answer, meta=meta))
    return samples


def score(prediction: str, sample: Sample) -> float:
    """1 where the words are the answer."""
    return float(prediction.strip().rstrip(".").lower() == sample.answer)


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Accuracy in percent, all and by kind of question."""
    answers = Answers(rows, predictions, score)
    kinds: dict[str, float] = {}
    for kind in ASKED:
        kinds[f"kind/{kind}"] = answers.percent(lambda s, kind=kind: s.meta["kind"] == kind)
    return {"accuracy": answers.percent(), **kinds, **answers.counts()}


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes `shapes.jsonl` in LLaVA's answer format."""
    return write_llava(rows, predictions, Path(folder) / "shapes.jsonl")
