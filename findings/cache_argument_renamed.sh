#!/usr/bin/env bash
# transformers 5.24.0 calls the cache of a decoder layer `cache`, 5.23.0 called it `past_key_values`.
# A forward hook (with_kwargs=True) on a decoder layer that reads the old name finds nothing, and no error tells.
#   bash findings/cache_argument_renamed.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6

cat > "$work/seen.py" <<'PY'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
config = LlamaConfig(**sizes, num_attention_heads=2, vocab_size=20)
model = LlamaForCausalLM(config).eval()
names = []


def hook(layer, args, kwargs):
    caches = [name for name, value in kwargs.items() if isinstance(value, transformers.Cache)]
    names.extend(caches)


model.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True)
model.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=2, do_sample=False, pad_token_id=0)
print(f"transformers {transformers.__version__}: a decoder layer's cache is the argument {set(names)}")
sys.exit(set(names) != {sys.argv[1]})
PY

"${pip[@]}" transformers==5.23.0
"$work/venv/bin/python" "$work/seen.py" past_key_values
"${pip[@]}" transformers==5.24.0
"$work/venv/bin/python" "$work/seen.py" cache
echo "as found on 2026-11-29"
