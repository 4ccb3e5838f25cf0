#!/usr/bin/env bash
# transformers 5.24.0: a function registered with AttentionInterface whose name is not registered with
# AttentionMaskInterface too is given attention_mask=None. In a left-padded batch the padded row then attends to its
# padding and its logits are wrong; nothing warns.
#   bash findings/mask_of_unregistered_attention.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

cat > "$work/masked.py" <<'PY'
import sys
import warnings

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

masks = []


def same_kernel(module, query, key, value, attention_mask, **options):
    masks.append(attention_mask)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
config = LlamaConfig(**sizes, num_attention_heads=2, vocab_size=20, initializer_range=0.5)
model = LlamaForCausalLM(config).eval()
ids = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def logits(name):
    model.set_attn_implementation(name)
    with torch.no_grad(), warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        result = model(input_ids=ids, attention_mask=real).logits
    return result[0, -1], len(noted)


expected, _ = logits("sdpa")
AttentionInterface.register("same_kernel", same_kernel)
without, warned = logits("same_kernel")
mask_seen = masks[-1]
AttentionMaskInterface.register("same_kernel", sdpa_mask)
with_mask, _ = logits("same_kernel")
wrong = (without - expected).abs().max().item()
right = (with_mask - expected).abs().max().item()
print(f"transformers {transformers.__version__}: the same kernel under an own name")
print(f"  without a mask function: mask {mask_seen}, logits off by {wrong:.3f}, {warned} warnings")
print(f"  with one: logits off by {right:.1g}")
sys.exit(not (mask_seen is None and wrong > 1e-3 and warned == 0 and right == 0))
PY

"$work/venv/bin/python" "$work/masked.py"
echo "as found on 2026-11-29"
