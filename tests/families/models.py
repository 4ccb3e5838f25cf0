"""Tiny random models of vision-language families, made from config classes, each with a processor.

    model, processor = FAMILIES["internvl"]()

Every kind of obstacle has a family here: grids of any shape, markers around images, resamplers,
windows, linear layers, two-way prefixes, cross-attention to the image.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from tests.families.processors import (
    BOS,
    BREAK,
    END,
    EOS,
    IMAGE,
    PAD,
    START,
    VIDEO,
    VOCABULARY,
    Size,
    TinyProcessor,
    blocks,
    cells,
    planes,
)

Family = tuple[PreTrainedModel, Any]

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}
CLIP = {"model_type": "clip_vision_model", **VISION, "projection_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model", **VISION}
BLOCKS = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.3,
}
IMAGE_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def text(model_type: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TEXT, **more}


def build(class_name: str, model_type: str, attn: str = "sdpa", **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    model_class = getattr(transformers, class_name)
    model = model_class._from_config(config, attn_implementation=attn).eval()
    with torch.no_grad():  # gates and scales that start at 0 would hide the image
        for name, parameter in model.named_parameters():
            if not parameter.any() and "bias" not in name:
                parameter.normal_(0, 0.5)
    return model


def tokens(count: int, before: str = "", after: str = "") -> Callable[[Size], str]:
    """The same number of tokens for an image of any size."""
    return lambda size: before + "<image>" * count + after


def merged(before: str = "<start>", after: str = "<end>", row_end: str = "") -> Any:
    """A token for each merged cell of an image at its own resolution."""

    def expand(size: Size) -> str:
        rows, columns = cells(size)
        return before + ("<image>" * columns + row_end) * rows + after

    return expand


def modality(ids: torch.Tensor, name: str = "mm_token_type_ids") -> dict[str, torch.Tensor]:
    return {name: (ids == IMAGE).long()}


def square(
    class_name: str,
    model_type: str,
    count: int,
    *,
    before: str = "",
    after: str = "",
    side: int = 32,
    pixels_name: str = "pixel_values",
    more: Any = lambda ids: {},
    attn: str = "sdpa",
    **fields: Any,
) -> Family:
    """A family that stretches each image to one square view of `count` tokens."""
    fields = {"image_token_id": IMAGE, **fields}
    model = build(class_name, model_type, attn, **fields)
    pixels = planes(side, name=pixels_name)
    return model, TinyProcessor(tokens(count, before, after), pixels, more)


def patches(class_name: str, model_type: str, attn: str = "sdpa", **fields: Any) -> Family:
    """A family that reads images at their own resolution as flat patches with a grid."""
    model = build(class_name, model_type, attn, **{**IMAGE_IDS, **fields})
    return model, TinyProcessor(merged(), blocks, modality)


def idefics2(attn: str = "sdpa", resampler: int = 9) -> Family:
    model = build(
        "Idefics2ForConditionalGeneration",
        "idefics2",
        attn,
        vision_config={"model_type": "idefics2_vision", **VISION},
        perceiver_config={
            "model_type": "idefics2_perceiver",
            "hidden_size": 32,
            "resampler_n_latents": resampler,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        text_config=text("mistral", head_dim=8),
        image_token_id=IMAGE,
    )
    one = planes(32)

    def pixels(images: list) -> dict[str, torch.Tensor]:
        views = one(images)["pixel_values"]
        mask = torch.ones(1, *views.shape[0:1], 32, 32, dtype=torch.long)
        return {"pixel_values": views[None], "pixel_attention_mask": mask}

    return model, TinyProcessor(tokens(resampler, "<start>", "<start>"), pixels)


def idefics3(attn: str = "sdpa", class_name: str = "Idefics3", **fields: Any) -> Family:
    kind = class_name.lower()
    model = build(
        f"{class_name}ForConditionalGeneration",
        kind,
        attn,
        vision_config={"model_type": f"{kind}_vision", **VISION},
        text_config=text("llama"),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    one = planes(32)

    def pixels(images: list) -> dict[str, torch.Tensor]:
        views = one(images)["pixel_values"]
        mask = torch.ones(1, *views.shape[0:1], 32, 32, dtype=torch.long)
        return {"pixel_values": views[None], "pixel_attention_mask": mask}

    return model, TinyProcessor(tokens(4, "<start>", "<end>"), pixels)


def mistral3(attn: str = "sdpa") -> Family:
    model = build(
        "Mistral3ForConditionalGeneration",
        "mistral3",
        attn,
        vision_config={"model_type": "pixtral", **VISION, "image_size": 128, "head_dim": 8},
        text_config=text("mistral", head_dim=8),
        image_token_id=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        sizes = [[16 * edge for edge in cells(image.size)] for image in images]
        most = [max(edges) for edges in zip(*sizes, strict=True)]
        padded = torch.zeros(len(images), 3, *most)
        for number, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
            padded[number, :, :height, :width] = planes(height, width)([image])["pixel_values"]
        return {"pixel_values": padded, "image_sizes": torch.tensor(sizes)}

    def expand(size: Size) -> str:
        return merged("", "", "<break>")(size).removesuffix("<break>") + "<end>"

    return model, TinyProcessor(expand, pixels)


def llava_next(attn: str = "sdpa", **fields: Any) -> Family:
    from models import llava_next_vicuna  # tests/models.py: `tests` is on pytest's path

    return llava_next_vicuna(attn=attn, **fields)


def mllama(attn: str = "sdpa") -> Family:
    model = build(
        "MllamaForConditionalGeneration",
        "mllama",
        attn,
        vision_config={
            "model_type": "mllama_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
        },
        text_config=text("mllama_text_model", cross_attention_layers=[1], num_hidden_layers=3),
        image_token_index=IMAGE,
    )
    one = planes(32)

    def pixels(images: list) -> dict[str, torch.Tensor]:
        views = one(images)["pixel_values"]
        views = torch.stack([views, torch.zeros_like(views)], 1)[None]
        count = len(images)
        return {
            "pixel_values": views,
            "aspect_ratio_ids": torch.ones(1, count, dtype=torch.long),
            "aspect_ratio_mask": torch.tensor([[[1, 0]] * count]),
        }

    def more(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        places = (ids[0] == IMAGE).nonzero()[:, 0]
        mask = torch.zeros(1, ids.shape[1], max(1, len(places)), 2, dtype=torch.long)
        for number, place in enumerate(places):
            mask[0, place:, number, 0] = 1
        return {"cross_attention_mask": mask} if len(places) else {}

    return model, TinyProcessor(tokens(1), pixels, more)


def idefics(attn: str = "sdpa", resampler: bool = False, **of_llm: Any) -> Family:
    """`of_llm`: other fields."""
    model = build(
        "IdeficsForVisionText2Text",
        "idefics",
        attn,
        **{**TEXT, "num_key_value_heads": None, "additional_vocab_size": 0, **of_llm},
        alpha_initializer="ones",
        cross_layer_interval=1,
        use_resampler=resampler,
        vision_config={
            "model_type": "idefics_vision",
            "embed_dim": 32,
            "image_size": 32,
            "patch_size": 8,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        perceiver_config={
            "model_type": "idefics_perciever",
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
        },
    )
    one = planes(32)

    def more(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        places = (ids[0] == IMAGE).nonzero()[:, 0]
        mask = torch.zeros(1, ids.shape[1], max(1, len(places)), dtype=torch.long)
        for number, place in enumerate(places):
            mask[0, place:, number] = 1
        return {"image_attention_mask": mask} if len(places) else {}

    def pixels(images: list) -> dict[str, torch.Tensor]:
        return {"pixel_values": one(images)["pixel_values"][None]}

    return model, TinyProcessor(tokens(1), pixels, more)


def fuyu(attn: str = "sdpa") -> Family:
    model = build(
        "FuyuForCausalLM",
        "fuyu",
        attn,
        text_config=text("persimmon"),
        patch_size=16,
        hidden_size=TEXT["hidden_size"],  # where up to transformers 5.19 its projection reads it
        image_token_id=IMAGE,
    )
    # There it also calls its pixels `image_patches`, and ignores any other name.
    accepted = inspect.signature(model.forward).parameters
    pixels_name = "pixel_values" if "pixel_values" in accepted else "image_patches"

    def pixels(images: list) -> dict[str, torch.Tensor]:
        flat = []
        for image in images:
            rows, columns = cells(image.size)
            whole = planes(rows * 16, columns * 16)([image])["pixel_values"][0]
            split = whole.view(3, rows, 16, columns, 16).permute(1, 3, 2, 4, 0)
            flat.append(split.reshape(rows * columns, -1))
        return {pixels_name: torch.cat(flat)[None]}

    return model, TinyProcessor(merged("", "", "<break>"), pixels)


def blip(class_name: str, model_type: str, attn: str = "sdpa") -> Family:
    prefix = model_type.replace("-", "_")
    model = build(
        class_name,
        model_type,
        attn,
        vision_config={"model_type": f"{prefix}_vision_model", **VISION},
        qformer_config={
            "model_type": f"{prefix}_qformer",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "encoder_hidden_size": 32,
            "initializer_range": 0.3,
            "vocab_size": VOCABULARY,
        },
        text_config={
            "model_type": "opt",
            **{key: TEXT[key] for key in TEXT if key.endswith(("_id", "_size", "heads", "layers"))},
            "max_position_embeddings": 1024,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "init_std": 0.3,
        },
        num_query_tokens=6,
        initializer_range=0.3,
        image_token_index=IMAGE,
    )

    def more(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        if model_type == "blip-2":
            return {}
        question = torch.tensor([[9, 12, 13]])
        return {
            "qformer_input_ids": question,
            "qformer_attention_mask": torch.ones_like(question),
        }

    return model, TinyProcessor(tokens(6), planes(32), more)


def llama4(attn: str = "sdpa") -> Family:
    return square(
        "Llama4ForConditionalGeneration",
        "llama4",
        4,
        before="<start>",
        after="<end>",
        attn=attn,
        vision_config={
            "model_type": "llama4_vision_model",
            **VISION,
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
        text_config=text(
            "llama4_text",
            head_dim=8,
            intermediate_size_mlp=48,
            num_local_experts=2,
            attention_chunk_size=512,
        ),
        image_token_index=IMAGE,
    )


def gemma4(attn: str = "sdpa", **more: Any) -> Family:
    """`more`: of its LLM."""
    model = build(
        "Gemma4ForConditionalGeneration",
        "gemma4",
        attn,
        vision_config={
            "model_type": "gemma4_vision",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        text_config=text(
            "gemma4_text",
            head_dim=8,
            global_head_dim=8,
            sliding_window=512,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            vocab_size_per_layer_input=VOCABULARY,
            **{"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, **more},
        ),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=START,
        eoi_token_id=END,
        audio_token_id=BREAK,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        flat, places = [], []
        for image in images:
            rows, columns = (2 * edge for edge in cells(image.size))
            whole = planes(rows * 8, columns * 8)([image])["pixel_values"][0] / 2 + 0.5
            split = whole.view(3, rows, 8, columns, 8).permute(1, 3, 2, 4, 0)
            flat.append(split.reshape(rows * columns, -1))
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            places.append(torch.stack([column.flatten(), row.flatten()], -1))
        most = max(map(len, flat))
        values = torch.stack([torch.nn.functional.pad(f, (0, 0, 0, most - len(f))) for f in flat])
        where = torch.stack(
            [torch.nn.functional.pad(p, (0, 0, 0, most - len(p)), value=-1) for p in places]
        )
        return {"pixel_values": values, "image_position_ids": where}

    return model, TinyProcessor(merged(), pixels, modality)


def qwen35(attn: str = "sdpa") -> Family:
    return patches(
        "Qwen3_5ForConditionalGeneration",
        "qwen3_5",
        attn=attn,
        vision_config={**BLOCKS, "num_position_embeddings": 64},
        text_config=text(
            "qwen3_5_text",
            head_dim=16,
            num_hidden_layers=4,
            layer_types=["linear_attention", "full_attention"] * 2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [1, 1, 0],
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
        ),
    )


def onevision(attn: str = "sdpa") -> Family:
    model = build(
        "LlavaOnevisionForConditionalGeneration",
        "llava_onevision",
        attn,
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config=text("qwen2"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[32, 32]],
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:  # one view an image, as for several
        sizes = [[image.height, image.width] for image in images]
        return {
            "pixel_values": planes(32)(images)["pixel_values"][:, None],
            "image_sizes": torch.tensor(sizes),
            "batch_num_images": torch.tensor([len(images) + 1]),
        }

    return model, TinyProcessor(tokens(17), pixels)


def video_llama_3(attn: str = "sdpa") -> Family:
    model, _ = patches(
        "VideoLlama3ForConditionalGeneration",
        "video_llama_3",
        attn=attn,
        vision_config={"model_type": "video_llama_3_vision", **VISION},
        text_config=text("qwen2"),
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        tensors = blocks(images)
        once = tensors["pixel_values"].view(len(tensors["pixel_values"]), 3, 2, -1)[:, :, 0]
        merge = torch.full((len(images),), 2)
        return {**tensors, "pixel_values": once.flatten(1), "image_merge_sizes": merge}

    return model, TinyProcessor(merged(), pixels)


FAMILIES: dict[str, Callable[..., Family]] = {
    "llava": partial(
        square,
        "LlavaForConditionalGeneration",
        "llava",
        16,
        vision_config=CLIP,
        text_config=text("llama"),
        image_token_index=IMAGE,
    ),
    "llava_full": partial(
        square,
        "LlavaForConditionalGeneration",
        "llava",
        17,
        vision_config=CLIP,
        text_config=text("llama"),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    ),
    "llava_several_layers": partial(
        square,
        "LlavaForConditionalGeneration",
        "llava",
        16,
        vision_config=CLIP,
        text_config=text("llama"),
        image_token_index=IMAGE,
        vision_feature_layer=[-2, -1],
    ),
    "vipllava": partial(
        square,
        "VipLlavaForConditionalGeneration",
        "vipllava",
        16,
        vision_config=CLIP,
        text_config=text("llama"),
        image_token_index=IMAGE,
        vision_feature_layers=[-1, -2],
    ),
    "video_llava": partial(
        square,
        "VideoLlavaForConditionalGeneration",
        "video_llava",
        16,
        pixels_name="pixel_values_images",
        vision_config=CLIP,
        text_config=text("llama"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    ),
    "llava_next": llava_next,
    "qwen2_vl": partial(
        patches,
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
        vision_config={
            **{k: v for k, v in BLOCKS.items() if k not in ("out_hidden_size",)},
            "embed_dim": 32,
            "mlp_ratio": 2,
        },
        text_config=text("qwen2_vl_text", rope_parameters=ROPE),
    ),
    "qwen2_5_vl": partial(
        patches,
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl",
        vision_config={**BLOCKS, "window_size": 32, "fullatt_block_indexes": [1]},
        text_config=text("qwen2_5_vl_text", rope_parameters=ROPE),
    ),
    "qwen3_vl": partial(
        patches,
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        vision_config={**BLOCKS, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        text_config=text("qwen3_vl_text", head_dim=8, rope_parameters=ROPE),
    ),
    "qwen3_5": qwen35,
    "glm4v": partial(
        patches,
        "Glm4vForConditionalGeneration",
        "glm4v",
        vision_config={**BLOCKS, "image_size": 32},
        text_config=text("glm4v_text", rope_parameters={**ROPE, "partial_rotary_factor": 1.0}),
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=BREAK,
        video_end_token_id=BREAK,
    ),
    "video_llama_3": video_llama_3,
    "paligemma": partial(
        square,
        "PaliGemmaForConditionalGeneration",
        "paligemma",
        16,
        more=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
        vision_config={**SIGLIP, "projection_dim": 32, "vision_use_head": False},
        text_config=text("gemma", head_dim=8),
        image_token_index=IMAGE,
        projection_dim=32,
    ),
    "gemma3": partial(
        square,
        "Gemma3ForConditionalGeneration",
        "gemma3",
        4,
        before="<start>",
        after="<end>",
        more=partial(modality, name="token_type_ids"),
        vision_config=SIGLIP,
        text_config=text("gemma3_text", head_dim=8, sliding_window=512),
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        mm_tokens_per_image=4,
    ),
    "gemma4": gemma4,
    "idefics2": idefics2,
    "idefics3": idefics3,
    "smolvlm": partial(idefics3, class_name="SmolVLM"),
    "internvl": partial(
        square,
        "InternVLForConditionalGeneration",
        "internvl",
        4,
        before="<start>",
        after="<end>",
        vision_config={
            "model_type": "internvl_vision",
            **VISION,
            "image_size": [32, 32],
            "patch_size": [8, 8],
        },
        text_config=text("qwen2"),
        image_seq_length=4,
        downsample_ratio=0.5,
    ),
    "aya_vision": partial(
        square,
        "AyaVisionForConditionalGeneration",
        "aya_vision",
        4,
        before="<start>",
        after="<end>",
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config=text("cohere2", sliding_window=512, head_dim=8, logit_scale=1.0),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        downsample_factor=2,
    ),
    "mistral3": mistral3,
    "aria": partial(
        square,
        "AriaForConditionalGeneration",
        "aria",
        4,
        vision_config={"model_type": "idefics3_vision", **VISION},
        text_config=text("aria_text", moe_num_experts=2, moe_topk=1, moe_num_shared_experts=1),
        image_token_index=IMAGE,
        projector_patch_to_query_dict={16: 4},
    ),
    "ovis2": partial(
        square,
        "Ovis2ForConditionalGeneration",
        "ovis2",
        4,
        before="<start>",
        after="<end>",
        vision_config={
            "model_type": "ovis2_vision",
            **VISION,
            "vocab_size": 16,
            "hidden_stride": 2,
            "num_visual_indicator_tokens": 2,
        },
        text_config=text("qwen2"),
        visual_indicator_token_ids=[START, END],
        vocab_size=VOCABULARY,
        hidden_size=32,
    ),
    "deepseek_vl": partial(
        square,
        "DeepseekVLForConditionalGeneration",
        "deepseek_vl",
        16,
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config=text("llama"),
    ),
    "cohere2_vision": partial(
        square,
        "Cohere2VisionForConditionalGeneration",
        "cohere2_vision",
        4,
        before="<start>",
        after="<end>",
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config=text("cohere2", sliding_window=512, head_dim=8, logit_scale=1.0),
        alignment_intermediate_size=64,
        downsample_factor=2,
    ),
    "llama4": llama4,
    "onevision": onevision,
    "blip2": partial(blip, "Blip2ForConditionalGeneration", "blip-2"),
    "instructblip": partial(blip, "InstructBlipForConditionalGeneration", "instructblip"),
    "fuyu": fuyu,
    "mllama": mllama,
    "idefics": idefics,
}
