"""The promises, checked on the user's own model, each with its number.

    report = verify(subject)
    report.passed, report.checks
    report.appendix                       # a block to paste into a paper's appendix

The statistic is compared with the plain computation from whole attention maps (`plain_table`), one
layer at a time and on a short prompt, in a model whose kernel is switched to eager for that
comparison and back.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from probe.data.image import ImageSource, open_image
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import finite_states
from probe.hooks.layer_arguments import cache_argument, output_cache
from probe.hooks.model_checks import require_subject
from probe.hooks.model_state import is_clear
from probe.hooks.model_structure import stacks
from probe.interventions.drop import drop_vision
from probe.measures.attention.reference import difference, largest_difference
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.statistic import AttentionStatistic
from probe.records.provenance import provenance
from probe.subject.inputs import Inputs, collate, with_response
from probe.subject.subject import Subject

PIECES = 8  # of an image that is shuffled, along each side
UNREAD = 1e-6  # of the largest logit: smaller changes are no dependence on the image
TOKENS = 8  # of the response that is decoded
TOLERANCE = 1e-5
LOGIT_TOLERANCE = 1e-4  # of the largest logit
# Between two forwards of different shapes, whose half-precision kernels round differently.
HALF_TOLERANCE = 5e-2
STACKS = {
    "vision": "the encoder",
    "compressor": "the compressor",
    "prefusion": "pre-fusion",
    "llm": "the LLM",
}


@dataclass(frozen=True)
class Check:
    """One promise: what was measured, what was promised, whether it was kept."""

    name: str
    value: float | str
    expected: str
    passed: bool

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> "Check":
        return cls(name, value, f"at most {bound:g}", value <= bound)


@dataclass(frozen=True)
class Report:
    """All checks of one subject, and what a paper has to state about them."""

    checks: list[Check]
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def appendix(self) -> str:
        """Plain text: how the attention was measured, on what, and how exact it was."""
        about = self.provenance
        packages = ("probe", "transformers", "torch")
        versions = ", ".join(f"{name} {about[f'{name}_version']}" for name in packages)
        setting = ", ".join(about[name] for name in ("weights", "dtype", "device"))
        lines = [
            f"Attention was measured with {versions} on {about['model']} ({setting}),",
            f"while the model ran its own {about['attention']} kernel; images: {about['aspect']}.",
        ]
        for check in self.checks:
            value = check.value if isinstance(check.value, str) else f"{check.value:.2g}"
            lines.append(f"  {check.name}: {value} (promised: {check.expected})")
        return "\n".join(lines)


@only_this_thread()
def verify(
    subject: Subject, image: ImageSource | None = None, question: str = "what is in the image ?"
) -> Report:
    """Checks the promises on this model, with the given image (by default a drawn one) and
    question.

    Every check uses a prompt with one image and a response of at most 8 tokens. The model is
    afterwards as it was before; for the comparison with whole maps its kernel is eager.
    """
    from probe.models.tiny.questions import sample_image

    require_subject("verify", subject)
    image = sample_image(seed=0)[0] if image is None else image
    prompt = subject.encode(image, question)
    longer_prompt = subject.encode(image, f"{question} {question}")
    response_ids = subject.generate_ids(prompt, TOKENS)[0]
    inputs = with_response(prompt, response_ids)
    before = state(subject.model)
    batches = {"one sample": prompt, "a padded batch": collate([prompt, longer_prompt], "left")}
    checks = [_unchanged(subject, batch, name) for name, batch in batches.items()]
    checks += [_finite(subject, inputs), _reads_image(subject, image, question, response_ids)]
    checks += [_exact(subject, inputs, stack) for stack in stacks(subject.model)]
    statistic = _measured(subject, inputs)
    checks += [
        _identity(inputs, statistic),
        _decoding(subject, prompt, inputs, response_ids, statistic),
        _cached(subject, prompt, inputs, response_ids),
        _stays_dropped(subject, prompt, inputs, response_ids),
        _maps_not_kept(subject, inputs, statistic),
    ]
    restored = state(subject.model) == before
    promise = "hooks, configs and mode as before"
    checks.append(Check("model restored", "yes" if restored else "no", promise, restored))
    return Report(checks, provenance(subject))


def _finite(subject: Subject, inputs: Inputs) -> Check:
    """Whether the hidden states of all layers are numbers in this dtype."""
    model, value = subject.model, "finite"
    try:
        with torch.no_grad(), ExitStack() as blocks:
            for stack in stacks(model).values():
                blocks.enter_context(finite_states("verify", model, stack))
            model(**inputs)
    except ProbeError as error:
        value = f"{error.got}; {error.fix}"
    return Check("hidden states", value, "finite", value == "finite")


def _reads_image(
    subject: Subject, image: ImageSource, question: str, response_ids: Int[Tensor, " token"]
) -> Check:
    """Whether the answer's log-probability depends on the image: with another one, a blank one, and
    the same in shuffled pieces.
    """
    shown = open_image(image, subject.exif)
    images = {"this": shown, **_other_images(shown)}
    logits, logprobs = {}, []
    for name, other in images.items():
        inputs = with_response(subject.encode(other, question), response_ids)
        with torch.no_grad():
            whole = subject.model(**inputs, use_cache=False).logits[0]
        logits[name] = whole[-len(response_ids) - 1 : -1].float()
        each = logits[name].log_softmax(-1).gather(-1, response_ids.to(whole.device)[:, None])
        logprobs.append(f"{name} {float(each.sum()):.4g}")
    own = logits.pop("this")
    change = max(float((own - other).abs().max()) for other in logits.values())
    reads = change > UNREAD * float(own.abs().max())
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


def _unchanged(subject: Subject, batch: Inputs, name: str) -> Check:
    """Bit-identical logits while the statistics of all stacks are taken."""
    model_stacks = stacks(subject.model)
    with torch.no_grad(), ExitStack() as taps:
        plain = subject.model(**batch).logits
        for stack, counts in stack_statistics(subject, batch, model_stacks).items():
            taps.enter_context(tap(model_stacks[stack].attention, counts.statistic))
        observed = subject.model(**batch).logits
    change = (plain.float() - observed.float()).abs().max().item()
    passed = torch.equal(plain, observed)
    return Check(f"change of the logits, {name}", change, "exactly 0", passed)


def _exact(subject: Subject, inputs: Inputs, stack: str) -> Check:
    """The streaming statistic against the naive reference."""
    worst = largest_difference(subject, inputs, stack)
    return Check.at_most(f"statistic of {STACKS[stack]} against whole maps", worst, TOLERANCE)


def _llm_statistic(subject: Subject, inputs: Inputs) -> AttentionStatistic:
    return stack_statistics(subject, inputs, ["llm"])["llm"].statistic


def _measured(subject: Subject, inputs: Inputs) -> AttentionStatistic:
    """The LLM's statistic of one forward."""
    statistic = _llm_statistic(subject, inputs)
    with torch.no_grad(), tap(stacks(subject.model)["llm"].attention, statistic):
        subject.model(**inputs, use_cache=False)
    return statistic


def _identity(inputs: Inputs, statistic: AttentionStatistic) -> Check:
    """Σ_B mass · query_count = queries: all attention is accounted for."""
    types = inputs.types
    ids = types.ids[0][types.is_query[0]]
    queries = np.array([(ids == query_type).sum() for query_type in range(len(types.names))])
    worst = 0.0
    for name in statistic.modules:
        table = statistic.table(name)
        seen = table["query_count"] > 0  # where none is, the mass is NaN: there is none to count
        total = np.where(seen, table["mass"] * table["query_count"], 0).sum(-1)
        worst = max(worst, float(np.abs(total - queries).max() / max(1, queries.max())))
    return Check(
        "Σ_B mass·query_count = queries of A", worst, "at most 1e-5 of the queries", worst <= 1e-5
    )


def _decoding(
    subject: Subject,
    prompt: Inputs,
    inputs: Inputs,
    response_ids: Int[Tensor, "token"],
    one_forward: AttentionStatistic,
) -> Check:
    """The response's queries in one forward against those of cached decoding, step by step."""
    model, steps = subject.model, _llm_statistic(subject, inputs)
    with tap(stacks(model)["llm"].attention, steps):
        cached_logits(model, prompt, response_ids)
    worst = max(
        difference(_of_response(one_forward, name, inputs), _of_response(steps, name, inputs))
        for name in one_forward.modules
    )
    is_half = model.dtype not in (torch.float32, torch.float64)
    bound = HALF_TOLERANCE if is_half else TOLERANCE
    name = f"{len(response_ids) - 1} steps of decoding against one forward"
    return Check.at_most(name, worst, bound)


@torch.no_grad()
def cached_logits(
    model: Any, prompt: Inputs, response_ids: Int[Tensor, " token"]
) -> Float[Tensor, "token word"]:
    """The logits that predict each token of the response, decoded step by step with a cache."""
    outputs = model(**prompt, use_cache=True)
    logits, mask = [outputs.logits[0, -1]], prompt["attention_mask"]
    for token in response_ids[:-1].to(mask.device):  # decoding never feeds the last token
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        cache = cache_argument(model, output_cache(outputs))
        outputs = model(input_ids=token.view(1, 1), attention_mask=mask, use_cache=True, **cache)
        logits.append(outputs.logits[0, -1])
    return torch.stack(logits)


def _cached(
    subject: Subject, prompt: Inputs, inputs: Inputs, response_ids: Int[Tensor, " token"]
) -> Check:
    """The logits of decoding with a cache against those of one forward without."""
    cached = cached_logits(subject.model, prompt, response_ids).float()
    with torch.no_grad():
        logits = subject.model(**inputs, use_cache=False).logits[0, -len(response_ids) - 1 : -1]
    worst = ((cached - logits.float()).abs().max() / logits.abs().max()).item()
    is_half = subject.model.dtype not in (torch.float32, torch.float64)
    bound = HALF_TOLERANCE if is_half else LOGIT_TOLERANCE
    return Check.at_most("logits, cached against uncached (share of the largest)", worst, bound)


def _stays_dropped(
    subject: Subject, prompt: Inputs, inputs: Inputs, response_ids: Int[Tensor, " token"]
) -> Check:
    """The same with vision tokens dropped in all layers of the LLM: a cache that went unnoticed
    would bring them back at each step of decoding.
    """
    attention = stacks(subject.model)["llm"].attention
    kernels = {
        str(getattr(module.config, "_attn_implementation", "")) for module in attention.values()
    }
    takes_no_mask = any("flash" in kernel or "flex" in kernel for kernel in kernels)
    mode = "remove" if takes_no_mask else "mask"
    with drop_vision(subject, range(len(attention)), mode):
        check = _cached(subject, prompt, inputs, response_ids)
    return replace(check, name=f"{check.name}, vision dropped in all layers")


def _of_response(statistic: AttentionStatistic, name: str, inputs: Inputs) -> dict[str, np.ndarray]:
    table, response = statistic.table(name), inputs.types.names.index("response")
    variables = ("mass", "share", "lift", "entropy", "head_entropy")
    return {variable: table[variable][..., response, :] for variable in variables}


def _maps_not_kept(subject: Subject, inputs: Inputs, statistic: AttentionStatistic) -> Check:
    """The bytes of whole maps, and those of the sums."""
    sums = [row for name in statistic.modules for row in statistic.sums(name)]
    kept = sum(array.nbytes for row in sums for array in row.values())
    heads, tokens = len(sums[0]["mass"]), inputs["input_ids"].shape[1]
    element_size = torch.finfo(subject.model.dtype).bits // 8
    maps = len(statistic.modules) * heads * tokens**2 * element_size
    measured = f"{_bytes(maps)} (kept: {_bytes(kept)})"
    return Check("memory of the maps not kept", measured, "less kept", kept < maps)


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def state(model: Any) -> dict[str, Any]:
    """All that a probe could leave behind: hooks, configs, kernels and mode of every module, and
    entries in the registry of open blocks.
    """
    return {
        name: (
            id(module.__dict__.get("config")),
            getattr(module.__dict__.get("config"), "_attn_implementation", None),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            module.training,
            is_clear(module),
        )
        for name, module in model.named_modules()
    }
