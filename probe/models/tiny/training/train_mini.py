"""The training of tiny-llava-mini: stage 2 of LLaVA-Mini, on drawn images and packed questions.

    from probe.models.tiny.training.train_mini import train_mini
    train_mini("my-tiny-llava-mini")    # half an hour on one core; after Ctrl-C, call it to resume

Stage 1 is not needed: tiny-llava's projector is aligned with its LLM. A run that was stopped and
resumed equals one that was not, bit for bit on the same machine with the same number of threads.
"""

import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from probe.errors import ProbeError
from probe.models.llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from probe.models.llava_mini.training import LlavaMiniTrainer
from probe.models.tiny.scenes import sample_scene, stream
from probe.models.tiny.training.architecture import pixels
from probe.models.tiny.training.evaluate import evaluate, summary
from probe.models.tiny.training.mini_recipe import MiniRecipe, mini_processor, starting_model
from probe.models.tiny.training.packed_rows import Packed, Packer, fused_logits
from probe.models.tiny.training.recipe import Recipe
from probe.models.tiny.training.stages import VALIDATION, conversations
from probe.models.tiny.training.train import LOG, torch_threads, writable
from probe.models.tiny.weights import quiet, save


def train_mini(
    folder: str | Path,
    *,
    recipe: MiniRecipe | None = None,
    steps: int | None = None,
    progress: bool = True,
    threads: int = 1,
    every: int = 200,
) -> LlavaMiniForConditionalGeneration:
    """Trains into `folder`: weights, processor, `recipe.json`, `log.csv` and the Trainer's last
    checkpoint.

    `steps` stops early; calling again resumes from the checkpoint, which is written each `every`
    steps. Raises ProbeError when the folder cannot be written or was begun with another recipe.
    """
    recipe = recipe or MiniRecipe()
    folder = writable(folder)
    _refuse_other_recipe(folder, recipe)
    model = starting_model(recipe)
    processor = mini_processor(recipe)
    last = get_last_checkpoint(str(folder))
    stop = min(steps or recipe.steps, recipe.steps)
    if last and TrainerState.load_from_json(f"{last}/trainer_state.json").global_step >= stop:
        model = LlavaMiniForConditionalGeneration.from_pretrained(last)
    else:
        with torch_threads(threads), quiet():
            trainer = MiniTrainer(
                model,
                recipe.rates,
                args=_arguments(folder, recipe, every),
                data_collator=lambda rows: rows[0],
                train_dataset=PackedImages(
                    recipe, Packer(processor, model.config.image_seq_length)
                ),
                callbacks=[Curve(folder, processor, stop, every, progress)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=last)
    save(model, processor, recipe, folder)
    return model.eval()


class PackedImages(Dataset):
    """Step -> its batch, drawn from (seed, step), so that any step is available without those
    before.
    """

    def __init__(self, recipe: MiniRecipe, packer: Packer):
        self.recipe = recipe
        self.packer = packer
        self.task = Recipe()

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = stream("fusion", self.recipe.seed, step)
        task = self.task
        scenes = [
            sample_scene(rng, things=task.things, alike=task.alike)
            for _ in range(self.recipe.batch)
        ]
        packed = vars(self.packer.pack([conversations(scene, task, rng) for scene in scenes]))
        return {"pixels": pixels(scenes)} | {
            name: x for name, x in packed.items() if name != "questions"
        }


class MiniTrainer(LlavaMiniTrainer):
    """Trains on packed rows."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        packed = Packed(**{name: x for name, x in inputs.items() if name != "pixels"}, questions=())
        logits = fused_logits(model, inputs["pixels"], packed)
        loss = cross_entropy(logits, packed.labels[packed.labels >= 0])
        return (loss, {"logits": logits}) if return_outputs else loss


class Curve(TrainerCallback):
    """Shows progress, writes validation accuracies to log.csv, and stops at step `stop`."""

    def __init__(
        self, folder: Path, processor: LlavaMiniProcessor, stop: int, every: int, progress: bool
    ):
        self.path = folder / LOG
        self.processor = processor
        self.stop = stop
        self.every = every
        self.bar = tqdm(total=stop, desc="train", disable=not progress)
        self.started = time.process_time()

    def on_train_begin(self, args, state, control, **_):
        self.bar.update(state.global_step)

    def on_step_end(self, args, state, control, model=None, **_):
        self.bar.update()
        if state.global_step % self.every == 0 or state.global_step == self.stop:
            self._write(state.global_step, model)
        if state.global_step >= self.stop:
            control.should_save = control.should_training_stop = True
            self.bar.close()

    def _write(self, step: int, model: Any) -> None:
        frame = evaluate(
            model, self.processor, VALIDATION, purpose="validation", logits=fused_logits
        )
        right = summary(frame, "kind")["right"]
        seconds = round(time.process_time() - self.started, 1)  # of this process
        row = {"step": step, "cpu_seconds": seconds}
        row |= {"all": round(frame["right"].mean(), 4), **right.round(4).to_dict()}
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def _arguments(folder: Path, recipe: MiniRecipe, every: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        seed=recipe.seed,
        use_cpu=True,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        save_steps=every,
        save_total_limit=1,
        logging_strategy="no",
        disable_tqdm=True,
    )


def _refuse_other_recipe(folder: Path, recipe: MiniRecipe) -> None:
    path = folder / "recipe.json"
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
    saved = json.loads(path.read_text()) if path.exists() else wanted
    if saved != wanted:
        other = [name for name in wanted if wanted[name] != saved.get(name)]
        raise ProbeError(
            "train",
            expected=f"the recipe that {folder} was begun with",
            got=f"another {', '.join(other) or 'model'}",
            fix="train into another folder",
        )
    path.write_text(json.dumps(wanted, indent=2) + "\n")
