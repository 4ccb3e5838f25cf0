"""The two stages of LLaVA-Mini's training, on `transformers.Trainer`.

    train(model, processor, instructions, "stage-1", STAGES[1])   # plain LLaVA: projector only
    train(model, processor, instructions, "stage-2", STAGES[2])   # LLaVA-Mini: all but the encoder

`STAGES[n].prepare(model)` converts a model to the one that the stage trains. A stage gives a
learning rate to each part; parts without one are frozen, always including the vision encoder.
Labels select what is learned, and `forward` hides exactly those words from pre-fusion.

Source: arXiv 2501.03895, Table 9.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import get_last_checkpoint

from probe.models.llava_mini.conditional_generation import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.from_llava import from_llava
from probe.models.llava_mini.processing import LlavaMiniProcessor
from probe.models.llava_mini.training_data import Collator, Instruction


@dataclass(frozen=True)
class Rates:
    """AdamW's learning rate of each part; None freezes it."""

    projector: float | None = None
    compressor: float | None = None
    prefusion: float | None = None
    llm: float | None = None  # with its word embeddings and its head


@dataclass(frozen=True)
class TrainingStage:
    """Learning rates and epochs of a stage. `parts` are config fields of the model it trains."""

    rates: Rates
    epochs: int
    parts: dict[str, Any] = field(default_factory=dict)

    def prepare(self, model: PreTrainedModel, seed: int = 0) -> LlavaMiniForConditionalGeneration:
        """The model itself if stage and model both compress, else one made by `from_llava`."""
        compresses = getattr(model.config, "compression", "none") != "none"
        if compresses and self.parts["compression"] != "none":
            mini: Any = model
            return mini
        return from_llava(model, seed=seed, **self.parts)


# The paper prints 1e-4 for the LLM and 1e-5 for the multimodal modules; the authors' script has
# 1e-4 for all of them.
STAGES = {
    1: TrainingStage(
        Rates(projector=1e-3), epochs=1, parts={"compression": "none", "num_prefusion_layers": 0}
    ),
    2: TrainingStage(
        Rates(projector=1e-5, compressor=1e-5, prefusion=1e-5, llm=1e-4),
        epochs=2,
        parts={"compression": "query", "compressor_size": 1, "num_prefusion_layers": 4},
    ),
}
PARTS = (
    "compression",
    "compressor_size",
    "num_prefusion_layers",
    "fusion",
)  # of the config: what a checkpoint fits


def parts(model: LlavaMiniForConditionalGeneration) -> dict[str, list[nn.Module]]:
    """The modules of each part in `Rates`; without compression or pre-fusion a part is empty."""
    inner: Any = model.model
    return {
        "projector": [inner.multi_modal_projector],
        "compressor": [inner.compressor] if inner.compressor is not None else [],
        "prefusion": [inner.prefusion],
        "llm": [inner.language_model, model.lm_head],
    }


def parameter_groups(
    model: LlavaMiniForConditionalGeneration, rates: Rates, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """AdamW's groups: each part's matrices and, without weight decay, its vectors.

    Sets `requires_grad` of the model accordingly: all other parameters are frozen.
    """
    model.requires_grad_(False)
    groups: list[dict[str, Any]] = []
    for name, modules in parts(model).items():
        rate = asdict(rates)[name]
        if rate is None:
            continue
        # A tied head shares its matrix with the embeddings: each parameter once.
        parameters = list(dict.fromkeys(p for module in modules for p in module.parameters()))
        for parameter in parameters:
            parameter.requires_grad_(True)
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim < 2]
        for params, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"params": params, "lr": rate, "weight_decay": decay})
    return groups


class LlavaMiniTrainer(Trainer):
    """A Trainer with a learning rate for each part."""

    def __init__(self, model: LlavaMiniForConditionalGeneration, rates: Rates, **kwargs: Any):
        self.rates = rates
        parameter_groups(model, rates)  # freezes before Trainer counts trainable parameters
        super().__init__(model, **kwargs)
        # Trainer disables the cache in the config, which would be saved with the model.
        vars(model.config).pop("use_cache", None)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser that the arguments name, with a group for each part."""
        if self.optimizer is None:
            trained: Any = self.model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            groups = parameter_groups(trained, self.rates, self.args.weight_decay)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer


def train(
    model: LlavaMiniForConditionalGeneration,
    processor: LlavaMiniProcessor,
    instructions: Sequence[Instruction],
    folder: str | Path,
    stage: TrainingStage,
    batch: int = 256,
    **arguments: Any,
) -> LlavaMiniForConditionalGeneration:
    """Trains the model and saves it to `folder`, for `from_pretrained` and `probe.load`; returns
    it.

    Resumes from the last Trainer checkpoint in the folder. batch: rows per step, over all devices.
    `arguments` are those of `TrainingArguments` and override the paper's: cosine with a warm-up of
    3 %, bfloat16 and gradient checkpointing on a GPU. For several GPUs use `torchrun` or
    `accelerate launch`. Raises ValueError where the rows computed at once do not divide a batch, no
    row has anything to learn, or the folder has a checkpoint of another model.
    """
    # Text-only rows teach a projector nothing.
    rows = [row for row in instructions if row.visuals or stage.rates.llm]
    if not rows:
        raise ValueError("train: expected rows with images or videos, got none")
    chosen = TrainingArguments(str(folder), **_paper(stage) | arguments)
    at_once = chosen.train_batch_size * chosen.world_size
    if batch % at_once:
        raise ValueError(f"train: expected a batch that {at_once} rows at once divide, got {batch}")
    chosen.gradient_accumulation_steps = batch // at_once
    if torch.cuda.is_available():
        model.gradient_checkpointing_enable()
    trainer = LlavaMiniTrainer(
        model,
        stage.rates,
        args=chosen,
        processing_class=processor,
        train_dataset=rows,  # pyright: ignore[reportArgumentType]
        data_collator=Collator(processor, max_length=4096),
    )
    trainer.train(resume_from_checkpoint=_begun(Path(folder), model))
    trainer.save_model()
    Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that is not needed
    return model.eval()


def _begun(folder: Path, model: LlavaMiniForConditionalGeneration) -> str | None:
    """The checkpoint to resume from, or None."""
    last = get_last_checkpoint(str(folder))
    if last is None:
        return None
    saved = LlavaMiniConfig.from_pretrained(last)
    other = [name for name in PARTS if getattr(saved, name) != getattr(model.config, name)]
    if other:
        raise ValueError(
            f"train: expected checkpoints of this training in {folder}, got {last} with another "
            f"{other[0]}"
        )
    return last


def _paper(stage: TrainingStage) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "num_train_epochs": stage.epochs,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "weight_decay": 0.0,
        "per_device_train_batch_size": 1,
        "bf16": gpu,
        "dataloader_pin_memory": gpu,
        "dataloader_num_workers": 4 * gpu,
        "remove_unused_columns": False,
        "save_total_limit": 1,
        "save_steps": 500,
        "logging_steps": 10,
    }
