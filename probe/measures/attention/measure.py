"""Measure: samples in, record out.

The statistic of every layer is computed under the tap: while the model answers, or, where the
answer is given, in one teacher-forced forward over prompt and response (`passes.py`). By causality
the response rows of that forward are those of decoding, so both are one definition.

    record = measure(subject, "street.jpg", "what is on the left ?")
    record["llm"]["mass"]                     # (sample, layer, head, query_type, key_type)

    record = measure_samples(subject, [Sample("a", "a.jpg", "what is this ?"), ...])
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import xarray as xr
from tqdm.auto import tqdm

from probe.data.image import ImageSource
from probe.data.sample import Sample
from probe.data.token_types import Types
from probe.errors import ProbeError, at_least, not_empty, one_of
from probe.hooks.block_threads import only_this_thread
from probe.hooks.model_checks import require_observable, require_subject
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import LayerStack, check_projections
from probe.hooks.model_structure import stacks as find_stacks
from probe.hooks.own_failure import own_failures
from probe.measures.attention.batches import batches, encoded
from probe.measures.attention.encoder_layout import leave_out_unknown
from probe.measures.attention.given_responses import Response, responses_of, source_of
from probe.measures.attention.memory_plan import maps_size, require_maps, require_memory
from probe.measures.attention.passes import Passes
from probe.measures.attention.record_node import merged_patches, root, without_attention
from probe.measures.attention.shared_passes import SharedPasses, SharedSamples
from probe.measures.attention.sinks import SINK_MODES
from probe.measures.attention.stack_queries import MeasureOptions
from probe.records import combine, part
from probe.records.combine import Part
from probe.records.provenance import content_hash, provenance
from probe.subject.batch_trial import reads_rows_alone
from probe.subject.image_questions import ImageQuestions
from probe.subject.inputs import Ids, collate
from probe.subject.prefix_cache import CACHE_GB
from probe.subject.subject import Subject


@only_this_thread()
def measure(
    subject: Subject,
    image: ImageSource | Sequence[ImageSource] | None,
    question: str | Sequence[Mapping[str, Any]],
    response: str | Ids | xr.DataTree | None = None,
    **options: Any,
) -> xr.DataTree:
    """The record of one question about an image (several, a video, or None). Logits are
    bit-identical with and without the measurement.

    Args:
        question: the words, or a conversation as a list of messages.
        response: what the model is taken to have answered: text, token ids, or a record whose
            answer is taken over. By default the model's own answer, generated greedily.
        options: those of `measure_samples`: types=, turns=, rows=, sinks=, stacks=, maps=,
            contribution=, received_head=, max_new_tokens=, and options of `model.generate`;
            share= is off.

    Raises ProbeError as `measure_samples` does.
    """
    images: Any = tuple(image) if isinstance(image, list) else image
    sample = Sample("0", image=images, question=question)
    options.setdefault("share", False)
    return measure_samples(subject, [sample], response, **options)


def measure_samples(
    subject: Subject,
    samples: Sequence[Sample],
    response: Response = None,
    *,
    types: Types = "paper",
    turns: str = "last",
    rows: str = "all",
    sinks: str = "keep",
    stacks: Sequence[str] | None = None,
    maps: bool | str = False,
    contribution: bool = False,
    received_head: bool = False,
    max_new_tokens: int = 32,
    batch_tokens: int = 4096,
    share: bool | ImageQuestions = True,
    cache_gb: float = CACHE_GB,
    progress: bool | None = None,
    **generate: Any,
) -> xr.DataTree:
    """The record of many samples, in their order. Logits are bit-identical with and without the
    measurement, in a forward that shares prefixes in the same way.

    Args:
        samples: questions with their images; ids must differ.
        response: one for all, one a sample, or a record with the same samples (see `measure`).
        types: "paper" (instruction, vision, response), "fine", or masks of your own
            (`TokenTypes.as_types`).
        turns: whether earlier answers of a conversation are "response" too ("all"), or
            instruction ("last").
        rows: "text" leaves out vision tokens as queries: vision → * is then NaN, and measuring
            costs next to nothing.
        sinks: attention sinks (`find_sinks`) are counted under their own types ("keep"), as a
            type "sink" ("split"), or left out ("drop"): what they receive is then missing from
            sums, not redistributed. Other than "keep" costs another forward. Sinks among vision
            keys are marked (`key_sink`) in any case.
        stacks: of "vision" (the encoder), "vision_video" (that of frames, in a model with two),
            "compressor" (LLaVA-Mini's, Q-Formers, perceivers), "prefusion" (LLaVA-Mini's), "cross"
            (words that read the image by cross-attention) and "llm"; all that the model has by
            default.
        maps: also keep the attention of the tokens that predict the response to each vision key,
            averaged over heads (True) or for each head ("heads").
        contribution: also the norm of what each type adds to the residual stream.
        received_head: also what each vision key receives in each head.
        max_new_tokens: of the model's own answers.
        batch_tokens: samples are padded into one forward up to this number of tokens.
        share: questions about the same images are taken together, and what precedes their text (the
            encoder, the projector, the LLM's rows up to the last vision token) is computed and
            measured once. Equal to each question alone to 1e-5 (float32); tried out once a model,
            and left out where it is not exact. The record's `prefix` says what was done. Pass an
            `ImageQuestions` to keep prefixes between calls.
        cache_gb: keys and values of prefixes that are kept, in GB; at least one is.
        progress: show a bar; by default for more than one sample.
        generate: options of `model.generate`, such as do_sample=True.

    Raises ProbeError for what `Subject.encode` refuses, maps above 1 GiB, more than a GPU has free
    (`memory_plan.py`), a model in training mode or compiled, modules whose attention cannot be
    observed, and contribution of quantized weights.
    """
    _check(subject, rows, maps, max_new_tokens, sinks)
    samples = _as_samples(samples)
    any_images = any(sample.images for sample in samples)
    measured_stacks = _select_stacks(subject, stacks, any_images)
    if contribution:
        for stack in measured_stacks.values():
            check_projections(stack)
    responses = responses_of(response, samples)
    options = MeasureOptions(rows, maps, contribution, received_head)
    generate_options = {"max_new_tokens": max_new_tokens, **generate}
    attrs = provenance(
        subject,
        types=types if isinstance(types, str) else "own",
        turns=turns,
        rows=rows,
        intervention=active_interventions(subject.model),
        response_from=source_of(response),
        generate=", ".join(f"{name}={value}" for name, value in generate_options.items()),
    )
    if sinks != "keep":
        attrs["sinks"] = sinks
    answers = generate_options if response is None and max_new_tokens else None
    passes = Passes(subject, measured_stacks, options, answers, sinks)
    shared = None
    if share:
        is_given = isinstance(share, ImageQuestions)
        questions = share if is_given else ImageQuestions(subject, cache_gb)
        shared = SharedSamples(SharedPasses(passes, questions), samples)
    order = list(range(len(samples))) if shared is None else shared.order
    asked = [samples[i] for i in order], [responses[i] for i in order]
    parts = {}
    quiet = len(samples) == 1 if progress is None else not progress
    bar = tqdm(total=len(samples), desc="measure", unit="sample", disable=quiet)
    with bar, torch.no_grad():
        rows_of_samples = encoded(subject, *asked, types=types, turns=turns)
        sharing: Any = {} if shared is None else {"prefix_of": shared.prefix_of}
        sharing["joins"] = partial(reads_rows_alone, subject.model)
        for batch in batches(rows_of_samples, batch_tokens, **sharing):
            encoded_rows = batch.inputs
            if maps:
                new_tokens = max_new_tokens if answers is not None else 0
                llm = measured_stacks.get("llm")
                size = maps_size(llm, encoded_rows, maps, new_tokens)
                require_maps(size * len(samples), len(samples))
            require_memory("measure", subject, encoded_rows, measured_stacks.get("llm"), options)
            together = collate(encoded_rows, side="right")
            with own_failures("measure", subject.model, together):
                asked_for = stacks is not None
                leave_out_unknown(subject, together, measured_stacks, required=asked_for)
                measure_batch = shared.passes if shared and batch.prefix else passes
                measured = measure_batch(encoded_rows)
            attrs["prefix"] = batch.alone or measured.prefix
            attrs |= without_attention(measured_stacks) | _compression_note(subject)
            samples_of_batch = [sample for sample, _ in batch.rows]
            unknown = [None] * len(samples_of_batch)
            for sample, row, nodes, logprob in zip(
                samples_of_batch,
                measured.rows,
                measured.nodes,
                measured.logprob or unknown,
                strict=True,
            ):
                sample_root = root(sample, row, logprob)
                attrs["prompt_sha256"] = content_hash(sample_root["prompt"][0], length=16)
                attrs["passes"] = measured.passes
                if "llm" in nodes:
                    nodes = nodes | {"llm": nodes["llm"] | merged_patches(row)}
                parts[sample.id] = part(sample_root, nodes, attrs)
            bar.update(len(batch.rows))
    return combine(_of_common_stacks([parts[sample.id] for sample in samples]))


def _of_common_stacks(parts: Sequence[Part]) -> list[Part]:
    """The parts with the stacks that all of them have: an encoder is left out where one sample does
    not run it or gives it what is not known (a video beside an image).
    """
    common = set.intersection(*(set(each.stacks) for each in parts))
    left_out = sorted({name for each in parts for name in each.stacks} - common)
    if left_out:
        names = " and ".join(left_out)
        warnings.warn(f"{names} left out: not measured in all samples", stacklevel=3)
    kept = [{name: each.stacks[name] for name in each.stacks if name in common} for each in parts]
    return [each._replace(stacks=stacks) for each, stacks in zip(parts, kept, strict=True)]


def _check(subject: Subject, rows: str, maps: bool | str, max_new_tokens: int, sinks: str) -> None:
    require_subject("measure", subject)
    require_observable("measure", subject.model)
    one_of("measure", "rows of", rows, ("all", "text"))
    one_of("measure", "sinks of", sinks, SINK_MODES)
    one_of("measure", "maps of", maps, (False, True, "heads"))
    at_least("measure", "max_new_tokens", max_new_tokens, 0)


def _as_samples(samples: Any) -> list[Sample]:
    samples = [samples] if isinstance(samples, Sample) else samples
    if not isinstance(samples, Iterable) or isinstance(samples, str):
        raise ProbeError(
            "measure_samples",
            expected="samples",
            got=type(samples).__name__,
            fix="use measure(subject, image, question) for one question",
        )
    samples = list(samples)
    not_empty("measure_samples", "Sample", samples)
    if not all(isinstance(sample, Sample) for sample in samples):
        raise ProbeError(
            "measure_samples",
            expected="Samples",
            got="images alone",
            fix="use measure(subject, image, question) for one question",
        )
    (sample_id, times), *_ = Counter(sample.id for sample in samples).most_common(1)
    if times > 1:
        raise ProbeError(
            "measure_samples",
            expected="samples with different ids",
            got=f"{sample_id!r} {times} times",
        )
    return samples


def _select_stacks(
    subject: Subject, names: Sequence[str] | None, any_images: bool
) -> dict[str, LayerStack]:
    """The stacks to measure; without any image only the LLM runs."""
    existing = find_stacks(subject.model)
    names = [names] if isinstance(names, str) else names
    if unknown := set(names or ()) - set(existing):
        raise ProbeError(
            "measure", expected=f"stacks of {', '.join(existing)}", got=", ".join(sorted(unknown))
        )
    selected = {
        name: stack
        for name, stack in existing.items()
        if (names is None or name in names) and (any_images or name == "llm")
    }
    if not selected:
        raise ProbeError(
            "measure",
            expected="at least one stack, and images for any but the llm",
            got=f"stacks={list(names or [])} and {'' if any_images else 'no '}images",
        )
    return selected


def _compression_note(subject: Subject) -> dict[str, str]:
    """What a reader must know of how a model compresses images, where it says so."""
    note = getattr(subject.model.base_model, "NOTE", "")
    return {"compression": note} if note else {}
