"""The two stages of LLaVA-Mini's training, on `transformers.Trainer`.

    train(model, processor, instructions, "stage-1", STAGES[1])     # a plain LLaVA: only the projector learns
    train(model, processor, instructions, "stage-2", STAGES[2])     # LLaVA-Mini: all but the vision encoder

`STAGES[n].prepare(model)` makes the model that a stage trains of the one there is. A stage is first
of all the learning rate of each part: what has none keeps its weights, and the vision encoder never
has one. Labels say what is learned, and `forward` hides exactly that from pre-fusion.

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

from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.from_llava import from_llava
from probe.models.llava_mini.modeling import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.processing import LlavaMiniProcessor
from probe.models.llava_mini.training_data import Collator, Instruction


@dataclass(frozen=True)
class Rates:
    """AdamW's learning rate of each part; None: the part keeps its weights."""

    projector: float | None = None
    compressor: float | None = None
    prefusion: float | None = None
    llm: float | None = None  # with its word embeddings and its head


@dataclass(frozen=True)
class TrainingStage:
    """What is trained, how fast and how often. `parts` are the config's fields of the model that is
    trained.
    """

    rates: Rates
    epochs: int
    parts: dict[str, Any] = field(default_factory=dict)

    def prepare(self, model: PreTrainedModel, seed: int = 0) -> LlavaMiniForConditionalGeneration:
        """The model itself if it is a LLaVA-Mini with the parts of this stage, else one made
        `from_llava`.
        """
        whole = getattr(model.config, "compression", "none") != "none"
        fits: Any = model
        return (
            fits
            if whole and self.parts["compression"] != "none"
            else from_llava(model, seed=seed, **self.parts)
        )


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
    """The modules that each of the `Rates` is for. A part may be missing (without compression or
    pre-fusion).
    """
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
    """What AdamW takes: each part's matrices and, without weight decay, its vectors. All else is
    frozen.

    The model's `requires_grad` says the same afterwards.
    """
    model.requires_grad_(False)
    groups: list[dict[str, Any]] = []
    for name, modules in parts(model).items():
        rate = asdict(rates)[name]
        if rate is None:
            continue
        # A tied head has its matrix from the embeddings: no parameter twice.
        own = list(dict.fromkeys(p for module in modules for p in module.parameters()))
        for parameter in own:
            parameter.requires_grad_(True)
        matrices, vectors = [p for p in own if p.ndim > 1], [p for p in own if p.ndim < 2]
        pairs = ((matrices, weight_decay), (vectors, 0.0))
        groups += [
            {"params": some, "lr": rate, "weight_decay": decay} for some, decay in pairs if some
        ]
    return groups


class LlavaMiniTrainer(Trainer):
    """A Trainer with a stage's learning rates in the place of its own."""

    def __init__(self, model: LlavaMiniForConditionalGeneration, rates: Rates, **kwargs: Any):
        self.rates = rates
        parameter_groups(model, rates)  # frozen before Trainer counts what is to be trained
        super().__init__(model, **kwargs)
        vars(model.config).pop(
            "use_cache", None
        )  # Trainer would save the model with its cache turned off

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser that the arguments name, with a group for each part."""
        if self.optimizer is None:
            own: Any = self.model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, own)
            self.optimizer = kind(
                parameter_groups(own, self.rates, self.args.weight_decay), **options
            )
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
    """Trains the model into `folder`, which `from_pretrained` and `probe.load` open afterwards;
    returns it.

    A folder with a Trainer checkpoint is gone on from. batch: rows a step, over all devices.
    `arguments` are `TrainingArguments`' and go before the paper's: cosine with a warm-up of 3 %,
    bfloat16 and gradient checkpointing on a GPU. Several GPUs: under `torchrun` or `accelerate
    launch`. Raises ValueError where the rows that are computed at once don't divide a batch, there
    is no row to learn from, or the folder has another model's checkpoint.
    """
    rows = [
        row for row in instructions if row.visuals or stage.rates.llm
    ]  # words alone teach a projector nothing
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
    Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody reads
    return model.eval()


def _begun(folder: Path, model: LlavaMiniForConditionalGeneration) -> str | None:
    """The checkpoint to go on from, if there is one."""
    last = get_last_checkpoint(str(folder))
    if last is None:
        return None
    theirs, mine = LlavaMiniConfig.from_pretrained(last), model.config
    other = [name for name in PARTS if getattr(theirs, name) != getattr(mine, name)]
    if other:
        raise ValueError(
            f"train: expected checkpoints of this training in {folder}, got {last} with another {other[0]}"
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
