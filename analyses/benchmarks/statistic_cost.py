"""The attention statistic of one layer beside the sdpa call of that layer.

    python analyses/benchmarks/statistic_cost.py                # 621 and 2,892 tokens, 8 and 32 heads
    python analyses/benchmarks/statistic_cost.py --threads 2 --tokens 621
    python analyses/benchmarks/statistic_cost.py --dtype bfloat16

All statistics that `measure` takes by default, from query and key to sums by type, in float32; heads
of 128 as the projections of a model leave them. "compiled" is C, "tensors" what is used where there
is no compiler. Every variant runs in every round of one process, and each number is the median of
the ratios to the sdpa call of the same round. On one thread process CPU time is taken, which other
programs disturb less; on several wall time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from probe.hooks.attention_call import AttentionCall
from probe.measures.attention import compiled, streaming
from probe.measures.attention.statistic import AttentionStatistic

DIM = 128
BEFORE, AFTER, ANSWER = 5, 39, 20  # tokens of text around the image, and those of them that answer
NAMES = ("instruction", "vision", "response")
WAYS = {"compiled": "all", "tensors": "all", "compiled, text rows": "text"}


@contextmanager
def by_tensors() -> Iterator[None]:
    """Tensor operations where compiled code could be used."""
    chosen = streaming.is_compiled_for
    streaming.is_compiled_for = lambda call, extras: False
    try:
        yield
    finally:
        streaming.is_compiled_for = chosen


def variants(
    tokens: int, heads: int, layers: int, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """The sdpa calls of some layers, and their statistic in each way."""
    drawn = (torch.randn(1, tokens, heads, DIM).to(dtype).transpose(1, 2) for _ in range(3))
    query, key, value = drawn
    ids = np.zeros((1, tokens), int)
    ids[:, BEFORE : tokens - AFTER] = 1
    ids[:, -ANSWER:] = 2
    vision = ids == 1
    module = torch.nn.Identity()
    call = AttentionCall("", module, query, key, value, None, None, DIM**-0.5, True, None, {})

    def sdpa() -> None:
        for _ in range(layers):
            scaled_dot_product_attention(query, key, value, is_causal=True)

    def measured(rows: str) -> None:
        query_ids = np.where(vision, -1, ids) if rows == "text" else ids
        statistic = AttentionStatistic(NAMES, ids, query_ids, vision)
        for layer in range(layers):
            statistic(replace(call, name=f"layers.{layer}"))
        statistic.table("layers.0")

    def run(way: str, rows: str) -> None:
        if way == "tensors":
            with by_tensors():
                measured(rows)
        else:
            measured(rows)

    runs: dict[str, Callable[[], object]] = {"sdpa": sdpa}
    return runs | {way: lambda w=way, r=rows: run(w, r) for way, rows in WAYS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[621, 2892])
    parser.add_argument("--heads", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    if compiled.library() is None:
        print("no C compiler: 'compiled' are tensor operations too")
    print(f"{options.dtype}, {options.threads} thread(s), torch {torch.__version__}")
    with torch.no_grad():
        for tokens in options.tokens:
            for heads in options.heads:
                dtype = getattr(torch, options.dtype)
                runs = variants(tokens, heads, options.layers, dtype)
                ratios: dict[str, list[float]] = {name: [] for name in runs}
                sdpa_times = []
                for at in range(options.rounds + 1):  # the first warms up
                    times = {}
                    for name, run in runs.items():
                        start = clock()
                        run()
                        times[name] = clock() - start
                    if at:
                        sdpa_times.append(times["sdpa"] / options.layers)
                        for name in runs:
                            ratios[name].append(times[name] / times["sdpa"])
                shown = [
                    f"{name} {statistics.median(each):.2f} [{min(each):.2f}, {max(each):.2f}]"
                    for name, each in ratios.items()
                    if name != "sdpa"
                ]
                took = 1000 * statistics.median(sdpa_times)
                print(f"{tokens} tokens, {heads} heads (sdpa {took:.1f} ms): {'; '.join(shown)}")


if __name__ == "__main__":
    main()
