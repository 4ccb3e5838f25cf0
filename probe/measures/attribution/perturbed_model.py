"""The model with features ablated: f(z), the log-probability of the answer where feature k counts
z_k.

z is 1 where a feature is unchanged and 0 where its baseline is (`baselines.py`); between them, on
the straight line. So ablation, Shapley values and integrated gradients are all of one function of
one vector, over regions and words alike, and captum needs to know nothing of the model. Integrating
over z gives what integrating over the embeddings (or pixels) gives, summed over each feature.

    perturbed = PerturbedModel(subject, answer, perturbation)
    perturbed(torch.ones(1, len(features)))              # (1, token): the unchanged model's
    perturbed(1 - torch.eye(len(features)))              # each feature ablated alone, in one batch

The forward is the model's own, with hooks on its word embedding, on the input of its decoder and on
its attention: it works for any model of the family and composes with every intervention and
reducer.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.decoder_arguments import (
    given_embeddings,
    layer_features,
    with_layer_features,
)
from probe.hooks.model_structure import stacks, text_decoder
from probe.hooks.tracked_sequence import ForwardTracker
from probe.hooks.whole_layers import last_logits
from probe.interventions.attention_edits import mask_keys, replace_keys_values
from probe.interventions.layer_target import LayerTarget
from probe.measures.attribution.baselines import Perturbation
from probe.measures.attribution.features import NO_FEATURE
from probe.subject.batch_trial import reads_rows_alone
from probe.subject.joined_pixels import in_one_batch
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

Wrapper = Callable[[AttentionCall, Kernel], Output]


class PerturbedModel:
    """f(z) by whole forwards."""

    def __init__(self, subject: Subject, answer: TargetResponse, perturbation: Perturbation):
        self.model = subject.model
        self.answer = answer
        self.perturbation = perturbation
        self.is_vision = torch.from_numpy(answer.inputs.types.vision[0])
        self.options = last_logits(subject.model, answer.kept)

    @cached_property
    def target(self) -> LayerTarget:
        """All layers of the LLM, whose attention some perturbations change. Raises ProbeError where
        words read images by cross-attention.
        """
        layers = range(len(stacks(self.model)["llm"].layers))
        return LayerTarget.of("attribute", self.model, layers)

    @cached_property
    def sequences(self) -> ForwardTracker:
        """Which positions of the running sequence are vision."""
        return self.target.sequences()

    def __call__(self, z: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch chosen"]:
        perturbation = self.perturbation
        row = self.answer.inputs
        if len(z) > 1 and not reads_rows_alone(self.model, row):
            return torch.cat([self(one[None]) for one in z])
        inputs = {
            # a copy for each row: models may look at their inputs by `view`
            name: in_one_batch(row, name, tensor[None].repeat(len(z), *[1] * tensor.ndim))
            for name, tensor in row.items()
        }
        regions = perturbation.pixels
        baseline = perturbation.baseline_pixels
        if regions is not None and baseline is not None:
            pixels = row[regions.name]
            share = gate(z, regions.of_pixel).unsqueeze(regions.axis).to(pixels.device)
            blended = _between(baseline.to(pixels), pixels, share)
            inputs[regions.name] = in_one_batch(row, regions.name, blended)
        with self._hooked(z):
            logits = self.model(**inputs, use_cache=False, **self.options).logits
        return self.answer.logprob(logits).cpu()

    @model_block
    def _hooked(self, z: Tensor) -> Iterator[None]:
        perturbation = self.perturbation
        zeros = self.perturbation.zeros
        word_embedding: Any = self.model.get_input_embeddings()
        decoder: Any = text_decoder(self.model)
        words = torch.where(self.is_vision, NO_FEATURE, perturbation.blended)
        vision = torch.where(self.is_vision, perturbation.blended, NO_FEATURE)

        def blend_words(module: Any, args: tuple, output: Tensor) -> Tensor | None:
            is_prompt = output.shape[1] == len(words)
            return blend(output, z, words, zeros) if is_prompt else None

        def blend_vision(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            embeddings = given_embeddings("attribute", decoder, kwargs)
            embeddings = blend(embeddings, z, vision, zeros)
            of_tokens = vision[self.is_vision]
            features = {}
            for place, part in layer_features(kwargs).items():
                rows = part.unflatten(0, (len(z), -1))
                features[place] = blend(rows, z, of_tokens, zeros).flatten(0, 1)
            kwargs = with_layer_features(kwargs, features)
            return args, kwargs | {"inputs_embeds": embeddings}

        with ExitStack() as undo:
            if (words >= 0).any():
                add_hook(undo, word_embedding.register_forward_hook, blend_words, always=True)
            if (vision >= 0).any():
                options = {"with_kwargs": True, "always": True}
                add_hook(undo, decoder.register_forward_pre_hook, blend_vision, **options)
            if perturbation.layers or (perturbation.hidden >= 0).any():
                self.target.refuse_flash()
                undo.enter_context(self.sequences.followed())
                around = self._scale_layers(z) if perturbation.layers else self._mask_hidden(z)
                undo.enter_context(self.target.routed(around, reports=False))
            yield

    def _mask_hidden(self, z: Tensor) -> Wrapper:
        is_hidden = gate(z, self.perturbation.hidden) < 0.5

        def around(call: AttentionCall, kernel: Kernel) -> Output:
            sequence = self.sequences.running()
            keys = is_hidden.to(sequence.vision.device)
            return kernel(mask_keys(call, sequence, ~sequence.vision, keys))

        return around

    def _scale_layers(self, z: Tensor) -> Wrapper:
        """What text reads of vision in a layer counts z times."""

        def around(call: AttentionCall, kernel: Kernel) -> Output:
            sequence = self.sequences.running()
            is_vision = sequence.vision.to(call.value.device)[:, None, :, None]
            layer = self.target.layer_of(call.name)
            share = z[:, layer].to(call.value)[:, None, None, None]
            value = torch.where(is_vision, call.value * share, call.value)
            return replace_keys_values(call, kernel, ~sequence.vision, value=value)

        return around


def gate(
    z: Float[Tensor, "batch feature"], index: Int[Tensor, "*place"]
) -> Float[Tensor, "batch *place"]:
    """z of the feature at each place, 1 where there is none (index -1)."""
    return torch.cat([z, z.new_ones(len(z), 1)], 1)[:, index]


def blend(
    embeddings: Float[Tensor, "batch token width"],
    z: Float[Tensor, "batch feature"],
    index: Int[Tensor, " token"],
    zeros: bool,
) -> Float[Tensor, "batch token width"]:
    """Embeddings between their baseline (z = 0: the mean of all that have a feature here, or 0) and
    themselves (z = 1).
    """
    has_feature = index >= 0
    if not has_feature.any():
        return embeddings
    original = embeddings[:, has_feature]
    baseline = torch.zeros_like(original)
    if not zeros:
        baseline = original.float().mean(1, keepdim=True).to(original)
    share = gate(z, index[has_feature]).to(original.device)[..., None]
    blended = embeddings.clone()
    blended[:, has_feature] = _between(baseline, original, share)
    return blended


def _between(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """In float32, because half precision would round small steps away; exact at both ends."""
    return torch.lerp(*torch.broadcast_tensors(start.float(), end.float(), share)).to(end.dtype)
