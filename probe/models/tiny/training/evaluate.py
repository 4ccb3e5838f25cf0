"""Accuracy of a tiny model on images it has never seen.

Exact match: every word of the answer and the closing `</s>` is the model's first choice, which is
what greedy generation writes. One question of each kind is asked about every image. The frozen
images come from random numbers that no training uses (`scenes.stream`). Two controls: the same
questions about another image, and the best answer to the question's words alone.

    frame = evaluate(model, processor, controls=True)   # 2,000 images, 14,000 questions: 1-2 min
    summary(frame, "kind")                              # right, swapped, blind, questions
    summary(frame, ["kind", "distractors"])
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import ProcessorMixin

from probe.models.tiny.questions import QUESTION_KINDS, SceneQuestion, ask
from probe.models.tiny.scenes import Scene, sample_scene, stream
from probe.models.tiny.training.architecture import pixels
from probe.models.tiny.training.packed_rows import Packed, Packer, answer_logits

BATCH = 16  # images
Logits = Callable[[Any, Tensor, Packed], Tensor]  # (model, pixels, rows) -> logits at the labels


def frozen(number: int, purpose: str = "frozen") -> tuple[Scene, tuple[SceneQuestion, ...]]:
    """Image `number` of the evaluation set, with a question of every kind: always the same."""
    rng = stream(purpose, number)
    scene = sample_scene(rng)
    return scene, tuple(ask(scene, kind, rng) for kind in QUESTION_KINDS)


@torch.no_grad()
def evaluate(
    model: Any,
    processor: ProcessorMixin,
    images: int = 2000,
    *,
    purpose: str = "frozen",
    controls: bool = False,
    logits: Logits = answer_logits,
) -> pd.DataFrame:
    """One row a question: image, kind, question, answer, key, things, distractors, right.

    `logits` is how the model answers packed rows (a LLaVA-Mini: `packed_rows.fused_logits`).
    `controls` adds `swapped` (right although asked about another image, its neighbour in the batch)
    and `blind` (right by `blind_answers`).
    """
    packer = Packer(processor, model.config.image_seq_length)
    tables = []
    for start in range(0, images, BATCH):
        numbers = range(start, min(start + BATCH, images))
        scenes, asked = zip(*(frozen(number, purpose) for number in numbers), strict=True)
        packed = packer.pack([[[question] for question in questions] for questions in asked])
        questions = packed.questions
        table = pd.DataFrame([vars(q) | {"distractors": q.distractors} for q in questions])
        table.insert(0, "image", [number for number in numbers for _ in QUESTION_KINDS])
        pixel_values = pixels(scenes)
        answered = logits(model, pixel_values, packed)
        table["right"] = exact(answered, packed).numpy()
        if controls:
            of_neighbour = logits(model, pixel_values.roll(1, 0), packed)
            table["swapped"] = exact(of_neighbour, packed).numpy()
            guesses = blind_answers()
            table["blind"] = [guesses.get(q.question) == q.answer for q in questions]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summary(frame: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """Mean of `right` (and of the controls) in each group, and its number of questions."""
    groups = frame.groupby(by, sort=False)
    means = {name: groups[name].mean() for name in ("right", "swapped", "blind") if name in frame}
    return pd.DataFrame(means | {"questions": groups.size()})


def exact(logits: Tensor, packed: Packed) -> Bool[Tensor, " question"]:
    """Whether all of a question's answer tokens, `</s>` included, are the first choice."""
    labelled = packed.labels >= 0
    wrong = (logits.argmax(-1) != packed.labels[labelled]).long()
    mistakes = torch.zeros(len(packed.questions), dtype=torch.long).index_add(
        0, packed.turn[labelled], wrong
    )
    return mistakes == 0


@cache
def blind_answers(image_count: int = 20_000) -> dict[str, str]:
    """The most frequent answer to each question, on separate images: the best blind guess."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(image_count):
        _, questions = frozen(number, "prior")
        for question in questions:
            answers[question.question][question.answer] += 1
    guesses: dict[str, str] = {}
    for question, counts in answers.items():
        ((most_frequent, _),) = counts.most_common(1)
        guesses[question] = most_frequent
    return guesses
