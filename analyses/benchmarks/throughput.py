"""What a whole benchmark costs beside an earlier build, and what measuring costs beside answering.

    git worktree add before 46c6555 && pip wheel --no-deps -w . ./before
    python analyses/benchmarks/throughput.py --before probe_llava-*.whl      # some minutes
    python analyses/benchmarks/throughput.py --before before --hidden 4096 --layers 2 --dtype float32
    python analyses/benchmarks/throughput.py --hidden 128 --layers 32             # tiny widths, full depth
    python analyses/benchmarks/throughput.py --before before --next          # 2,880 vision tokens

Each build runs in a process of its own, on the same random model (CLIP-L/336 in front of an LLM of
the given width) and the same questions; `--before` is a wheel or a folder that holds a `probe`.
Process times of one thread. The earlier build treats every question alone, so that it is timed on
`--few` of them and scaled to all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTIONS, NEW_TOKENS = 32, 8  # GQA asks 12,578 questions about 398 images
# CLIP-L/336, but for its layers; an earlier build has it elsewhere than this one
CLIP_L_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
TEXTS = (
    "is it red?",
    "what is it on the left of the large thing?",
    "is there a circle or a square?",
)


def subject_of(options: argparse.Namespace) -> Any:
    """CLIP-L/336 in front of an LLM of this width, random weights; answers never end early."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    from probe.models.tiny.processor import CHAT_TEMPLATE, build_tokenizer
    from probe.subject.loading import load

    tokenizer = build_tokenizer()
    image = tokenizer.convert_tokens_to_ids("<image>")
    heads = max(8, options.hidden // 128)
    bos: Any = tokenizer.bos_token_id
    padding: Any = tokenizer.pad_token_id
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 43 // 16,  # 11,008 of 4,096
        num_attention_heads=heads,
        num_hidden_layers=options.layers,
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=bos,
        pad_token_id=padding,
    )
    clip = CLIPVisionConfig(**CLIP_L_336, num_hidden_layers=options.encoder_layers)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    same: dict[str, Any] = {"vision_config": clip, "text_config": text, "image_token_index": image}
    side: dict[str, Any] = {
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
    }
    how: dict[str, Any] = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": CHAT_TEMPLATE,
    }
    if options.next:
        grid: dict[str, Any] = {"image_grid_pinpoints": [[672, 672]]}
        model: Any = LlavaNextForConditionalGeneration._from_config(
            LlavaNextConfig(**same, **grid), dtype=dtype
        )
        processor: Any = LlavaNextProcessor(
            LlavaNextImageProcessorPil(**side, **grid), tokenizer, **how
        )
    else:
        model = LlavaForConditionalGeneration._from_config(LlavaConfig(**same), dtype=dtype)
        processor = LlavaProcessor(CLIPImageProcessorPil(**side), tokenizer, **how)
    model.generation_config.min_new_tokens = NEW_TOKENS
    return load(model.eval(), processor=processor)


def samples_of(count: int) -> list[Any]:
    """Questions about one image."""
    from PIL import Image

    from probe.data.sample import Sample

    picture = Image.effect_noise((336, 336), 64).convert("RGB")
    return [Sample(str(at), picture, f"{TEXTS[at % len(TEXTS)]} {at}") for at in range(count)]


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(options: argparse.Namespace) -> dict[str, list[float]]:
    """What this process's build takes, by name: one number a round."""
    from probe.evaluation.method_comparison import Method
    from probe.measures.attention.measure import measure, measure_samples

    subject = subject_of(options)
    samples = samples_of(QUESTIONS if options.shares else options.few)
    scale = QUESTIONS / len(samples)
    first = samples[0]
    method = Method("all tokens", subject)

    def answers() -> None:
        if not options.shares:
            for sample in samples:
                method.answer(sample, NEW_TOKENS)  # pyright: ignore[reportAttributeAccessIssue]
            return
        from probe.subject.image_questions import ImageQuestions

        method.answers(samples, NEW_TOKENS, ImageQuestions(subject))

    def attention() -> None:
        measure_samples(subject, samples, max_new_tokens=NEW_TOKENS, progress=False)

    def one(**rows: Any) -> None:
        measure(subject, first.image, first.question, max_new_tokens=NEW_TOKENS, **rows)

    runs: dict[str, Callable[[], Any]] = {
        "plain generate": lambda: subject.answer(first.image, first.question, NEW_TOKENS),
        "measure": one,
        "measure, rows='text'": lambda: one(rows="text"),
        "attention": attention,
        "accuracy": answers,
    }
    many = ("attention", "accuracy")
    part = {"one": [name for name in runs if name not in many], "many": many}
    chosen = {name: runs[name] for name in part.get(options.part, runs)}
    runs["measure"]()  # warm
    out: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(options.rounds):
        for name, run in chosen.items():
            took = seconds(run)
            out[name].append(took * (scale if name in many else 1))
    return out


def in_own_process(before: Path | None, arguments: list[str]) -> dict[str, list[float]]:
    """`measured` by another build, or by this one."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(__file__).parents[2] if before is None else before
        if root.suffix == ".whl":
            zipfile.ZipFile(root).extractall(folder)
            root = Path(folder)
        shares = [] if before is None else ["--alone"]
        command = [sys.executable, __file__, "--worker", *shares, *arguments]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


def told(name: str, slow: list[float], fast: list[float], bar: str) -> None:
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    low, high = min(ratios), max(ratios)
    print(f"  {name:44s} {statistics.median(ratios):7.2f}   [{low:.2f}, {high:.2f}]   bar: {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="a wheel or a folder of an earlier build")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--encoder-layers", type=int, default=24)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--next", action="store_true", help="LLaVA-NeXT: 2,880 vision tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--few", type=int, default=2, help="questions of the earlier build")
    parser.add_argument("--part", choices=("", "one", "many"), default="")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--alone", dest="shares", action="store_false", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measured(options)))
        return
    now = in_own_process(None, sys.argv[1:])
    width = f"LLM {options.hidden} wide, {options.layers} layers, {options.dtype}"
    print(f"{width}, CLIP-L of {options.encoder_layers} layers, next={options.next}")
    for name, took in now.items():
        print(f"  {name:44s} {statistics.median(took):7.2f} s")
    if "measure" in now:
        print("ratios to the plain generate of the same round")
        told("measure, all rows", now["measure"], now["plain generate"], "at most 1.15")
        text = "measure, rows='text'"
        told(text, now[text], now["plain generate"], "at most 1.06")
    if options.before is not None:
        before = in_own_process(options.before.resolve(), sys.argv[1:])
        print(
            f"the earlier build / this one, {QUESTIONS} questions an image, {NEW_TOKENS} tokens each"
        )
        bars = ("20", "20") if options.next else ("8", "6")
        for name, bar in zip(("attention", "accuracy"), bars, strict=True):
            if name in now:
                told(name, before[name], now[name], f"at least {bar}")
        if "measure" in now:
            told("measure, all rows", before["measure"], now["measure"], "-")
            told("earlier: measure / generate", before["measure"], before["plain generate"], "-")


if __name__ == "__main__":
    main()
