"""The sweep: many layer sets times many samples, each exactly as if it ran alone, for the price of a few.

Three things are computed once: the image prefix (`prefix.py`) for all cases and all questions about a picture; text
rows before the first dropped layer for all cases, which split into rows as their histories differ (`case_rows.py`);
and each step of decoding, a batch of all cases. With 576 vision and 45 text tokens, 41 cases of 32 layers cost as much
as 2.3 forwards, not 41.

    table = drop_sweep(subject, samples, windows(4))
    table["correct"].mean("sample")                      # (case): Fig. 5
    table.attrs["row_layers"]                            # what was computed

`Sweep` is the same one sample at a time, for a run directory that resumes.
"""

import hashlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from probe import __version__
from probe.errors import ProbeError
from probe.inputs import Inputs, with_response
from probe.interventions.alone import Intervention, Outcome, each_alone
from probe.interventions.case_rows import CaseRows
from probe.interventions.case_views import MASKED, SEEN, SWAPPED, ZEROED, Reading, Symbol, row_layers
from probe.interventions.cases import ANOTHER_IMAGE, NO_VISION, UNTOUCHED, Cases, resolve
from probe.interventions.prefix import Prompt
from probe.interventions.prefix_memory import KEPT, Known, PrefixMemory
from probe.interventions.shared_attention import View
from probe.interventions.sharing import Verdict, verdict
from probe.interventions.sweep_table import Score, exact_match, golden, tabulate
from probe.locate import max_positions, stacks
from probe.samples import Picture, Sample, open_picture
from probe.subject import Subject

Pictures = Picture | Sequence[Picture]


def drop_sweep(
    subject: Subject,
    samples: Sequence[Sample] | Sample,
    cases: Cases,
    how: str = "mask",
    stack: str = "llm",
    *,
    freeze: bool = False,
    restore: bool = True,
    donor: Pictures | None = None,
    max_new_tokens: int = 32,
    score: Score = exact_match,
    progress: bool = True,
) -> xr.Dataset:
    """What each sample is answered when vision is dropped in each set of layers: dims (sample, case).

    Args:
        cases: sets of layers, named or not, or `windows(4)`, `from_layer()`, `until_layer()`, or several of these in a
            list. The untouched model, no vision in any layer and another image are always cases.
        how: "mask", "remove" or "zero" as in `drop_vision` (with its `freeze` and `restore`), or "swap": text reads
            another image's vision tokens in these layers.
        donor: the other image. By default that of the next sample with another one.
        score: score(answer, sample) of a generated answer, NaN where nothing can be said.
        progress: whether to say on stderr what it will cost, and how far it is.

    Variables: answer, correct, gold_logprob, kl, total_variation, first_token_changed, for swaps donor_answer_given;
    dropped (case, layer); row_layers and image_prefixes (sample), which count what was computed.
    Samples that show the same picture are taken together, and returned in the order given.
    Raises ProbeError for layers that are not there, a model that is compiled or in training mode, a sliding window
    shorter than prompt and answer, and swaps between pictures with other numbers of tokens.
    """
    samples = [samples] if isinstance(samples, Sample) else list(samples)
    ids = [sample.id for sample in samples]
    if not ids or len(set(ids)) < len(ids):
        got = f"{next(i for i in ids if ids.count(i) > 1)!r} twice" if ids else "none"
        raise ProbeError("drop_sweep", expected="samples, each with an id of its own", got=got)
    sweep = Sweep(subject, cases, how, stack, freeze=freeze, restore=restore, max_new_tokens=max_new_tokens, score=score)
    order, donors = schedule(samples)
    donors = donors if donor is None else dict.fromkeys(donors, donor)
    if progress:
        print(sweep.estimate(order), file=sys.stderr)
    bar = tqdm(order, "drop_sweep", unit="sample", disable=not progress)
    tables = [sweep(sample, donors[sample.id]) for sample in bar]
    table = xr.concat(tables, "sample", data_vars="minimal", coords="minimal", combine_attrs="override")
    table.attrs |= {name: int(table[name].sum()) for name in ("row_layers", "image_prefixes")}
    return table.sel(sample=ids)


def sweep_one(
    subject: Subject, sample: Sample, cases: Cases, how: str = "mask", donor: Pictures | None = None, **options
) -> xr.Dataset:
    """One sample of `drop_sweep` (whose `options` it takes). For many, keep a `Sweep`: it remembers prefixes."""
    return Sweep(subject, cases, how, **options)(sample, donor)


def schedule(samples: Sequence[Sample]) -> tuple[list[Sample], dict[str, tuple[Picture, ...] | None]]:
    """Samples in an order in which every picture comes once, and the donor of each: the next one's pictures.

    A donor has as many pictures as the sample; None where there is no other.
    """
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(map(_identity, sample.images)), []).append(sample)
    donors: dict[str, tuple[Picture, ...] | None] = {}
    for key, group in groups.items():
        ring = [other for other in groups if len(other) == len(key)]
        following = ring[(ring.index(key) + 1) % len(ring)]
        donors |= dict.fromkeys((s.id for s in group), None if following == key else groups[following][0].images)
    return [sample for group in groups.values() for sample in group], donors


def _identity(picture: Picture) -> str:
    if hasattr(picture, "tobytes"):
        return hashlib.sha256(open_picture(picture).tobytes() + str(picture.size).encode()).hexdigest()
    return str(picture)


class Sweep:
    """A sweep one sample at a time: `sweep(sample, donor)`. Arguments as in `drop_sweep`."""

    def __init__(
        self,
        subject: Subject,
        cases: Cases,
        how: str = "mask",
        stack: str = "llm",
        *,
        freeze: bool = False,
        restore: bool = True,
        max_new_tokens: int = 32,
        score: Score = exact_match,
    ):
        found = stacks(subject.model)
        for name, expected, given in (("stack", tuple(found), stack), ("model", ("in eval mode",), _mode(subject))):
            if given not in expected:
                raise ProbeError("drop_sweep", expected=f"a {name} {' or '.join(expected)}", got=given)
        if max_new_tokens < 1:
            raise ProbeError("drop_sweep", expected="at least one new token", got=str(max_new_tokens))
        self.subject, self.model, self.stack = subject, subject.model, found[stack]
        self.reading, self.max_new_tokens, self.score = Reading(how, freeze, restore), max_new_tokens, score
        layers = len(self.stack.layers)
        self.cases = {UNTOUCHED: frozenset(), NO_VISION: frozenset(range(layers)), ANOTHER_IMAGE: frozenset()}
        self.cases |= resolve(cases, layers)
        self.readings = self.reading.of_cases(self.cases, layers)
        self.memory = PrefixMemory(self.model, self.stack)

    @torch.no_grad()
    def __call__(self, sample: Sample, donor: Pictures | None = None) -> xr.Dataset:
        """One sample in every case. Without a `donor` (its pictures) the case of another image is missing."""
        if self.reading.how == "swap" and donor is None:
            raise ProbeError("drop_sweep", expected="another image to swap with", got="none", fix="pass donor=")
        before = self.memory.computed
        inputs = self._encode(sample.image, sample.question)
        other = None if donor is None else self._encode(donor, sample.question)
        gold = self._gold(sample, inputs)
        present = [name for name in self.cases if name != ANOTHER_IMAGE or other is not None]
        judged = self._judged(inputs)
        outcome = (self._alone if judged.reason else self._together)(present, inputs, other, gold)
        tokenizer = self.subject.processor.tokenizer
        texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in outcome.answers]
        counts = {"row_layers": outcome.row_layers, "image_prefixes": self.memory.computed - before}
        table = tabulate(sample, self.cases, len(self.stack.layers), present, outcome.logits, texts, gold, self.score,
                         self.reading.how == "swap", counts)  # fmt: skip
        return table.assign_attrs(self._provenance(judged), **counts)

    def estimate(self, samples: Sequence[Sample]) -> str:
        """Rows, time and memory in one line, from a first forward and the counted rows. An upper bound: answers end."""
        inputs = self._encode(samples[0].image, samples[0].question)
        with torch.no_grad():
            judged, (prompt, known) = self._judged(inputs), self.memory.of(inputs)
        cases, layers, many = len(self.cases), len(self.stack.layers), len(samples)
        pictures = len({tuple(map(_identity, sample.images)) for sample in samples})
        length, every = len(prompt.ids), cases * layers * many
        rows = every if judged.reason else many * row_layers(self.readings.values())
        prefix = 0 if judged.reason else prompt.shared
        cost = pictures * layers * prefix + rows * (length - prefix) + every * self.max_new_tokens
        token = sum(t.nbytes for kv in known.prefix.keys.values() for t in kv) / max(prompt.shared, 1)
        memory = token * (KEPT * prompt.shared + cases * (length - prompt.shared + self.max_new_tokens))
        return (
            f"drop_sweep: {many} samples, {pictures} pictures, {cases} cases; {rows} row-layers of {every}"
            + (f" (each case alone: {judged.reason})" if judged.reason else "")
            + f"; at most {judged.seconds * cost / (length * layers):.0f} s, {memory / 2**20:.0f} MB of keys and values"
        )

    def _encode(self, image: Pictures | None, question) -> Inputs:
        return self.subject.encode(list(image) if isinstance(image, tuple) else image, question)

    def _gold(self, sample: Sample, inputs: Inputs) -> Tensor:
        """The tokens of the first gold answer, without the end of the turn."""
        answers, ids = golden(sample), inputs["input_ids"][0]
        if not answers:
            return ids[:0]
        image = list(sample.image) if isinstance(sample.image, tuple) else sample.image
        said = self.subject.encode(image, sample.question, answers[0])["input_ids"][0]
        if not torch.equal(said[: len(ids)], ids):  # the tokenizer merged its start into the prompt
            words = self.subject.processor.tokenizer(answers[0], add_special_tokens=False)["input_ids"]
            said = torch.cat([ids, torch.tensor(words, device=ids.device)])
        ends = torch.tensor(self.subject.vocabulary.end_ids, device=ids.device)
        return said[len(ids) :][~torch.isin(said[len(ids) :], ends)]

    def _judged(self, inputs: Inputs) -> Verdict:
        if self.stack.name != "llm":
            return Verdict(f"{self.stack.name} comes before the LLM", 0.0)
        prompt, known = self.memory.of(inputs)
        return verdict(self.model, self.stack, inputs, prompt, known.prefix)

    def _together(self, present: list[str], inputs: Inputs, other: Inputs | None, gold: Tensor) -> Outcome:
        """All cases through the decoder at once; another image apart, where its prompt has other tokens."""
        prompt, known = self.memory.of(inputs, gold[:-1])
        fits = other is not None and torch.equal(inputs["input_ids"], other["input_ids"])
        if self.reading.how == "swap" and not fits:
            raise ProbeError("drop_sweep", expected="a donor with vision tokens in the same places",
                             got="one with another prompt", fix="pass a donor= of the same size")  # fmt: skip
        inside = [name for name in present if fits or name != ANOTHER_IMAGE]
        views, view_of = self._views(inside, known, other)
        frozen = frozenset({1}) if self.reading.freezes else frozenset()
        outcome = self._rows(views, view_of, prompt, inputs, gold, frozen)
        if inside == present or other is None:
            return outcome
        prompt, known = self.memory.of(other, gold[:-1])
        apart = self._rows([known.prefix.seen()], torch.zeros_like(view_of[:1]), prompt, other, gold)
        place = present.index(ANOTHER_IMAGE)
        return Outcome(
            torch.cat([outcome.logits[:place], apart.logits, outcome.logits[place:]]),
            [*outcome.answers[:place], *apart.answers, *outcome.answers[place:]],
            outcome.row_layers + apart.row_layers,
        )

    def _views(self, names: list[str], known: Known, other: Inputs | None) -> tuple[list[View], Tensor]:
        """The views among these cases, and the number of that of each case in each layer."""
        prefix = known.prefix
        if not prefix.vision.any():
            return [prefix.seen()], torch.zeros(len(names), len(self.stack.layers), dtype=torch.long)
        numbers: dict[Symbol, int] = {SEEN: 0, MASKED: 1}
        for name in names:
            for symbol in self.readings[name]:
                numbers.setdefault(symbol, len(numbers))
        make = {SEEN: prefix.seen, MASKED: prefix.masked, ZEROED: prefix.zeroed,
                SWAPPED: lambda: prefix.swapped(self.memory.donor(other))}  # fmt: skip
        views = [self.memory.frozen(known, s) if isinstance(s, frozenset) else make[s]() for s in numbers]
        return views, torch.tensor([[numbers[symbol] for symbol in self.readings[name]] for name in names])

    def _rows(self, views, view_of, prompt: Prompt, inputs: Inputs, gold: Tensor, frozen=frozenset()) -> Outcome:
        length, ends = inputs["input_ids"].shape[1], self.subject.vocabulary.end_ids
        tokens = min(self.max_new_tokens, (max_positions(self.model) or sys.maxsize) - length)
        rows = CaseRows(self.model, self.stack, views, view_of, prompt, length + max(tokens, len(gold)), frozen)
        logits = rows.prefill(max(len(gold), 1))
        return Outcome(logits, rows.decode(logits[:, 0], length, tokens, ends), rows.row_layers)

    def _alone(self, present: list[str], inputs: Inputs, other: Inputs | None, gold: Tensor) -> Outcome:
        """Each case by itself, under its context manager."""
        cases = [(other if name == ANOTHER_IMAGE else inputs, self._intervention(name, other)) for name in present]
        return each_alone(self.subject, self.stack, cases, gold, self.max_new_tokens)

    def _intervention(self, name: str, other: Inputs | None) -> Intervention:
        from probe.interventions.drop import drop_vision
        from probe.interventions.swap import swap_vision

        layers, how, stack = self.cases[name], self.reading.how, self.stack.name
        if not layers:
            return nullcontext
        if name == NO_VISION:
            return lambda: drop_vision(self.model, layers, how="mask", stack=stack)
        if how == "swap":
            return lambda: swap_vision(self.model, layers, other)
        options = {"freeze": self.reading.freeze} if how == "mask" else {"restore": self.reading.restore} if how == "remove" else {}
        return lambda: drop_vision(self.model, layers, how=how, stack=stack, **options)

    def _provenance(self, judged: Verdict) -> dict[str, str | int]:
        reading = self.reading
        return self.subject.describe() | {
            "how": reading.how, "freeze": str(reading.freeze).lower(), "restore": str(reading.restore).lower(),
            "stack": self.stack.name, "max_new_tokens": self.max_new_tokens, "probe_version": __version__,
            "sharing": judged.reason or "exact", "score": getattr(self.score, "__name__", type(self.score).__name__),
        }  # fmt: skip


def _mode(subject: Subject) -> str:
    return "in training mode" if subject.model.training else "in eval mode"
