#!/usr/bin/env bash
# transformers 5.24.0: HunYuan-VL numbers the images of a prompt 0, 1, ... in one axis of its rotary positions, and goes on
# counting from one row of a batch to the next. So the same prompt, twice in a batch, gets image 0 in the first row and
# image 1 in the second, and other logits there than alone; nothing warns. A batch is not its rows.
#   bash findings/images_counted_over_the_batch.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

cat > "$work/batch.py" <<'PY'
import sys

import torch
import transformers
from transformers import AutoConfig, HunYuanVLForConditionalGeneration

IMAGE = 39
MERGED = 2 * (2 + 1) + 2  # two rows of two merged patches with a token each at their end; the image's begin and end
small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
config = AutoConfig.for_model(
    "hunyuan_vl",
    vision_config={**small, "patch_size": 8, "spatial_merge_size": 2, "max_image_size": 64},
    text_config={**small, "model_type": "hunyuan_vl_text", "head_dim": 8, "num_key_value_heads": 4, "vocab_size": 40,
                 "rope_parameters": rope},
    image_token_id=IMAGE,
)
torch.manual_seed(0)
model = HunYuanVLForConditionalGeneration(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.3)
ids = torch.tensor([[1, *[IMAGE] * MERGED, 5, 6, 7]])
row = {
    "input_ids": ids,
    "attention_mask": torch.ones_like(ids),
    "mm_token_type_ids": (ids == IMAGE).long(),
    "pixel_values": torch.randn(16, 3 * 8 * 8),
    "image_grid_thw": torch.tensor([[1, 4, 4]]),
}
with torch.no_grad():
    alone = model(**row).logits[0]
    twice = model(**{name: torch.cat([value, value]) for name, value in row.items()}).logits
differences = [float((logits - alone).abs().max()) for logits in twice]
print(f"transformers {transformers.__version__}: rows 1 and 2 of a batch of equal rows differ from the row alone by "
      f"{differences[0]:.1e} and {differences[1]:.1e} of {float(alone.abs().max()):.1f}")
sys.exit(not (differences[0] < 1e-5 and differences[1] > 1e-3))
PY

"$work/venv/bin/python" "$work/batch.py"
echo "as found on 2026-12-01"
