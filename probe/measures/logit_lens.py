"""Logit lens: the words that each position already predicts in the middle of the model.

A layer's output goes through the model's own last norm and head, as if no layer came after it:

    p_l(word | position i) = softmax(head(norm(h_l,i)))

A cap or factor of the model's logits is applied too (`hooks/logit_map.py`).
After the last layer these are the model's own logits, which is checked. Positions are vision tokens
and text alike; in LLaVA-Mini also those of pre-fusion (`stack="prefusion"`), whose layers have the
shape and the origin of the LLM's.

    lens = logit_lens(subject, "street.jpg", "what is on the left ?")
    lens["next"]      # (layer, answer_token): probability of each token of the answer, where it is
                      # the next token
    lens["word"]      # (layer, row): the most probable word at every position

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.data.image import ImageSource
from probe.errors import ProbeError, one_of
from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.finite_states import finite_states
from probe.hooks.logit_map import largest_logit, logit_map, said
from probe.hooks.model_checks import require_subject
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import last_norm, output_head, stacks
from probe.hooks.own_failure import own_failures
from probe.records.provenance import provenance
from probe.records.schema import Variable, dataset, image_variables, patch_variables
from probe.records.thumbnails import thumbnails
from probe.subject.inputs import Ids, Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

ROUNDING = 0.05  # of the largest logit, in half precision too
BLOCK = 256  # positions whose logits are in memory at once
STACKS = ("llm", "prefusion")
SCHEMA = {
    "word": Variable("layer row", "text", "most probable word", dtype="object"),
    "probability": Variable("layer row", "fraction", "its probability"),
    "says_answer": Variable("layer row", "fraction", "probability of the answer's likeliest token"),
    "next": Variable("layer answer_token", "fraction", "probability of the answer's next token"),
    "answer_text": Variable("answer_token", "text", "token of the answer", dtype="object"),
    "row_text": Variable("row", "text", "token", dtype="object"),
    "row_type": Variable("row", "text", "type of the token", dtype="object"),
    "row_key": Variable("row", "index", "vision key of the token, -1 for text", dtype="int64"),
    **image_variables(),
    **patch_variables("key"),
}


@only_this_thread()
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
    """What every position predicts after every layer of a stack ("llm" or "prefusion"), and the
    probability of the answer there.

    response: the model's own by default. Returns a dataset (`SCHEMA`) with dims layer (from 0), row
    (positions of the sequence; in pre-fusion the image's patches, the compressed tokens, the
    words), answer_token, key. `says_answer` is the probability of the likeliest of the answer's
    tokens at each position, `next` that of the token that is the next one there (LLM only).

    Raises ProbeError for another stack, layers that ran without some of the positions, a model
    that does more to its last layer's output than norm and head, and what `TargetResponse.of`
    refuses.
    """
    require_subject("logit_lens", subject)
    model_stacks = stacks(subject.model)
    one_of("logit_lens", "a stack of", stack, [name for name in STACKS if name in model_stacks])
    answer = TargetResponse.of(subject, image, question, response, max_new_tokens=max_new_tokens)
    inputs = answer.inputs
    layers = model_stacks[stack].layers
    outputs = _LayerOutputs(len(layers))
    with ExitStack() as hooks:
        for number, layer in enumerate(layers):
            add_hook(hooks, layer.register_forward_hook, outputs.hook(number))
        hooks.enter_context(own_failures("logit_lens", subject.model, inputs))
        hooks.enter_context(finite_states("logit_lens", subject.model, [stack]))
        logits = subject.model(**inputs, use_cache=False).logits[0]
    rows = _rows(answer, stack, outputs)
    hidden = outputs.layers(len(rows["row_type"]))
    head = _head_of(subject.model, hidden[-1], logits if stack == "llm" else None)
    values, of_answer = _predictions(hidden, head, answer.ids, subject)
    attrs = provenance(
        subject,
        kind="logit lens",
        stack=stack,
        prompt=inputs.prompt[0],
        response=inputs.response[0],
        intervention=active_interventions(subject.model),
    )
    grid = inputs.encoder_grid[0]
    if stack == "llm":
        grid = inputs.grid[0]
        values["next"] = of_answer[:, answer.rows, np.arange(len(answer.ids))]
        attrs["last_layer_difference"] = _difference(head, hidden[-1], logits)
        _require_own_logits(subject.model, attrs["last_layer_difference"], logits)
    values |= rows | {"answer_text": answer.tokens} | grid.variables("key")
    values |= thumbnails(inputs.images[0])
    return dataset("logit_lens", values, SCHEMA, attrs=attrs)


class _LayerOutputs:
    """The outputs of each layer, call by call: pre-fusion runs on the image first and on the words
    then.
    """

    def __init__(self, layers: int):
        self.calls: list[list[Tensor]] = [[] for _ in range(layers)]

    def hook(self, layer: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.ndim != 3:  # Gemma 3n, hyper-connections
                raise ProbeError(
                    "logit_lens",
                    expected="layers whose output the model's last norm and head can read",
                    got=f"{tuple(hidden.shape)}, several streams side by side",
                )
            self.calls[layer].append(hidden[0])

        return keep

    @property
    def count(self) -> int:
        """Positions that ran through the first layer."""
        return sum(len(hidden) for hidden in self.calls[0])

    def layers(self, count: int) -> list[Float[Tensor, "row width"]]:
        """The output of each layer. Raises ProbeError where one has not `count` positions."""
        whole = [torch.cat(calls) for calls in self.calls]
        for hidden in whole:
            if len(hidden) != count:
                raise ProbeError(
                    "logit_lens",
                    expected=f"{count} positions in every layer",
                    got=str(len(hidden)),
                    fix="use drop_vision(mode='mask'), and one image with pre-fusion",
                )
        return whole


def _head_of(
    model: PreTrainedModel,
    last: Float[Tensor, "row width"],
    logits: Float[Tensor, "last_row word"] | None,
) -> Callable[[Tensor], Tensor]:
    """The model's own last norm and head, and what it does to the head's output where its logits
    (of the last positions) are given.
    """
    norm: Any = last_norm("logit_lens", model)
    head: Any = output_head(model)
    if head is None:
        raise ProbeError(
            "logit_lens", expected="a decoder with a head", got=type(model.get_decoder()).__name__
        )
    if logits is None:
        return lambda hidden: head(norm(hidden)).float()
    rows = min(BLOCK, len(logits))
    to_logits = logit_map(model, head(norm(last[-rows:])), logits[-rows:])
    return lambda hidden: to_logits(head(norm(hidden)).float())


def _predictions(
    layers: list[Tensor],
    head: Callable[[Tensor], Tensor],
    ids: Int[Tensor, "answer_token"],
    subject: Subject,
) -> tuple[dict[str, Any], Float[np.ndarray, "layer row answer_token"]]:
    """Variables (layer, row), and the probability of each token of the answer at every position."""
    best_ids = []
    best = []
    of_answer = []
    for hidden in layers:
        for block in hidden.split(BLOCK):
            probabilities = head(block).softmax(-1)
            probability, word = probabilities.max(-1)
            best_ids.append(word.cpu())
            best.append(probability.cpu())
            of_answer.append(probabilities[:, ids].cpu())
    shape = len(layers), len(layers[0])
    words = torch.cat(best_ids).reshape(shape).numpy()
    answer_probabilities = torch.cat(of_answer).reshape(*shape, len(ids)).numpy()
    text = {i: subject.processor.tokenizer.decode([i]) for i in np.unique(words).tolist()}
    values = {
        "word": np.vectorize(text.get, otypes=[object])(words),
        "probability": torch.cat(best).reshape(shape).numpy(),
        "says_answer": answer_probabilities.max(-1),
    }
    return values, answer_probabilities


def _difference(head: Callable[[Tensor], Tensor], hidden: Tensor, logits: Tensor) -> float:
    """The largest difference of the last layer's lens to the model's own logits (of the last
    positions, where it does not return all)."""
    last = hidden[-len(logits) :]
    expected = logits.float()
    blocks = zip(last.split(BLOCK), expected.split(BLOCK), strict=True)
    return max(float((head(block) - own)[said(own)].abs().max()) for block, own in blocks)


def _require_own_logits(model: PreTrainedModel, difference: float, logits: Tensor) -> None:
    """Raises ProbeError where the last layer's output does not lead to the model's logits."""
    if difference > ROUNDING * largest_logit(logits):
        raise ProbeError(
            "logit_lens",
            expected="a model whose last layer, norm and head make its logits",
            got=f"{type(model).__name__}, whose logits are {difference:.2g} away from them",
        )


def _rows(
    answer: TargetResponse, stack: str, outputs: _LayerOutputs
) -> dict[str, Shaped[np.ndarray, "row"]]:
    """The token of each position, its type, and which vision key it is."""
    inputs = answer.inputs
    types = answer.inputs.types
    is_vision = types.vision[0]
    tokens = np.array(inputs.tokens[0], object)
    names = np.array(types.names, object)[types.ids[0]]
    if stack == "llm":
        key = np.where(is_vision, np.cumsum(is_vision) - 1, -1)
        return {"row_text": tokens, "row_type": names, "row_key": key}
    words = np.flatnonzero(~is_vision)
    patches = len(inputs.encoder_grid[0])
    compressed = outputs.count - patches - len(words)
    before = [*["vision"] * patches, *["compressed"] * compressed]
    key = [*range(patches), *[-1] * (compressed + len(words))]
    return {
        "row_text": np.array([*[""] * len(before), *tokens[words]], object),
        "row_type": np.array([*before, *names[words]], object),
        "row_key": np.array(key),
    }
