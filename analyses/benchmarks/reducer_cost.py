"""What a reducer saves of the time to the first token, beside what is counted.

    python analyses/benchmarks/reducer_cost.py     # 7B widths, few layers, about 3 GB, some minutes
    python analyses/benchmarks/reducer_cost.py --cuda  # all layers; also LLaVA-NeXT (2,880 -> 160) and 13B; 45 GB

Random weights in bfloat16, 45 text tokens. The clock runs from before the vision encoder to the
logits of the first token; both sides get the same prompt, with a placeholder for every patch, so
that all that a reducer does is timed. Times are process times of one thread, the sides in turn in
this process, so that their ratio holds on a busy machine; on CUDA they are wall times between
synchronisations. Few layers are 4 of 32 in the LLM and 3 of 24 in the encoder, the same share of
both. What choosing costs: reducer_selection.py.
"""

import argparse
import statistics
from typing import Any

import torch
from llava_mini_cost import in_turn, told
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedModel,
)

from probe.measures.cost import cost
from probe.measures.cost.prompt_shape import prompt_of
from probe.measures.cost.timing import first_token, inputs_of, with_random_weights
from probe.models.original.llava_names import CLIP_L_336
from probe.reducers import VisionZip, reduced

TEXT = 45
REDUCER, NEXT_REDUCER = VisionZip(54, 10), VisionZip(28, 4)  # 64 of 576; 160 of 2,880
WIDTHS: dict[str, dict[str, Any]] = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
    },
    "13B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
    },
}


def config_of(kind: type, widths: str, share: float = 1.0, **options: Any) -> Any:
    """LLaVA-1.5's or LLaVA-NeXT's shape with this share of the layers of encoder and LLM."""
    size, clip = dict(WIDTHS[widths]), dict(CLIP_L_336)
    size["num_hidden_layers"] = round(share * size["num_hidden_layers"])
    clip["num_hidden_layers"] = round(share * clip["num_hidden_layers"])
    tied: dict[str, Any] = {"tie_word_embeddings": True}  # smaller, and no slower
    text, vision = LlamaConfig(vocab_size=32064, **tied, **size), CLIPVisionConfig(**clip)
    return kind(vision_config=vision, text_config=text, image_token_index=32000, **tied, **options)


class Side:
    """One model with its prompt, with all tokens and with fewer."""

    def __init__(self, config: Any, reducer: VisionZip, left: int, resolution: int | None = None):
        self.reducer = reducer
        self.model: PreTrainedModel = with_random_weights(config, torch.bfloat16)
        whole = cost(config, text_tokens=TEXT, rows="needed", resolution=resolution)
        fewer = cost(config, left, TEXT, rows="needed", resolution=resolution)
        self.flops = float(whole["flops"].sum()), float(fewer["flops"].sum())
        prompt = prompt_of(config, None, TEXT, resolution, None)
        self.inputs = inputs_of(self.model, prompt, int(whole["llm_tokens"].max()) - TEXT)

    def plain(self) -> None:
        first_token(self.model, self.inputs)

    def fewer(self) -> None:
        with reduced(self.model, self.reducer):
            first_token(self.model, self.inputs)


def speed_up(name: str, side: Side, rounds: int, cuda: bool) -> None:
    """Prints the measured and the counted speed-up, and the first as a share of the second."""
    times = in_turn({"all": side.plain, "fewer": side.fewer}, rounds, cuda)
    counted = side.flops[0] / side.flops[1]
    print(
        f"\n{name}, {side.reducer}: "
        + ", ".join(f"{n} {statistics.median(t):.3f} s" for n, t in times.items())
    )
    told(
        "all tokens / fewer tokens, measured",
        times["all"],
        times["fewer"],
        f"counted: {counted:.2f}",
    )
    told(
        "measured / counted",
        [t / counted for t in times["all"]],
        times["fewer"],
        "bar: at least 0.9",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cuda", action="store_true", help="all layers, LLaVA-NeXT and 13B too, on the GPU"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.cuda:
        few = Side(config_of(LlavaConfig, "7B", share=1 / 8), REDUCER, left=64)
        speed_up("7B widths, 4 of 32 layers", few, options.rounds, cuda=False)
        return
    small = Side(config_of(LlavaConfig, "7B"), REDUCER, left=64)
    speed_up("LLaVA-1.5-7B", small, options.rounds, cuda=True)
    large = Side(config_of(LlavaConfig, "13B"), REDUCER, left=64)
    times = in_turn({"7B": small.plain, "13B": large.fewer}, options.rounds, cuda=True)
    told("plain 7B / 13B with 64 tokens", times["7B"], times["13B"], "the paper: above 1")
    del small, large
    config = config_of(LlavaNextConfig, "7B", image_grid_pinpoints=[[672, 672]])
    tiled = Side(config, NEXT_REDUCER, left=160, resolution=672)
    speed_up("LLaVA-NeXT-7B, 2 x 2 tiles", tiled, options.rounds, cuda=True)


if __name__ == "__main__":
    main()
