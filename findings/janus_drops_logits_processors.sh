#!/usr/bin/env bash
# JanusForConditionalGeneration.generate takes a `logits_processor`, as every `generate` does, and drops it when it writes text: the answer
# is the one without it, and no warning says so. The same rule as `prefix_allowed_tokens_fn` is followed.
#   bash findings/janus_drops_logits_processors.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0

cat > "$work/janus.py" <<'PY'
import sys

import torch
import transformers
from transformers import JanusConfig, JanusForConditionalGeneration, LogitsProcessor, LogitsProcessorList

ONLY = 7


class OnlyOne(LogitsProcessor):
    def __call__(self, input_ids, scores):
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, ONLY] = 0
        return allowed


transformers.utils.logging.set_verbosity_error()
text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 50}
vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
vision |= {"mlp_ratio": 2.0, "projection_dim": 32, "num_image_tokens": 4}
codes = {"embed_dim": 4, "num_embeddings": 8, "double_latent": False, "latent_channels": 4, "base_channels": 32}
codes |= {"channel_multiplier": [1, 1], "num_patches": 2, "projection_dim": 8, "num_hidden_layers": 1, "image_token_embed_dim": 8}
config = JanusConfig(text_config=text, vision_config=vision, vq_config=codes, image_token_id=49)
torch.manual_seed(0)
model = JanusForConditionalGeneration(config).eval()
prompt, length = torch.tensor([[1, 5, 6]]), 3
options = {"max_new_tokens": length, "do_sample": False, "pad_token_id": 0, "eos_token_id": 48}
free = model.generate(prompt, **options)[0, 3:].tolist()
processed = model.generate(prompt, logits_processor=LogitsProcessorList([OnlyOne()]), **options)[0, 3:].tolist()
allowed = model.generate(prompt, prefix_allowed_tokens_fn=lambda row, ids: [ONLY], **options)[0, 3:].tolist()
print(f"transformers {transformers.__version__}: free {free}, with a logits_processor that allows only {ONLY}: {processed}, "
      f"with prefix_allowed_tokens_fn: {allowed}")
sys.exit(not (processed == free != allowed == [ONLY] * length))
PY
"$work/venv/bin/python" "$work/janus.py" 2>"$work/errors" || { tail -5 "$work/errors"; exit 1; }
echo "as found on 2026-11-30"
