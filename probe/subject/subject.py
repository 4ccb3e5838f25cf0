"""A subject: a model with its processor, name and revision. What is probed.

It answers, and it encodes an image, a question and a response for one forward pass:

    subject = load("tiny-llava")                      # or a hub id, a folder, or a model in memory
    subject.answer("cat.jpg", "What is on the mat?")
    inputs = subject.encode("cat.jpg", "What is on the mat?", response="a cat")
    subject.model(**inputs)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Int
from transformers import PreTrainedModel

from probe.data.image import ImageSource
from probe.data.messages import Conversation
from probe.data.token_types import Types
from probe.hooks.model_state import active_reducers
from probe.hooks.model_structure import active_adapters, placeholder_ids, stacks
from probe.hooks.offload import input_device
from probe.subject.chat import Chat
from probe.subject.encoding import PromptEncoder
from probe.subject.generation import generate_ids
from probe.subject.inputs import Ids, Inputs, TokenizerInfo
from probe.subject.processed_images import ProcessedImages
from probe.subject.weights_hash import weights_hash


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its processor, ready to answer and to be measured; made by `load`."""

    model: PreTrainedModel
    processor: Any
    name: str
    revision: str
    aspect: str  # how an image that is not square is fitted: "crop", "pad", "squash" or "anyres"
    toy: bool = False
    exif: str = "upright"  # or "ignore": whether photographs are turned as their EXIF data say

    def provenance(self) -> dict[str, Any]:
        """What is needed to repeat a measurement, as attributes of its dataset."""
        ratio = getattr(self.processor, "resolution_ratio", 1)
        return {
            "model": self.name,
            "revision": self.revision,
            "weights": weights_hash(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantization": _quantization_of(self.model),
            "adapters": "+".join(active_adapters(self.model)),
            "attention": _attention_of(self.model),
            "device": str(input_device(self.model)),
            "aspect": self.aspect
            + (f", {ratio} x {ratio} sub-images and the whole" if ratio > 1 else ""),
            "exif": self.exif,
            "image_processor": type(self.processor.image_processor).__name__,
            "toy": self.toy,
            "reducer": active_reducers(self.model),
            "transformers_version": transformers.__version__,
            "torch_version": torch.__version__,
        }

    def encode(
        self,
        image: ImageSource | Sequence[ImageSource] | None,
        question: str | Conversation,
        response: str | Ids | None = None,
        *,
        types: Types = "paper",
        turns: str = "last",
        known: ProcessedImages | None = None,
    ) -> Inputs:
        """One row for `model(**inputs)`: the prompt, and the response if there is one.

        `image`: an image, several, none, or a `Video`. `question`: the user's words, or a
        conversation of system, user and assistant messages with an image item for each image; the
        last message of one that ends with an answer is the response. A response in words is
        tokenized as the chat template renders it and closed with the end-of-turn token, as
        `generate` would close it; ids are appended unchanged. `types` and `turns`: see
        `TokenTypes.as_types`. `known`: images that earlier rows were about are not prepared again.
        Raises ProbeError for unreadable images, more or fewer of them than
        placeholders, a question that is neither words nor a conversation, a response with the image
        token or with ids that the model does not embed, and a sequence longer than the model's
        positions.
        """
        known = ProcessedImages() if known is None else known
        fitted = self.processor, self.aspect, self.exif
        encoder = PromptEncoder(self.model, *fitted, self.vocabulary, known=known)
        inputs = encoder.encode(image, question, response)
        return inputs.to(input_device(self.model)).as_types(types, turns)

    @property
    def vocabulary(self) -> TokenizerInfo:
        """The tokenizer with the ids that end an answer, the tokenizer's own first."""
        tokenizer = self.processor.tokenizer
        configured = self.model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        own = tokenizer.eos_token_id
        own_first = own in configured or configured == [None]
        ends = [own, *configured] if own_first else [*configured, own]
        ends = tuple(dict.fromkeys(id for id in ends if id is not None))
        placeholders = placeholder_ids(self.model)
        pad = tokenizer.pad_token_id
        if pad is None or pad in placeholders:  # filler must not count as vision
            pad = ends[0]
        embeddings: Any = self.model.get_input_embeddings()
        more = getattr(
            embeddings, "num_additional_embeddings", 0
        )  # Idefics', in a matrix of its own
        return TokenizerInfo(
            tokenizer,
            ends,
            pad,
            placeholders,
            len(embeddings.weight) + more,
        )

    def answer(
        self,
        image: ImageSource | Sequence[ImageSource] | None,
        question: str | Conversation,
        max_new_tokens: int = 32,
        **generate: Any,
    ) -> str:
        """The model's answer, greedy unless `generate`, options of `model.generate`, say otherwise.

        Raises ProbeError as `encode` does, for options that `model.generate` does not take, and for
        those by which it returns anything but one answer.
        """
        (ids,) = self.generate_ids(self.encode(image, question), max_new_tokens, **generate)
        return self.vocabulary.words(ids)

    def chat(self, image: ImageSource | Sequence[ImageSource] | None, keep: str = "exact") -> Chat:
        """A conversation about images: `chat.ask(question)`. `keep`: when the KV cache is
        reused.
        """
        return Chat(self, image, keep)

    def generate_ids(
        self, inputs: Inputs, max_new_tokens: int = 32, **generate: Any
    ) -> list[Int[torch.Tensor, "token"]]:
        """The ids that answer each row, up to and including the end-of-turn token if there is one;
        see `generation.generate_ids`.
        """
        return generate_ids(self.model, self.vocabulary, inputs, max_new_tokens, **generate)


def _quantization_of(model: PreTrainedModel) -> str:
    """The method with its bits: "bitsandbytes 4-bit nf4", "bitsandbytes 8-bit"; "none"."""
    method = getattr(model, "quantization_method", None)
    if method is None:
        return "none"
    config = getattr(model.config, "quantization_config", None) or {}
    options = config if isinstance(config, dict) else config.to_dict()
    parts = [str(getattr(method, "value", method))]
    if options.get("load_in_8bit"):
        parts += ["8-bit"]
    elif options.get("load_in_4bit"):
        parts += ["4-bit", str(options.get("bnb_4bit_quant_type", ""))]
    elif options.get("bits"):
        parts += [f"{options['bits']}-bit"]
    return " ".join(parts).strip()


def _attention_of(model: PreTrainedModel) -> str:
    """The attention kernels in use, e.g. "sdpa" or "llm sdpa, vision eager"."""
    kernels = {}
    for name, stack in stacks(model).items():
        config = getattr(next(iter(stack.attention.values())), "config", model.config)
        kernels[name] = str(config._attn_implementation)
    if len(set(kernels.values())) == 1:
        return kernels["llm"]
    return ", ".join(f"{name} {kernel}" for name, kernel in kernels.items())
