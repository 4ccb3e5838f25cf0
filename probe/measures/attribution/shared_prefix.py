"""Ablations on a shared prefix: what no ablation of a batch changes is computed once.

By causality a position depends only on what stands before it. So the keys and values of the
untouched prompt serve every ablation up to the first position that it changes, and only the
positions behind are run again:

    "hidden"         vision rows never change: from the first text behind the region on
    "rows", "zero"   from the region's first vision token on
    words            from the word on

The 144 cells of a 576-token image with 45 tokens of text behind it take 144 x 45 rows when hidden,
not 144 x 621. That it is exact for a model is tried out first (`interventions/sweep/sharing.py`);
where it is not, the forward is whole. Queries of vision rows are never among those that cannot see
something hidden.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.model_state import active_interventions, active_reducers
from probe.hooks.model_structure import LayerStack, stacks
from probe.interventions.sweep.prefix_attention import KeyValue
from probe.measures.attribution.baselines import Perturbation
from probe.measures.attribution.perturbed_model import blend, gate
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix
from probe.subject.prefix_check import verdict
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse


class SharedPrefix:
    """f(z) of `Perturbed`, without gradients. `rows_run` counts the token rows that went through
    the decoder.
    """

    def __init__(
        self,
        subject: Subject,
        answer: TargetResponse,
        removal: Perturbation,
        prompt: EmbeddedPrompt,
        keys: Mapping[str, KeyValue],
    ):
        self.model, self.answer, self.removal = subject.model, answer, removal
        self.prompt, self.keys = prompt, keys
        self.attention = stacks(subject.model)["llm"].attention
        self.vision = prompt.vision.cpu()
        self.rows_run = len(prompt.ids)

    @classmethod
    @torch.no_grad()
    def of(
        cls, subject: Subject, answer: TargetResponse, removal: Perturbation
    ) -> "SharedPrefix | str":
        """Or why nothing can be shared exactly."""
        if now := active_interventions(subject.model) or active_reducers(subject.model):
            return f"the model is under {now}"
        if removal.pixels is not None or removal.layers:
            return "the vision rows change" if removal.pixels is not None else "every layer changes"
        stack, prompt = (
            stacks(subject.model)["llm"],
            EmbeddedPrompt.of(subject.model, answer.inputs),
        )
        if reason := _plain(subject, prompt):
            return reason
        reason = "its attention has a window shorter than the prompt"
        with suppress(ProbeError):
            reason = _judged(subject, stack, answer, prompt)
        if reason:
            return reason
        return cls(
            subject,
            answer,
            removal,
            prompt,
            ImagePrefix.of(subject.model, stack, prompt, len(prompt.ids)).keys,
        )

    @torch.no_grad()
    def __call__(self, z: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch chosen"]:
        start, device = self._first_changed(z), self.prompt.embeddings.device
        everything = self.prompt.embeddings.expand(len(z), -1, -1)
        for which in (self.vision, ~self.vision):
            everything = blend(
                everything, z, torch.where(which, self.removal.blended, -1), self.removal.zeros
            )
        visible = self._visible(z, start).to(device)
        self.rows_run += len(z) * (len(self.vision) - start)

        def around(call: AttentionCall, kernel: Kernel) -> Output:
            before = (
                part[None, :, :start].expand(len(z), -1, -1, -1) for part in self.keys[call.name]
            )
            key, value = (
                torch.cat([old, new], 2)
                for old, new in zip(before, (call.key, call.value), strict=True)
            )
            return _attend(replace(call, key=key, value=value), visible), None

        decoder: Any = self.model.get_decoder()
        with routed(self.attention, around):
            hidden = decoder(
                inputs_embeds=everything[:, start:],
                position_ids=self.prompt.positions[..., start:],
                use_cache=False,
            ).last_hidden_state
        head: Any = self.model.get_output_embeddings()
        return self.answer.logprob(head(hidden[:, -self.answer.kept :])).cpu()

    def _first_changed(self, z: Tensor) -> int:
        """The first position that any of these ablations changes; at most the one that says the
        answer.
        """
        moved = (gate(z, self.removal.blended) != 1).any(0)
        gone = (gate(z, self.removal.hidden) < 0.5).any(0)
        readers = (gone.cumsum(0) > 0) & ~self.vision
        changed = (moved | readers).nonzero()[:, 0].tolist()
        return min([len(self.vision) - self.answer.kept, *changed[:1]])

    def _visible(self, z: Tensor, start: int) -> Bool[Tensor, "batch 1 query key"]:
        length = len(self.vision)
        causal = torch.ones(length - start, length, dtype=torch.bool).tril(start)
        gone = gate(z, self.removal.hidden) < 0.5
        seen = causal & ~(gone[:, None] & ~self.vision[start:, None])
        itself = torch.eye(length, dtype=torch.bool)[start:]
        return (seen | (itself & ~seen.any(-1, keepdim=True)))[
            :, None
        ]  # nobody is left without any key


def _attend(call: AttentionCall, visible: Bool[Tensor, "batch 1 query key"]) -> Tensor:
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (call.key, call.value))
    out = scaled_dot_product_attention(
        call.query, key, value, attn_mask=visible, scale=call.scaling
    )
    return out.transpose(1, 2).contiguous()


def _plain(subject: Subject, prompt: EmbeddedPrompt) -> str:
    """LLaVA-Mini's words have read the image before the decoder gets them: they cannot be changed
    there.
    """
    words: Any = subject.model.get_input_embeddings()
    text = ~prompt.vision
    same = torch.equal(words(prompt.ids[text]), prompt.embeddings[0, text])
    return "" if same else "its decoder is given more than embedded words"


def _judged(
    subject: Subject, stack: LayerStack, answer: TargetResponse, prompt: EmbeddedPrompt
) -> str:
    prefix = ImagePrefix.of(subject.model, stack, prompt)
    return verdict(subject.model, stack, answer.inputs, prompt, prefix).reason
