"""What head sweeps and patch sweeps cost beside running every case alone, and flow maps beside a
forward (and backward) pass.

    python analyses/benchmarks/causal_cost.py           # a few minutes
    python analyses/benchmarks/causal_cost.py --quick   # narrower: under a minute

A LLaVA-1.5 of 8 layers x 8 heads with 576 vision tokens and random weights. Heads: all 64 on 4
questions about one image, in each mode. Patches: 8 layers x 5 types of token, a pair of images. A
case alone is the user's block (`ablate_heads`, `patch`) around one forward over prompt and answer;
the time of all is the median of a few, times their number. Process times of one thread, both sides
in this process, so that the ratio holds on a busy machine. The bound is counted: the multiplications
that exact sharing cannot leave out, every head's own image prefix after its layer included.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
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

import probe
from probe.data.sample import Sample
from probe.interventions import patch
from probe.interventions.head_ablation import HEAD_MODES
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.measures.causal.head_cases import HeadCases
from probe.measures.causal.head_sweep import HeadSweep
from probe.measures.causal.patch_pairs import pair_of
from probe.measures.causal.patch_sweep import PatchSweep
from probe.measures.flow.flow import BY_GRADIENT, METHODS
from probe.models.tiny.processor import CHAT_TEMPLATE, build_tokenizer
from probe.subject.inputs import with_response
from probe.subject.loading import load
from probe.subject.subject import Subject

LAYERS, HEADS, VISION = 8, 8, 576
QUESTIONS = ("what shape is the red object ?", "where is the circle ?", "is there a ring ?")
QUESTIONS = (*QUESTIONS, "how many objects are there ?")
TIMED = ((0, 0), (2, 5), (5, 3), (7, 7))  # (layer, head) of the cases that run alone


def build(width: int) -> Subject:
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
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=LAYERS,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        initializer_range=0.05,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image, image_seq_length=VISION
    )
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config).eval()
    size = {"shortest_edge": 336}, {"height": 336, "width": 336}
    images = CLIPImageProcessorPil(size=size[0], crop_size=size[1])
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return load(model, processor=processor)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(pixels).resize((336, 336))


def heads(subject: Subject, mode: str) -> None:
    """All heads on all questions about one image."""
    samples = [
        Sample(str(number), picture(0), question, answer="a red circle")
        for number, question in enumerate(QUESTIONS)
    ]
    prompts = [SamplePrompts.of(subject, sample, None) for sample in samples]
    sweep = HeadSweep(subject, "all", mode)
    shares, reason = sweep.cases.plan(prompts[0])
    ours, (found, _) = timed(lambda: sweep.cases(prompts))
    alone, seconds = [], []
    for layer, head in TIMED:
        case = HeadCases(subject, sweep.cases.stack, {layer: [head]}, mode, sweep.cases.cache)
        both, logits = timed(lambda case=case: case._alone(prompts[0]))
        seconds.append(both / 2)  # the untouched forward, and the case
        alone.append((logits[1] - found[0][1 + layer * HEADS + head]).abs().max())
    scale = float(found[0].abs().max())
    cases = (LAYERS * HEADS + 1) * len(samples)
    theirs = statistics.median(seconds) * cases
    bound = head_bound(subject, mode, prompts[0].length, len(prompts[0].gold), shares)
    print(
        f"heads, {mode:9} {cases} cases: alone {theirs:6.1f} s, sweep {ours:5.1f} s, "
        f"{theirs / ours:5.1f} x (counted: at most {bound:.1f} x); largest difference of a logit "
        f"{float(max(alone)):.0e} of {scale:.0f}{reason and f'; each alone: {reason}'}"
    )


def head_bound(subject: Subject, mode: str, length: int, kept: int, shares: bool) -> float:
    """Multiplications of the linear maps of all cases alone, over those that remain."""
    config = subject.model.config.get_text_config()
    width, inner = config.hidden_size, config.intermediate_size
    mlp, rest = 3 * width * inner, 4 * width * width
    layer, keys = mlp + rest, 2 * width * width
    own = length - VISION if shares else length
    # in the last layer: keys and values of all rows, the rest of those whose logits are asked for
    later = [mlp + (LAYERS - 2 - number) * layer + keys for number in range(LAYERS - 1)]
    whole = kept * ((LAYERS - 1) * (layer - keys) + mlp)
    of_questions = HEADS * len(QUESTIONS) * (own * sum(later) + whole)
    has_own_images = shares and mode != "no_vision"
    of_image = VISION * HEADS * sum(later) if has_own_images else 0
    every_case = length * LAYERS * layer * LAYERS * HEADS * len(QUESTIONS)
    return every_case / (of_questions + of_image)


def patches(subject: Subject) -> None:
    """All layers and types of token on a pair of images."""
    sample = Sample("pair", picture(0), QUESTIONS[0], answer="a red circle", corrupted=picture(1))
    sweep = PatchSweep(subject)
    pair = pair_of(subject, sample, replace(sample, image=sample.corrupted), None)
    groups = sweep.groups(pair)
    sweep.cases.reason(pair)
    ours, (found, _, reason) = timed(lambda: sweep.cases(pair, groups, ["denoise"]))
    more = pair.gold[:-1]
    clean, corrupted = (with_response(each, more) for each in (pair.clean, pair.corrupted))
    mask = torch.zeros(clean["input_ids"].shape[1], dtype=torch.bool)
    seconds, differences = [], []
    model: Any = subject.model
    for layer, (number, name) in ((0, (2, "vision")), (5, (2, "vision")), (3, (4, "last"))):
        mask[:] = False
        mask[: pair.prompt_length] = torch.from_numpy(groups[name])

        def case(layer: int = layer) -> torch.Tensor:
            with patch(model, clean, layer, mask), torch.no_grad():
                return model(**corrupted, use_cache=False).logits[0, -pair.kept :]

        taken, logits = timed(case)
        seconds.append(taken)
        differences.append((logits - found[0][layer * len(groups) + number]).abs().max())
    cases = LAYERS * len(groups)
    theirs = statistics.median(seconds) * cases
    print(
        f"patches, layer x type {cases} cases: alone {theirs:6.1f} s (the source runs in each; "
        f"without it half), sweep {ours:5.1f} s, {theirs / ours:5.1f} x ({theirs / 2 / ours:.1f} x); "
        f"largest difference of a logit {float(max(differences)):.0e}"
        f"{reason and f'; each alone: {reason}'}"
    )


def flows(subject: Subject) -> None:
    """Flow maps beside a plain forward, and a backward pass to what the LLM gets where they need
    gradients. Medians of three, in turn.
    """
    inputs = subject.encode(picture(0), QUESTIONS[0], "a red circle")
    for method in METHODS:
        is_backward = method in BY_GRADIENT
        plain = partial(plain_pass, subject, inputs, is_backward)
        ours = partial(probe.flow, subject, inputs, method=method, attention=False)
        rounds = [(timed(plain)[0], timed(ours)[0]) for _ in range(4)][1:]
        forward, seconds = (statistics.median(each) for each in zip(*rounds, strict=True))
        name = "forward and backward" if is_backward else "forward"
        print(f"flow, {method:16} {seconds:.2f} s, {seconds / forward:.2f} x a {name}")


def plain_pass(subject: Subject, inputs: Mapping[str, torch.Tensor], is_backward: bool) -> None:
    """A forward; and a backward pass from a log-probability to the LLM's input."""
    model: Any = subject.model
    zeros: list[torch.Tensor] = []

    def add_zeros(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        zeros.append(torch.zeros_like(kwargs["inputs_embeds"], requires_grad=True))
        return args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"] + zeros[0]}

    with torch.set_grad_enabled(is_backward):
        handle = model.get_decoder().register_forward_pre_hook(add_zeros, with_kwargs=True)
        logits = model(**inputs, use_cache=False).logits
        handle.remove()
        if is_backward:
            torch.autograd.grad(logits[0, -4:].log_softmax(-1)[:, 0].sum(), zeros)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="width 256 in place of 512")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subject = build(256 if arguments.quick else 512)
    with torch.no_grad():
        patches(subject)
        for mode in HEAD_MODES:
            heads(subject, mode)
    flows(subject)


if __name__ == "__main__":
    main()
