"""What measuring costs beside the forward it measures, at the widths of LLaVA-7B's layers.

    python analyses/benchmarks/tap_cost.py       # 620 tokens (LLaVA-1.5) and 2,900 (NeXT), bfloat16
    python analyses/benchmarks/tap_cost.py --dtype float32 --tokens 620 --layers 2 --rounds 7
    python analyses/benchmarks/tap_cost.py --device cuda --layers 32

Every variant runs in every round of one process, in turn, and each number is the median of the
ratios to the plain forward of the same round: what else the machine does cancels out. The LLM alone
(no encoder, no head), random weights. Process CPU time is taken on the CPU, where threads of other
programs would show up in the wall time. Peak memory is taken in a process of its own for each
variant, over the loaded model.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from probe.hooks.attention_tap import tap
from probe.measures.attention.statistic import AttentionStatistic

HEADS, HIDDEN, INNER = 32, 4096, 11008
BEFORE, AFTER = 5, 39  # tokens of text around the image
NAMES = ("instruction", "vision", "response")
BARS = {
    "tap": {620: 1.10, 2900: 1.25},
    "tap, rows='text'": {620: 1.04, 2900: 1.04},
}  # from the issue


def llm(layers: int, dtype: torch.dtype, device: str) -> Any:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_attention_heads=HEADS,
        num_hidden_layers=layers,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    model: Any = LlamaModel._from_config(config, attn_implementation="sdpa", dtype=dtype)
    return model.to(device).eval()


def layout(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Type ids, and which of them are vision: text, image, question, answer."""
    ids = np.zeros((1, tokens), int)
    ids[:, BEFORE : tokens - AFTER] = 1
    ids[:, -AFTER // 2 :] = 2
    return ids, ids == 1


def statistic(tokens: int, rows: str) -> AttentionStatistic:
    ids, vision = layout(tokens)
    return AttentionStatistic(
        NAMES, ids, np.where(vision, -1, ids) if rows == "text" else ids, vision
    )


def variants(model: Any, tokens: int) -> dict[str, Callable[[], Any]]:
    """What is compared: each is one forward."""
    x = torch.randn(1, tokens, HIDDEN, dtype=model.dtype, device=model.device)
    attention = {f"layers.{i}": layer.self_attn for i, layer in enumerate(model.layers)}
    ids = torch.as_tensor(layout(tokens)[0][0], device=model.device)
    one_hot = torch.nn.functional.one_hot(ids).float()

    def plain():
        return model(inputs_embeds=x, use_cache=False).last_hidden_state

    def tapped(rows):
        with tap(attention, statistic(tokens, rows)):
            return plain()

    def output_attentions():
        """What is done today: eager, keep every map, then reduce."""
        model.set_attn_implementation("eager")
        try:
            maps = model(inputs_embeds=x, use_cache=False, output_attentions=True).attentions
            for layer in maps:
                p = layer[0].float()
                mass = p @ one_hot
                entropy = -torch.xlogy(p, p) @ one_hot
                p.mean(0), mass, entropy  # pyright: ignore[reportUnusedExpression]
        finally:
            model.set_attn_implementation("sdpa")

    return {
        "plain": plain,
        "tap": lambda: tapped("all"),
        "tap, rows='text'": lambda: tapped("text"),
        "output_attentions": output_attentions,
    }


def seconds(run: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def ratios(
    runs: dict[str, Callable[[], object]], base: str, rounds: int, device: str
) -> dict[str, list[float]]:
    """Ratio to `base` in each round, after one round that warms up."""
    out: dict[str, list[float]] = {name: [] for name in runs}
    for at in range(rounds + 1):
        times = {name: seconds(run, device) for name, run in runs.items()}
        if at:
            for name, t in times.items():
                out[name].append(t / times[base])
    return out


def peak_over_loaded(run: Callable[[], Any]) -> int:
    """Bytes above those of now at the highest point of a run on the CPU, in a process where nothing
    else runs.
    """
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    run()
    return max(status("VmHWM"), resource.getpagesize()) - before


def peak_memory(name: str, layers: int, tokens: int, dtype: torch.dtype, device: str, pipe) -> None:
    """Bytes above the loaded model at the highest point of one forward. Runs in a process of its
    own.
    """
    model = llm(layers, dtype, device)
    run = variants(model, tokens)[name]
    with torch.no_grad():
        if device == "cpu":
            pipe.send(peak_over_loaded(run))
        else:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            pipe.send(torch.cuda.max_memory_allocated() - before)


def status(field: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) * 1024


def in_own_process(*arguments) -> int:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=peak_memory, args=(*arguments, theirs))
    process.start()
    theirs.close()
    return ours.recv()


def report(title: str, measured: dict[str, list[float]], bars: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, values in measured.items():
        bar = f"   bar {bars[name]:.2f}" if name in bars else ""
        print(
            f"  {name:22s} {statistics.median(values):7.3f}   [{min(values):.3f}, {max(values):.3f}]{bar}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[620, 2900])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    dtype, device = getattr(torch, options.dtype), options.device
    print(
        f"{options.layers} layers of LLaVA-7B, {options.dtype}, {device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; ratios: median [min, max] of {options.rounds} rounds"
    )
    with torch.no_grad():
        model = llm(options.layers, dtype, device)
        for tokens in options.tokens:
            runs = variants(model, tokens)
            same = torch.equal(runs["plain"](), runs["tap"]())
            bars = {name: bar[tokens] for name, bar in BARS.items() if tokens in bar}
            report(
                f"{tokens} tokens: forward / plain sdpa forward (hidden states bit-identical: {same})",
                ratios(runs, "plain", options.rounds, device),
                bars,
            )
        del model
    if not options.no_memory:
        for tokens in options.tokens:
            print(f"\n{tokens} tokens: peak memory over the loaded model, MB (own process each)")
            for name in ("plain", "tap", "tap, rows='text'", "output_attentions"):
                peak = in_own_process(name, options.layers, tokens, dtype, device)
                print(f"  {name:22s} {peak / 2**20:8.0f}")


if __name__ == "__main__":
    main()
