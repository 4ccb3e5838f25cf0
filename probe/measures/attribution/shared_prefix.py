"""Ablations on a shared prefix: what no ablation of a batch changes is computed once.

By causality a position depends only on earlier positions. So the keys and values of the unmodified
prompt serve every ablation up to the first position that it changes, and only later positions are
computed again:

    "hidden"         vision tokens never change: from the first text token after the region on
    "rows", "zero"   from the region's first vision token on
    words            from the word on

The 144 cells of a 576-token image followed by 45 text tokens take 144 x 45 token rows when hidden,
not 144 x 621. Whether this is exact for a model is checked first (`probe/subject/prefix_check.py`);
where it is not, whole forwards are run. Vision queries are never masked; only text queries are.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.model_state import active_interventions, active_reducers
from probe.hooks.model_structure import cross_attention, output_head, stacks, text_decoder
from probe.interventions.sweep.case_batch import untouched_logits
from probe.measures.attribution.baselines import Perturbation
from probe.measures.attribution.features import NO_FEATURE
from probe.measures.attribution.perturbed_model import blend, gate
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix, KeyValue
from probe.subject.prefix_check import check_sharing
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse


class SharedPrefix:
    """f(z) of `PerturbedModel`, without gradients. `rows_run` counts the token rows that went
    through the decoder.
    """

    def __init__(
        self,
        subject: Subject,
        answer: TargetResponse,
        perturbation: Perturbation,
        prompt: EmbeddedPrompt,
        keys: Mapping[str, KeyValue],
    ):
        self.model = subject.model
        self.answer = answer
        self.perturbation = perturbation
        self.prompt = prompt
        self.keys = keys
        self.attention = stacks(subject.model)["llm"].attention
        self.is_vision = prompt.vision.cpu()
        self.rows_run = len(prompt.ids)

    @classmethod
    @torch.no_grad()
    def of(
        cls, subject: Subject, answer: TargetResponse, perturbation: Perturbation
    ) -> "SharedPrefix | str":
        """The shared prefix, or the reason why nothing can be shared exactly."""
        model = subject.model
        if active := active_interventions(model) or active_reducers(model):
            return f"the model is under {active}"
        if perturbation.pixels is not None:
            return "the vision rows change"
        if perturbation.layers:
            return "every layer changes"
        if cross_attention(model):
            return "words read the image by cross-attention"
        stack = stacks(model)["llm"]
        try:
            prompt = EmbeddedPrompt.of(model, answer.inputs)
        except ProbeError as error:  # a decoder that is given more
            return f"its LLM is given {error.got}"
        if not _is_embedded_text(subject, prompt):
            return "its decoder is given more than embedded words"
        reason = "its attention has a window shorter than the prompt"
        with suppress(ProbeError):
            prefix = ImagePrefix.of(model, stack, prompt)
            logits = partial(untouched_logits, model, stack, prompt, prefix)
            reason = check_sharing(model, stack, answer.inputs, logits, prefix).reason
        if reason:
            return reason
        keys = ImagePrefix.of(model, stack, prompt, len(prompt.ids)).keys
        return cls(subject, answer, perturbation, prompt, keys)

    @torch.no_grad()
    def __call__(self, z: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch chosen"]:
        start = self._first_changed(z)
        device = self.prompt.embeddings.device
        perturbation = self.perturbation
        embeddings = self.prompt.embeddings.expand(len(z), -1, -1)
        for tokens in (self.is_vision, ~self.is_vision):
            index = torch.where(tokens, perturbation.blended, NO_FEATURE)
            embeddings = blend(embeddings, z, index, perturbation.zeros)
        visible = self._visible(z, start).to(device)
        self.rows_run += len(z) * (len(self.is_vision) - start)

        def after_prefix(shared: Tensor, own: Tensor) -> Tensor:
            in_each_row = shared[None, :, :start].expand(len(z), -1, -1, -1)
            return torch.cat([in_each_row, own], 2)

        def around(call: AttentionCall, kernel: Kernel) -> Output:
            shared_key, shared_value = self.keys[call.name]
            key = after_prefix(shared_key, call.key)
            value = after_prefix(shared_value, call.value)
            return _attend(replace(call, key=key, value=value), visible), None

        decoder: Any = text_decoder(self.model)
        head: Any = output_head(self.model)
        with routed(self.attention, around):
            hidden = decoder(
                inputs_embeds=embeddings[:, start:],
                position_ids=self.prompt.positions[..., start:],
                use_cache=False,
            ).last_hidden_state
        return self.answer.logprob(head(hidden[:, -self.answer.kept :])).cpu()

    def _first_changed(self, z: Float[Tensor, "batch feature"]) -> int:
        """The first position that any of these ablations changes; at most the one that predicts the
        answer.
        """
        blending_gate = gate(z, self.perturbation.blended)
        hiding_gate = gate(z, self.perturbation.hidden)
        is_blended = (blending_gate != 1).any(0)
        is_hidden = (hiding_gate < 0.5).any(0)
        follows_hidden = (is_hidden.cumsum(0) > 0) & ~self.is_vision
        changed = (is_blended | follows_hidden).nonzero()[:, 0].tolist()
        predicts_answer = len(self.is_vision) - self.answer.kept
        return min(predicts_answer, changed[0]) if changed else predicts_answer

    def _visible(
        self, z: Float[Tensor, "batch feature"], start: int
    ) -> Bool[Tensor, "batch 1 query key"]:
        """What the queries from `start` on see. A query that would see nothing sees itself."""
        length = len(self.is_vision)
        causal = torch.ones(length - start, length, dtype=torch.bool).tril(start)
        is_hidden = gate(z, self.perturbation.hidden) < 0.5  # (batch, key)
        is_text_query = ~self.is_vision[start:, None]
        hidden_from_query = is_hidden[:, None] & is_text_query
        visible = causal & ~hidden_from_query
        sees_nothing = ~visible.any(-1, keepdim=True)
        itself = torch.eye(length, dtype=torch.bool)[start:]
        visible |= itself & sees_nothing
        return visible[:, None]


def _attend(call: AttentionCall, visible: Bool[Tensor, "batch 1 query key"]) -> Tensor:
    groups = call.query.shape[1] // call.key.shape[1]
    key = call.key.repeat_interleave(groups, 1)
    value = call.value.repeat_interleave(groups, 1)
    output = scaled_dot_product_attention(
        call.query, key, value, attn_mask=visible, scale=call.scaling
    )
    return output.transpose(1, 2).contiguous()


def _is_embedded_text(subject: Subject, prompt: EmbeddedPrompt) -> bool:
    """Whether the decoder gets plain word embeddings. LLaVA-Mini's have been fused with the image
    before, so they cannot be changed there.
    """
    embed: Any = subject.model.get_input_embeddings()
    is_text = ~prompt.vision
    return torch.equal(embed(prompt.ids[is_text]), prompt.embeddings[0, is_text])
