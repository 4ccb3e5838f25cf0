"""Efficient tuning: under a reducer only the projector learns, to say with fewer tokens what it
said with all.

    tune(subject, samples, "llava-64", VisionZip(54, 10))    # on `transformers.Trainer`
    with probe.reduced(subject, VisionZip(54, 10)): ...      # also of `probe.load("llava-64")`

Encoder and LLM are frozen. The reducer is active in every forward of the training, so gradients
pass only the tokens that are left. The paper takes a tenth of LLaVA-1.5's instructions and does not
print rates; its authors refer to LLaVA's own scripts, whose numbers are the defaults here (2e-5,
cosine schedule, 3 % warm-up, one epoch, 128 rows a step).

Source: arXiv 2412.04467, section 3.3; haotian-liu/LLaVA, `scripts/v1_5/finetune.sh`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import get_last_checkpoint

from probe.data.sample import Sample
from probe.data.token_types import LAST
from probe.errors import ProbeError
from probe.reducers.context import reduced
from probe.subject.inputs import Inputs, collate
from probe.subject.subject import Subject

IGNORED = -100  # a label that is not learned
LLAVA = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "weight_decay": 0.0,
    "logging_steps": 10,
    "save_steps": 500,
    "save_total_limit": 1,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
}


def tune(
    subject: Subject,
    samples: Sequence[Sample],
    folder: str | Path,
    *reducers: Any,
    batch: int = 128,
    **arguments: Any,
) -> Subject:
    """Trains the subject's projector in place, saves the model in a folder that `probe.load` opens,
    and returns the subject.

    The labels are the samples' answers with the end of turn; of a conversation that ends with a
    turn of the assistant, that turn. Without reducers the projector is tuned for all tokens: the
    control. Resumes from the last Trainer checkpoint in the folder. Updates are lost in half
    precision: load in float32, and pass bf16=True on a GPU.

    batch: rows a step, over all devices. arguments: of `TrainingArguments`; they override LLaVA's.

    Raises ProbeError for samples without image or answer, a batch that is not a multiple of the
    rows computed at once, a model without a projector, and what `reduced` refuses.
    """
    if not samples or any(not sample.images for sample in samples):
        raise ProbeError(
            "tune", expected="samples with images", got="none" if not samples else "one without"
        )
    chosen = TrainingArguments(str(folder), **LLAVA | arguments)
    at_once = chosen.train_batch_size * chosen.world_size
    if batch % at_once:
        raise ProbeError(
            "tune", expected=f"a batch that {at_once} rows at once divide", got=str(batch)
        )
    chosen.gradient_accumulation_steps = batch // at_once
    reducing = reduced(subject, *reducers) if reducers else nullcontext()
    with training_only(subject.model, projector_of(subject.model)), reducing:
        trainer = ProjectorTrainer(
            subject.model,
            chosen,
            AnswerCollator(subject),
            list(samples),  # pyright: ignore[reportArgumentType]
            processing_class=subject.processor,
        )
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    trainer.save_model()
    Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that is not needed
    return subject


class ProjectorTrainer(Trainer):
    """A Trainer that resumes with the projector of a checkpoint."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's own finds no weight of a LLaVA, which transformers stores under other names,
        and only warns.
        """
        current: Any = self.model
        saved = type(current).from_pretrained(resume_from_checkpoint, dtype=current.dtype)
        projector_of(current).load_state_dict(projector_of(saved).state_dict())


@dataclass(frozen=True)
class AnswerCollator:
    """Makes batches of samples, with the vision tokens that active reducers leave, and labels on
    their answers.
    """

    subject: Subject

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Rows are padded on the right; tokens that are not of the answer have the label -100."""
        batch = collate([self._row(sample) for sample in samples], side="right")
        ids = batch["input_ids"]
        last = torch.as_tensor(batch.types.role == LAST, device=ids.device)  # of the prompt
        after_prompt = (last.cumsum(1) > 0) & ~last
        is_answer = after_prompt & batch["attention_mask"].bool()
        return {**batch, "labels": ids.masked_fill(~is_answer, IGNORED)}

    def _row(self, sample: Sample) -> Inputs:
        images: Any = list(sample.images)
        answer: Any = sample.answer  # text: tested below
        inputs = self.subject.encode(images, sample.question, answer)
        if not inputs.response[0]:
            raise ProbeError(
                "tune",
                expected="an answer in words",
                got=repr(sample.answer),
                fix=f"see {sample.id}",
            )
        return inputs


def projector_of(model: PreTrainedModel) -> nn.Module:
    """The module between encoder and LLM. Raises ProbeError for a model without one."""
    projector = getattr(model.base_model, "multi_modal_projector", None)
    if projector is None:
        raise ProbeError(
            "tune", expected="a model with a multi_modal_projector", got=type(model).__name__
        )
    return projector


@contextmanager
def training_only(model: PreTrainedModel, part: nn.Module) -> Iterator[None]:
    """Only this part of the model learns while the block lasts. Afterwards the model is in eval
    mode and its configs as before.
    """
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    configs = [vars(model.config), vars(model.generation_config)]
    before = [dict(config) for config in configs]
    model.requires_grad_(False)
    part.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, requires_grad in required.items():
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        for config, values in zip(configs, before, strict=True):
            config.clear()
            config.update(values)  # Trainer turns the cache off, and sets special tokens
        model.eval()
