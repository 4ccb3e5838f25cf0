"""Reducers inside the LLM: the authors' numbers, padded rows as single ones, and all else that
works in the block.

The cases under tests/golden/reducers are small ones; where the project's shared folder is present,
all are read.
"""

import json
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache

import golden_cases
import models
import numpy as np
import pytest
import torch
from flash_double import flash
from golden_cases import COPIES
from prompts import decoded, logits, prompt, row
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import flash_attention_mask

import probe
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.hooks import prompt_lengths
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from probe.interventions import drop_vision, swap_vision
from probe.interventions.sweep import sweep_one
from probe.records import node as node_of
from probe.reducers import (
    DART,
    METHODS,
    FastV,
    LLMReducer,
    PyramidDrop,
    Reducer,
    SparseVLM,
    TokenBudget,
    VisionZip,
)
from probe.reducers.dpc_knn import clusters
from probe.subject.inputs import collate, with_response

HERE = COPIES / "reducers"
SHARED = golden_cases.SHARED / "reducers"
CASES = sorted(
    {
        file.stem
        for folder in (HERE, SHARED)
        for kind in ("fastv", "pdrop")
        for file in folder.glob(f"{kind}*.json")
    }
)
REDUCERS = [
    FastV(2, 0.5),
    PyramidDrop((1, 3), (0.7, 0.3)),
    SparseVLM((400, 300, 150), recycle=True),
    SparseVLM((400, 300, 150), recycle=False),
    DART(2, 0.5, pivot_image=1, pivot_text=1),
]
hardest = pytest.mark.parametrize("reducer", [REDUCERS[0], REDUCERS[2]], ids=["fastv", "recycling"])
each_reducer = pytest.mark.parametrize(
    "reducer", REDUCERS, ids=["fastv", "pyramiddrop", "recycling", "sparsevlm", "dart"]
)


@lru_cache
def four_layers(attn="sdpa"):
    """9 vision tokens an image, which no vector width divides."""
    model, processor = models.llava15(layers=4, side=24, attn=attn)
    return probe.load(model, processor=processor)


@pytest.fixture
def subject():
    return four_layers()


def rows(subject):
    """The rows that `prompt(subject, "left")` and "right" pad."""
    return [
        row(subject),
        row(subject, 2, "how many circles are there in both?", 1),
        row(subject, 1, "where?", 3),
    ]


def near(ours, theirs, tolerance=3e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


# The authors' numbers


def golden(case, attn):
    folder = HERE if (HERE / f"{case}.json").exists() else SHARED
    told, tensors = (
        json.loads((folder / f"{case}.json").read_text()),
        load_file(folder / f"{case}.safetensors"),
    )
    model = LlamaForCausalLM._from_config(
        LlamaConfig(**told["config"]), attn_implementation=attn
    ).eval()
    weights = {
        name.removeprefix("weights."): t
        for name, t in tensors.items()
        if name.startswith("weights.")
    }
    model.load_state_dict({name: t for name, t in weights.items() if not name.endswith("inv_freq")})
    vision = torch.zeros(1, told["seq_len"], dtype=torch.bool)
    vision[:, told["image_start"] : told["image_start"] + told["image_len"]] = True
    return model, told, tensors, vision


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_survivors_logits_and_cache_are_the_authors(case, attn):
    model, told, tensors, vision = golden(case, attn)
    if told["family"] == "fastv":
        reducer, expected = FastV(told["K"], 1 - told["R"]), [tensors["surviving_indices"]]
    else:
        reducer = PyramidDrop(tuple(told["layer_list"]), tuple(told["image_token_ratio_list"]))
        expected = [tensors[f"stage{i}.surviving_indices"] for i in range(len(told["stages"]))]
    with probe.reduced(model, reducer, vision=vision) as stages:
        out = model(inputs_embeds=tensors["inputs_embeds"], use_cache=True)
        left = [(~vision | stage.kept)[0].nonzero()[:, 0] for stage in stages]
        for ours, theirs in zip(left, expected, strict=True):
            assert torch.equal(ours, theirs)
        theirs = (
            tensors["logits"]
            if tensors["logits"].shape[1] == len(left[-1])
            else tensors["logits"][:, left[-1]]
        )
        near(out.logits[:, left[-1]], theirs, 1e-4)
        lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        before = [
            max([0, *(i for i, s in enumerate(stages, 1) if s.layer <= layer)])
            for layer in range(len(lengths))
        ]
        assert lengths == [len(left[i - 1]) if i else told["seq_len"] for i in before]
        if "decode_logits" in tensors:
            assert lengths == tensors["cache_lengths_after_prefill"].tolist()
            for step, embeddings in enumerate(tensors["decode_inputs_embeds"].unbind(1)):
                said = model(
                    inputs_embeds=embeddings[:, None], past_key_values=out.past_key_values
                ).logits
                near(said[:, 0], tensors["decode_logits"][:, step], 1e-4)


def llama(heads=4, layers=5, attn="eager"):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=attn).eval()


@torch.no_grad()
def by_hand(model, embeddings, start, count, reducer):
    """SparseVLM as the authors write it down: one row, whole maps of an eager model, lists of rows
    that are cut.
    """
    decoder, first_text = model.model, start + count
    vision, text = embeddings[0, start:first_text], embeddings[0, first_text:]
    weight = (vision @ text.T).softmax(-1).mean(0)
    rating = (weight > weight.mean()).nonzero()[:, 0]
    x, ids, left = embeddings, torch.arange(embeddings.shape[1])[None], count
    for index, layer in enumerate(decoder.layers):
        rotary = decoder.rotary_emb(x, ids)
        mask = torch.full((x.shape[1], x.shape[1]), torch.finfo(x.dtype).min).triu(1)[None, None]
        maps = layer.self_attn(
            layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask
        )[1][0]
        x = layer(x, attention_mask=mask, position_embeddings=rotary, position_ids=ids)
        if index not in reducer.layers:
            continue
        asking = rating + start + left
        if not reducer.recycle:
            one = torch.ones(x.shape[1], rotary[0].shape[-1])
            half = one.shape[1] // 2
            turned = (
                one * rotary[0][0] + torch.cat([-one[:, :half], one[:, :half]], 1) * rotary[1][0]
            )
            maps = maps / (turned @ turned.T / one.shape[1] ** 0.5)
            looks = maps[:, asking, start : start + left].sum((1, 2))
            maps = maps[looks.topk(min(reducer.heads, len(maps))).indices]
        score = maps[:, asking, start : start + left].mean((0, 1))
        keep = round(reducer.counts[reducer.layers.index(index)] * count / 576)
        chosen = score.topk(keep).indices.sort().values
        rest = torch.tensor([i for i in range(left) if i not in chosen.tolist()])
        parts = [torch.arange(start), start + chosen]
        merged = x[:, :0]
        if reducer.recycle:
            rest = rest[score[rest].topk(int(len(rest) * 0.3) + 1).indices]
            merged = merge(x[0, start + rest], len(rest) // 10 + 1)[None]
        before, behind = x[:, torch.cat(parts)], x[:, start + left :]
        ids = torch.cat([ids[:, torch.cat(parts)], ids[:, start + left :]], 1)
        x = torch.cat([before, merged, behind], 1)
        left = keep + merged.shape[1]
        ids = torch.arange(x.shape[1])[None] if reducer.recycle else ids
    return model.lm_head(decoder.norm(x))[0]


def merge(x, count):
    """DPC-kNN with loops."""
    distance = [[float((a - b).norm()) / x.shape[1] ** 0.5 for b in x] for a in x]
    density = [float(np.exp(-np.mean([d * d for d in sorted(row)[:count]]))) for row in distance]
    top = max(map(max, distance))
    gap = [
        min([top, *(d for j, d in enumerate(row) if density[j] > density[i])])
        for i, row in enumerate(distance)
    ]
    centres = sorted(range(len(x)), key=lambda i: -gap[i] * density[i])[:count]
    nearest = [min(range(count), key=lambda c: distance[i][centres[c]]) for i in range(len(x))]
    return torch.stack(
        [x[[i for i, c in enumerate(nearest) if c == cluster]].mean(0) for cluster in range(count)]
    )


@pytest.mark.parametrize("recycle", [True, False])
@pytest.mark.parametrize("heads", [2, 14])
@torch.no_grad()
def test_sparsevlm_is_what_its_authors_write_down(recycle, heads):
    model = llama()
    embeddings = torch.randn(1, 110, 32) * 0.7
    reducer = SparseVLM((300, 120, 40), recycle=recycle, seed=None, layers=(0, 1, 3), heads=heads)
    vision = torch.zeros(1, 110, dtype=torch.bool)
    vision[:, 4:94] = True
    with probe.reduced(model, reducer, vision=vision) as stages:
        out = model(inputs_embeds=embeddings, use_cache=True)
    theirs = by_hand(model, embeddings, 4, 90, reducer)
    assert [int(stage.kept.sum()) for stage in stages] == [47, 19, 6]
    assert len(theirs) == out.past_key_values.layers[-1].keys.shape[2]
    near(out.logits[0, -16:], theirs[-16:], 1e-4)
    near(out.logits[0, :4], theirs[:4], 1e-4)
    if not recycle:  # merged tokens that are kept again run behind the others
        near(out.logits[0, stages[-1].kept[0]], theirs[4:10], 1e-4)


def test_clusters_are_the_same_with_loops_and_noise_is_seeded():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    near(clusters(x, 5).mean(x), merge(x, 5), 1e-5)
    even = torch.eye(20)  # all equally dense: nothing but noise tells them apart
    found = [clusters(even, 3, seed).centre.tolist() for seed in (1, 1, 2, None)]
    assert found[0] == found[1] != found[2]
    assert found[3] == [0, 1, 2]


# Rows, decoding, kernels


@each_reducer
@torch.no_grad()
def test_a_padded_row_is_a_single_row(subject, reducer):
    """Forward with padding on either side, and cached decoding, which is the teacher-forced
    forward.
    """
    with probe.reduced(subject, reducer) as stages:
        alone, survivors = [], []
        for inputs in rows(subject):
            alone.append((subject.model(**inputs).logits[0], *decoded(subject, inputs)))
            survivors.append([stage.kept[0] for stage in stages])
            answered = with_response(inputs, alone[-1][1][0])
            near(subject.model(**answered, use_cache=False).logits[0, -5:-1], alone[-1][2][:, 0])
        for side in ("left", "right"):
            inputs = prompt(subject, side)
            said = subject.model(**inputs).logits
            for i, real in enumerate(inputs["attention_mask"].bool()):
                near(said[i][real], alone[i][0])
                assert all(
                    torch.equal(s.kept[i][real], kept)
                    for s, kept in zip(stages, survivors[i], strict=True)
                )
        inputs = prompt(subject, "left")
        ids, steps = decoded(subject, inputs)
        for i, (_, own, its) in enumerate(alone):
            assert torch.equal(ids[i], own[0])
            near(steps[:, i], its[:, 0])


@torch.no_grad()
def test_beams_and_sampling(subject):
    inputs, found = prompt(subject, "left"), []
    with probe.reduced(subject, REDUCERS[2]):
        beams = decoded(subject, inputs, num_beams=3)[0]
        for i, own in enumerate(rows(subject)):
            assert torch.equal(decoded(subject, own, num_beams=3)[0][0], beams[i])
        for _ in range(2):
            torch.manual_seed(3)
            found.append(decoded(subject, inputs, do_sample=True, temperature=2.0))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


@each_reducer
@pytest.mark.parametrize("encoded", [True, False], ids=["encoded", "ids alone"])
@torch.no_grad()
def test_decoding_without_a_cache_ranks_by_the_prompt(subject, reducer, encoded, monkeypatch):
    inputs = prompt(subject, "left")
    if not encoded:  # the processor's tensors, whose prompts were never recorded
        monkeypatch.setattr(prompt_lengths, "_recorded", OrderedDict())
    with probe.reduced(subject, reducer):
        cached, steps = decoded(subject, inputs)
        again, own_steps = decoded(subject, inputs, use_cache=False)
    assert torch.equal(cached, again)
    torch.testing.assert_close(steps, own_steps, atol=1e-4, rtol=0)


@torch.no_grad()
def test_beams_without_a_cache(subject):
    inputs = prompt(subject, "left")
    with probe.reduced(subject, FastV(2, 0.5)):
        cached = decoded(subject, inputs, num_beams=3)[0]
        assert torch.equal(cached, decoded(subject, inputs, num_beams=3, use_cache=False)[0])


@each_reducer
@torch.no_grad()
def test_a_response_does_not_rank(subject, reducer):
    inputs = row(subject)
    answers = [with_response(inputs, [270 + i, 280]) for i in range(3)]
    with probe.reduced(subject, reducer) as stages:
        subject.model(**inputs)
        survivors = [stage.kept for stage in stages]
        for batch in (*answers, collate(answers, side="right")):
            subject.model(**batch, use_cache=False)
            for kept, stage in zip(survivors, stages, strict=True):
                assert (stage.kept[:, : kept.shape[1]] == kept).all()
                assert not stage.kept[:, kept.shape[1] :].any()


@pytest.mark.parametrize("reducer", REDUCERS[1:3], ids=["pyramiddrop", "recycling"])
def test_kernels_agree(reducer):
    AttentionInterface.register("flash_double", flash)
    AttentionMaskInterface.register("flash_double", flash_attention_mask)
    found = []
    for attn in ("sdpa", "eager", "flash_double"):
        model, processor = models.llava15(layers=4, side=24)
        model.set_attn_implementation({"text_config": attn})
        subject = probe.load(model, processor=processor)
        with probe.reduced(subject, reducer):
            found.append(
                [
                    logits(subject, prompt(subject, "right")),
                    decoded(subject, prompt(subject, "left"))[1],
                ]
            )
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            near(ours, theirs, 1e-4)


@torch.no_grad()
def test_any_resolution_with_newlines_and_grouped_queries():
    model, processor = models.llava_next_mistral(layers=4, sliding_window=None)
    subject = probe.load(model, processor=processor)
    inputs = subject.encode(models.picture(1, 90, 40), "what is there?")
    vision = int(inputs.types.vision.sum())
    with probe.reduced(subject, PyramidDrop((1, 2), (0.5, 0.1))) as stages:
        cache = model(**inputs, use_cache=True).past_key_values
        assert [int(stage.kept.sum()) for stage in stages] == [int(vision * 0.5), int(vision * 0.1)]
    text = inputs["input_ids"].shape[1] - vision
    assert [layer.keys.shape[2] - text for layer in cache.layers] == [
        vision,
        *(int(vision * k) for k in (0.5, 0.1, 0.1)),
    ]


# Limits that are other things


@torch.no_grad()
def test_keeping_all_changes_nothing_and_keeping_none_is_dropping_them(subject):
    inputs = prompt(subject, "left")
    plain = logits(subject, inputs)
    for reducer in (FastV(2, 1.0), PyramidDrop((2, 3), (1.0, 1.0)), SparseVLM((576, 576, 576))):
        with probe.reduced(subject, reducer):
            assert torch.equal(logits(subject, inputs), plain)
    with probe.reduced(subject, FastV(2, 0.0)):
        none = logits(subject, inputs)
    with drop_vision(subject, range(2, 4), mode="remove"):
        assert torch.equal(logits(subject, inputs), none)
    words = subject.encode(None, "what is in the picture?")
    plain = logits(subject, words)
    with probe.reduced(subject, *REDUCERS[:1]):
        assert torch.equal(logits(subject, words), plain)


@torch.no_grad()
def test_survivors_are_what_the_last_token_attends_to_most(subject):
    """Against the whole map of an eager model."""
    inputs, eager = row(subject), four_layers("eager")
    maps = eager.model(**inputs, output_attentions=True).attentions[1][0].mean(0)[-1]
    vision = inputs["input_ids"][0] == subject.model.config.image_token_id
    top = maps.masked_fill(~vision, -1).topk(4).indices.sort().values
    with probe.reduced(subject, FastV(2, 0.45)) as stages:
        subject.model(**inputs)
    assert torch.equal(stages[0].kept[0].nonzero()[:, 0], top)
    near(stages[0].scores[0][vision], maps[vision], 1e-6)
    assert stages[0].scores[0][~vision].isnan().all()


@dataclass(frozen=True)
class LargestNorm(LLMReducer):
    """A method of one's own, as in the docstring of `llm_reducer`."""

    layer: int
    keep: float

    def schedule(self, depth):
        return {self.layer: lambda tokens: round(self.keep * tokens)}

    def scores(self, layer_input, prompt):
        return layer_input.whole().float().norm(dim=-1)


@torch.no_grad()
def test_a_method_of_ones_own(subject):
    inputs = row(subject)
    hidden = subject.model(**inputs, output_hidden_states=True).hidden_states[2][0]
    vision = inputs["input_ids"][0] == subject.model.config.image_token_id
    norms = hidden.norm(dim=-1).masked_fill(~vision, -1)
    with LargestNorm(2, 0.5)(subject) as stages:
        out = subject.model(**inputs, use_cache=True)
        assert subject.provenance()["reducer"] == "LargestNorm(layer=2, keep=0.5)"
    expected = norms.topk(round(0.5 * int(vision.sum()))).indices.sort().values
    assert torch.equal(stages[0].kept[0].nonzero()[:, 0], expected)
    lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert lengths == [len(vision)] * 2 + [len(vision) - int(vision.sum()) + len(expected)] * 2
    with pytest.raises(ProbeError, match="LargestNorm: expected layers from 0 to 3, got 9"):
        LargestNorm(9, 0.5)(subject).__enter__()


def test_every_name_makes_its_method():
    budget = TokenBudget(share=0.25, patches=576, depth=32)
    made = {name: make(budget) for name, (_, make) in METHODS.items()}
    assert made["visionzip"] == VisionZip(dominant=122, contextual=22)
    assert made["fastv"] == FastV(2, 0.25)
    assert made["pyramiddrop"] == PyramidDrop((8, 16, 24), (0.5, 0.25, 0.125))
    assert made["sparsevlm-recycling"].recycle
    assert len({label for label, _ in METHODS.values()}) == len(METHODS)
    assert all(isinstance(method, Reducer) for method in made.values())


# What else works in the block


@each_reducer
def test_a_record_has_no_mass_on_what_left_and_some_on_what_stayed(subject, reducer):
    with probe.reduced(subject, reducer) as stages:
        record = probe.measure(
            subject, models.picture(0), "what is in the picture?", max_new_tokens=3, stacks=["llm"]
        )
        left = {stage.layer: stage.kept[0] for stage in stages}
    assert record.attrs["reducer"] == repr(reducer)
    node, there = node_of(record, "llm"), None
    for layer in range(4):
        there = left.get(layer, there)
        received = node["received"].sel(query_type="instruction").values[0, layer]
        if there is not None:
            is_kept = there[
                there.new_tensor(record.to_dataset()["token_type"].values[0] == "vision")[
                    : len(there)
                ]
            ].numpy()
            assert (received[is_kept] > 0).all()
            if not getattr(reducer, "recycle", False):
                assert (received[~is_kept] == 0).all()
        total = (
            (node["mass"] * node["query_count"])
            .sum("key_type")
            .sel(query_type="instruction")
            .values[0, layer]
        )
        np.testing.assert_allclose(total, total.mean(), rtol=1e-4)
    with tap(stacks(subject.model)["llm"].attention, lambda call: None):
        assert torch.equal(
            *(inside(subject, reducer, row(subject), looked) for looked in (False, True))
        )


def inside(subject, reducer, inputs, looked):
    with probe.reduced(subject, reducer), ExitStack() as stack:
        if looked:
            stack.enter_context(tap(stacks(subject.model)["llm"].attention, lambda call: None))
        return logits(subject, inputs)


@each_reducer
@torch.no_grad()
def test_dropping_in_the_block(subject, reducer):
    """To the last layer removing is masking, everywhere it is freezing: among what the reducer has
    left.
    """
    inputs = prompt(subject, "left")
    text = (inputs["input_ids"] != subject.model.config.image_token_id)[
        inputs["attention_mask"].bool()
    ]
    with probe.reduced(subject, reducer):
        reduced = logits(subject, inputs)
        remove, mask, frozen = ({"mode": "remove"}, {"mode": "mask"}, {"mode": "mask_frozen"})
        for layers, same in (((2, 3), (mask, frozen)), ((0, 1, 3), (frozen,))):
            found = []
            for mode in (remove, *same):
                with drop_vision(subject, layers, **mode):  # pyright: ignore[reportArgumentType]
                    found.append((logits(subject, inputs)[text], decoded(subject, inputs, 2)[1]))
            for other in found[1:]:
                near(other[0], found[0][0])
                near(other[1], found[0][1])
            assert not torch.allclose(found[0][0], reduced[text])
        with drop_vision(subject, 2, mode="zero"), swap_vision(subject, 3, prompt(subject, "left")):
            logits(subject, inputs)
    with drop_vision(subject, (0, 1, 3), mode="remove"), probe.reduced(subject, reducer):
        near(decoded(subject, inputs, 2)[1], found[0][1])


@pytest.mark.parametrize(("reducer", "mode"), [(REDUCERS[0], "mask"), (REDUCERS[2], "remove")])
def test_a_sweep_in_the_block_is_every_case_alone(subject, reducer, mode):
    sample = Sample("0", models.picture(0), "what is in the picture?", answer="a red circle")
    layers, options = {"1-2": [0, 1], "4": [3]}, {"mode": mode, "max_new_tokens": 2}
    with probe.reduced(subject, reducer):
        table = probe.drop_sweep(subject, sample, layers, **options, progress=mode == "mask")
        for case, chosen in {"untouched": [], **layers}.items():
            with drop_vision(subject, chosen, mode=mode):
                answer = subject.answer(sample.image, sample.question, max_new_tokens=2)
            assert str(table["answer"].sel(sample="0", case=case).values) == answer
    assert table.attrs["sharing"] == f"{reducer!r} chooses vision tokens by the question"
    assert sweep_one(subject, sample, layers, **options).attrs["sharing"] == "exact"


@torch.no_grad()
def test_behind_a_reducer_of_the_encoder(subject):
    zip_, fastv, plain = VisionZip(dominant=5, contextual=2), FastV(2, 0.5), row(subject)
    for order in ((zip_, fastv), (fastv, zip_)):
        with probe.reduced(subject, *order) as stages:
            inputs = row(subject)
            assert inputs["input_ids"].shape[1] == plain["input_ids"].shape[1] - 2
            said = subject.model(**inputs).logits
            assert int(stages[0].kept.sum()) == round(7 * 0.5)
            assert torch.equal(subject.model(**plain).logits, said), "encoded outside"
            answered = with_response(plain, [270, 280])
            near(subject.model(**answered).logits[:, : said.shape[1]], said)
            ids, steps = decoded(subject, inputs)
            near(subject.model(**with_response(inputs, ids[0])).logits[0, -5:-1], steps[:, 0])
    with probe.reduced(subject, zip_):
        embeddings = []
        hook = subject.model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: embeddings.append(kwargs["inputs_embeds"]),
            with_kwargs=True,
        )
        subject.model(**inputs)
        hook.remove()
    vision = inputs["input_ids"] == subject.model.config.image_token_id
    with probe.reduced(subject, fastv, vision=vision):
        near(
            subject.model(
                inputs_embeds=embeddings[0], attention_mask=inputs["attention_mask"]
            ).logits,
            said,
        )


# Undone


def hooks(model):
    """Of transformers there are some from its first forward on."""
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@hardest
@torch.no_grad()
def test_two_models_and_nested_blocks(reducer):
    subjects = []
    for seed in (0, 1):
        model, processor = models.llava15(layers=4, side=24, seed=seed)
        subjects.append(probe.load(model, processor=processor))
    ours, other = subjects
    inputs, before = prompt(ours, "left"), [logits(s, prompt(s, "left")) for s in subjects]
    hooked = [hooks(s.model) for s in subjects]
    with probe.reduced(ours, reducer):
        one = logits(ours, inputs)
        assert not torch.equal(one, before[0])
        assert torch.equal(logits(other, inputs), before[1])
        with probe.reduced(other, FastV(1, 0.3)):
            assert torch.equal(logits(ours, inputs), one)
            assert not torch.equal(logits(other, inputs), before[1])
        with probe.reduced(ours, FastV(3, 0.1)):
            assert not torch.equal(logits(ours, inputs), one)
            decoded(ours, inputs)
        assert torch.equal(logits(ours, inputs), one)
        assert torch.equal(logits(other, inputs), before[1])
    assert [torch.equal(logits(s, inputs), b) for s, b in zip(subjects, before, strict=True)] == [
        True,
        True,
    ]
    assert [hooks(s.model) for s in subjects] == hooked


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@hardest
@torch.no_grad()
def test_after_an_exception_the_model_is_as_it_was(reducer, error):
    model, processor = models.llava15(layers=4, side=24)
    subject = probe.load(model, processor=processor)
    inputs = prompt(subject, "left")
    plain, hooked = logits(subject, inputs), hooks(model)
    with probe.reduced(subject, reducer):
        reduced = logits(subject, inputs)
    for layer, part in ((3, "mlp"), (2, "self_attn")):
        module = getattr(stacks(model)["llm"].layers[layer], part)

        def fail(*_):
            raise error

        with probe.reduced(subject, reducer):
            hook = module.register_forward_pre_hook(fail)
            with pytest.raises(error):
                logits(subject, inputs)
            hook.remove()
            assert torch.equal(logits(subject, inputs), reduced), (
                "the next forward in the block is not touched"
            )
        with pytest.raises(error), probe.reduced(subject, reducer):
            raise error
    assert hooks(model) == hooked
    assert torch.equal(logits(subject, inputs), plain)
    configs = {id(module.config) for module in stacks(model)["llm"].attention.values()}
    assert len(configs) == 1


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FastV(0, 0.5), "FastV: expected layers from 1 on"),
        (lambda: FastV(2, 1.5), "expected a fraction of vision tokens to keep, 0 to 1, got 1.5"),
        (lambda: FastV(2, 50), "expected a fraction"),
        (lambda: PyramidDrop((2, 4), (0.5,)), "as many layers as fractions"),
        (lambda: PyramidDrop((4, 2), (0.5, 0.2)), "ascending"),
        (lambda: PyramidDrop((2, 4), (0.2, 0.5)), "fractions that do not grow"),
        (lambda: PyramidDrop((), ()), "at least one"),
        (lambda: SparseVLM(100), "tokens of 192, 128, 96, 64"),
        (lambda: SparseVLM((10, 20)), "as many numbers of tokens as layers"),
        (lambda: SparseVLM((10, 20, 600)), "0 to 576"),
        (lambda: SparseVLM(heads=0), "heads of 1 or more, got 0"),
    ],
)
def test_reducers_that_say_nothing_are_refused(make, message, unchecked):
    with pytest.raises(ProbeError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reducer", "options", "message"),
    [
        (FastV(4, 0.5), {}, "FastV: expected layers from 0 to 3, got 4"),
        (PyramidDrop((2, 8), (0.5, 0.2)), {}, "expected layers from 0 to 3, got 8"),
        (SparseVLM(layers=(0, 1, 3)), {}, "ascending layers from 0 to 2"),
        (FastV(2, 0.5), {"vision": torch.ones(3)}, "vision as a bool tensor of"),
        (FastV(2, 0.5), {"vision": torch.ones(1, 99, dtype=torch.bool)}, "a vision mask of 1 x 20"),
    ],
)
def test_models_and_masks_that_do_not_fit_are_refused(
    subject, reducer, options, message, unchecked
):
    with (
        pytest.raises(ProbeError, match=message) as error,
        probe.reduced(subject, reducer, **options),
    ):
        logits(subject, row(subject))
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_what_would_go_wrong_without_a_word_is_refused(subject):
    inputs = row(subject)
    for model, message in (
        (llama(), "a vision-language model"),
        (nn.Linear(2, 2), "a transformers model"),
    ):
        with pytest.raises(ProbeError, match=message), probe.reduced(model, FastV(2, 0.5)):
            pass
    with probe.reduced(subject, FastV(2, 0.5)):
        with pytest.raises(ProbeError, match="expected a DynamicCache"):
            decoded(subject, inputs, cache_implementation="static")
        with pytest.raises(ProbeError, match="a forward of the whole model"):
            subject.model.get_decoder()(inputs_embeds=torch.rand(1, 4, 48))
        cache = subject.model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ProbeError, match="images in the first forward"):
            subject.model(
                input_ids=inputs["input_ids"],
                pixel_values=inputs["pixel_values"],
                past_key_values=cache,
            )
    small, processor = models.llava_next_mistral(layers=3, sliding_window=8)
    windowed = probe.load(small, processor=processor)
    with (
        pytest.raises(ProbeError, match="at most 8 tokens, the sliding window"),
        probe.reduced(windowed, PyramidDrop((1,), (0.5,))),  # it numbers positions anew
    ):
        logits(windowed, row(windowed))
