"""The promises, checked on the user's own model, each with its number.

    report = verify(subject)
    report.passed, report.checks, report.appendix        # the last: a block to paste into a paper's appendix

The statistic is compared with the plain computation from whole attention maps (`plain_table`), one
layer at a time and on a short prompt, in a model whose kernel is switched to eager for that
comparison and back.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.data.image import ImageSource
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from probe.measures.attention.reference import difference, largest_difference
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.statistic import AttentionStatistic
from probe.records.provenance import provenance
from probe.subject.inputs import Inputs, collate, with_response
from probe.subject.subject import Subject

TOKENS = 8  # of the response that is decoded
TOLERANCE = 1e-5
STACKS = {
    "vision": "the encoder",
    "compressor": "the compressor",
    "prefusion": "pre-fusion",
    "llm": "the LLM",
}
HALF_TOLERANCE = (
    5e-2  # between two forwards of different shapes, whose half precision kernels round differently
)


@dataclass(frozen=True)
class Check:
    """One promise: what was measured, what was promised, whether it was kept."""

    name: str
    value: float | str
    expected: str
    passed: bool


@dataclass(frozen=True)
class Report:
    """All checks of one subject, and what has to be said of it in a paper."""

    checks: list[Check]
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def appendix(self) -> str:
        """Plain text: how the attention was measured, on what, and how exact it was."""
        about = self.provenance
        versions = ", ".join(
            f"{name} {about[f'{name}_version']}" for name in ("probe", "transformers", "torch")
        )
        where = ", ".join(about[name] for name in ("revision", "dtype", "device"))
        lines = [
            f"Attention was measured with {versions} on {about['model']} ({where}), beside the model's own",
            f"{about['attention']} kernel; images: {about['aspect']}.",
        ]
        for check in self.checks:
            value = check.value if isinstance(check.value, str) else f"{check.value:.2g}"
            lines.append(f"  {check.name}: {value} (promised: {check.expected})")
        return "\n".join(lines)


def verify(
    subject: Subject, image: ImageSource | None = None, question: str = "what is in the image ?"
) -> Report:
    """Runs the promises on this model, with the image and question given or a drawn one.

    Every check is on a prompt with one image and a response of at most 8 tokens. Nothing is
    changed: the kernel is eager for the comparison with whole maps, and the model's own again
    afterwards.
    """
    from probe.models.tiny.questions import sample_image

    image = sample_image(seed=0)[0] if image is None else image
    prompt = subject.encode(image, question)
    ids = subject.generate_ids(prompt, TOKENS)[0]
    inputs = with_response(prompt, ids)
    before = state(subject.model)
    checks = [
        *_unchanged(subject, prompt, subject.encode(image, f"{question} {question}")),
        *(_exact(subject, inputs, stack) for stack in stacks(subject.model)),
        _identity(subject, inputs),
        _decoding(subject, prompt, inputs, ids),
        _maps_not_kept(subject, inputs),
    ]
    restored = state(subject.model) == before
    checks.append(
        Check(
            "model restored",
            "yes" if restored else "no",
            "hooks, configs and mode as before",
            restored,
        )
    )
    return Report(checks, provenance(subject))


def _unchanged(subject: Subject, prompt: Inputs, longer: Inputs) -> list[Check]:
    """Bit-identical logits while the statistic of every stack is taken, alone and in a padded
    batch.
    """
    checks = []
    for name, batch in (
        ("one sample", prompt),
        ("a padded batch", collate([prompt, longer], side="left")),
    ):
        with torch.no_grad():
            plain = subject.model(**batch).logits
            with ExitStack() as taps:
                for stack, statistic in _statistics(subject, batch).items():
                    taps.enter_context(tap(stacks(subject.model)[stack].attention, statistic))
                seen_logits = subject.model(**batch).logits
        change = (plain.float() - seen_logits.float()).abs().max().item()
        checks.append(
            Check(
                f"change of the logits, {name}",
                change,
                "exactly 0",
                torch.equal(plain, seen_logits),
            )
        )
    return checks


def _statistics(subject: Subject, inputs: Inputs) -> dict[str, AttentionStatistic]:
    """Of every stack, as `measure` takes them."""
    counted = stack_statistics(subject, inputs, stacks(subject.model))
    return {stack: counts.statistic for stack, counts in counted.items()}


def _exact(subject: Subject, inputs: Inputs, stack: str) -> Check:
    """The streaming statistic against the naive reference."""
    worst = largest_difference(subject, inputs, stack)
    name = f"statistic of {STACKS[stack]} against whole maps"
    return Check(name, worst, f"at most {TOLERANCE:g}", worst <= TOLERANCE)


def _identity(subject: Subject, inputs: Inputs) -> Check:
    """Σ_B mass · query_count = queries: all attention is accounted for."""
    stack, statistic = stacks(subject.model)["llm"], _statistics(subject, inputs)["llm"]
    with torch.no_grad(), tap(stack.attention, statistic):
        subject.model(**inputs, use_cache=False)
    types, worst = inputs.types, 0.0
    queries = np.array(
        [(types.is_query[0] & (types.ids[0] == t)).sum() for t in range(len(types.names))]
    )
    for name in stack.attention:
        table = statistic.table(name)
        total = np.nansum(table["mass"] * table["query_count"], -1)
        worst = max(worst, float(np.abs(total - queries).max() / max(1, queries.max())))
    return Check(
        "Σ_B mass·query_count = queries of A", worst, "at most 1e-5 of the queries", worst <= 1e-5
    )


def _decoding(subject: Subject, prompt: Inputs, inputs: Inputs, ids: Tensor) -> Check:
    """Rows of the response in the one forward against the rows of cached decoding, step by step."""
    stack = stacks(subject.model)["llm"]
    whole, steps = (_statistics(subject, inputs)["llm"] for _ in range(2))
    with torch.no_grad():
        with tap(stack.attention, whole):
            subject.model(**inputs, use_cache=False)
        with tap(stack.attention, steps):
            cache = subject.model(**prompt, use_cache=True).past_key_values
            for n in range(len(ids) - 1):
                width = prompt["input_ids"].shape[1] + n + 1
                mask = torch.ones(1, width, dtype=torch.long, device=subject.model.device)
                step = ids[n].view(1, 1).to(subject.model.device)
                cache = subject.model(
                    input_ids=step, attention_mask=mask, past_key_values=cache, use_cache=True
                ).past_key_values
    worst = max(_response_difference(whole, steps, name, inputs) for name in stack.attention)
    bound = TOLERANCE if subject.model.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
    return Check(
        f"{len(ids) - 1} steps of decoding against one forward",
        worst,
        f"at most {bound:g}",
        worst <= bound,
    )


def _response_difference(
    whole: AttentionStatistic, steps: AttentionStatistic, name: str, inputs: Inputs
) -> float:
    response = inputs.types.names.index("response")
    rows = [
        {
            name: table[name][..., response, :]
            for name in ("mass", "share", "lift", "entropy", "head_entropy")
        }
        for table in (whole.table(name), steps.table(name))
    ]
    return difference(*rows)


def _maps_not_kept(subject: Subject, inputs: Inputs) -> Check:
    """What the whole maps would have taken, and what the sums take."""
    stack, size = stacks(subject.model)["llm"], inputs["input_ids"].shape[1]
    statistic = _statistics(subject, inputs)["llm"]
    with torch.no_grad(), tap(stack.attention, statistic):
        subject.model(**inputs, use_cache=False)
    kept = sum(
        value.nbytes
        for name in stack.attention
        for row in statistic.sums(name)
        for value in row.values()
    )
    heads = statistic.sums(next(iter(stack.attention)))[0]["mass"].shape[0]
    maps = len(stack.layers) * heads * size * size * torch.finfo(subject.model.dtype).bits // 8
    return Check(
        "memory of the maps not kept",
        f"{_bytes(maps)} (kept: {_bytes(kept)})",
        "less kept",
        kept < maps,
    )


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def state(model: Any) -> dict[str, Any]:
    """All that a probe could leave behind: hooks, configs, kernels and mode of every module."""
    return {
        name: (
            id(module.__dict__.get("config")),
            getattr(module.__dict__.get("config"), "_attn_implementation", None),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            module.training,
        )
        for name, module in model.named_modules()
    }
