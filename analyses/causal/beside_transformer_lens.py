"""Head ablation and activation patching by TransformerLens, beside ours on the same tiny model.

    pip install transformer-lens            # 4.3.0; in an environment of its own
    python analyses/causal/beside_transformer_lens.py

A LLaVA-1.5 of 4 layers x 4 heads with random weights, an image and a question. Every head is set to
zero (`blocks.L.attn.hook_z`), and the residual stream of every layer is taken from a run about
another image at the vision tokens (`blocks.L.hook_out`, or `hook_resid_post`), each in a forward of
TransformerLens' bridge with its own hooks, under eager attention. Ours are `ablate_heads`, `patch`,
and the sweeps that share layers. Compared are all logits.
"""

import copy
import os
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image
from random_weights import build
from torch import Tensor

import probe
from probe.data.sample import Sample
from probe.interventions import ablate_heads, patch
from probe.models.tiny.scenes import SIZE
from probe.subject.subject import Subject

QUESTION, GOLD = "what colour is it ?", "red"


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((SIZE, SIZE))


def bridge_of(subject: Subject) -> Any:
    """TransformerLens takes a model over, so that its bridge gets a copy."""
    from transformer_lens.model_bridge import (  # type: ignore[import-not-found]
        TransformerBridge,
    )

    os.environ |= {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}  # it would install torchvision
    model: Any = copy.deepcopy(subject.model)
    model.set_attn_implementation("eager")
    tokenizer = copy.deepcopy(subject.processor.tokenizer)
    tokenizer.init_kwargs |= {"name_or_path": "", "add_bos_token": True}  # it loads no other
    model.config.architectures = [type(model).__name__]  # as a saved model has it
    return TransformerBridge.boot_transformers(
        "llava-hf/llava-1.5-7b-hf",  # the name of its kind; the weights are ours
        hf_model=model,
        tokenizer=tokenizer,
        dtype=model.dtype,
    )


class Lens:
    """Runs of the bridge with hooks of TransformerLens."""

    def __init__(self, subject: Subject, inputs: Any):
        self.bridge, self.inputs = bridge_of(subject), inputs
        self.vision = torch.from_numpy(inputs.types.vision[0])

    def logits(self, inputs: Any, hooks: list[tuple[Any, Any]] | None = None) -> Tensor:
        names = "pixel_values", "attention_mask"
        given = {name: inputs[name] for name in names}
        options: Any = {"fwd_hooks": hooks or [], "return_type": "logits"}
        with torch.no_grad():
            return self.bridge.run_with_hooks(inputs["input_ids"], **given, **options)[0]

    def ablated(self, layer: int, head: int) -> Tensor:
        def to_zero(parts: Tensor, hook: Any) -> Tensor:
            changed = parts.clone()  # (batch, position, head, dim), or heads side by side
            by_head = changed if parts.ndim == 4 else changed.unflatten(-1, (4, -1))
            by_head[:, :, head] = 0
            return changed

        return self.logits(self.inputs, [(f"blocks.{layer}.attn.hook_z", to_zero)])

    def patched(self, source: Any, layer: int) -> Tensor:
        kept: list[Tensor] = []
        site = f"blocks.{layer}.hook_resid_post"

        def keep(hidden: Tensor, hook: Any) -> None:
            kept.append(hidden.clone())

        def put_in(hidden: Tensor, hook: Any) -> Tensor:
            return torch.where(self.vision[:, None], kept[0], hidden)

        self.logits(source, [(site, keep)])
        return self.logits(self.inputs, [(site, put_in)])


def main() -> None:
    torch.set_num_threads(1)
    subject = build(0, layers=4)
    inputs, source = (subject.encode(picture(seed), QUESTION) for seed in (0, 1))
    lens, model = Lens(subject, inputs), subject.model
    with torch.no_grad():
        own = model(**inputs).logits[0]
    print(
        f"transformer-lens {version('transformer-lens')}: untouched model, largest difference of a "
        f"logit {float((lens.logits(inputs) - own).abs().max()):.0e} of {float(own.abs().max()):.1f}"
    )
    gold = subject.processor.tokenizer.convert_tokens_to_ids(GOLD)
    sample = Sample("a", picture(0), QUESTION, answer=GOLD)
    sweep = probe.head_sweep(subject, sample, control=False, progress=False)
    compare_heads(lens, subject, inputs, sweep["gold_logprob"].values[0], gold)
    pair = Sample("a", picture(1), QUESTION, answer=GOLD, corrupted=picture(0))
    patches = probe.patch_sweep(subject, pair, progress=False)["patched"]
    compare_patches(lens, subject, inputs, source, patches.sel(group="vision").values.ravel(), gold)


def compare_heads(lens: Lens, subject: Subject, inputs: Any, swept: Any, gold: int) -> None:
    differences, of_sweep, effects = [], [], []
    for layer in range(swept.shape[0]):
        for head in range(swept.shape[1]):
            with ablate_heads(subject, {layer: head}) as report, torch.no_grad():
                ours = subject.model(**inputs).logits[0]
            theirs = lens.ablated(layer, head)
            differences.append(float((ours - theirs).abs().max()))
            of_sweep.append(abs(float(theirs[-1].log_softmax(-1)[gold]) - swept[layer, head]))
            effects.append(report.largest_change)
    print(
        f"{len(effects)} heads to zero: largest difference of a logit {max(differences):.0e}, of the "
        f"answer's log-probability in head_sweep {max(of_sweep):.0e} (each head changed something: "
        f"{min(effects) > 0})"
    )


def compare_patches(
    lens: Lens, subject: Subject, inputs: Any, source: Any, swept: Any, gold: int
) -> None:
    differences, of_sweep = [], []
    for layer in range(len(swept)):
        with patch(subject, source, layer, "vision"), torch.no_grad():
            ours = subject.model(**inputs).logits[0]
        theirs = lens.patched(source, layer)
        differences.append(float((ours - theirs).abs().max()))
        of_sweep.append(abs(float(theirs[-1].log_softmax(-1)[gold]) - swept[layer]))
    print(
        f"{len(swept)} layers patched at the vision tokens: largest difference of a logit "
        f"{max(differences):.0e}, of the answer's log-probability in patch_sweep {max(of_sweep):.0e}"
    )


if __name__ == "__main__":
    main()
