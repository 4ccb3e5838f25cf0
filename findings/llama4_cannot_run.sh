#!/usr/bin/env bash
# In transformers 5.24.0 every forward of Llama4ForConditionalGeneration raises AttributeError, with an image and without:
# it reads `image_outputs` of what its language model returns, which has none. 5.23.0 runs.
#   bash findings/llama4_cannot_run.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6

cat > "$work/forward.py" <<'PY'
import sys

import torch
import transformers
from transformers import Llama4Config, Llama4ForConditionalGeneration

vision = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}
text = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 2,
    "vocab_size": 20,
    "pad_token_id": 0,
}
config = Llama4Config(vision_config=vision, text_config=text, image_token_index=3)
model = Llama4ForConditionalGeneration(config).eval()
outcomes = []
for pixels, ids in ((None, [[1, 5, 6]]), (torch.rand(1, 3, 32, 32), [[1, 3, 3, 3, 3, 5]])):
    try:
        model(input_ids=torch.tensor(ids), pixel_values=pixels)
        outcomes.append("runs")
    except AttributeError as error:
        outcomes.append(str(error))
print(f"transformers {transformers.__version__}: words alone: {outcomes[0]}; an image: {outcomes[1]}")
sys.exit(any(sys.argv[1] not in outcome for outcome in outcomes))
PY

"${pip[@]}" transformers==5.23.0
"$work/venv/bin/python" "$work/forward.py" runs
"${pip[@]}" transformers==5.24.0
"$work/venv/bin/python" "$work/forward.py" "no attribute 'image_outputs'"
echo "as found on 2026-11-30"
