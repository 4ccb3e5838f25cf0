"""Efficient tuning: under a reducer the projector alone learns to say with fewer tokens what it
said with all.

    tune(subject, samples, "llava-64", VisionZip(54, 10))        # on `transformers.Trainer`; encoder and LLM are frozen
    with probe.reduced(subject, VisionZip(54, 10)): ...          # and `probe.load("llava-64")` from now on

The reducer is at work in every forward of the training, so gradients pass the tokens that are left,
and only those. The paper takes a tenth of LLaVA-1.5's instructions and does not print rates; its
authors refer to LLaVA's own scripts, whose numbers are the defaults here (2e-5 along a cosine
behind 3 % of warm-up, one epoch, 128 rows a step).

Source: arXiv 2412.04467, section 3.3; haotian-liu/LLaVA, `scripts/v1_5/finetune.sh`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from probe.subject.inputs import collate
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
    """Trains the subject's projector in place, and into a folder that `probe.load` opens; returns
    the subject.

    Learned are the samples' answers and the end of turn; of a conversation that ends with the
    assistant's words, these. batch: rows a step, over all devices. `arguments` are
    `TrainingArguments`' and go before LLaVA's. A folder with a Trainer checkpoint is gone on from.
    Without reducers the projector is tuned for all tokens: the control. Updates are lost in half
    precision: load in float32, and pass bf16=True on a GPU.

    Raises ProbeError for samples without image or answer, a batch that the rows computed at once
    don't divide, a model without a projector, and what `reduced` refuses.
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
    with only(subject.model, projector_of(subject.model)), _at_work(subject, reducers):
        trainer = ProjectorTrainer(
            subject.model,
            chosen,
            Answers(subject),
            list(samples),  # pyright: ignore[reportArgumentType]
            processing_class=subject.processor,
        )
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    trainer.save_model()
    Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody reads
    return subject


class ProjectorTrainer(Trainer):
    """A Trainer that goes on with the projector of a checkpoint."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's own finds no weight of a LLaVA, which transformers stores under other names,
        and only warns.
        """
        own: Any = self.model
        saved = type(own).from_pretrained(resume_from_checkpoint, dtype=own.dtype)
        projector_of(own).load_state_dict(projector_of(saved).state_dict())


@dataclass(frozen=True)
class Answers:
    """Samples as the batches that a model learns their answers from, with the tokens that reducers
    at work leave.
    """

    subject: Subject

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Rows are padded on the right; what is not answer has the label -100."""
        batch = collate([self._row(sample) for sample in samples], side="right")
        ids, last = (
            batch["input_ids"],
            torch.as_tensor(batch.types.role == LAST, device=batch["input_ids"].device),
        )
        answer = (last.cumsum(1) > 0) & ~last & batch["attention_mask"].bool()
        return {**batch, "labels": ids.masked_fill(~answer, IGNORED)}

    def _row(self, sample: Sample):
        found = self.subject.encode(list(sample.images), sample.question, sample.answer)  # pyright: ignore[reportArgumentType]
        if not found.response[0]:
            raise ProbeError(
                "tune",
                expected="an answer in words",
                got=repr(sample.answer),
                fix=f"see {sample.id}",
            )
        return found


def projector_of(model: PreTrainedModel) -> nn.Module:
    """What stands between encoder and LLM."""
    projector = getattr(model.base_model, "multi_modal_projector", None)
    if projector is None:
        raise ProbeError(
            "tune", expected="a model with a multi_modal_projector", got=type(model).__name__
        )
    return projector


@contextmanager
def only(model: PreTrainedModel, part: nn.Module) -> Iterator[None]:
    """Only this part learns while the block lasts. The model is in eval mode afterwards, its config
    as it was.
    """
    learned = {parameter: parameter.requires_grad for parameter in model.parameters()}
    config = dict(vars(model.config))
    model.requires_grad_(False)
    part.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, learns in learned.items():
            parameter.requires_grad_(learns)
            parameter.grad = None
        vars(model.config).clear()
        vars(model.config).update(config)  # Trainer has turned the cache off
        model.eval()


@contextmanager
def _at_work(subject: Subject, reducers: Sequence[Any]) -> Iterator[None]:
    if not reducers:
        yield
        return
    with reduced(subject, *reducers):
        yield
