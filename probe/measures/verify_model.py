"""What `verify` asks of a model before anything is measured on it: do inputs go where the model
reads them, are its numbers finite, does it read its image, may questions share an image's prefix?

    devices(subject, prompt)                     # a `Check`, as from all functions here
    states, response_ids = answered(subject, prompt, 8)
"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from probe.data.image import ImageSource, open_image
from probe.errors import ProbeError
from probe.hooks.finite_states import NotFiniteProbeError, finite_states
from probe.hooks.logit_map import largest_logit, said
from probe.hooks.model_checks import int8_threshold
from probe.hooks.model_structure import stacks, vision_towers
from probe.hooks.offload import execution_device, input_device
from probe.hooks.own_kernel import implementation_of
from probe.interventions.drop import drop_vision
from probe.interventions.sweep.case_batch import CaseBatch, untouched_logits
from probe.measures.attention.answer_logprob import token_logprob
from probe.measures.verify_report import Check
from probe.subject.inputs import Inputs, with_response
from probe.subject.prefix_cache import PrefixCache
from probe.subject.prefix_check import check_sharing
from probe.subject.subject import Subject

PIECES = 8  # of an image that is shuffled, along each side
UNREAD = 1e-6  # of the largest logit: smaller changes do not show that the image is read
LOGIT_TOLERANCE = 1e-4  # of the largest logit
# Between two forwards of different shapes, whose half-precision kernels round differently.
HALF_TOLERANCE = 5e-2


def devices(subject: Subject, prompt: Inputs) -> Check:
    """Whether ids and pixels are on the devices of the modules that read them."""
    model = subject.model
    readers = {"input_ids": input_device(model)}
    readers |= {
        name: execution_device(tower)
        for tower in vision_towers(model)
        for name in ("pixel_values", "pixel_values_images", "pixel_values_videos")
        if name in prompt
    }
    wrong = [
        f"{name} on {prompt[name].device}, read on {device}"
        for name, device in readers.items()
        if prompt[name].device != device
    ]
    right = ", ".join(f"{name} on {device}" for name, device in readers.items())
    value = "; ".join(wrong) or right
    return Check("devices of the inputs", value, "where they are read", not wrong)


@torch.no_grad()
def answered(
    subject: Subject, prompt: Inputs, tokens: int
) -> tuple[Check, Int[Tensor, " token"] | None]:
    """Whether the hidden states of all layers are finite in this dtype while the model answers; and
    the ids of its answer, None where they are not.
    """
    value = "finite"
    response_ids = None
    try:
        with finite_states("verify", subject.model, stacks(subject.model)):
            (response_ids,) = subject.generate_ids(prompt, tokens)
    except NotFiniteProbeError as error:
        value = f"{error.got}; {error.fix}"
        response_ids = None
    return Check("hidden states", value, "finite", response_ids is not None), response_ids


def reads_image(
    subject: Subject, image: ImageSource, question: str, response_ids: Int[Tensor, " token"]
) -> Check:
    """Whether the answer's log-probability depends on the image: with another one, a blank one, and
    the same in shuffled pieces.
    """
    shown = open_image(image, subject.exif)
    images = {"this": shown, **_other_images(shown)}
    logits: dict[str, Tensor] = {}
    logprobs: list[str] = []
    for name, other in images.items():
        inputs = with_response(subject.encode(other, question), response_ids)
        with torch.no_grad():
            whole = subject.model(**inputs, use_cache=False).logits[0]
        logits[name] = whole[-len(response_ids) - 1 : -1].float()
        logprob = token_logprob(logits[name], response_ids)
        logprobs.append(f"{name} {float(logprob.sum()):.4g}")
    own = logits.pop("this")
    is_said = said(own)
    changes = torch.stack([(own - other)[is_said].abs().max() for other in logits.values()])
    reads = bool(changes.max() > UNREAD * largest_logit(own))
    value = f"{', '.join(logprobs)} nat"
    value = value if reads else f"{value}: this model does not read its image"
    return Check("log-probability of the answer, by image", value, "depends on the image", reads)


def _other_images(image: Image.Image) -> dict[str, Image.Image]:
    """Of the same size: a drawn image, a grey one, and the image in shuffled pieces."""
    from probe.models.tiny.questions import sample_image

    width, height = (max(1, size // PIECES) for size in image.size)  # of a piece
    whole = np.asarray(image.resize((PIECES * width, PIECES * height)))
    grid = whole.reshape(PIECES, height, PIECES, width, 3).swapaxes(1, 2)
    pieces = np.random.default_rng(0).permutation(grid.reshape(-1, height, width, 3))
    shuffled = pieces.reshape(grid.shape).swapaxes(1, 2).reshape(whole.shape)
    return {
        "another": sample_image(seed=1)[0].resize(image.size),
        "blank": Image.new("RGB", image.size, (128, 128, 128)),
        "shuffled": Image.fromarray(shuffled).resize(image.size),
    }


@torch.no_grad()
def shares_prefix(subject: Subject, prompt: Inputs) -> Check:
    """Whether the prefix of an image, computed once, serves all questions and cases: vision dropped
    in all layers on a shared prefix, against the same in a forward of its own. Where the model does
    not allow it nothing is shared, which does not break a promise.
    """
    name = "sharing of an image's prefix"
    promise = "exact, or not used"
    model = subject.model
    stack = stacks(subject.model)["llm"]
    try:
        embedded, cached = PrefixCache(model, stack).of(prompt)
        prefix = cached.prefix
        untouched = partial(untouched_logits, model, stack, embedded, prefix)
        reason = check_sharing(model, stack, prompt, untouched, prefix).reason
    except ProbeError as error:  # a sliding window, or a decoder of another kind
        reason = error.got
    if reason:
        return Check(name, f"not used: {reason}", promise, True)
    layers = range(len(stack.layers))
    view_of = torch.zeros(1, len(layers), dtype=torch.long)
    batch = CaseBatch(model, stack, [prefix.masked()], view_of, embedded, len(embedded.ids))
    shared = batch.prefill(1)[0, -1].float()
    with drop_vision(subject, layers, drop_mode(subject)):
        alone = model(**prompt, use_cache=False).logits[0, -1].float()
    worst = float((shared - alone)[said(alone)].abs().max()) / largest_logit(alone)
    bound = LOGIT_TOLERANCE if is_full_precision(subject) else HALF_TOLERANCE
    value = f"exact (logits differ by {worst:.1g} of the largest)"
    if not worst <= bound:
        value = f"not exact: logits differ by {worst:.1g} of the largest"
    return Check(name, value, promise, worst <= bound)


def drop_mode(subject: Subject) -> str:
    """The mode of dropping vision in all layers that this model and its kernel can run."""
    stack = stacks(subject.model)["llm"]
    kernels = set(map(implementation_of, stack.attention.values()))
    takes_no_mask = any("flash" in kernel or "flex" in kernel for kernel in kernels)
    mixes_rows = int8_threshold(stack.layers) > 0
    return "remove" if takes_no_mask or mixes_rows or stack.with_state else "mask"


def drop_refusal(subject: Subject) -> str:
    """Why vision can't be dropped in all layers of this model; "" where it can."""
    layers = range(len(stacks(subject.model)["llm"].layers))
    try:
        with drop_vision(subject, layers, drop_mode(subject)):
            return ""
    except ProbeError as error:
        return error.got or str(error)


def is_full_precision(subject: Subject) -> bool:
    """Whether a number is the same to 1e-5 however many rows run together."""
    if int8_threshold(stacks(subject.model)["llm"].layers) > 0:
        return False
    return subject.model.dtype in (torch.float32, torch.float64)
