"""Prompts for tests of interventions: one row, ragged batches, two images in a prompt; and what a
model says.
"""

from functools import lru_cache

import models
import torch
from torch import Tensor, nn

import probe
from probe.subject.inputs import Inputs, collate
from probe.subject.subject import Subject


@lru_cache
def six_layers(attn: str = "sdpa") -> Subject:
    """LLaVA-1.5 with 6 layers; 9 vision tokens an image, which no vector width divides."""
    model, processor = models.llava15(layers=6, side=24, attn=attn)
    return probe.load(model, processor=processor)


def row(
    subject: Subject, images: int = 1, words: str = "what is in the picture?", seed: int = 0
) -> Inputs:
    return subject.encode([models.picture(seed + i) for i in range(images)], words)


def prompt(subject: Subject, kind: str) -> Inputs:
    """ "one": a row; "left", "right": three rows of different lengths, one of them with two
    images.
    """
    if kind == "one":
        return row(subject)
    rows = [
        row(subject),
        row(subject, 2, "how many circles are there in both?", 1),
        row(subject, 1, "where?", 3),
    ]
    return collate(rows, side=kind)


@torch.no_grad()
def logits(subject: Subject, inputs: Inputs) -> Tensor:
    """(real position, word) of a forward."""
    return subject.model(**inputs).logits[inputs["attention_mask"].bool()]


def decoded(subject: Subject, inputs: Inputs, steps: int = 4, **generate) -> tuple[Tensor, Tensor]:
    """The ids of decoded tokens, (row, step), and the logits they were chosen by, (step, row,
    word).
    """
    options = {
        "do_sample": False,
        "max_new_tokens": steps,
        "min_new_tokens": steps,
        "pad_token_id": 0,
    } | generate
    said = subject.model.generate(
        **inputs, **options, output_logits=True, return_dict_in_generate=True
    )
    return said.sequences[:, -steps:], torch.stack(said.logits)


def in_double(subject: Subject) -> Subject:
    """A copy in float64 whose norms are too: transformers' own compute in float32 whatever the
    weights.
    """
    model, processor = models.llava15(layers=6, side=24)
    model.load_state_dict(subject.model.state_dict())
    model = model.double()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return probe.load(model, processor=processor)


def turns_of(conversation) -> list[dict]:
    """Drawn questions and their answers as messages, the image in the first."""
    turns = []
    for i, question in enumerate(conversation):
        image = [{"type": "image"}] if i == 0 else []
        turns += [
            {"role": "user", "content": [*image, {"type": "text", "text": question.question}]},
            {"role": "assistant", "content": question.answer},
        ]
    return turns
