#!/usr/bin/env bash
# transformers 5.19.0 runs Gemma 2 on the sdpa kernel unless told otherwise, and that leaves its score cap
# (`attn_logit_softcapping`) out, without a warning: logits are another model's. 5.24.0 takes the eager kernel, which caps.
#   bash findings/score_cap_left_out.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6

cat > "$work/forward.py" <<'PY'
import sys
import warnings

import torch
import transformers
from transformers import Gemma2Config, Gemma2ForCausalLM

config = Gemma2Config(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=40,
    attn_logit_softcapping=0.1,
    initializer_range=1.0,  # scores above the cap
)
ids = torch.arange(1, 9)[None]
torch.manual_seed(0)
with warnings.catch_warnings(record=True) as said, torch.no_grad():
    warnings.simplefilter("always")
    model = Gemma2ForCausalLM(config).eval()
    kernel = model.config._attn_implementation
    by_default = model(ids).logits
    model.set_attn_implementation("eager")
    capped = model(ids).logits
difference = (by_default - capped).abs().max().item()
print(f"transformers {transformers.__version__}: default kernel {kernel}, {difference:.2f} off in logits; {len(said)} warnings")
sys.exit((kernel, difference > 1, len(said)) != (sys.argv[1], sys.argv[2] == "off", 0))
PY

"${pip[@]}" transformers==5.19.0
"$work/venv/bin/python" "$work/forward.py" sdpa off
"${pip[@]}" transformers==5.24.0
"$work/venv/bin/python" "$work/forward.py" eager same
echo "as found on 2026-11-30"
