"""What a sweep costs beside running every case alone.

    python analyses/benchmarks/sweep_cost.py   # tiny model: 32 layers, 41 cases, 8 tokens; a minute
    python analyses/benchmarks/sweep_cost.py --wide  # 7B widths, 8 layers, 37 cases, prefill, bfloat16; long

Prompts have 576 vision tokens, 5 text tokens before and 40 behind them. Random weights. Times are
process times of one thread, both sides in this process, so that their ratio holds on a busy
machine. The tiny model runs every case both ways; at 7B widths a case alone is the median of a few.
The last lines are counted: floating-point operations of the LLM of LLaVA-1.5-7B (32 layers), which
is what GPUs and CPUs alike come near to.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from probe.data.sample import Sample
from probe.interventions.drop import drop_vision
from probe.interventions.sweep import Sweep
from probe.interventions.sweep.layer_sets import UNTOUCHED, Cases, from_layer, resolve, windows
from probe.interventions.sweep.visibility import MASKED, row_layers, visibility_of_cases
from probe.models.tiny.processor import CHAT_TEMPLATE, build_tokenizer
from probe.subject.inputs import Inputs
from probe.subject.loading import load
from probe.subject.subject import Subject

BEFORE, VISION, BEHIND = 5, 576, 40
QUESTION = [
    {"role": "system", "content": "image this"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "thing " * 38}]},
]
WIDTHS = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "wide": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}


def build(widths: str, layers: int, dtype: torch.dtype) -> Subject:
    """LLaVA-1.5's shape with random weights, a small encoder, and the tiny model's words."""
    tokenizer = build_tokenizer()
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    size: dict[str, Any] = WIDTHS[widths]
    text = LlamaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=layers, initializer_range=0.05, **size
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image, image_seq_length=VISION
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # never twice the memory of the wide model
    model: Any = LlavaForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0  # answers do not end early
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return load(model, processor)


def every_range(layers: int) -> dict[str, range]:
    """All sets of neighbouring layers."""
    return {f"{a + 1}-{b}": range(a, b) for b in range(1, layers + 1) for a in range(b)}


def sample(colour: str) -> Sample:
    return Sample(colour, Image.new("RGB", (336, 336), colour), QUESTION)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def case_alone(subject: Subject, inputs: Inputs, layers: frozenset[int], tokens: int) -> None:
    with drop_vision(subject.model, layers):
        subject.generate_ids(inputs, tokens)


def compare(
    widths: str,
    layers: int,
    tokens: int,
    dtype: torch.dtype,
    plan: Sequence[Cases],
    sampled: int | None = None,
) -> None:
    """Prints the time of all cases alone, of the sweep, and their ratio."""
    subject = build(widths, layers, dtype)
    sets = [frozenset(), *(chosen for cases in plan for chosen in resolve(cases, layers).values())]
    warm = sample("red")
    inputs = subject.encode(warm.image, warm.question)
    assert inputs["input_ids"].shape[1] == BEFORE + VISION + BEHIND
    sweep = Sweep(subject, sets[1:], max_new_tokens=tokens)
    sweep(warm)  # tries out whether sharing is exact, once for a model
    chosen = sets if sampled is None else sets[:: max(len(sets) // sampled, 1)][:sampled]
    each, together = [], []
    for number, layer_set in enumerate(chosen):
        each.append(
            seconds(lambda layer_set=layer_set: case_alone(subject, inputs, layer_set, tokens))
        )
        if number % max(len(chosen) // 3, 1) == 0:
            together.append(seconds(lambda number=number: sweep(sample(f"rgb({number},9,9)"))))
    naive = sum(each) if sampled is None else statistics.median(each) * len(sets)
    took = statistics.median(together)
    kind = f"{len(sets)} cases, {tokens} token{'s' if tokens > 1 else ''}, {layers} layers, {widths} widths, {dtype}"
    print(
        f"{kind}: alone {naive:.2f} s ({len(chosen)} run), sweep {took:.2f} s, ratio {naive / took:.1f}"
    )


def counted(questions: int, layers: int = 32) -> float:
    """Operations of every case alone over those of the sweep, at LLaVA-1.5-7B's widths."""
    width, inner = WIDTHS["wide"]["hidden_size"], WIDTHS["wide"]["intermediate_size"]
    linear, pair = (
        2 * (4 * width**2 + 3 * width * inner),
        4 * width,
    )  # of a token; of a query with a key
    sets = {UNTOUCHED: frozenset()} | resolve([from_layer(), windows(4)], layers)
    visibility = visibility_of_cases("mask", sets, layers)
    cases = 1 + layers + layers // 4
    prefix, total = BEFORE + VISION, BEFORE + VISION + BEHIND

    def causal(tokens: int) -> float:
        return tokens * linear + tokens**2 / 2 * pair

    def behind(visibility_to_layer: tuple) -> float:
        seen = BEFORE if visibility_to_layer[-1] == MASKED else prefix
        return BEHIND * linear + (BEHIND * seen + BEHIND**2 / 2) * pair

    rows = {seen[: layer + 1] for seen in visibility.values() for layer in range(layers)}
    assert len(rows) == row_layers(visibility.values())
    return (
        cases
        * layers
        * causal(total)
        * questions
        / (layers * causal(prefix) + questions * sum(map(behind, rows)))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wide", action="store_true", help="also at 7B widths: 8 layers, bfloat16, about 4 GB"
    )
    torch.set_num_threads(1)
    options = parser.parse_args()
    compare("tiny", layers=32, tokens=8, dtype=torch.float32, plan=[from_layer(), windows(4)])
    if options.wide:
        compare("wide", layers=8, tokens=1, dtype=torch.bfloat16, plan=[every_range], sampled=5)
    for questions in (1, 10):
        print(
            f"counted, 41 cases, 32 layers, 7B widths, prefill: {counted(questions):.1f} for {questions} questions"
        )


if __name__ == "__main__":
    main()
