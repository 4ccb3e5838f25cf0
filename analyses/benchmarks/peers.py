"""What measuring costs beside what others do for the same numbers, in one run.

    pip install nnsight transformer-lens                  # left out of the table where missing
    python analyses/benchmarks/peers.py                   # 576 vision tokens, float32
    python analyses/benchmarks/peers.py --dtype bfloat16
    python analyses/benchmarks/peers.py --images 5 --layers 4 --rounds 3      # 2,880 vision tokens

LLaVA-1.5 with random weights, whose LLM is narrower than that of 7B (1,024 / 2,752 / 8 heads of
128), so that a layer hides less of what measuring costs. Every way goes from pixels, question and
answer to mass and entropy by type in each layer and head. The others run the LLM eager and reduce
its maps for text queries. "probe" writes a whole record (with received attention, pooled entropy,
shares, lift and sinks), of the LLM as the others do.

Each number is the median of the ratios to the plain forward of the same round, in process time of
one thread. Peak memory is taken in a process of its own for each way, above the loaded model and
beyond what the plain forward takes.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from tap_cost import peak_over_loaded
from throughput import seconds, subject_of
from torch import Tensor

from probe.measures.attention.measure import measure

QUESTION = "what is it on the left of the large thing? is there a circle or a square? is it red?"
ANSWER_TOKENS = 20
BARS = {
    ("probe, all rows", 1): "1.13 (bfloat16)",
    ("probe, all rows", 5): "1.14 (float32)",
    ("probe, text rows", 1): "1.02",
    ("probe, text rows", 5): "1.02",
}
Way = Callable[[], Any]


class Reducer:
    """Mass by type and entropy of text queries, from the maps of a layer."""

    def __init__(self, inputs: Any):
        ids = torch.as_tensor(inputs.types.ids[0])
        text = torch.as_tensor(inputs.types.is_query[0] & ~inputs.types.vision[0])
        self.queries = text.nonzero()[:, 0]
        self.one_hot = torch.nn.functional.one_hot(ids).float()

    def __call__(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        weights = maps[0][:, self.queries].float()
        return weights @ self.one_hot, -torch.xlogy(weights, weights) @ self.one_hot


class Ways:
    """Each way of measuring one sample, by name."""

    def __init__(self, options: argparse.Namespace):
        self.subject = subject_of(options)
        self.model: Any = self.subject.model
        picture = Image.effect_noise((336, 336), 64).convert("RGB")
        self.image: Any = [picture] * options.images if options.images > 1 else picture
        self.answer = list(range(10, 10 + ANSWER_TOKENS))

    def encoded(self) -> Any:
        return self.subject.encode(self.image, QUESTION, self.answer)

    def forward(self, **options: Any) -> Any:
        return self.model(**self.encoded(), use_cache=False, logits_to_keep=1, **options)

    @property
    def layers(self) -> Any:
        return self.model.model.language_model.layers

    def eager(self, run: Way) -> Any:
        self.model.set_attn_implementation({"text_config": "eager"})
        try:
            return run()
        finally:
            self.model.set_attn_implementation({"text_config": "sdpa"})

    def measured(self, rows: str) -> Any:
        return measure(self.subject, self.image, QUESTION, self.answer, rows=rows, stacks=["llm"])

    def output_attentions(self) -> Any:
        reduced = Reducer(self.encoded())
        return [reduced(maps) for maps in self.forward(output_attentions=True).attentions]

    def hook(self) -> Any:
        reduced, found = Reducer(self.encoded()), []

        def note(module: Any, args: Any, output: Any) -> None:
            found.append(reduced(output[1]))

        handles = [layer.self_attn.register_forward_hook(note) for layer in self.layers]
        try:
            self.forward()
        finally:
            for handle in handles:
                handle.remove()
        return found

    def nnsight(self) -> Way:
        from nnsight import NNsight  # type: ignore[import-not-found]

        traced = NNsight(self.model)

        def run() -> Any:
            inputs = self.encoded()
            reduced = Reducer(inputs)
            with traced.trace(**inputs, use_cache=False, logits_to_keep=1):
                found = list().save()  # type: ignore[attr-defined]  # noqa: C408
                for layer in traced.model.language_model.layers:
                    found.append(reduced(layer.self_attn.output[1]))
            return found

        return run

    def transformer_lens(self) -> Way:
        from transformer_lens.model_bridge import (  # type: ignore[import-not-found]
            TransformerBridge,
        )

        self.model.set_attn_implementation({"text_config": "eager"})
        tokenizer = self.subject.processor.tokenizer
        tokenizer.init_kwargs |= {"name_or_path": "", "add_bos_token": True}  # it loads no other
        self.model.config.architectures = [type(self.model).__name__]  # as a saved model has it
        bridge = TransformerBridge.boot_transformers(
            "llava-hf/llava-1.5-7b-hf",  # the name of its kind; the weights are ours
            hf_model=self.model,
            tokenizer=tokenizer,
            dtype=self.model.dtype,
        )

        def run() -> Any:
            inputs = self.encoded()
            reduced, found = Reducer(inputs), []

            def note(maps: Tensor, hook: Any) -> None:
                found.append(reduced(maps))

            def is_of_llm(name: str) -> bool:
                return name.startswith("blocks.") and name.endswith("hook_pattern")

            bridge.run_with_hooks(
                inputs["input_ids"],
                pixel_values=inputs["pixel_values"],
                attention_mask=inputs["attention_mask"],
                fwd_hooks=[(is_of_llm, note)],
                return_type="logits",
            )
            return found

        return run

    def all(self) -> dict[str, Way]:
        """TransformerLens takes the model over, so that its bridge has one of its own."""
        ways: dict[str, Way] = {
            "plain forward": self.forward,
            "probe, all rows": lambda: self.measured("all"),
            "probe, text rows": lambda: self.measured("text"),
            "eager, output_attentions": lambda: self.eager(self.output_attentions),
            "eager, hook": lambda: self.eager(self.hook),
        }
        if importlib.util.find_spec("nnsight"):
            traced = self.nnsight()
            ways["nnsight"] = lambda: self.eager(traced)
        return ways


def ways_of(options: argparse.Namespace) -> dict[str, Way]:
    ways = Ways(options).all()
    if importlib.util.find_spec("transformer_lens"):
        ways["TransformerLens"] = Ways(options).transformer_lens()
    return ways


def peak_of(name: str, options: argparse.Namespace, pipe: Any) -> None:
    """Runs in a process of its own."""
    torch.set_num_threads(1)
    with torch.no_grad():
        run = ways_of(options)[name]
        pipe.send(peak_over_loaded(run))


def peak(name: str, options: argparse.Namespace) -> int:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=peak_of, args=(name, options, theirs))
    process.start()
    theirs.close()
    return ours.recv()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1, help="of 576 vision tokens each")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--encoder-layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.set_defaults(next=False)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        ways = ways_of(options)
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        plain = []
        for at in range(options.rounds + 1):  # the first warms up
            times = {name: seconds(run) for name, run in ways.items()}
            if at:
                plain.append(times["plain forward"])
                for name, took in times.items():
                    ratios[name].append(took / times["plain forward"])
    print(
        f"{options.images * 576} vision tokens, {options.layers} layers of {options.hidden}, encoder of "
        f"{options.encoder_layers}, {options.dtype}; plain forward {statistics.median(plain):.2f} s; "
        f"{options.rounds} rounds, load {os.getloadavg()[0]:.1f}"
    )
    for name in ("nnsight", "transformer_lens"):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed")
    base = 0 if options.no_memory else peak("plain forward", options)
    for name, each in ratios.items():
        spread = f"{statistics.median(each):6.3f}  [{min(each):.3f}, {max(each):.3f}]"
        extra = (
            "" if options.no_memory else f"  {(peak(name, options) - base) / 2**20:6.0f} MB more"
        )
        bar = BARS.get((name, options.images))
        print(f"  {name:26s} {spread}{extra}{'' if bar is None else f'   bar {bar}'}")


if __name__ == "__main__":
    main()
