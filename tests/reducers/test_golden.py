"""The authors' own numbers for VisionZip and PruMerge: which positions, merged into what, and the
tokens that come out.

Small copies are under tests/golden/reducers; where the project's shared folder is present, all
cases are run.
"""

import json

import golden_cases
import pytest
import torch
from golden_cases import COPIES
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

import probe
from probe.reducers import PruMerge, VisionZip, encode

HERE = COPIES / "reducers"
SHARED = golden_cases.SHARED / "reducers"
TOLERANCE = 1e-4  # float32


def cases(pattern):
    paths = {
        path.stem: path
        for folder in (SHARED, HERE)
        if folder.exists()
        for path in folder.glob(pattern)
    }
    return [pytest.param(path, id=name) for name, path in sorted(paths.items())]


def opened(path):
    meta, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    names = {
        name: name.removeprefix("weights.").removeprefix("vision_model.")
        for name in tensors
        if "weights." in name
    }
    return meta, tensors, {new: tensors[old] for old, new in names.items()}


def tower_of(meta, weights, attn="sdpa"):
    config = CLIPVisionConfig(**meta["config"], hidden_act=meta["activation"])
    tower = CLIPVisionModel._from_config(config, attn_implementation=attn).eval()
    missing = tower.load_state_dict(weights, strict=False)
    assert not missing.missing_keys
    return tower


def reducer_of(meta):
    if meta["family"] == "visionzip":
        return VisionZip(meta["dominant_arg"], meta["contextual_arg"])
    return PruMerge(
        "adaptive" if meta["adaptive"] else meta["reduction_ratio_used"],
        plus=meta["method"] == "PruMerge+",
    )


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("path", cases("visionzip_p*.json"))
def test_visionzip_keeps_and_merges_as_the_authors_do(path, attn):
    meta, golden, weights = opened(path)
    with torch.no_grad():
        found = encode(tower_of(meta, weights, attn), golden["pixel_values"], reducer_of(meta))
    dominant = meta["dominant_arg"]
    assert torch.equal(found.kept, golden["dominant_indices_sorted"])
    assert torch.equal(
        found.source, torch.cat([golden["dominant_indices_sorted"], golden["target_indices"]], 1)
    )
    slots = golden["assignment_of_rest"]
    into = found.merged_into.gather(1, golden["rest_indices"]) - dominant
    own = found.merged_into.gather(1, golden["target_indices"]) - dominant
    assert torch.equal(into[slots >= 0], slots[slots >= 0])
    assert torch.equal(own, torch.arange(own.shape[1]).expand_as(own))
    assert found.layer == meta["selected_layer_index"]
    torch.testing.assert_close(found.scores, golden["cls_attention_sum"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found.tokens, golden["final_tokens"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("path", cases("prumerge*.json"))
def test_prumerge_keeps_and_adds_as_the_authors_do(path):
    meta, golden, weights = opened(path)
    with torch.no_grad():
        found = encode(tower_of(meta, weights), golden["pixel_values"], reducer_of(meta))
    assert torch.equal(
        found.source[:, :-1] - 1, golden["center_indices"]
    )  # theirs do not count the class token
    assert torch.equal(found.kept - 1, golden["center_indices"].sort().values)
    assert (found.source[:, -1] == -1).all()
    torch.testing.assert_close(found.scores, golden["cls_attention"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found.tokens, golden["final_tokens"], atol=TOLERANCE, rtol=0)


def next_model(meta, golden, weights):
    """LLaVA-NeXT around the case's encoder, projector and embeddings."""
    width = golden["embed_tokens"].shape[1]
    text = LlamaConfig(
        vocab_size=len(golden["embed_tokens"]) + 1,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    vision = CLIPVisionConfig(**meta["config"], hidden_act=meta["activation"])
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=meta["grid_pinpoints"],
        image_token_index=len(golden["embed_tokens"]),
    )
    model = LlavaNextForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(weights, strict=False)
    model.model.multi_modal_projector = projector = nn.Linear(
        *reversed(golden["projector.weight"].shape)
    )
    projector.load_state_dict({name: golden[f"projector.{name}"] for name in ("weight", "bias")})
    model.get_input_embeddings().weight.data[:-1] = golden["embed_tokens"]
    return model


@pytest.mark.parametrize("path", cases("visionzip_next*.json"))
def test_the_tiles_of_llava_next_reach_the_llm_in_the_authors_order(path):
    meta, golden, weights = opened(path)
    model, given = next_model(meta, golden, weights), []
    ids, (width, height) = golden["input_ids"][0].tolist(), meta["image_size_wh"]
    token, count = model.config.image_token_id, meta["output_tokens"]
    row = [new for id in ids for new in ([token] * count if id < 0 else [id])]
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad(), probe.reduced(model, reducer_of(meta)):
        model(
            input_ids=torch.tensor([row]),
            pixel_values=golden["pixel_values"][None],
            image_sizes=torch.tensor([[height, width]]),
        )
    torch.testing.assert_close(given[0], golden["inputs_embeds"], atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        views = encode(model.model.vision_tower, golden["pixel_values"], reducer_of(meta))
    torch.testing.assert_close(
        views.tokens, golden["final_tokens_per_view"], atol=TOLERANCE, rtol=0
    )


def test_the_golden_cases_are_there():
    assert cases("visionzip_p*.json")
    assert cases("visionzip_next*.json")
    assert cases("prumerge*.json")
