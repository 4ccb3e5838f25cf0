"""The training of a tiny LLaVA: from a seed to weights that `transformers` loads.

    from probe.models.tiny.training.train import train
    train("my-tiny-llava")        # 1-2 hours on one core; after Ctrl-C, call it again to resume

Stage 0 teaches every patch the words for what it shows. Stage 1 freezes the vision encoder and
teaches the model to answer packed questions (`stages`). A run that was stopped and resumed equals
one that was not, bit for bit on the same machine with the same number of threads.
"""

import csv
import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from probe.errors import ProbeError
from probe.models.tiny.processor import build_processor
from probe.models.tiny.questions import QUESTION_KINDS
from probe.models.tiny.training.architecture import build_model
from probe.models.tiny.training.recipe import Recipe
from probe.models.tiny.training.stages import (
    PATCH_ACCURACIES,
    TrainingPhase,
    answer_stage,
    vision_stage,
)
from probe.models.tiny.weights import save

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
SAVE_EVERY, LOG_EVERY = 50, 250  # steps


def train(
    folder: str | Path,
    *,
    recipe: Recipe | None = None,
    resume: bool = True,
    steps: int | None = None,
    progress: bool = True,
    threads: int = 1,
) -> LlavaForConditionalGeneration:
    """Trains into `folder`: weights, processor, `recipe.json`, `log.csv` and `checkpoint.pt`.

    `recipe` is `Recipe()` by default. `steps` stops early, after that many steps of both stages
    together; calling again resumes. A checkpoint and loadable weights are written every 50 steps
    and at the end, so Ctrl-C loses at most 50 steps. Raises ProbeError when the folder cannot be
    written or holds a checkpoint of another recipe.
    """
    run = TinyTraining(writable(folder), recipe or Recipe())
    if resume:
        run.restore()
    last = run.total if steps is None else min(steps, run.total)
    with (
        torch_threads(threads),
        tqdm(total=run.total, initial=run.step, disable=not progress, desc="train") as bar,
    ):
        while run.step < last:
            loss = run.advance()
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if run.step % LOG_EVERY == 0:
                run.log(loss)
            if run.step % SAVE_EVERY == 0 or run.step == last:
                run.save()
    return run.model.eval()


class TinyTraining:
    """The state of a training: model, optimiser, and the step reached (over both stages)."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = folder
        self.recipe = recipe
        self.processor: LlavaProcessor = build_processor()
        self.model = build_model(recipe, self.processor.tokenizer)
        self.stages = tuple(
            stage(self.model, self.processor, recipe) for stage in (vision_stage, answer_stage)
        )
        self.total = sum(stage.steps for stage in self.stages)
        self.step = 0
        self.seconds = 0.0
        self.optimizer: torch.optim.AdamW | None = None

    def advance(self) -> float:
        """One step. Returns its loss."""
        started = time.process_time()
        number, step = self._stage_of(self.step)
        stage = self.stages[number]
        if self.optimizer is None or step == 0:
            self.optimizer = self._begin(stage)
        optimizer = self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        loss = stage.loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(stage.parameters, self.recipe.clip)
        optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - started
        return loss.item()

    def log(self, loss: float) -> None:
        """Adds a line to the learning curve: loss and accuracies on validation images."""
        number, step = self._stage_of(self.step - 1)
        stage = self.stages[number]
        seconds = round(self.seconds, 1)
        row = {"step": self.step, "stage": number, "cpu_seconds": seconds, "loss": round(loss, 5)}
        row |= {"rate": stage.rate(step)}
        names = [*row, *PATCH_ACCURACIES, *QUESTION_KINDS]
        row |= {name: round(value, 4) for name, value in stage.validate().items()}
        path = self.folder / LOG
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, names)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def save(self) -> None:
        """Writes checkpoint and weights, each file atomically."""
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
        }
        state |= {"model": self.model.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict() if self.optimizer else None}
        partial = self.folder / f"{CHECKPOINT}.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / CHECKPOINT)
        save(self.model, self.processor, self.recipe, self.folder)

    def restore(self) -> None:
        """Restores the folder's checkpoint, if it has one."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self._refuse_other_recipe(state["recipe"], state["step"])
        self.model.load_state_dict(state["model"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        if state["optimizer"]:
            optimizer = self._begin(self.stages[self._stage_of(self.step - 1)[0]])
            optimizer.load_state_dict(state["optimizer"])
            self.optimizer = optimizer

    def _refuse_other_recipe(self, saved: dict, step: int) -> None:
        """Only `steps` may differ, and only before the decay, where it changes nothing."""
        recipe = dataclasses.asdict(self.recipe)
        other = [name for name in recipe if recipe[name] != saved.get(name)]
        decay = self.recipe.vision_steps + min(recipe["steps"], saved["steps"]) - self.recipe.decay
        if other and (other != ["steps"] or step > decay):
            raise ProbeError(
                "train",
                expected=f"the recipe that {self.folder / CHECKPOINT} was made with",
                got=f"another {', '.join(other)}",
                fix="train into another folder, or resume=False",
            )

    def _stage_of(self, step: int) -> tuple[int, int]:
        """Which stage a step of the run belongs to, and its number within the stage."""
        first = self.stages[0].steps
        return (0, step) if step < first else (1, step - first)

    def _begin(self, stage: TrainingPhase) -> torch.optim.AdamW:
        """A new optimiser over the stage's parameters; all others are frozen."""
        self.model.requires_grad_(False)
        for parameter in stage.parameters:
            parameter.requires_grad_(True)
        matrices = [parameter for parameter in stage.parameters if parameter.ndim >= 2]
        vectors = [parameter for parameter in stage.parameters if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.recipe.weight_decay},
            {"params": vectors},
        ]
        return torch.optim.AdamW(groups, betas=self.recipe.betas, weight_decay=0.0)


def writable(path: str | Path) -> Path:
    """Creates a folder. Raises ProbeError where it cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProbeError(
            "train",
            expected="a folder that can be written",
            got=f"{path} ({error.strerror})",
            fix="name another",
        ) from error
    return folder


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Sets torch's number of threads, on which results depend, inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
