"""Prompts of models that read each image by a fixed number of queries, and whose vision tokens are
what these have read (BLIP-2, InstructBLIP).

    tensors = with_question_for_each_image(tensors)
    require_tokens_of_queries(model, tensors)

Their LLM takes as many of the features as there are placeholders, from the first one on, and does
not say that some are left. Their own processors write the placeholders of one image, whatever
number of images they are given.
"""

from typing import Any

from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.model_structure import vision_positions

QUESTION = "qformer_"  # of the inputs in which a Q-Former is told the question


def with_question_for_each_image(tensors: dict[str, Any]) -> dict[str, Any]:
    """The processor's tensors of one prompt, with the question that a Q-Former reads beside an
    image (InstructBLIP) once for each image, as InstructBlipVideo has it for each frame.
    """
    pixels = tensors.get("pixel_values")
    if pixels is None:
        return tensors
    asked = {
        name: tensor.expand(len(pixels), -1)
        for name, tensor in tensors.items()
        if name.startswith(QUESTION) and len(tensor) == 1
    }
    return {**tensors, **asked}


def require_tokens_of_queries(model: PreTrainedModel, tensors: dict[str, Any]) -> None:
    """Raises ProbeError where a prompt has more or fewer placeholders than the queries of its
    images give tokens.
    """
    queries = getattr(model.config, "num_query_tokens", None)
    pixels = tensors.get("pixel_values")
    if queries is None or pixels is None:
        return
    expected = queries * len(pixels)
    placeholders = int(vision_positions(model, tensors["input_ids"]).sum())
    if placeholders == expected:
        return
    fix = "take the image out of the chat template, if the processor puts its placeholders itself"
    if placeholders == queries:
        fix = "ask about one image at a time: the processor makes room for one"
    raise ProbeError(
        "processor",
        expected=f"{expected} placeholders ({queries} an image)",
        got=str(placeholders),
        fix=fix,
    )
