#!/usr/bin/env bash
# captum 0.9.0 on transformers 5.24.0: LLMAttribution's default, use_cached_outputs=True, feeds the whole prompt again on
# top of the cache of the step before. From the second target token on its numbers are wrong, without an error;
# use_cached_outputs=False gives what a forward by hand gives.
#   bash findings/attributions_with_a_cache.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 transformers==5.24.0 captum==0.9.0

cat > "$work/attributed.py" <<'PY'
import sys
import warnings

import captum
import torch
import transformers
from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

warnings.simplefilter("ignore")
backend = Tokenizer(WordLevel({f"w{number}": number for number in range(20)}, unk_token="w0"))
backend.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", pad_token="w0")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
config = LlamaConfig(**sizes, num_attention_heads=2, vocab_size=20, initializer_range=0.5)
model = LlamaForCausalLM(config).eval()
prompt, target = [3, 7, 9, 4], [5, 8, 2]


def logprobs(words):
    with torch.no_grad():
        logits = model(torch.tensor([words + target])).logits[0, len(words) - 1 : -1]
    return logits.log_softmax(-1)[range(len(target)), target]


ablated = [prompt[:at] + [0] + prompt[at + 1 :] for at in range(len(prompt))]
by_hand = torch.stack([logprobs(prompt) - logprobs(words) for words in ablated], dim=1)
explained = LLMAttribution(FeatureAblation(model), tokenizer)
words = TextTokenInput("w3 w7 w9 w4", tokenizer, skip_tokens=[])
off = {}
for cached in (True, False):
    result = explained.attribute(words, target="w5 w8 w2", skip_tokens=[], use_cached_outputs=cached)
    off[cached] = (result.token_attr - by_hand).abs().amax(1).tolist()
print(f"captum {captum.__version__}, transformers {transformers.__version__}: by target token, off by")
for cached, values in off.items():
    print(f"  use_cached_outputs={cached}: {[round(value, 4) for value in values]} nat")
right = max(off[False]) < 1e-3 and off[True][0] < 1e-3
sys.exit(not (right and min(off[True][1:]) > 0.1))
PY

"$work/venv/bin/python" "$work/attributed.py"
echo "as found on 2026-11-29"
