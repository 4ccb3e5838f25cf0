#!/usr/bin/env bash
# transformers 5.18.0: beam search repeats the images A, B of one prompt as A, A, B, B. With two beams the first then
# reads A twice and the second B twice, so the answer is about other images than the prompt's; nothing warns. 5.19.0
# repeats them as A, B, A, B.
#   bash findings/beams_read_the_wrong_image.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6

cat > "$work/beams.py" <<'PY'
import sys

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE = 39
FIRST, SECOND = slice(1, 5), slice(6, 10)  # where the tokens of the two images stand
small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
vision = CLIPVisionConfig(**small, num_hidden_layers=2, image_size=16, patch_size=8)
text = LlamaConfig(**small, num_hidden_layers=2, vocab_size=40)
config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=4)
torch.manual_seed(0)
model = LlavaForConditionalGeneration(config).eval()
prompts = []


def keep_prompt(llm, args, kwargs):
    if kwargs["inputs_embeds"].shape[1] > 1:
        prompts.append(kwargs["inputs_embeds"].detach())


model.model.language_model.register_forward_pre_hook(keep_prompt, with_kwargs=True)
ids = torch.tensor([[1, *[IMAGE] * 4, 5, *[IMAGE] * 4, 6]])
asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 16, 16)}
options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
model.generate(**asked, **options)
greedy = prompts[-1][0]
model.generate(**asked, **options, num_beams=2)
read = []
for beam in prompts[-1]:
    read.append("".join(
        next(name for name, place in (("A", FIRST), ("B", SECOND)) if torch.allclose(greedy[place], beam[at], atol=1e-5))
        for at in (FIRST, SECOND)
    ))
print(f"transformers {transformers.__version__}: a prompt with the images A, B; its two beams read {read}")
sys.exit(read != sys.argv[1].split(","))
PY

"${pip[@]}" transformers==5.18.0
"$work/venv/bin/python" "$work/beams.py" AA,BB
"${pip[@]}" transformers==5.19.0
"$work/venv/bin/python" "$work/beams.py" AB,AB
echo "as found on 2026-11-29"
