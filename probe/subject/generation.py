"""Answers as ids: `model.generate` with what every caller needs around it.

(ids,) = generate_ids(model, vocabulary, inputs, max_new_tokens=32)    # greedy
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from probe.data.token_types import LAST
from probe.errors import ProbeError, at_least
from probe.hooks.finite_states import raise_not_finite
from probe.hooks.model_structure import max_positions
from probe.hooks.offload import own_values
from probe.hooks.own_failure import own_failures
from probe.subject.greedy_words import GREEDY, never_said
from probe.subject.inputs import Inputs, TokenizerInfo
from probe.subject.padded_rules import padded_rules

ONE_ANSWER = {"num_return_sequences": 1, "return_dict_in_generate": False}  # whatever it saved


def generate_ids(
    model: PreTrainedModel,
    vocabulary: TokenizerInfo,
    inputs: Inputs,
    max_new_tokens: int = 32,
    **generate: Any,
) -> list[Int[torch.Tensor, "token"]]:
    """The ids that answer each row, up to and including the end-of-turn token if there is one.

    `generate`: options of `model.generate`; greedy by default. Fewer than `max_new_tokens` where
    the model's positions end, and without the ids of `never_said`. Raises ProbeError for inputs
    that end with a response, for options that `model.generate` does not take, for those by which it
    returns anything but one answer a row, and where the model's numbers overflow.
    """
    _check_options(max_new_tokens, generate)
    if (inputs.types.role[:, -1] != LAST).any():
        raise ProbeError(
            "generate",
            expected="rows that end with their prompt",
            got="a response or padding on the right",
        )
    width = inputs["input_ids"].shape[1]
    check_length(model, width + 1)
    room = (max_positions(model) or width + max_new_tokens) - width
    defaults: dict[str, Any] = ONE_ANSWER | {"suppress_tokens": never_said(model)}
    switched_off, of_words = padded_rules(model, inputs, generate)
    processors = [_NumbersOnly(), *of_words, *(generate.get("logits_processor") or ())]
    options = {**switched_off, "logits_processor": LogitsProcessorList(processors)}
    if not generate.get("do_sample"):
        defaults |= GREEDY
    if generate.get("stop_strings") or getattr(model.generation_config, "stop_strings", None):
        defaults["tokenizer"] = vocabulary.tokenizer  # they are looked for in its words
    try:
        # `generate` encodes images outside of the model's forward
        in_place = own_values(model)
        with torch.no_grad(), own_failures("answer", model, inputs), in_place:
            generated = model.generate(  # type: ignore[operator]
                **inputs,
                max_new_tokens=min(max_new_tokens, room),
                pad_token_id=vocabulary.pad_id,
                **(defaults | generate | options),
            )
    except _NotFinite:
        raise_not_finite("answer", model, inputs)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, ProbeError) or not generate:
            raise
        raise ProbeError(
            "generate",
            expected="options that model.generate takes",
            got=f"{', '.join(generate)}: {str(error)[:300]}",
        ) from error
    return [until_end(row, vocabulary.end_ids) for row in generated[:, width:].cpu()]


@torch.no_grad()
def cached_logits(
    model: Any, prompt: Inputs, response_ids: Int[torch.Tensor, " token"]
) -> Float[torch.Tensor, "token word"]:
    """The logits that predict each token of the response, decoded step by step with a cache: by the
    model's own `generate`, which knows what a step takes beside its token. (The only allowed token
    is the response's; Janus' `generate` drops a `logits_processor` that would do the same.)
    """
    left = iter(response_ids.tolist())
    with own_values(model):
        made = model.generate(
            **prompt,
            max_new_tokens=len(response_ids),
            prefix_allowed_tokens_fn=lambda row, ids: [next(left)],
            output_logits=True,
            return_dict_in_generate=True,
            use_cache=True,
            **GREEDY,
        )
    return torch.cat(made.logits)


class _NotFinite(Exception):  # noqa: N818  # becomes a ProbeError, which names the layer
    """Ends `generate` at a step whose logits are not numbers."""


class _NumbersOnly(LogitsProcessor):
    """Changes nothing. Without it the likeliest of NaNs is token 0: the answer is "!!!!"."""

    def __call__(
        self, input_ids: Int[torch.Tensor, "row token"], scores: Float[torch.Tensor, "row word"]
    ) -> Float[torch.Tensor, "row word"]:
        largest = scores.amax(-1)  # NaN where any is; suppressed words are -inf
        if bool((largest.isnan() | largest.isposinf()).any()):
            raise _NotFinite
        return scores


def until_end(
    ids: Int[torch.Tensor, " token"], end_ids: Sequence[int]
) -> Int[torch.Tensor, " answer_token"]:
    """Ids up to and including the first that ends an answer."""
    ends = torch.isin(ids, torch.tensor(list(end_ids), device=ids.device)).nonzero()
    return ids[: int(ends[0, 0]) + 1] if len(ends) else ids


def check_length(model: PreTrainedModel, length: int) -> None:
    """Raises ProbeError for a sequence longer than the model's positions."""
    limit = max_positions(model)
    if limit is not None and length > limit:
        raise ProbeError(
            "encode",
            expected=f"at most {limit} tokens, the positions of the model",
            got=f"{length} tokens",
            fix="shorten the question or pass fewer images",
        )


def _check_options(max_new_tokens: int, generate: Mapping[str, Any]) -> None:
    at_least("generate", "max_new_tokens", max_new_tokens, 1)
    single = {"num_return_sequences": (None, 1), "return_dict_in_generate": (None, False)}
    for name, allowed in single.items():
        if generate.get(name) not in allowed:
            raise ProbeError(
                "generate",
                expected="one answer a prompt, as ids",
                got=f"{name}={generate[name]!r}",
                fix="leave it out",
            )
