"""The two stages of the training: what is learned from what, at which rate.

Each step draws its images from (seed, step), so the model is the only state of a stage.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from probe.models.tiny.questions import SceneQuestion, ask
from probe.models.tiny.scenes import Scene, sample_scene, stream
from probe.models.tiny.training.architecture import pixels
from probe.models.tiny.training.evaluate import evaluate, summary
from probe.models.tiny.training.packed_rows import Packer, answer_logits
from probe.models.tiny.training.patch_pretraining import PatchWords, patch_labels
from probe.models.tiny.training.recipe import Recipe

# Accuracies of `patch_pretraining.GROUPS` in the learning curve.
PATCH_ACCURACIES = ("patch colour", "patch shape", "patch row", "patch column")
VALIDATION = 128  # images


@dataclass(frozen=True)
class TrainingPhase:
    """An optimiser's parameters. `loss` and `rate` are functions of the step within the phase."""

    steps: int
    parameters: list[nn.Parameter]
    loss: Callable[[int], Tensor]
    rate: Callable[[int], float]
    validate: Callable[[], dict[str, float]]  # accuracies by name


def vision_stage(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, recipe: Recipe
) -> TrainingPhase:
    """Stage 0: the vision encoder, the projector and the word embeddings learn to agree
    (`patch_pretraining`).
    """
    words = PatchWords(model, processor.tokenizer, recipe.word_scale)

    def batch(purpose: str, step: int) -> tuple[Tensor, Tensor]:
        rng = stream(purpose, recipe.seed, step)
        size = recipe.vision_batch
        scenes = [sample_scene(rng, things=recipe.vision_things, alike=0.0) for _ in range(size)]
        return pixels(scenes), torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes]))

    def loss(step: int) -> Tensor:
        return words.loss(*batch("pretraining", step))[0]

    def rate(step: int) -> float:
        return recipe.vision_rate * _schedule(
            step, recipe.vision_steps, recipe.vision_steps, recipe
        )

    @torch.no_grad()
    def validate() -> dict[str, float]:
        accuracy = torch.stack(
            [words.loss(*batch("validation", step))[1] for step in range(8)]
        ).mean(0)
        return dict(zip(PATCH_ACCURACIES, accuracy.tolist(), strict=True))

    parts = (
        model.model.vision_tower,
        model.model.multi_modal_projector,
        model.get_input_embeddings(),
    )
    parameters = [parameter for part in parts for parameter in part.parameters()]
    return TrainingPhase(recipe.vision_steps, parameters, loss, rate, validate)


def answer_stage(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, recipe: Recipe
) -> TrainingPhase:
    """Stage 1: all but the vision encoder learns to answer packed questions."""
    packer = Packer(processor)

    def loss(step: int) -> Tensor:
        rng = stream("training", recipe.seed, step)
        scenes = [
            sample_scene(rng, things=recipe.things, alike=recipe.alike) for _ in range(recipe.batch)
        ]
        packed = packer.pack([conversations(scene, recipe, rng, step) for scene in scenes])
        return cross_entropy(
            answer_logits(model, pixels(scenes), packed), packed.labels[packed.labels >= 0]
        )

    def rate(step: int) -> float:
        return recipe.rate * _schedule(step, recipe.steps, recipe.decay, recipe)

    def validate() -> dict[str, float]:
        table = summary(evaluate(model, processor, VALIDATION, purpose="validation"), "kind")
        return dict(zip(table.index, table["right"], strict=True))

    vision = set(model.model.vision_tower.parameters())
    parameters = [parameter for parameter in model.parameters() if parameter not in vision]
    return TrainingPhase(recipe.steps, parameters, loss, rate, validate)


def conversations(
    scene: Scene, recipe: Recipe, rng: np.random.Generator, step: int = 0
) -> list[list[SceneQuestion]]:
    """`recipe.questions` questions and a caption (from step `recipe.later` on, only sometimes).

    Some questions are the second turn of another question's conversation.
    """
    late = step >= recipe.later
    kinds, weights = zip(*(recipe.later_weights if late else recipe.weights), strict=True)
    drawn = rng.choice(kinds, size=recipe.questions, p=np.array(weights) / sum(weights))
    talks: list[list[SceneQuestion]] = []
    if not late or rng.random() < recipe.later_captions:
        talks.append([ask(scene, "caption", rng)])
    for kind in drawn:
        question = ask(scene, str(kind), rng)
        if talks and len(talks[-1]) == 1 and rng.random() < recipe.second_turn:
            talks[-1].append(question)
        else:
            talks.append([question])
    return talks


def _schedule(step: int, steps: int, decay: int, recipe: Recipe) -> float:
    """Up over the warm-up, level, then down along a cosine over the last `decay` steps."""
    fraction = min(max((step - (steps - decay)) / decay, 0.0), 1.0)
    cosine = 1 + math.cos(math.pi * fraction)
    fall = recipe.last_rate + (1 - recipe.last_rate) * 0.5 * cosine
    return min(1.0, (step + 1) / recipe.warmup) * fall
