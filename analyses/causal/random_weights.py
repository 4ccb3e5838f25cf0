"""Head sweeps on models that have learned nothing: how often is any head called significant?

    python analyses/causal/random_weights.py            # 200 tries: some minutes
    python analyses/causal/random_weights.py --tries 20

Each try is a LLaVA-1.5 of 2 layers x 4 heads with its own random weights, 12 images of noise, one
question each and a gold answer drawn at random. The picture's effect (that about the own image less
that about another) is tested by head, at a false discovery rate of 5 %: with no true effect, at most
5 % of tries should have any discovery. Beside it the same test of the plain effect, which also
counts what heads do to words whatever the picture is.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from probe.data.sample import Sample
from probe.measures.causal.head_sweep import head_sweep
from probe.models.tiny.processor import build_processor
from probe.models.tiny.scenes import COLOURS, SIZE
from probe.records.head_effects import head_effects
from probe.records.significance import RATE, false_discovery, paired_p
from probe.subject.loading import load
from probe.subject.subject import Subject

IMAGES, PATCH = 12, 10


def build(seed: int, layers: int = 2) -> Subject:
    """Random weights, with the tiny models' words and images."""
    processor = build_processor()
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        initializer_factor=4.0,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIZE // PATCH) ** 2,
    )
    torch.manual_seed(seed)
    return load(LlavaForConditionalGeneration(config).eval(), processor=processor)


def questions(seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(IMAGES):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((SIZE, SIZE))
        gold = COLOURS[int(rng.integers(len(COLOURS)))]
        samples.append(Sample(str(number), image, "what colour is it ?", answer=gold))
    return samples


def plain_test(table) -> bool:
    """Whether any head is significant by the plain effect."""
    untouched = table["untouched_gold_logprob"].values[:, None, None]
    effect = (untouched - table["gold_logprob"].values).astype(float)
    return bool((false_discovery(paired_p(effect, table["image"].values)) <= RATE).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tries", type=int, default=200)
    tries = parser.parse_args().tries
    torch.set_num_threads(1)
    any_of_picture, any_plain = [], []
    for seed in range(tries):
        table = head_sweep(build(seed), questions(seed), progress=False)
        any_of_picture.append(bool(head_effects(table)["significant"].any()))
        any_plain.append(plain_test(table))
    print(
        f"{tries} random models: any head significant in {sum(any_of_picture)} by the picture's "
        f"effect, in {sum(any_plain)} by the plain effect (rate {RATE:.0%})"
    )


if __name__ == "__main__":
    main()
