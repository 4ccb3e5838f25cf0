#!/usr/bin/env bash
# In transformers 5.24.0 what Cosmos3EdgeProcessor returns can't be given to its model: `mm_token_type_ids` is missing, of which the
# model says that the processor returns it. With return_mm_token_type_ids=True it runs.
#   bash findings/processor_without_kinds.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6 pillow==13.0.0 transformers==5.24.0
"${pip[@]}" --no-deps torchvision==0.28.0

cat > "$work/asked.py" <<'PY'
import sys

import torch

library = torch.library.Library("torchvision", "DEF")  # torchvision's own may be for another torch
for name in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",):
    library.define(name)
    library.define("q" + name)

import transformers
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    Cosmos3EdgeConfig,
    Cosmos3EdgeForConditionalGeneration,
    Cosmos3EdgeImageProcessor,
    Cosmos3EdgeProcessor,
    Cosmos3EdgeVideoProcessor,
    PreTrainedTokenizerFast,
)

words = ["<pad>", "<unk>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "what"]
table = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>", unk_token="<unk>")
tokenizer.add_special_tokens({"additional_special_tokens": words[2:6]})
size = {"shortest_edge": 1024, "longest_edge": 16384}
processor = Cosmos3EdgeProcessor(
    image_processor=Cosmos3EdgeImageProcessor(size=size, patch_size=8),
    tokenizer=tokenizer,
    video_processor=Cosmos3EdgeVideoProcessor(size=size, patch_size=8),
)
vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 20, "pad_token_id": 0, "rope_parameters": rope}
config = Cosmos3EdgeConfig(
    vision_config={**vision, "patch_size": 8, "num_patches": 64, "spatial_merge_size": 2},
    text_config={"model_type": "cosmos3_edge_text", **text},
    projector_hidden_size=64,
    image_token_id=2,
    video_token_id=3,
    vision_start_token_id=4,
    vision_end_token_id=5,
)
model = Cosmos3EdgeForConditionalGeneration(config).eval()
asked = {"text": ["<|vision_start|><|image_pad|><|vision_end|> what"], "images": [Image.new("RGB", (64, 64))]}
outcomes = []
for options in ({}, {"return_mm_token_type_ids": True}):
    try:
        model(**processor(**asked, **options, return_tensors="pt"))
        outcomes.append("runs")
    except ValueError as error:
        outcomes.append(str(error))
print(f"transformers {transformers.__version__}: as the processor returns it: {outcomes[0]}")
print(f"with return_mm_token_type_ids=True: {outcomes[1]}")
sys.exit("`mm_token_type_ids` is missing" not in outcomes[0] or outcomes[1] != "runs")
PY
"$work/venv/bin/python" "$work/asked.py"
echo "as found on 2026-12-01"
