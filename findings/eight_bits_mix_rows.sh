#!/usr/bin/env bash
# With 8-bit weights (transformers' load_in_8bit, bitsandbytes' LLM.int8) the logits of one sequence of a batch depend on what the
# other sequences say: a column in which any row is above llm_int8_threshold (6.0 unless told) is computed in half precision in all rows.
# So a token that nothing attends to, or another user's prompt, still moves an answer. With a threshold of 0 it does not.
#   bash findings/eight_bits_mix_rows.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 bitsandbytes==0.50.2

cat > "$work/rows.py" <<'PY'
import sys

import bitsandbytes
import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=50))
with torch.no_grad():
    for layer in model.model.layers:
        layer.input_layernorm.weight.fill_(3.0)  # some activations are above 6, as in trained models
model.save_pretrained(sys.argv[1])
print(f"transformers {transformers.__version__}, bitsandbytes {bitsandbytes.__version__}")
changes = {}
for threshold in (6.0, 0.0):
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
    loaded = AutoModelForCausalLM.from_pretrained(
        sys.argv[1], quantization_config=config, device_map="cpu"
    ).eval()
    one, other = torch.tensor([[3, 4, 5, 6]]), torch.randint(7, 50, (8, 4))
    with torch.no_grad():
        alone = [loaded(torch.cat([one, other[i : i + 1]])).logits[0] for i in range(8)]
    changes[threshold] = max((logits - alone[0]).abs().max().item() for logits in alone)
    largest = alone[0].abs().max().item()
    print(f"threshold {threshold}: logits of one sequence change by {changes[threshold]:.2g} "
          f"(largest logit {largest:.2g}) with what the other one says")
sys.exit(not (changes[6.0] > 0 and changes[0.0] == 0))
PY
"$work/venv/bin/python" "$work/rows.py" "$work/model" 2>"$work/errors" || { tail -5 "$work/errors"; exit 1; }
echo "as found on 2026-11-30"
