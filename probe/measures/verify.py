"""The promises, checked on the user's own model, each with its number.

    report = verify(subject)
    report.passed, report.checks
    report.appendix                       # a block to paste into a paper's appendix

The statistic is compared with the plain computation from whole attention maps (`plain_table`), one
layer at a time and on a short prompt, in a model whose kernel is switched to eager for that
comparison and back.
"""

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from probe.data.image import ImageSource
from probe.hooks.attention_tap import tap
from probe.hooks.block_threads import only_this_thread
from probe.hooks.model_checks import require_subject
from probe.hooks.model_state import is_clear
from probe.hooks.model_structure import LayerStack, stacks
from probe.measures.attention.encoder_layout import ENCODERS, known_part
from probe.measures.attention.reference import largest_difference
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.statistic import AttentionStatistic
from probe.measures.attention.type_sums import total_attention
from probe.measures.verify_decoding import TOKENS, TOLERANCE, decoding_checks
from probe.measures.verify_model import answered, devices, reads_image, shares_prefix
from probe.measures.verify_report import Check, Report, in_bytes
from probe.records.provenance import provenance
from probe.subject.inputs import Inputs, collate, with_response
from probe.subject.subject import Subject

FEW_TOKENS = 64  # whole maps of so few take no more than sums do
STACKS = {
    "vision": "the encoder",
    "vision_video": "the encoder of frames",
    "compressor": "the compressor",
    "prefusion": "pre-fusion",
    "cross": "cross-attention",
    "llm": "the LLM",
}


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
    where = devices(subject, prompt)
    if not where.passed:  # no forward can run
        return Report([where], provenance(subject))
    finite, response_ids = answered(subject, prompt, TOKENS)
    if response_ids is None:  # nothing can be measured
        return Report([where, finite], provenance(subject))
    before = state(subject.model)  # after a first forward, in which transformers adds hooks
    inputs = with_response(prompt, response_ids)
    longer_prompt = subject.encode(image, f"{question} {question}")
    batches = {"one sample": prompt, "a padded batch": collate([prompt, longer_prompt], "left")}
    checks = [_unchanged(subject, batch, name) for name, batch in batches.items()]
    checks += [where, finite, reads_image(subject, image, question, response_ids)]
    model_stacks = _known_stacks(subject, inputs)
    checks += [_exact(subject, inputs, stack) for stack in model_stacks]
    statistic = _measured(subject, inputs)
    checks += [
        _identity(inputs, statistic),
        *decoding_checks(subject, prompt, inputs, response_ids, statistic, model_stacks),
        shares_prefix(subject, prompt),
        _maps_not_kept(subject, inputs, statistic),
    ]
    restored = state(subject.model) == before
    promise = "hooks, configs and mode as before"
    checks.append(Check("model restored", "yes" if restored else "no", promise, restored))
    return Report(checks, provenance(subject))


def _known_stacks(subject: Subject, inputs: Inputs) -> dict[str, LayerStack]:
    """The stacks, or the part of them, of which it is known what their positions are."""
    known = {}
    for name, stack in stacks(subject.model).items():
        part = known_part(subject, inputs, stack) if name in ENCODERS else stack
        if isinstance(part, LayerStack):
            known[name] = part
    return known


def _unchanged(subject: Subject, batch: Inputs, name: str) -> Check:
    """Bit-identical logits while the statistics of all stacks are taken."""
    model_stacks = _known_stacks(subject, batch)
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


def _measured(subject: Subject, inputs: Inputs) -> AttentionStatistic:
    """The LLM's statistic of one forward."""
    statistic = stack_statistics(subject, inputs, ["llm"])["llm"].statistic
    with torch.no_grad(), tap(stacks(subject.model)["llm"].attention, statistic):
        subject.model(**inputs, use_cache=False)
    return statistic


def _identity(inputs: Inputs, statistic: AttentionStatistic) -> Check:
    """Σ_B mass · query_count = queries, less what a learned sink takes: nothing is lost."""
    types = inputs.types
    ids = types.ids[0][types.is_query[0]]
    queries = np.array([(ids == query_type).sum() for query_type in range(len(types.names))])
    errors = []
    for name in statistic.modules:
        table = statistic.table(name)
        missing = np.abs(total_attention(table, queries) - queries)
        errors.append(missing.max() / max(1, queries.max()))
    worst = float(np.max(errors))  # NaN where any is
    return Check(
        "Σ_B mass·query_count = queries of A", worst, "at most 1e-5 of the queries", worst <= 1e-5
    )


def _maps_not_kept(subject: Subject, inputs: Inputs, statistic: AttentionStatistic) -> Check:
    """The bytes of whole maps, and those of the sums."""
    sums: list[dict[str, np.ndarray]] = []
    for name in statistic.modules:
        sums += statistic.sums(name)
    kept = sum(array.nbytes for row in sums for array in row.values())
    heads = len(sums[0]["mass"])
    tokens = inputs["input_ids"].shape[1]
    element_size = torch.finfo(subject.model.dtype).bits // 8
    maps = len(statistic.modules) * heads * tokens**2 * element_size
    measured = f"{in_bytes(maps)} (kept: {in_bytes(kept)})"
    promise = "less kept"
    if tokens < FEW_TOKENS:
        promise = f"less kept, of more than these {tokens} tokens"
    return Check(
        "memory of the maps not kept", measured, promise, kept < maps or tokens < FEW_TOKENS
    )


def state(model: Any) -> dict[str, Any]:
    """All that a probe could leave changed: hooks, configs, kernels and mode of every module, and
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
