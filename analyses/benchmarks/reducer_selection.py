"""What choosing tokens costs: each reducer of the encoder's output beside the encoder itself, at 576
and 2,880 patches; greedy choices beside what they can't do without; memory.

    python analyses/benchmarks/reducer_selection.py           # CLIP-L/336, some minutes on one core
    python analyses/benchmarks/reducer_selection.py --layers 6    # fewer layers of the encoder, scaled

Random weights in bfloat16. Times are process times of one thread, the least of some rounds. Methods
that compare projected features project all patches, as the plain model does: that time is told
apart, and is not choosing. 2,880 patches are five views of an image.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig, CLIPVisionModel

from probe.measures.cost.timing import measure_prefill
from probe.models.original.llava_names import CLIP_L_336
from probe.reducers import METHODS, TokenBudget, cdpruner, divprune, holov, vispruner, vscan
from probe.reducers.cosine import Cosines
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.encoder_reducer import tapped

LLM_WIDTH, DEPTH = 4096, 32
OF_ENCODER = (
    *("visionzip", "prumerge", "prumerge+", "vispruner", "holov", "vscan", "hiprune", "divprune"),
    *("grid", "random", "dominant", "contextual"),
)
SIZES = ((1, 64), (1, 192), (5, 160), (5, 640))  # views, tokens that are left
BAR, GREEDY_BAR, MEMORY_BAR = 0.03, 1.5, 256


class EveryLayer:
    """Asks for queries and keys of all layers, for whichever reducer comes."""

    def encoder_layers(self, depth: int) -> range:
        return range(depth)

    def reduce(self, seen: EncoderOutput) -> Any:
        raise NotImplementedError


class Kept(nn.Module):
    """The projector's output, computed once: what a reducer does besides."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, features: Tensor) -> Tensor:
        return self.output


def least(run: Callable[[], object], rounds: int) -> float:
    """Seconds of process time."""
    run()
    took = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        took.append(time.process_time() - start)
    return min(took)


def beside_the_encoder(layers: int, rounds: int) -> None:
    depth = CLIP_L_336["num_hidden_layers"]
    config = CLIPVisionConfig(**{**CLIP_L_336, "num_hidden_layers": layers})
    tower: Any = CLIPVisionModel(config).eval().bfloat16()
    wide = nn.Linear(LLM_WIDTH, LLM_WIDTH)
    projector = nn.Sequential(nn.Linear(1024, LLM_WIDTH), nn.GELU(), wide).bfloat16()
    for views in (1, 5):
        pixels = torch.randn(views, 3, 336, 336).bfloat16()
        with tapped(tower, -2, EveryLayer()) as tap:
            states = tower(pixels, output_hidden_states=True).hidden_states
            seen = tap.encoder_output(states, projector)
        encoder = least(partial(tower, pixels), 1) * depth / layers
        projecting = least(seen.projected, 1)
        print(f"\n{views * 576} patches: encoder {encoder:.2f} s, projector {projecting:.2f} s")
        projected = replace(seen, projector=Kept(seen.projected()))
        for tokens in [tokens for of, tokens in SIZES if of == views]:
            budget = TokenBudget(tokens / 576 / views, 576, DEPTH, views)
            for name in OF_ENCODER:
                reducer: Any = METHODS[name][1](budget)
                took = least(partial(reducer.reduce, projected), rounds)
                told(f"{name} to {tokens} tokens", took / encoder, BAR, f"{1e3 * took:.1f} ms")


def greedy(rounds: int) -> None:
    """Greedy choices beside the similarity matrix once and a pass over one row for each pick."""
    for count, tokens, width in ((576, 64, 1024), (576, 192, 4096), (2880, 640, 4096)):
        features, relevance = torch.randn(count, width), torch.rand(count)

        def needed(features: Tensor = features, tokens: int = tokens) -> None:
            unit = normalize(features, dim=-1)
            similarity = unit @ unit.T
            closest = similarity[0].clone()
            for _ in range(tokens):
                closest = torch.maximum(closest, similarity[closest.argmin()])

        floor = least(needed, rounds)
        sides: dict[str, Callable[[], object]] = {
            "max-min (DivPrune)": lambda f=features, t=tokens: divprune.select(f, t),
            "DPP (CDPruner)": lambda f=features, r=relevance, t=tokens: cdpruner.most_diverse(
                Cosines(f), r, t
            ),
        }
        print(f"\n{tokens} of {count} tokens of width {width}; needed: {1e3 * floor:.1f} ms")
        for name, run in sides.items():
            took = least(run, rounds)
            told(name, took / floor, GREEDY_BAR, f"{1e3 * took:.1f} ms")


def memory() -> None:
    """Memory beyond the features, of 4,096 tokens of width 4,096 in float32."""
    features = torch.randn(1, 4096, 4096)
    attention = torch.rand(1, 16, 4096).softmax(-1)
    embeds, text, mean = torch.randn(1, 4096, 64), torch.randn(1, 64), attention.mean(1)
    sides: dict[str, Callable[[], object]] = {
        "divprune": lambda: divprune.select(features[0], 256),
        "cdpruner": lambda: cdpruner.select(features, embeds, text, 256),
        "vispruner": lambda: vispruner.select(features, attention, 256, 0.5),
        "holov": lambda: holov.select(features, mean, 8, 256),
        "vscan": lambda: vscan.merge(features, vscan.select(mean, mean, 256)),
    }
    print("\nmemory beyond the features, 4,096 tokens of width 4,096")
    for name, run in sides.items():
        before, peak = measured(run)
        told(name, (peak - before) / 2**20, MEMORY_BAR, "MB")


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """Bytes of the process before, and at the peak."""

    class Runs(nn.Module):
        device = torch.device("cpu")

        def forward(self, **_: Any) -> Any:
            run()
            return argparse.Namespace(logits=torch.zeros(1, 1, 1))

    model: Any = Runs()
    _, (before, peak) = measure_prefill(model, {}, 1)
    return float(before), float(peak)


def told(name: str, ratio: float, bar: float, also: str) -> None:
    mark = "" if ratio <= bar else "  MISSED"
    print(f"  {name:<30} {ratio:8.4g}  bar: {bar:g}  ({also}){mark}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24, help="of the encoder (default: 24)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    memory()
    greedy(options.rounds)
    beside_the_encoder(options.layers, options.rounds)


if __name__ == "__main__":
    main()
