"""The sweep: many sets of layers times many samples, each exactly as if it ran alone, at the cost
of a few forwards.

Three things are shared: the image prefix (`subject/image_prefix.py`), by all cases and all
questions about an image; text rows before the first dropped layer, by all cases whose histories are
equal so far (`case_batch.py`); and each decoding step, which is one batch of all cases. With 576
vision and 45 text tokens, 41 cases of 32 layers cost as much as 2.3 forwards, not 41.

    table = drop_sweep(subject, samples, windows(4))
    table["correct"].mean("sample")                      # (case): Fig. 5
    table.attrs["row_layers"]                            # what was computed

`Sweep` is the same one sample at a time, for a run directory that resumes.
"""

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import xarray as xr
from tqdm.auto import tqdm

from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import require_finite
from probe.hooks.model_checks import require_subject
from probe.hooks.model_structure import stacks
from probe.hooks.own_failure import own_failures
from probe.hooks.partial_cache import windows
from probe.interventions.layer_target import Names, as_names
from probe.interventions.sweep.batched import BatchedCases
from probe.interventions.sweep.batched_prefusion import BatchedPrefusion
from probe.interventions.sweep.case_batch import untouched_logits
from probe.interventions.sweep.checks import alone_reason, check_mode, check_subject
from probe.interventions.sweep.layer_sets import (
    ANOTHER_IMAGE,
    NO_VISION,
    UNTOUCHED,
    Cases,
    by_name,
    parts_of,
    resolve,
)
from probe.interventions.sweep.result_table import Score, exact_match, tabulate
from probe.interventions.sweep.sample_prompts import Images, SamplePrompts
from probe.interventions.sweep.schedule import estimate, schedule
from probe.interventions.sweep.sequential import SequentialCases
from probe.interventions.sweep.visibility import SweepMode, row_layers, visibility_of_cases
from probe.interventions.sweep.vision_parts import VisionPart
from probe.records.provenance import provenance
from probe.subject.inputs import Inputs
from probe.subject.prefix_cache import PrefixCache
from probe.subject.prefix_check import SharingCheck, check_sharing
from probe.subject.subject import Subject


@only_this_thread()
def drop_sweep(
    subject: Subject,
    samples: Sequence[Sample] | Sample,
    cases: Cases,
    mode: SweepMode | str = "mask",
    stack: str = "llm",
    *,
    queries: Names | None = None,
    donor: Images | None = None,
    max_new_tokens: int = 32,
    score: Score = exact_match,
    progress: bool = True,
) -> xr.Dataset:
    """What each sample is answered when vision is dropped in each set of layers: dims (sample,
    case).

    Args:
        cases: sets of layers, named or not, or `windows(4)`, `from_layer()`, `until_layer()`, or
            several of these in a list; and parts of vision in some layers: `VisionPart`,
            `frame_windows(4, 16)`, `frame_parts(4)`. The untouched model, no vision in any layer
            and another image are always cases.
        mode: as in `drop_vision`, or "swap": text reads another image's vision tokens in these
            layers.
        stack: "llm", or "prefusion" of LLaVA-Mini.
        queries: as in `drop_vision`.
        donor: the other image. By default that of the next sample with another one.
        score: score(answer, sample) of a generated answer, NaN where there is no gold answer.
        progress: print the estimated cost and a progress bar to stderr.

    Variables: answer, correct, gold_logprob, kl, total_variation, first_token_changed, for swaps
    donor_answer_given; dropped (case, layer); row_layers and image_prefixes (sample), which count
    what was computed. Samples that show the same image are taken together, and returned in the
    order given. Answers are those of `Subject.answer`. Raises ProbeError for layers outside the
    stack, a model that
    is compiled, in training mode or under an intervention, a sliding window shorter than prompt and
    answer, and swaps between images with other numbers of tokens.
    """
    samples = [samples] if isinstance(samples, Sample) else list(samples)
    ids = [sample.id for sample in samples]
    if not ids or len(set(ids)) < len(ids):
        got = f"{next(i for i in ids if ids.count(i) > 1)!r} twice" if ids else "none"
        raise ProbeError("drop_sweep", expected="samples with distinct ids", got=got)
    sweep = Sweep(
        subject, cases, mode, stack, queries=queries, max_new_tokens=max_new_tokens, score=score
    )
    order, donors = schedule(samples)
    donors = donors if donor is None else dict.fromkeys(donors, donor)
    if progress:
        print(sweep.estimate(order), file=sys.stderr)
    bar = tqdm(order, "drop_sweep", unit="sample", disable=not progress)
    tables = [sweep(sample, donors[sample.id]) for sample in bar]
    table = xr.concat(
        tables, "sample", data_vars="minimal", coords="minimal", combine_attrs="override"
    )
    table.attrs |= {
        "row_layers": int(table["row_layers"].sum()),
        "image_prefixes": int(table["image_prefixes"].sum()),
    }
    _warn_of_missing(table, sweep.parts)
    return table.sel(sample=ids)


@only_this_thread()
def sweep_one(
    subject: Subject,
    sample: Sample,
    cases: Cases,
    mode: SweepMode | str = "mask",
    donor: Images | None = None,
    **options,
) -> xr.Dataset:
    """One sample of `drop_sweep` (whose `options` it takes). For many, keep a `Sweep`: it remembers
    prefixes.
    """
    return Sweep(subject, cases, mode, **options)(sample, donor)


class Sweep:
    """A sweep one sample at a time: `sweep(sample, donor)`. Arguments as in `drop_sweep`; sweeps of
    one model may share the `cache` of another one."""

    def __init__(
        self,
        subject: Subject,
        cases: Cases,
        mode: SweepMode | str = "mask",
        stack: str = "llm",
        *,
        queries: Names | None = None,
        max_new_tokens: int = 32,
        score: Score = exact_match,
        cache: PrefixCache | None = None,
    ):
        require_subject("drop_sweep", subject)
        model_stacks = stacks(subject.model)
        check_subject(subject, stack, list(model_stacks), max_new_tokens)
        self.subject = subject
        self.stack = model_stacks[stack]
        self.score = score
        self.mode = str(mode)
        self.max_new_tokens = max_new_tokens
        self.queries = None if queries is None else as_names(queries)
        layers = len(self.stack.layers)
        named = by_name(cases, layers)
        self.parts = parts_of(named, layers)
        check_mode(self.mode, subject, stack, self.queries, bool(self.parts))
        always = {
            UNTOUCHED: frozenset(),
            NO_VISION: frozenset(range(layers)),
            ANOTHER_IMAGE: frozenset(),
        }
        self.cases = always | resolve(named, layers)
        whole = {name: chosen for name, chosen in self.cases.items() if name not in self.parts}
        self.visibility = visibility_of_cases(self.mode, whole, layers)
        self.cache = PrefixCache(subject.model, model_stacks["llm"]) if cache is None else cache
        self.sequential = SequentialCases(
            subject, self.mode, self.cases, self.stack, max_new_tokens, self.queries, self.parts
        )
        self.batched = (
            BatchedCases(subject, self.mode, self.visibility, self.cache, max_new_tokens)
            if stack == "llm"
            else BatchedPrefusion(self.sequential, self.cache.images)
        )

    @torch.no_grad()
    def __call__(self, sample: Sample, donor: Images | None = None) -> xr.Dataset:
        """One sample in every case. Without a `donor` (its images) the case of another image is
        missing, as are parts of vision that the sample does not show.
        """
        if self.mode == "swap" and donor is None:
            raise ProbeError(
                "drop_sweep", expected="another image to swap with", got="none", fix="pass donor="
            )
        before = self._prefixes()
        prompts = SamplePrompts.of(self.subject, sample, donor)
        names = [name for name in self.visibility if name != ANOTHER_IMAGE or donor is not None]
        parts = [
            name for name, part in self.parts.items() if part.tokens(prompts.inputs) is not None
        ]
        with own_failures("drop_sweep", self.subject.model, prompts.inputs):
            check = self.check_sharing(prompts.inputs)
            outcome = (self.sequential if check.reason else self.batched)(prompts, names)
            if parts:  # each by itself: the vision tokens that are left change with the case
                outcome = outcome.insert(len(names), self.sequential(prompts, parts))
        names += parts
        require_finite("drop_sweep", self.subject.model, outcome.logits, prompts.inputs)
        answers = [prompts.inputs.vocabulary.words(ids) for ids in outcome.answers]
        counts = {"row_layers": outcome.row_layers, "image_prefixes": self._prefixes() - before}
        table = tabulate(
            sample,
            self.cases,
            len(self.stack.layers),
            names,
            outcome.logits,
            answers,
            prompts.gold,
            self.score,
            self.mode == "swap",
            counts,
            {name: str(part) for name, part in self.parts.items()},
        )
        return table.assign_attrs(self._provenance(check), **counts)

    @torch.no_grad()
    def estimate(self, samples: Sequence[Sample]) -> str:
        """What the samples will cost, in a line; from a forward on the first of them."""
        prompts = SamplePrompts.of(self.subject, samples[0], None)
        check = self.check_sharing(prompts.inputs)
        shared = 0
        token_bytes = 0.0
        if not check.seconds:
            check = SharingCheck(check.reason, _seconds(self.subject, prompts.inputs))
        rows = len(self.visibility) * len(self.stack.layers)
        if not check.reason:
            prompt, known = self.cache.of(prompts.inputs)
            tensors = [tensor for pair in known.prefix.keys.values() for tensor in pair]
            token_bytes = sum(tensor.nbytes for tensor in tensors) / max(prompt.shared, 1)
            if self.stack.name == "llm":
                shared = prompt.shared
                rows = row_layers(self.visibility.values())
        return estimate(
            samples,
            len(self.cases),
            len(self.stack.layers),
            rows,
            prompts.length,
            shared,
            self.max_new_tokens,
            token_bytes,
            check,
            alone=len(self.parts),
        )

    def check_sharing(self, inputs: Inputs) -> SharingCheck:
        """Whether sharing is exact."""
        model = self.subject.model
        if reason := alone_reason(model):
            return SharingCheck(reason, 0.0)
        if isinstance(self.batched, BatchedPrefusion):
            logits = partial(self.batched.untouched_logits, inputs)
            return check_sharing(model, self.stack, inputs, logits)
        prompt_length = inputs["input_ids"].shape[1]
        if narrow := self._narrow_layer(prompt_length + self.max_new_tokens):
            return SharingCheck(narrow, 0.0)
        with own_failures("drop_sweep", model, inputs):
            try:
                prompt, cached = self.cache.of(inputs)
            except ProbeError as error:
                if error.called != "drop_sweep":
                    raise
                return SharingCheck(f"it takes {error.expected}", 0.0)
            logits = partial(untouched_logits, model, self.stack, prompt, cached.prefix)
            return check_sharing(model, self.stack, inputs, logits, cached.prefix)

    def _narrow_layer(self, length: int) -> str:
        """Why not all of `length` tokens are seen by every later one in every layer; "" if they
        are.
        """
        attention = self.stack.attention_by_layer(range(len(self.stack.layers)))
        try:
            limits = windows("drop_sweep", self.subject.model, attention)
        except ProbeError as error:  # layers that keep more than keys and values
            return error.got
        for layer, window in limits.items():
            if window is not None and window < length:
                return f"the sliding window of layer {layer} is {window} tokens"
        return ""

    def _prefixes(self) -> int:
        """Images computed so far: their prefixes in the LLM, or their encodings for pre-fusion."""
        return self.cache.computed if self.stack.name == "llm" else self.cache.images.computed

    def _provenance(self, check: SharingCheck) -> dict[str, Any]:
        return provenance(
            self.subject,
            mode=self.mode,
            stack=self.stack.name,
            queries="+".join(self.queries or ()),
            max_new_tokens=self.max_new_tokens,
            sharing=check.reason or "exact",
            score=getattr(self.score, "__name__", type(self.score).__name__),
        )


def _seconds(subject: Subject, inputs: Inputs) -> float:
    """What one forward takes."""
    start = time.perf_counter()
    subject.model(**inputs, use_cache=False)  # pyright: ignore[reportCallIssue]
    return time.perf_counter() - start


def _warn_of_missing(table: xr.Dataset, parts: Mapping[str, VisionPart]) -> None:
    """Says which parts of vision no sample showed."""
    missing = [name for name in parts if bool(table["kl"].sel(case=name).isnull().all())]
    if missing:
        warnings.warn(
            f"drop_sweep: no sample shows {', '.join(map(repr, missing))}: the case is empty",
            stacklevel=3,
        )
