"""Logit lens: the words that a row already says in the middle of the model.

A layer's output goes through the model's own last norm and head, as if no layer came after it:

    p_l(word | row i) = softmax(head(norm(h_l,i)))

Behind the last layer these are the model's own logits, which is checked. Rows are vision tokens and
text alike; of LLaVA-Mini also those of pre-fusion (`stack="prefusion"`), whose layers are the LLM's
in shape and in origin.

    found = logit_lens(subject, "street.jpg", "what is on the left ?")
    found["next"]              # (layer, answer_token): probability of each token of the answer where it is said next
    found["word"]              # (layer, row): the most probable word of every row

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.data.image import ImageSource
from probe.errors import ProbeError
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import stacks
from probe.measures.attribution.dataset import images_of
from probe.records.provenance import provenance
from probe.records.schema import Variable, dataset, image_variables, patch_variables
from probe.subject.inputs import Ids, Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

BLOCK = 256  # rows of logits in memory at once
NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
SCHEMA = {
    "word": Variable("layer row", "text", "word that the row says", dtype="object"),
    "probability": Variable("layer row", "fraction", "its probability"),
    "says_answer": Variable("layer row", "fraction", "probability of the answer's likeliest word"),
    "next": Variable("layer answer_token", "fraction", "probability of the answer's next token"),
    "answer_text": Variable("answer_token", "text", "token of the answer", dtype="object"),
    "row_text": Variable("row", "text", "token of the row", dtype="object"),
    "row_type": Variable("row", "text", "type of the row", dtype="object"),
    "row_key": Variable("row", "index", "vision key of the row, -1 for text", dtype="int64"),
    **image_variables(),
    **patch_variables("key"),
}


@torch.no_grad()
def logit_lens(
    subject: Subject,
    image: ImageSource | Sequence[ImageSource] | Inputs | None,
    question: Any = None,
    response: str | Ids | None = None,
    stack: str = "llm",
    *,
    max_new_tokens: int = 32,
) -> xr.Dataset:
    """What every row says behind every layer of a stack, and how probable it holds the answer.

    `response`: the model's own by default. Dims: layer, row (positions of the sequence; of
    pre-fusion: the image's patches, the compressed tokens, the words), answer_token, key.
    `says_answer` takes the likeliest of the answer's words in each row, `next` the one that the row
    is to say. Raises ProbeError for a stack whose rows are not the LLM's, layers that ran without
    some of the rows, and what `Answer.of` refuses.
    """
    found = stacks(subject.model)
    if stack not in found or stack not in ("llm", "prefusion"):
        there = ", ".join(name for name in ("llm", "prefusion") if name in found)
        raise ProbeError("logit_lens", expected=f"a stack of {there}", got=repr(stack))
    answer = TargetResponse.of(subject, image, question, response, max_new_tokens=max_new_tokens)
    seen = _Seen(len(found[stack].layers))
    with ExitStack() as hooks:
        for number, layer in enumerate(found[stack].layers):
            hooks.callback(layer.register_forward_hook(seen.hook(number)).remove)
        logits = subject.model(**answer.inputs, use_cache=False).logits[0]
    says = _head_of(subject.model)
    rows = _rows(answer, stack, seen)
    ids = answer.ids
    values, last = _said(seen.layers(len(rows["row_type"])), says, ids, subject)
    attrs = provenance(
        subject,
        kind="logit lens",
        stack=stack,
        prompt=answer.inputs.prompt[0],
        response=answer.inputs.response[0],
        intervention=active_interventions(subject.model),
    )
    if stack == "llm":
        attrs["last_layer_difference"] = float(
            (last[-len(logits) :] - logits.float().cpu()).abs().max()
        )
        values["next"] = values.pop("of_ids")[:, answer.rows, torch.arange(len(ids))]
    values.pop("of_ids", None)
    grid = answer.inputs.grid[0] if stack == "llm" else answer.inputs.encoder_grid[0]
    values |= rows | {"answer_text": answer.tokens} | grid.variables("key")
    values |= images_of(answer.inputs.images[0])
    return dataset("logit_lens", values, SCHEMA, attrs=attrs)


class _Seen:
    """The outputs of each layer, call by call: pre-fusion runs the image's rows first and the
    words' rows then.
    """

    def __init__(self, layers: int):
        self.calls: list[list[Tensor]] = [[] for _ in range(layers)]

    def hook(self, layer: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            self.calls[layer].append((output[0] if isinstance(output, tuple) else output)[0])

        return keep

    def layers(self, rows: int) -> list[Float[Tensor, "row width"]]:
        whole = [torch.cat(calls) for calls in self.calls]
        if wrong := [str(len(each)) for each in whole if len(each) != rows]:
            raise ProbeError(
                "logit_lens",
                expected=f"{rows} rows behind every layer",
                got=wrong[0],
                fix="use drop_vision(mode='mask'), and one image with pre-fusion",
            )
        return whole


def _head_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The model's own last norm and head."""
    decoder: Any = model.get_decoder()
    norm = next((getattr(decoder, name) for name in NORMS if hasattr(decoder, name)), None)
    head: Any = model.get_output_embeddings()
    if norm is None or head is None:
        raise ProbeError(
            "logit_lens",
            expected="a decoder with a last norm and a head",
            got=type(decoder).__name__,
        )
    return lambda hidden: head(norm(hidden)).float()


def _said(
    layers: list[Tensor], says: Callable[[Tensor], Tensor], ids: Tensor, subject: Subject
) -> tuple[dict[str, np.ndarray], Tensor]:
    """Variables (layer, row), and the last layer's logits."""
    words, best, of_ids, logits = [], [], [], []
    for number, hidden in enumerate(layers):
        parts = []
        for block in hidden.split(BLOCK):
            own = says(block)
            probability, word = own.softmax(-1).max(-1)
            parts.append((word, probability, own.softmax(-1)[:, ids]))
            if number == len(layers) - 1:
                logits.append(own.cpu())
        for kept, values in zip((words, best, of_ids), zip(*parts, strict=True), strict=True):
            kept.append(torch.cat(values).cpu().numpy())
    decode = {i: subject.processor.tokenizer.decode([i]) for i in np.unique(words).tolist()}
    values = {
        "word": np.vectorize(decode.get, otypes=[object])(np.stack(words)),
        "probability": np.stack(best),
        "says_answer": np.stack(of_ids).max(-1),
        "of_ids": np.stack(of_ids),
    }
    return values, torch.cat(logits)


def _rows(answer: TargetResponse, stack: str, seen: _Seen) -> dict[str, np.ndarray]:
    """What each row is: its token, its type, and which vision key it is."""
    types, tokens = answer.inputs.types, answer.inputs.tokens[0]
    if stack == "llm":
        key = np.where(types.vision[0], np.cumsum(types.vision[0]) - 1, -1)
        named = [types.names[i] for i in types.ids[0]]
    else:
        patches = len(answer.inputs.encoder_grid[0])
        words = [i for i in range(len(tokens)) if not types.vision[0, i]]
        between = sum(map(len, seen.calls[0])) - patches - len(words)
        key = np.array([*range(patches), *[-1] * (between + len(words))])
        named = (
            ["vision"] * patches
            + ["compressed"] * between
            + [types.names[types.ids[0, i]] for i in words]
        )
        tokens = [""] * (patches + between) + [tokens[i] for i in words]
    return {
        "row_text": np.array(tokens, object),
        "row_type": np.array(named, object),
        "row_key": key,
    }
