"""The model with features taken away: f(z), the log-probability of the answer where feature k
counts z_k.

z is 1 where a feature is as it was and 0 where its stand-in is (`baselines.py`); between them, on
the straight line. So ablation, Shapley values and integrated gradients are all of one function of
one vector, over regions and words alike, and captum needs to know nothing of the model. Integrating
over z gives what integrating over the embeddings (or pixels) gives, summed over each feature.

    perturbed = Perturbed(subject, answer, removal)
    perturbed(torch.ones(1, len(features)))                  # (1, token): the untouched model's
    perturbed(1 - torch.eye(len(features)))                  # each feature taken away alone, in one batch

The forward is the model's own, with hooks on what it embeds, on what its decoder is given, and on
its attention: it works for any model of the family and composes with every intervention and
reducer.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output
from probe.hooks.model_structure import stacks
from probe.hooks.prompt_ends import remember
from probe.interventions.attention_edits import mask_keys, replace_keys_values
from probe.interventions.layer_target import LayerTarget
from probe.measures.attribution.baselines import Perturbation
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse


class Perturbed:
    """Whole forwards. `z` is that of the batch that runs."""

    def __init__(self, subject: Subject, answer: TargetResponse, removal: Perturbation):
        self.model, self.answer, self.removal = subject.model, answer, removal
        self.vision = torch.from_numpy(answer.inputs.types.vision[0])
        self.target = LayerTarget.of(
            "attribute", subject.model, range(len(stacks(subject.model)["llm"].layers))
        )
        self.sequences = self.target.sequences()
        kept = "logits_to_keep" in inspect.signature(subject.model.forward).parameters
        self.options = {"logits_to_keep": answer.kept} if kept else {}

    def __call__(self, z: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch chosen"]:
        end = int(self.answer.inputs.types.prompt_length[0]) - 1
        inputs = {
            name: tensor.repeat(len(z), *[1] * (tensor.ndim - 1))
            for name, tensor in self.answer.inputs.items()
        }
        removal = self.removal
        if removal.pixels is not None and removal.other is not None:
            pixels, share = (
                self.answer.inputs["pixel_values"],
                gate(z, removal.pixels).unsqueeze(-3),
            )
            blended = _between(removal.other.to(pixels), pixels, share.to(pixels.device))
            inputs["pixel_values"] = blended.flatten(0, 1)
        remember(
            inputs["input_ids"], torch.full((len(z),), end)
        )  # rankers must not choose by a word of the answer
        with self._hooked(z):
            return self.answer.logprob(
                self.model(**inputs, use_cache=False, **self.options).logits
            ).cpu()

    @contextmanager
    def _hooked(self, z: Tensor) -> Iterator[None]:
        removal, model = self.removal, self.model
        embed: Any = model.get_input_embeddings()
        decoder: Any = model.get_decoder()
        words, rows = (
            torch.where(where, removal.blended, -1) for where in (~self.vision, self.vision)
        )

        def embedded(module: Any, args: tuple, output: Tensor) -> Tensor | None:
            return blend(output, z, words, removal.zeros) if output.shape[1] == len(words) else None

        def given(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return args, kwargs | {
                "inputs_embeds": blend(kwargs["inputs_embeds"], z, rows, removal.zeros)
            }

        with ExitStack() as undo:
            if (words >= 0).any():
                undo.callback(embed.register_forward_hook(embedded).remove)
            if (rows >= 0).any():
                undo.callback(decoder.register_forward_pre_hook(given, with_kwargs=True).remove)
            if removal.layers or (removal.hidden >= 0).any():
                self.target.refuse_flash("load the model with attn_implementation='sdpa'")
                undo.enter_context(self.sequences.followed())
                undo.enter_context(
                    self.target.routed(self._layer(z) if removal.layers else self._hidden(z))
                )
            yield

    def _hidden(self, z: Tensor):
        gone = gate(z, self.removal.hidden) < 0.5

        def around(call: AttentionCall, kernel: Kernel) -> Output:
            now = self.sequences.running()
            return kernel(mask_keys(call, now, ~now.vision, gone.to(now.vision.device)))

        return around

    def _layer(self, z: Tensor):
        """What text reads of vision in a layer counts z times."""

        def around(call: AttentionCall, kernel: Kernel) -> Output:
            now = self.sequences.running()
            vision = now.vision.to(call.value.device)
            share = z[:, self.target.layer_of(call.name)].to(call.value)[:, None, None, None]
            value = torch.where(vision[:, None, :, None], call.value * share, call.value)
            return replace_keys_values(call, kernel, ~now.vision, value=value)

        return around


def gate(
    z: Float[Tensor, "batch feature"], index: Int[Tensor, "*place"]
) -> Float[Tensor, "batch *place"]:
    """z of the feature at each place, 1 where there is none."""
    return torch.cat([z, z.new_ones(len(z), 1)], 1)[:, index]


def blend(
    embeddings: Float[Tensor, "batch token width"],
    z: Float[Tensor, "batch feature"],
    index: Int[Tensor, " token"],
    zeros: bool,
) -> Float[Tensor, "batch token width"]:
    """Embeddings between their stand-in (the mean of all that have a feature here, or 0) and
    themselves.
    """
    chosen = index >= 0
    if not chosen.any():
        return embeddings
    own = embeddings[:, chosen]
    stand_in = torch.zeros_like(own) if zeros else own.float().mean(1, keepdim=True).to(own)
    out = embeddings.clone()
    out[:, chosen] = _between(stand_in, own, gate(z, index[chosen]).to(own.device)[..., None])
    return out


def _between(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """In float32: half precision would round small steps away. `lerp` is exact at both ends."""
    return torch.lerp(*torch.broadcast_tensors(start.float(), end.float(), share)).to(end.dtype)
