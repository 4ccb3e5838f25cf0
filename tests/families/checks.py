"""What is checked of every family, one function a feature; each returns "yes", or "no" and why.

A check that finds a wrong number fails by an assertion. What a model can't do is refused by a
ProbeError, and the reason is what the table of families says (`table.py`).
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import cross_attention, stacks
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.sweep import Sweep
from probe.measures.attention.encoder_layout import known_part
from probe.measures.attention.reference import largest_difference
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.verify import state
from probe.reducers import FastV
from probe.subject.inputs import Inputs, with_response

QUESTION = "what is red ?"
EXACT = 1e-5  # of attention statistics, between streaming and whole maps
SAME = 2e-5  # of logits, between two ways of one computation
RESPONSE = (14, 16, 18, 20)
SIZE = (97, 61)


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@dataclass(frozen=True, eq=False)
class Case:
    """One family, and two prompts that differ in the image alone."""

    subject: Any

    def shown(self, seed: int) -> Any:
        """What a prompt shows."""
        return picture(seed)

    @cached_property
    def prompts(self) -> tuple[Inputs, Inputs]:
        first, second = (self.subject.encode(self.shown(seed), QUESTION) for seed in (0, 1))
        return first, second

    @cached_property
    def answered(self) -> tuple[Inputs, Inputs]:
        first, second = (with_response(prompt, RESPONSE) for prompt in self.prompts)
        return first, second

    @property
    def layers(self) -> range:
        return range(len(stacks(self.subject.model)["llm"].layers))

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Those that predict the response."""
        return self.subject.model(**inputs, use_cache=False).logits[0, -len(RESPONSE) - 1 :]

    def scores(self, prompt: Inputs) -> torch.Tensor:
        """The logits of three tokens, decoded with a cache."""
        made = self.subject.model.generate(
            **prompt,
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(made.logits)


def _apart(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


def _refusal(error: ProbeError) -> str:
    return f"no: {error.got or error}"


def places(case: Case) -> str:
    """Every vision token has a rectangle in the image, or none has; and pictures matter."""
    assert _apart(*map(case.logits, case.answered)) > 1e-3, "the model does not read its image"
    grid, types = case.prompts[0].grid[0], case.prompts[0].types
    assert len(grid) == types.vision.sum()
    if cross_attention(case.subject.model):
        return "no: words read the image by cross-attention"
    if np.isnan(grid.box).all():
        return "no: every token has looked at the whole image"
    middles = (grid.box[:, :2] + grid.box[:, 2:]) / 2
    middles = middles[~np.isnan(middles).any(1)]
    assert (np.abs(middles.mean(0) - 0.5) < 0.05).all(), "the tokens do not cover the image"
    return "yes"


def measured(case: Case) -> str:
    """The LLM's record equals whole maps to 1e-5, and measuring changes no bit of the logits."""
    subject, inputs = case.subject, case.answered[0]
    try:
        assert largest_difference(subject, inputs, "llm") < EXACT
    except ProbeError as error:  # layers that run twice
        return _refusal(error)
    plain = case.logits(inputs)
    statistic = stack_statistics(subject, inputs, ["llm"])["llm"].statistic
    with tap(stacks(subject.model)["llm"].attention, statistic):
        observed = case.logits(inputs)
    assert torch.equal(plain, observed)
    assert torch.equal(plain, case.logits(inputs))
    without = stacks(subject.model)["llm"].without_attention
    return "yes" if not without else f"yes, but layer {', '.join(str(i + 1) for i in without)}"


def encoder(case: Case) -> str:
    """The same of the encoder."""
    stack = stacks(case.subject.model).get("vision")
    if stack is None:
        return "no: it has none"
    part = known_part(case.subject, case.prompts[0], stack)
    if isinstance(part, str):
        return f"no: {part}"
    assert largest_difference(case.subject, case.prompts[0], "vision") < EXACT
    without = part.without_attention
    return "yes" if not without else f"yes, but layer {', '.join(str(i + 1) for i in without)}"


def readers(case: Case) -> str:
    """The same of what reads the image outside of encoder and LLM: which stacks there are."""
    found = [name for name in stacks(case.subject.model) if name in ("compressor", "cross")]
    if not found:
        return "no: it has none"
    inputs = case.answered[0]
    for name in found:
        assert largest_difference(case.subject, inputs, name) < EXACT
    plain = case.logits(inputs)
    with ExitStack() as taps:
        for name, made in stack_statistics(case.subject, inputs, found).items():
            module = stacks(case.subject.model)[name].attention
            taps.enter_context(tap(module, made.statistic))
        assert torch.equal(plain, case.logits(inputs))
    return f"yes: {', '.join(found)}"


def _drop(mode: str) -> Callable[[Case], str]:
    def check(case: Case) -> str:
        """Dropped in all layers, the image has no influence on a forward."""
        try:
            with probe.drop_vision(case.subject.model, case.layers, mode):
                assert _apart(*map(case.logits, case.answered)) < SAME
        except ProbeError as error:
            return _refusal(error)
        return "yes"

    return check


def decoding(case: Case) -> str:
    """The same while decoding with a cache; afterwards the image has its influence again."""
    try:
        with probe.drop_vision(case.subject.model, case.layers, "remove"):
            assert _apart(*map(case.scores, case.prompts)) < SAME
        if not stacks(case.subject.model)["llm"].with_state:
            with probe.drop_vision(case.subject.model, case.layers, "mask"):
                assert _apart(*map(case.scores, case.prompts)) < SAME
    except ProbeError as error:
        return _refusal(error)
    assert _apart(*map(case.scores, case.prompts)) > 1e-3
    return "yes"


def removed_is_frozen(case: Case) -> str:
    """In one layer, removing equals masking with vision rows frozen."""
    model, logits = case.subject.model, {}
    layer = next(i for i in case.layers if stacks(model)["llm"].modules[i] is not None)
    try:
        for mode in ("remove", "mask_frozen"):
            with probe.drop_vision(model, [layer], mode):
                logits[mode] = case.logits(case.answered[0])
    except ProbeError as error:
        return _refusal(error)
    assert _apart(*logits.values()) < SAME
    return "yes"


def knocked_out(case: Case) -> str:
    """No word sees vision tokens in any layer: the image has no influence on a forward."""
    try:
        with probe.knockout(case.subject.model, "text", "vision", case.layers):
            assert _apart(*map(case.logits, case.answered)) < SAME
    except ProbeError as error:
        return _refusal(error)
    return "yes"


def swept(case: Case) -> str:
    """Two cases of a sweep equal each case alone, in logits and answer."""
    subject, prompt = case.subject, case.prompts[0]
    has_state = stacks(subject.model)["llm"].with_state
    mode = "remove" if has_state and not cross_attention(subject.model) else "mask"
    sample = probe.Sample("a", case.shown(0), QUESTION)
    try:
        sweep = Sweep(subject, {"first": [0]}, mode, max_new_tokens=2)
        prompts = SamplePrompts.of(subject, sample, None)
        shares = not sweep.check_sharing(prompts.inputs).reason
        run = sweep.batched if shares else sweep.sequential
        outcome = run(prompts, ["no vision", "first"])
    except ProbeError as error:
        return _refusal(error)
    for index, layers in enumerate((case.layers, [0])):
        with probe.drop_vision(subject.model, layers, mode), torch.no_grad():
            logits = subject.model(**prompt, use_cache=False).logits[0, -1]
            (ids,) = subject.generate_ids(prompt, 2)
        assert _apart(outcome.logits[index, 0], logits) < SAME
        assert outcome.answers[index].tolist() == ids.tolist()
    return "yes" if shares else "yes, each case alone"


def fastv(case: Case) -> str:
    """Half of the vision tokens leave after the first layer, in a forward and in decoding."""
    subject = case.subject
    try:
        with FastV(1, 0.5)(subject):
            inputs = subject.encode(case.shown(0), QUESTION)
            subject.generate_ids(inputs, 2)
            reduced = case.logits(case.answered[0])
    except ProbeError as error:
        return _refusal(error)
    assert _apart(reduced, case.logits(case.answered[0])) > 0
    return "yes"


CHECKS: dict[str, Callable[[Case], str]] = {
    "places": places,
    "LLM measured": measured,
    "encoder measured": encoder,
    "compressor, cross": readers,
    "drop: mask": _drop("mask"),
    "drop: remove": _drop("remove"),
    "drop while decoding": decoding,
    "remove = mask_frozen": removed_is_frozen,
    "knockout": knocked_out,
    "sweep": swept,
    "FastV": fastv,
}


def results(case: Case) -> dict[str, str]:
    """What each check says of a family, whose model is left as it was: hooks, configs, kernels,
    mode, registry.
    """
    case.logits(case.answered[0])  # transformers adds its own hooks in the first forward
    before = state(case.subject.model)
    found = {name: check(case) for name, check in CHECKS.items()}
    assert state(case.subject.model) == before
    return found
