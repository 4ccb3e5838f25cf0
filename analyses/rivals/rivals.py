"""Four trained rivals beside LLaVA-Mini: what each costs at 7B, and where each looks when it
compresses an image.

    python analyses/rivals/rivals.py     # costs.png, costs.csv, looks.png, numbers.csv: two minutes

Costs are counted from the settings that the authors' checkpoints have (those beside the golden
cases); no weights are needed. Where they look is drawn on a toy: the rivals have RANDOM weights, so
their figures show how they are built and nothing that they have learned; `tiny-llava-mini` is
trained.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from PIL import Image
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import (
    CLIPVisionConfig,
    InstructBlipQFormerConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
)

import probe
from probe.measures.cost import cost, join
from probe.models.llava_mini import LlavaMiniConfig
from probe.models.llava_mini.chat_templates import chat_template
from probe.models.rivals import llama_vid, mqt, tokenpacker, voco
from probe.models.rivals.base import RivalForConditionalGeneration
from probe.models.rivals.llama_vid_model import LlamaVidConfig, LlamaVidForConditionalGeneration
from probe.models.rivals.llama_vid_processing import LlamaVidProcessor
from probe.models.rivals.processing import RivalProcessor, square_image_processor
from probe.models.tiny.processor import build_tokenizer
from probe.models.tiny.questions import sample_image
from probe.records import node

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "tests" / "golden" / "rivals"
TEXT = 43  # tokens, as in analyses/cost
QUESTION = "What colour is the circle?"
SIDE, PATCH, WIDTH, HEADS = 48, 8, 32, 4  # of the toys


def released(name: str, rival: Any) -> Any:
    """The native config of a released checkpoint of 7B."""
    layout = json.loads((GOLDEN / f"full_layout_{name}_7b.json").read_text())
    return rival.LAYOUT.config(layout["config"], layout["vision_config"], {})


def case(config: Any, name: str, **options: Any) -> xr.Dataset:
    return cost(config, text_tokens=TEXT, name=name, **options)


def costs() -> xr.Dataset:
    """Of one image and a short question."""
    compact = released("mqt", mqt)
    parts = {"vision_config": compact.vision_config, "text_config": compact.text_config}
    every_patch = released("llama_vid", llama_vid)
    every_patch.compress_type = None
    cases = [
        case(LlavaConfig(**parts, image_token_index=31999), "LLaVA-1.5"),
        case(LlavaMiniConfig(**parts), "LLaVA-Mini, 1 token"),
        *(case(compact, f"MQT-LLaVA, {n} tokens", vision_tokens=n) for n in (256, 36, 2)),
        case(released("tokenpacker", tokenpacker), "TokenPacker, 144 tokens"),
        case(released("voco", voco), "VoCo-LLaMA, all patches in the LLM"),
        case(released("llama_vid", llama_vid), "LLaMA-VID, 2 tokens"),
        case(every_patch, "LLaMA-VID, 257 tokens"),
    ]
    return join(cases)


def random_weights(model: RivalForConditionalGeneration, seed: int = 0) -> Any:
    """The model with every matrix drawn anew, wide enough that attention is no even spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.18, generator=generator)
    return model.eval()


def toy_parts(words: int, layers: int = 3) -> dict[str, Any]:
    """A tower and an LLM of a few numbers."""
    sizes: dict[str, Any] = {"num_attention_heads": HEADS, "intermediate_size": 48}
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, num_hidden_layers=layers, image_size=SIDE, patch_size=PATCH, **sizes
    )
    text = LlamaConfig(hidden_size=48, num_hidden_layers=4, vocab_size=words, **sizes)
    return {"vision_config": vision, "text_config": text}


def processor_options(config: Any, template: str) -> dict[str, Any]:
    return {
        "tokens_per_image": config.image_seq_length,
        "image_token_id": config.image_token_id,
        "chat_template": template,
    }


def toys() -> dict[str, probe.Subject]:
    """Each rival with random weights, and LLaVA-Mini's trained toy."""
    torch.manual_seed(0)  # of what `random_weights` leaves as it was made
    words = len(build_tokenizer())
    configs = {
        "MQT-LLaVA": mqt.MqtConfig(
            **toy_parts(words), num_visual_tokens=4, query_attention_heads=HEADS
        ),
        "TokenPacker": tokenpacker.TokenPackerConfig(**toy_parts(words, layers=24), scale_factor=3),
    }
    kinds = {
        "MQT-LLaVA": mqt.MqtForConditionalGeneration,
        "TokenPacker": tokenpacker.TokenPackerForConditionalGeneration,
    }
    found = {}
    for name, config in configs.items():
        options = processor_options(config, chat_template("v1"))
        one = RivalProcessor(square_image_processor(config), build_tokenizer(), **options)
        found[name] = probe.load(random_weights(kinds[name](config)), processor=one)
    found["VoCo-LLaMA"] = voco_toy()
    found["LLaMA-VID"] = llama_vid_toy()
    found["LLaVA-Mini (trained)"] = probe.load("tiny-llava-mini")
    return found


def voco_toy() -> probe.Subject:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([voco.VOCO], special_tokens=True)
    words = len(tokenizer)
    config = voco.VocoConfig(**toy_parts(words), voco_token_id=words - 1)
    options = processor_options(config, voco.chat_template())
    one = RivalProcessor(square_image_processor(config), tokenizer, **options)
    return probe.load(random_weights(voco.VocoForConditionalGeneration(config)), processor=one)


def llama_vid_toy() -> probe.Subject:
    questions = question_tokenizer()
    qformer = InstructBlipQFormerConfig(
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=4,
        intermediate_size=48,
        vocab_size=len(questions),
        encoder_hidden_size=WIDTH,
    )
    parts = toy_parts(len(build_tokenizer()))
    config = LlamaVidConfig(
        **parts,
        qformer_config=qformer,
        num_query=4,
        compress_type="mean",
        qformer_width=WIDTH,
        has_cls=False,
    )
    options = processor_options(config, chat_template("v1"))
    images = square_image_processor(config)
    one = LlamaVidProcessor(images, build_tokenizer(), questions, **options)
    return probe.load(random_weights(LlamaVidForConditionalGeneration(config)), processor=one)


def question_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's kind, with the words of the toy's questions."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    known = special + sorted(word for word in build_tokenizer().get_vocab() if "<" not in word)
    tokenizer = Tokenizer(WordPiece({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def looks(record: xr.DataTree) -> np.ndarray:
    """What each patch receives from the queries that compress, in the last layer that has any."""
    stack, queries = ("compressor", "compressed") if "compressor" in record else ("llm", "voco")
    received = node(record, stack)["received"].isel(sample=0).sel(query_type=queries)
    layers = received.notnull().any("key").values.nonzero()[0]
    return received.isel(layer=layers[-1]).values


def numbers(name: str, subject: probe.Subject, images: list[Image.Image]) -> dict[str, Any]:
    """What its attention says of two pictures."""
    records = [probe.measure(subject, image, QUESTION, max_new_tokens=4) for image in images]
    first, second = (looks(record) for record in records)
    other = probe.measure(subject, images[0], "How many squares are there?", max_new_tokens=4)
    llm = node(records[0], "llm").isel(sample=0)
    types = llm["key_type"].values.tolist()
    mass = llm["mass"].sel(query_type="response").mean(["layer", "head"])
    return {
        "model": name,
        "vision tokens": int(llm["key_count"].sel(key_type="vision")),
        "another image": float(np.abs(first - second).max() / first.max()),
        "another question": float(np.abs(first - looks(other)).max() / first.max()),
        "response to vision": float(mass.sel(key_type="vision")),
        "response to voco": float(mass.sel(key_type="voco")) if "voco" in types else np.nan,
        "note": records[0].attrs.get("compression", ""),
    }


def draw(found: dict[str, probe.Subject], image: Image.Image) -> None:
    """Where each looks in one picture."""
    figure, axes = plt.subplots(1, len(found), figsize=(4.4 * len(found), 3.6))
    figure.subplots_adjust(wspace=0.75)
    for axis, (name, subject) in zip(axes, found.items(), strict=True):
        record = probe.measure(subject, image, QUESTION, max_new_tokens=4)
        probe.plots.compression(record, ax=[axis])
        axis.set_title(name if "trained" in name else f"{name}\nrandom weights", fontsize=9)
    figure.savefig(HERE / "looks.png", dpi=110, bbox_inches="tight")


def main() -> None:
    counted = costs()
    axis = probe.plots.flops(counted)
    figure: Any = axis.figure
    figure.savefig(HERE / "costs.png", dpi=110, bbox_inches="tight")
    tera = counted["flops"].sum("operation") / 1e12
    table = tera.to_pandas().assign(total=tera.sum("component").values)
    table.insert(0, "vision tokens in the LLM", counted["vision_tokens"].values)
    table.round(3).to_csv(HERE / "costs.csv")
    print(table.round(3).to_string())
    images = [sample_image(seed=seed)[0] for seed in (0, 1)]
    found = toys()
    rows = pd.DataFrame([numbers(name, subject, images) for name, subject in found.items()])
    rows.round(4).to_csv(HERE / "numbers.csv", index=False)
    print(rows.round(4).to_string())
    draw(found, images[0])


if __name__ == "__main__":
    main()
