#!/usr/bin/env bash
# In Mllama (Llama 3.2 Vision, transformers 5.24.0) words before the image are influenced by it, though `cross_attention_mask`,
# made by the processor's own functions, says that they see no image: their rows of the mask become all zeros, which hides nothing.
#   bash findings/words_before_the_image_read_it.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

cat > "$work/forward.py" <<'PY'
import sys

import torch
import transformers
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

IMAGE = 39
vision = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_global_layers": 1,
    "attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "max_num_tiles": 1,
    "vision_output_dim": 64,
    "intermediate_layers_indices": [0],
    "supported_aspect_ratios": [[1, 1]],
}
text = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "cross_attention_layers": [1],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
torch.manual_seed(0)
model = MllamaForConditionalGeneration(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.fill_(1.0)  # new models have them closed, trained ones open

words = [1, 5, 6, IMAGE, 7, 8]  # three words, the image, two words
spans = get_cross_attention_token_mask(words, IMAGE)
mask = convert_sparse_cross_attention_mask_to_dense([spans], [[1]], 1, len(words))
sees = [bool(row.any()) for row in mask[0]]
logits = []
for seed in (1, 2):  # two images
    pixels = torch.randn(1, 1, 1, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([words]),
            pixel_values=pixels,
            aspect_ratio_ids=torch.ones(1, 1, dtype=torch.long),
            aspect_ratio_mask=torch.ones(1, 1, 1, dtype=torch.long),
            cross_attention_mask=torch.as_tensor(mask),
        )
    logits.append(output.logits[0])
change = (logits[0] - logits[1]).abs().amax(-1)
print(f"transformers {transformers.__version__}")
print("the mask lets a word see the image:   ", sees)
print("another image changes its logits by:  ", [f"{value:.4f}" for value in change])
expected = [False, False, False, True, True, True]
sys.exit(sees != expected or not bool((change > 1e-4).all()))
PY

"$work/venv/bin/python" "$work/forward.py"
echo "as found on 2026-11-30"
