"""What LLaVA-Mini's pre-fusion costs, and what its exact shortcuts save.

    python analyses/benchmarks/llava_mini_cost.py              # 7B widths, about 4 GB, some minutes
    python analyses/benchmarks/llava_mini_cost.py --prefill  # prefill beside LLaVA-1.5, few layers of the LLM
    python analyses/benchmarks/llava_mini_cost.py --cuda  # the same at the full 7B shapes, about 20 GB

Random weights in bfloat16 (in float32 where results are compared); 576 patches, 1 compressed token,
45 text tokens; 4 pre-fusion layers as released. Times are process times of one thread, the sides in
turn in this process, so that their ratio holds on a busy machine; on CUDA they are wall times
between synchronisations. Printed is the median of the ratios of all rounds, and how far they
spread.

    plain      all rows through all pre-fusion layers, as the authors' code does
    see        what the text needs of the image: in the last layer only its keys and values
    fuse       compressed token and text behind that: all that a further question on the same image costs
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from probe.models.llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from probe.models.llava_mini.prefusion import LlavaMiniPrefusion
from probe.models.original.llava_names import CLIP_L_336

PATCHES, TOKENS, TEXT = 576, 1, 45
WIDE: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


def seconds(run: Callable[[], object], cuda: bool = False) -> float:
    if not cuda:
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(
    sides: Mapping[str, Callable[[], object]], rounds: int, cuda: bool = False
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, run in sides.items():
            took = seconds(run, cuda)
            times[name] += [took] if i else []
    return times


def told(name: str, over: list[float], under: list[float], bar: str = "") -> None:
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    spread = f"[{min(ratios):.3g}, {max(ratios):.3g}]"
    print(f"{name:<62} {statistics.median(ratios):6.3f} {spread}  {bar}")


def shortcuts(frames: int, layers: int, rounds: int) -> None:
    """Prints by how much the shortcuts change the results, and their times beside the plain
    path's.
    """
    torch.manual_seed(0)
    config: Any = LlamaConfig(**WIDE)
    config._attn_implementation = "sdpa"
    prefusion = LlavaMiniPrefusion(config, layers).eval()
    vision, words = torch.randn(frames, PATCHES, 4096), torch.randn(frames, TOKENS + TEXT, 4096)
    visible = torch.ones(frames, TOKENS + TEXT, dtype=torch.bool)
    _, plain = prefusion(vision, words, visible)
    fused = prefusion.fuse(prefusion.see(vision)[0], words, visible)
    difference, scale = (fused - plain).abs().max().item(), plain.abs().max().item()
    prefusion, vision, words = prefusion.bfloat16(), vision.bfloat16(), words.bfloat16()
    prefix, _ = prefusion.see(vision)
    sides = {
        "plain": lambda: prefusion(vision, words, visible),
        "see": lambda: prefusion.see(vision),
        "fuse": lambda: prefusion.fuse(prefix, words, visible),
    }
    times = in_turn(sides, rounds)
    first = [see + fuse for see, fuse in zip(times["see"], times["fuse"], strict=True)]
    medians = ", ".join(f"{name} {statistics.median(took):.2f} s" for name, took in times.items())
    print(f"\n{frames} frame{'s' * (frames > 1)}, {layers} layers: {medians}")
    print(
        f"largest difference of the results, float32: {difference:.1e} of {scale:.0f}  bar: at most 1e-5"
    )
    told("first question (see + fuse) / plain", first, times["plain"], "bar: at most 0.85")
    told("plain / further question (fuse)", times["plain"], times["fuse"], "bar: at least 8")
    told("first question / further question", first, times["fuse"])


def models(layers: int, device: str) -> dict[str, tuple[Any, dict[str, torch.Tensor]]]:
    """LLaVA-1.5 and LLaVA-Mini around the same encoder and LLM, each with a prompt of the same
    words and image.
    """
    text, clip = LlamaConfig(**WIDE, num_hidden_layers=layers), CLIPVisionConfig(**CLIP_L_336)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device), no_init_weights():
        mini: Any = LlavaMiniForConditionalGeneration(
            LlavaMiniConfig(vision_config=clip, text_config=text)
        ).eval()
    bare = LlamaConfig(**WIDE, num_hidden_layers=0)  # it borrows the other one's
    with torch.device(device), no_init_weights():
        config = LlavaConfig(vision_config=clip, text_config=bare, image_token_index=31999)
        llava: Any = LlavaForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    for parameter in (*mini.parameters(), llava.lm_head.weight):
        parameter.uniform_(-0.03, 0.03)
    for part in ("language_model", "vision_tower", "multi_modal_projector"):
        setattr(llava.model, part, getattr(mini.model, part))
    pixels, words = (
        torch.randn(1, 3, 336, 336, device=device),
        torch.arange(5, 5 + TEXT, device=device),
    )

    def prompt(image: int, count: int) -> torch.Tensor:
        return torch.cat([words[:5], words.new_full((count,), image), words[5:]])[None]

    return {
        "llava": (
            llava,
            {"input_ids": prompt(31999, PATCHES), "pixel_values": pixels.to(torch.bfloat16)},
        ),
        "mini": (
            mini,
            {
                "input_ids": prompt(mini.config.image_token_id, TOKENS),
                "pixel_values": pixels[:, None],
            },
        ),
    }


def prefill(layers: int, rounds: int, cuda: bool = False) -> None:
    """Prints the time to the first token, image to logits. On the CPU also what it comes to with
    all 32 layers.
    """
    both = models(layers, "cuda" if cuda else "cpu")
    blocks = both["mini"][0].model.language_model.layers

    def run(name: str, depth: int) -> None:
        model, inputs = both[name]
        model.model.language_model.layers = blocks[:depth]
        model(**inputs, logits_to_keep=1, use_cache=False)

    depths = (layers,) if cuda else (layers // 2, layers)
    sides = {
        f"{name} {depth}": (lambda name=name, depth=depth: run(name, depth))
        for name in both
        for depth in depths
    }
    times = in_turn(sides, rounds, cuda)
    print(f"\nprefill of {PATCHES} patches and {TEXT} words, batch 1, 7B widths")
    told(
        f"LLaVA-1.5 / LLaVA-Mini, {layers} LLM layers",
        times[f"llava {layers}"],
        times[f"mini {layers}"],
    )
    whole = {name: times[f"{name} {layers}"] for name in both}
    if not cuda:
        whole = {
            name: [
                a + (32 - layers) * (a - b) / (layers - layers // 2)
                for a, b in zip(
                    times[f"{name} {layers}"], times[f"{name} {layers // 2}"], strict=True
                )
            ]
            for name in both
        }
        told(
            "the same for 32 layers (extrapolated: layers cost the same)",
            whole["llava"],
            whole["mini"],
        )
    print(", ".join(f"{name} {statistics.median(took):.3f} s" for name, took in whole.items()))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prefill", action="store_true", help="prefill beside LLaVA-1.5 instead, few layers"
    )
    parser.add_argument("--cuda", action="store_true", help="prefill with all layers, on the GPU")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cuda:
        prefill(32, options.rounds, cuda=True)
    elif options.prefill:
        prefill(4, options.rounds)
    else:
        shortcuts(frames=1, layers=4, rounds=options.rounds)
        shortcuts(frames=3, layers=4, rounds=options.rounds)


if __name__ == "__main__":
    main()
