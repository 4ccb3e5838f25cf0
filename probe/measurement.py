"""Measure: samples in, record out.

The model answers first (or the answer is given), then one teacher-forced forward over prompt and response runs under
the tap, and every layer's statistic is taken on the way. By causality its response rows are those of decoding.

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
from PIL import Image
from tqdm.auto import tqdm

from probe import __version__
from probe.active import active
from probe.errors import ProbeError
from probe.inputs import Ids, Inputs, collate, with_response
from probe.locate import Stack, cls_tokens, is_compiled, output_projection
from probe.locate import stacks as find_stacks
from probe.record import EDGES, assemble, merge
from probe.samples import Picture, Sample
from probe.stats import Statistic
from probe.subject import Subject
from probe.tap import tap
from probe.tokens import FINE, Grid, Types

PICTURE_SIDE = 672  # pixels: what a record keeps of a picture
MAPS_LIMIT = 2**30  # bytes
ENCODER_TYPES = ("cls", "vision")
Response = str | Ids | xr.DataTree | Sequence[str | Ids | None] | None


def measure(
    subject: Subject,
    samples: Sample | Sequence[Sample] | Picture | Sequence[Picture] | None,
    question: str | Sequence[Mapping[str, Any]] | None = None,
    response: Response = None,
    *,
    types: Types = "paper",
    turns: str = "last",
    rows: str = "all",
    stacks: Sequence[str] | None = None,
    maps: bool | str = False,
    contribution: bool = False,
    received_head: bool = False,
    max_new_tokens: int = 32,
    batch_tokens: int = 4096,
    progress: bool | None = None,
    **generate: Any,
) -> xr.DataTree:
    """The record of one picture and question, or of many samples. Logits are bit-identical with and without it.

    Args:
        samples: a picture (or several, or None) that goes with `question`; or samples that bring their own.
        response: what the model is taken to have said: words, token ids, one of them a sample, or a record whose
            answers are taken over. By default the model's own answer, `generate`d greedily.
        types: "paper" (instruction, vision, response), "fine", or masks of your own (`TokenTypes.as_types`).
        turns: whether earlier answers of a conversation are "response" too ("all"), or instruction ("last").
        rows: "text" leaves out vision tokens as queries: vision → * is then NaN, and the measure nearly free.
        stacks: of "vision" (the encoder) and "llm"; all by default.
        maps: also keep the attention of the tokens that predict the response to each vision key, averaged over heads
            (True) or for each of them ("heads").
        contribution: also how much of what a type says arrives in the residual stream.
        received_head: also what each vision key receives in each head.
        batch_tokens: samples are padded into one forward up to so many tokens.
        generate: options of `model.generate`, as do_sample=True.

    Raises ProbeError for what `Subject.encode` refuses, maps above 1 GiB, a model in training mode or compiled, and
    modules whose attention can't be seen.
    """
    _check(subject, rows, maps, max_new_tokens)
    samples = _as_samples(samples, question)
    chosen = _chosen(subject, stacks, any(sample.images for sample in samples))
    responses = _responses(response, samples)
    options = {"types": types, "turns": turns}
    attrs = subject.describe() | {
        "probe_version": __version__,
        "types": types if isinstance(types, str) else "own",
        "turns": turns,
        "rows": rows,
        "intervention": active(subject.model),
        "response_from": "generate" if response is None else "record" if isinstance(response, xr.DataTree) else "user",
        "generate": ", ".join(f"{k}={v}" for k, v in {"max_new_tokens": max_new_tokens, **generate}.items()),
    }
    records = []
    quiet = len(samples) == 1 if progress is None else not progress
    bar = tqdm(total=len(samples), desc="measure", unit="sample", disable=quiet)
    with bar, torch.no_grad():
        encoded = _encoded(subject, samples, responses, options)
        for batch in _batches(encoded, batch_tokens):
            answered = [inputs for _, inputs in batch]
            if response is None and max_new_tokens:
                answered = _answered(subject, answered, max_new_tokens, generate)
            if maps:
                _check_maps(chosen, answered, maps, len(samples))
            nodes = _forward(subject, collate(answered, side="right"), chosen, rows, maps, contribution, received_head)
            for (sample, _), inputs, node in zip(batch, answered, nodes, strict=True):
                root = _root(sample, inputs)
                attrs["prompt_sha256"] = hashlib.sha256(root["prompt"][0].encode()).hexdigest()[:16]
                records.append(assemble(root, node, attrs))
            bar.update(len(batch))
    return merge(records)


def _check(subject: Subject, rows: str, maps: bool | str, max_new_tokens: int) -> None:
    if any(module.training for module in subject.model.modules()):
        raise ProbeError("measure", expected="a model in eval mode", got="training mode", fix="call model.eval()")
    if is_compiled(subject.model):
        raise ProbeError("measure", expected="a model that is not compiled", got="one after torch.compile",
                         fix="measure the model as it was before")  # fmt: skip
    if rows not in ("all", "text"):
        raise ProbeError("measure", expected="rows='all' or 'text'", got=repr(rows))
    if maps not in (False, True, "heads"):
        raise ProbeError("measure", expected="maps=False, True or 'heads'", got=repr(maps))
    if max_new_tokens < 0:
        raise ProbeError("measure", expected="max_new_tokens of 0 or more", got=str(max_new_tokens))


def _as_samples(samples: Any, question: Any) -> list[Sample]:
    if question is not None:
        return [Sample("0", image=tuple(samples) if isinstance(samples, list) else samples, question=question)]
    samples = [samples] if isinstance(samples, Sample) else samples
    if not isinstance(samples, Iterable) or isinstance(samples, str):
        raise ProbeError("measure", expected="a picture and a question, or samples", got=type(samples).__name__)
    samples = list(samples)
    if not samples or not all(isinstance(sample, Sample) for sample in samples):
        raise ProbeError("measure", expected="at least one Sample", got="none" if not samples else "pictures alone",
                         fix="pass a question with a picture")  # fmt: skip
    (id, times), *_ = Counter(sample.id for sample in samples).most_common(1)
    if times > 1:
        raise ProbeError("measure", expected="samples with different ids", got=f"{id!r} {times} times")
    return samples


def _chosen(subject: Subject, names: Sequence[str] | None, pictures: bool) -> dict[str, Stack]:
    found = find_stacks(subject.model)
    names = [names] if isinstance(names, str) else names
    if unknown := set(names or ()) - set(found):
        raise ProbeError("measure", expected=f"stacks of {', '.join(found)}", got=", ".join(sorted(unknown)))
    chosen = {name: stack for name, stack in found.items()
              if (names is None or name in names) and (pictures or name != "vision")}  # fmt: skip
    if not chosen:
        raise ProbeError("measure", expected="at least one stack, and pictures for that of the encoder",
                         got=f"stacks={list(names or [])} and {'' if pictures else 'no '}pictures")  # fmt: skip
    return chosen


def _responses(response: Response, samples: Sequence[Sample]) -> list[Any]:
    """One for each sample; from a record by the samples' ids."""
    if isinstance(response, xr.DataTree):
        root = response.to_dataset()
        if "response_ids" not in root:
            raise ProbeError("measure", expected="a record with response_ids", got="one without")
        known = dict(zip(root["sample"].values.tolist(), root["response_ids"].values, strict=True))
        if missing := [sample.id for sample in samples if sample.id not in known]:
            raise ProbeError("measure", expected="a record with the same samples", got=f"none for {missing[0]!r}")
        return [known[sample.id][known[sample.id] >= 0].tolist() for sample in samples]
    given: Any = response
    several = isinstance(given, list | tuple) and not all(isinstance(item, Integral) for item in given)
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
        yield sample, subject.encode(list(picture) if isinstance(picture, tuple) else picture, sample.question,
                                     response, **options)  # fmt: skip


def _batches(rows: Iterable[tuple[Sample, Inputs]], tokens: int) -> Iterator[list[tuple[Sample, Inputs]]]:
    """Neighbours that fit into so many tokens after padding, at least one."""
    batch: list[tuple[Sample, Inputs]] = []
    for row in rows:
        widths = [inputs["input_ids"].shape[1] for _, inputs in (*batch, row)]
        if batch and max(widths) * len(widths) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _answered(subject: Subject, rows: list[Inputs], max_new_tokens: int, generate: dict) -> list[Inputs]:
    """The rows with the model's own response behind each, but for those that a conversation already answers."""
    open_rows = [i for i, inputs in enumerate(rows) if inputs.types.role[0, -1] == FINE.index("last")]
    if open_rows:
        asked = collate([rows[i] for i in open_rows], side="left")
        for i, ids in zip(open_rows, subject.generate_ids(asked, max_new_tokens, **generate), strict=True):
            rows[i] = with_response(rows[i], ids)
    return rows


def _predicting(inputs: Inputs, row: int = 0) -> list[int]:
    """Positions of the queries whose outputs are the words of the response, from the prompt's last token on."""
    role = inputs.types.role[row]
    last = int(np.flatnonzero(role == FINE.index("last"))[-1])
    return [last, *(i for i in range(last + 1, len(role)) if role[i] >= 0 and inputs.types.is_query[row, i])]


def _check_maps(chosen: dict[str, Stack], rows: list[Inputs], maps: Any, sample_count: int) -> None:
    stack = chosen.get("llm")
    if stack is None:
        raise ProbeError("measure", expected="the llm stack for maps", got=", ".join(chosen))
    config: Any = next(iter(stack.attention.values())).config
    heads = config.num_attention_heads if maps == "heads" else 1
    cells = max(len(_predicting(inputs)) * inputs.types.vision.sum() for inputs in rows)
    size = int(4 * len(stack.layers) * heads * cells) * sample_count
    if size > MAPS_LIMIT:
        raise ProbeError("measure", expected=f"maps of at most {MAPS_LIMIT / 2**20:.0f} MB",
                         got=f"{size / 2**20:.0f} MB for {sample_count} samples",
                         fix="measure fewer samples, a shorter response, or maps=True instead of 'heads'")  # fmt: skip


def _forward(
    subject: Subject, inputs: Inputs, chosen: dict[str, Stack], rows: str, maps: Any, contribution: bool, per_head: bool
) -> list[dict[str, dict[str, np.ndarray]]]:
    """One teacher-forced forward under the tap: {stack: {variable: array}} for each row of the batch."""
    project = output_projection if contribution else None
    types, encoder = inputs.types, encoder_rows(inputs)
    statistics: dict[str, Statistic] = {}
    if "llm" in chosen:
        statistics["llm"] = Statistic(
            types.names, types.ids, types.is_query & ~types.vision if rows == "text" else types.is_query, types.vision,
            received_head=per_head, contribution=project, map_heads=maps == "heads",
            map_positions=[_predicting(inputs, row) for row in range(len(types.ids))] if maps else (),
        )  # fmt: skip
    if "vision" in chosen:
        statistics["vision"] = encoder_statistic(subject, inputs, encoder[-1], per_head, project)
    model = subject.model
    options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with ExitStack() as taps:
        for name, statistic in statistics.items():
            if len(statistic.ids):
                taps.enter_context(tap(chosen[name].attention, statistic))
        model(**inputs, use_cache=False, **options)

    nodes: list[dict[str, dict[str, np.ndarray]]] = []
    for row in range(len(types.ids)):
        node = {}
        for name, statistic in statistics.items():
            of = [row] if name == "llm" else list(range(encoder[row], encoder[row + 1]))
            grid = inputs.grid[row] if name == "llm" else inputs.encoder_grid[row]
            node[name] = _node(statistic, chosen[name], of, grid)
        if "maps" in node.get("llm", {}):
            positions = _predicting(inputs, row)
            start = int((types.role[row] >= 0).argmax())
            node["llm"]["map_position"] = np.array([positions]) - start
            node["llm"]["map_token"] = np.array([[inputs.tokens[row][i] for i in positions]], dtype=object)
        nodes.append(node)
    return nodes


def encoder_rows(inputs: Inputs) -> list[int]:
    """Where each sample's pictures and tiles begin among the rows of the encoder, and their number at the end."""
    tiles = [len({*zip(grid.picture.tolist(), grid.tile.tolist(), strict=True)}) for grid in inputs.encoder_grid]
    return [0, *np.cumsum(tiles).tolist()]


def encoder_statistic(
    subject: Subject, inputs: Inputs, row_count: int, per_head: bool = False, project: Any = None
) -> Statistic:
    """Every patch of every tile is a vision key; what the encoder puts before them is `cls`."""
    patches = sum(map(len, inputs.encoder_grid)) // max(1, row_count)
    before = cls_tokens(subject.model)
    ids = np.tile(np.repeat([0, 1], [before, patches]), (row_count, 1))
    everything = np.ones_like(ids, dtype=bool)
    return Statistic(ENCODER_TYPES, ids, everything, ids == 1, received_head=per_head, contribution=project)


def _node(statistic: Statistic, stack: Stack, rows: list[int], grid: Grid) -> dict[str, np.ndarray]:
    """One sample's variables of one stack, with a leading sample axis."""
    if rows:
        tables = [statistic.table(name, rows) for name in stack.attention]
    else:  # a sample without pictures among others that have some
        tables = [_nothing(statistic, module) for module in stack.attention.values()]
    per_sample = ("query_count", "share_count")  # the same in every layer that has all rows
    node = {name: np.stack([table[name] for table in tables])[None] for name in tables[0] if name not in per_sample}
    node |= {name: np.max([table[name] for table in tables], axis=0)[None] for name in per_sample}
    counts = [(statistic.ids[rows] == t).sum() for t in range(len(statistic.names))]
    node["key_count"] = np.array([counts])
    node["query_type"] = node["key_type"] = np.array(statistic.names, dtype=object)
    for name in ("picture", "tile", "row", "col", "box"):
        node[f"key_{name}"] = getattr(grid, name)[None]
    return node | {"edge": np.array(EDGES, dtype=object)}


def _nothing(statistic: Statistic, module: Any) -> dict[str, np.ndarray]:
    """The table of a stack that a sample does not pass through."""
    types, heads = len(statistic.names), module.config.num_attention_heads
    pair = {"": (heads, types, types), "entropy": (types, types), "query_count": (types, types),
            "entropy_count": (types, types), "share_count": (types,), "received": (types, 0),
            "received_head": (heads, types, 0)}  # fmt: skip
    names = ["mass", "share", "lift", "entropy", "head_entropy", "received", *(n for n in pair if n.endswith("_count"))]
    names += ["head_entropy_count"]
    names += [name for name in ("contribution", "received_head") if getattr(statistic, name)]
    return {
        name: np.full(pair.get(name, pair[""]), 0 if name.endswith("_count") else np.nan, np.float32) for name in names
    }


def _root(sample: Sample, inputs: Inputs) -> dict[str, Any]:
    """What belongs to the sample: texts, tokens and small pictures, with a leading sample axis."""
    types, real = inputs.types, inputs.types.role[0] >= 0
    answer = inputs["input_ids"][0].cpu().numpy()[real][types.prompt_length[0] :]
    root = {
        "sample": np.array([sample.id], dtype=object),
        "question": np.array([_words(sample.question)], dtype=object),
        "prompt": np.array([inputs.prompt[0]], dtype=object),
        "response": np.array([inputs.response[0]], dtype=object),
        "response_ids": answer[None].astype(np.int32),
        "tokens": np.array([[token for token, is_real in zip(inputs.tokens[0], real, strict=True) if is_real]], object),
        "token_type": np.array([[types.names[i] for i in types.ids[0][real]]], dtype=object),
    }
    pictures = [_small(picture) for picture in inputs.pictures[0]]
    if pictures:
        height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
        root["picture"] = np.stack(
            [np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0))) for p in pictures]
        )[None]
        root["picture_size"] = np.array([[p.shape[:2] for p in pictures]])
    return root


def _words(question: Any) -> str:
    """A question as one string; a conversation as its texts, a line a message."""
    if isinstance(question, str):
        return question
    lines = []
    for message in question:
        content = message["content"]
        text = content if isinstance(content, str) else " ".join(item.get("text", "<image>") for item in content)
        lines.append(f"{message['role']}: {text}")
    return "\n".join(lines)


def _small(picture: Image.Image) -> np.ndarray:
    picture = picture.copy()
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return np.asarray(picture, dtype=np.uint8)
