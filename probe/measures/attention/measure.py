"""Measure: samples in, record out.

The model answers first (or the answer is given), then one teacher-forced forward over prompt and
response runs under the tap, and every layer's statistic is taken on the way. By causality its
response rows are those of decoding.

    record = measure(subject, "street.jpg", "what is on the left ?")
    record["llm"]["mass"]                     # (sample, layer, head, query_type, key_type)
"""

import hashlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from probe import __version__
from probe.data.image import ImageSource
from probe.data.sample import Sample
from probe.data.token_types import FINE, Types
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import LayerStack, is_compiled
from probe.hooks.model_structure import stacks as find_stacks
from probe.measures.attention.record_node import node, root
from probe.measures.attention.sinks import HANDLED, key_sinks, left_out, norms_watched, set_apart
from probe.measures.attention.stack_queries import (
    NOTHING_MORE,
    MeasureOptions,
    countings,
    predicting,
)
from probe.records import assemble, merge
from probe.subject.inputs import Ids, Inputs, collate, with_response
from probe.subject.subject import Subject

MAPS_LIMIT = 2**30  # bytes
Response = str | Ids | xr.DataTree | Sequence[str | Ids | None] | None


def measure(
    subject: Subject,
    samples: Sample | Sequence[Sample] | ImageSource | Sequence[ImageSource] | None,
    question: str | Sequence[Mapping[str, Any]] | None = None,
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
    progress: bool | None = None,
    **generate: Any,
) -> xr.DataTree:
    """The record of one image and question, or of many samples. Logits are bit-identical with and
    without it.

    Args:
        samples: an image (or several, or None) that goes with `question`; or samples that bring their own.
        response: what the model is taken to have said: words, token ids, one of them a sample, or a record whose
            answers are taken over. By default the model's own answer, `generate`d greedily.
        types: "paper" (instruction, vision, response), "fine", or masks of your own (`TokenTypes.as_types`).
        turns: whether earlier answers of a conversation are "response" too ("all"), or instruction ("last").
        rows: "text" leaves out vision tokens as queries: vision → * is then NaN, and the measure nearly free.
        sinks: attention sinks (`probe/measures/attention/sinks.py`) are counted as what they are ("keep"), as a type "sink" of their own
            ("split"), or left out ("drop"): what is given to them is then missing from sums, not spread over the rest.
            Other than "keep" costs another forward. Sinks among vision keys are marked in any case.
        stacks: of "vision" (the encoder), "compressor" and "prefusion" (LLaVA-Mini's) and "llm"; all that the model
            has by default.
        maps: also keep the attention of the tokens that predict the response to each vision key, averaged over heads
            (True) or for each of them ("heads").
        contribution: also how much of what a type says arrives in the residual stream.
        received_head: also what each vision key receives in each head.
        batch_tokens: samples are padded into one forward up to so many tokens.
        generate: options of `model.generate`, as do_sample=True.

    Raises ProbeError for what `Subject.encode` refuses, maps above 1 GiB, a model in training mode
    or compiled, and modules whose attention can't be seen.
    """
    _check(subject, rows, maps, max_new_tokens, sinks)
    samples = _as_samples(samples, question)
    chosen = _chosen(subject, stacks, any(sample.images for sample in samples))
    responses = _responses(response, samples)
    wanted = MeasureOptions(rows, maps, contribution, received_head)
    options = {"types": types, "turns": turns}
    attrs = subject.provenance() | {
        "probe_version": __version__,
        "types": types if isinstance(types, str) else "own",
        "turns": turns,
        "rows": rows,
        "intervention": active_interventions(subject.model),
        "response_from": "generate"
        if response is None
        else "record"
        if isinstance(response, xr.DataTree)
        else "user",
        "generate": ", ".join(
            f"{k}={v}" for k, v in {"max_new_tokens": max_new_tokens, **generate}.items()
        ),
    }
    attrs |= {} if sinks == "keep" else {"sinks": sinks}
    records = []
    quiet = len(samples) == 1 if progress is None else not progress
    bar = tqdm(total=len(samples), desc="measure", unit="sample", disable=quiet)
    with bar, torch.no_grad():
        encoded = _encoded(subject, samples, responses, options)
        for batch in _batches(encoded, batch_tokens):
            answered = [inputs for _, inputs in batch]
            if response is None and max_new_tokens:
                answered = _answered(subject, answered, max_new_tokens, generate)
            if sinks != "keep":
                answered = [set_apart(subject, inputs) for inputs in answered]
            if maps:
                _check_maps(chosen, answered, maps, len(samples))
            nodes = _forward(
                subject, collate(answered, side="right"), chosen, wanted, sinks == "drop"
            )
            for (sample, _), inputs, of_sample in zip(batch, answered, nodes, strict=True):
                about = root(sample, inputs)
                attrs["prompt_sha256"] = hashlib.sha256(about["prompt"][0].encode()).hexdigest()[
                    :16
                ]
                records.append(assemble(about, of_sample, attrs))
            bar.update(len(batch))
    return merge(records)


def _check(subject: Subject, rows: str, maps: bool | str, max_new_tokens: int, sinks: str) -> None:
    if any(module.training for module in subject.model.modules()):
        raise ProbeError(
            "measure", expected="a model in eval mode", got="training mode", fix="call model.eval()"
        )
    if is_compiled(subject.model):
        raise ProbeError(
            "measure",
            expected="a model that is not compiled",
            got="one after torch.compile",
            fix="measure the model as it was before",
        )
    if rows not in ("all", "text"):
        raise ProbeError("measure", expected="rows='all' or 'text'", got=repr(rows))
    if sinks not in HANDLED:
        raise ProbeError("measure", expected=f"sinks of {', '.join(HANDLED)}", got=repr(sinks))
    if maps not in (False, True, "heads"):
        raise ProbeError("measure", expected="maps=False, True or 'heads'", got=repr(maps))
    if max_new_tokens < 0:
        raise ProbeError("measure", expected="max_new_tokens of 0 or more", got=str(max_new_tokens))


def _as_samples(samples: Any, question: Any) -> list[Sample]:
    if question is not None:
        return [
            Sample(
                "0",
                image=tuple(samples) if isinstance(samples, list) else samples,
                question=question,
            )
        ]
    samples = [samples] if isinstance(samples, Sample) else samples
    if not isinstance(samples, Iterable) or isinstance(samples, str):
        raise ProbeError(
            "measure", expected="an image and a question, or samples", got=type(samples).__name__
        )
    samples = list(samples)
    if not samples or not all(isinstance(sample, Sample) for sample in samples):
        raise ProbeError(
            "measure",
            expected="at least one Sample",
            got="none" if not samples else "images alone",
            fix="pass a question with an image",
        )
    (id, times), *_ = Counter(sample.id for sample in samples).most_common(1)
    if times > 1:
        raise ProbeError(
            "measure", expected="samples with different ids", got=f"{id!r} {times} times"
        )
    return samples


def _chosen(subject: Subject, names: Sequence[str] | None, pictures: bool) -> dict[str, LayerStack]:
    found = find_stacks(subject.model)
    names = [names] if isinstance(names, str) else names
    if unknown := set(names or ()) - set(found):
        raise ProbeError(
            "measure", expected=f"stacks of {', '.join(found)}", got=", ".join(sorted(unknown))
        )
    chosen = {
        name: stack
        for name, stack in found.items()
        if (names is None or name in names) and (pictures or name == "llm")
    }
    if not chosen:
        raise ProbeError(
            "measure",
            expected="at least one stack, and images for any but the llm",
            got=f"stacks={list(names or [])} and {'' if pictures else 'no '}images",
        )
    return chosen


def _responses(response: Response, samples: Sequence[Sample]) -> list[Any]:
    """One for each sample; from a record by the samples' ids."""
    if isinstance(response, xr.DataTree):
        root = response.to_dataset()
        if "response_ids" not in root:
            raise ProbeError("measure", expected="a record with response_ids", got="one without")
        known = dict(zip(root["sample"].values.tolist(), root["response_ids"].values, strict=True))
        if missing := [sample.id for sample in samples if sample.id not in known]:
            raise ProbeError(
                "measure", expected="a record with the same samples", got=f"none for {missing[0]!r}"
            )
        return [known[sample.id][known[sample.id] >= 0].tolist() for sample in samples]
    given: Any = response
    several = isinstance(given, list | tuple) and not all(
        isinstance(item, Integral) for item in given
    )
    if several or (len(samples) > 1 and not isinstance(given, str | None)):
        if len(given) != len(samples):
            raise ProbeError("measure", expected=f"{len(samples)} responses", got=str(len(given)))
        return list(given)
    return [given] * len(samples)


def _encoded(
    subject: Subject, samples: Sequence[Sample], responses: Sequence[Any], options: dict[str, Any]
) -> Iterator[tuple[Sample, Inputs]]:
    for sample, response in zip(samples, responses, strict=True):
        picture = sample.image if sample.images else None
        yield (
            sample,
            subject.encode(
                list(picture) if isinstance(picture, tuple) else picture,
                sample.question,
                response,
                **options,
            ),
        )


def _batches(
    rows: Iterable[tuple[Sample, Inputs]], tokens: int
) -> Iterator[list[tuple[Sample, Inputs]]]:
    """Neighbours that fit into so many tokens after padding, at least one; with images, or all
    without: among others with an image, LLaVA-Mini fuses words without one as well."""
    batch: list[tuple[Sample, Inputs]] = []
    for row in rows:
        widths = [inputs["input_ids"].shape[1] for _, inputs in (*batch, row)]
        if batch and (max(widths) * len(widths) > tokens or _kind(row[1]) != _kind(batch[-1][1])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _kind(inputs: Inputs) -> int:
    """What rows of one batch have in common: some vision tokens; or, where there are none, the
    number of images.
    """
    return -1 if inputs.types.vision.any() else len(inputs.images[0])


def _answered(
    subject: Subject, rows: list[Inputs], max_new_tokens: int, generate: dict
) -> list[Inputs]:
    """The rows with the model's own response behind each, but for those that a conversation already
    answers.
    """
    open_rows = [
        i for i, inputs in enumerate(rows) if inputs.types.role[0, -1] == FINE.index("last")
    ]
    if open_rows:
        asked = collate([rows[i] for i in open_rows], side="left")
        for i, ids in zip(
            open_rows, subject.generate_ids(asked, max_new_tokens, **generate), strict=True
        ):
            rows[i] = with_response(rows[i], ids)
    return rows


def _check_maps(
    chosen: dict[str, LayerStack], rows: list[Inputs], maps: Any, sample_count: int
) -> None:
    stack = chosen.get("llm")
    if stack is None:
        raise ProbeError("measure", expected="the llm stack for maps", got=", ".join(chosen))
    config: Any = next(iter(stack.attention.values())).config
    heads = config.num_attention_heads if maps == "heads" else 1
    cells = max(len(predicting(inputs)) * inputs.types.vision.sum() for inputs in rows)
    size = int(4 * len(stack.layers) * heads * cells) * sample_count
    if size > MAPS_LIMIT:
        raise ProbeError(
            "measure",
            expected=f"maps of at most {MAPS_LIMIT / 2**20:.0f} MB",
            got=f"{size / 2**20:.0f} MB for {sample_count} samples",
            fix="measure fewer samples, a shorter response, or maps=True instead of 'heads'",
        )


def _forward(
    subject: Subject,
    inputs: Inputs,
    chosen: dict[str, LayerStack],
    wanted: MeasureOptions = NOTHING_MORE,
    drop_sinks: bool = False,
) -> list[dict[str, dict[str, np.ndarray]]]:
    """One teacher-forced forward under the tap: {stack: {variable: array}} for each row of the
    batch.
    """
    counted = countings(subject, inputs, chosen, wanted)
    counted = {name: left_out(each) if drop_sinks else each for name, each in counted.items()}
    model = subject.model
    options = (
        {"logits_to_keep": 1}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )
    norms: dict[int, np.ndarray] = {}
    with ExitStack() as taps:
        for name, counting in counted.items():
            if len(counting.statistic.ids):
                taps.enter_context(tap(chosen[name].attention, counting.statistic))
        if "llm" in chosen:
            norms = taps.enter_context(norms_watched(chosen["llm"], inputs.types.role >= 0))
        model(**inputs, use_cache=False, **options)
    samples = range(len(inputs.prompt))
    nodes = [
        {name: node(counted[name], stack, sample) for name, stack in chosen.items()}
        for sample in samples
    ]
    for sample, found in enumerate(nodes):
        if "llm" in found and not inputs.types.vision[sample].any():
            found["llm"]["key_sink"] = np.empty((1, len(chosen["llm"].layers), 0), np.float32)
        elif "llm" in found:
            found["llm"]["key_sink"] = key_sinks(
                counted["llm"], chosen["llm"], norms, inputs, sample
            )[None]
    return nodes
