"""One forward over prompt and answer, as flow maps need it: the attention calls of the LLM, and
(with a backward pass) the gradient of the answer's log-probability in what each call gives.

    observed = ObservedPass.of(subject, answer, features, backward=False)
    observed.layers[-1]            # the last layer's call; two parts where it is edited

Kept are queries, keys, values and gradients: tokens × layers. A gradient in an attention weight is
∂f/∂a_ij = ∂f/∂o_i · v_j, with o_i = Σ_j a_ij v_j, so no map has to be kept for it.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.model_structure import stacks, text_decoder
from probe.measures.attribution.baselines import Perturbation
from probe.measures.attribution.features import NO_FEATURE, Features
from probe.measures.attribution.methods import refuse_without_gradient
from probe.measures.attribution.perturbed_model import PerturbedModel
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse


@dataclass(frozen=True)
class CallPart:
    """An attention call under what interventions made of it, without autograd graph. `gradient`: of
    the answer's log-probability in its output.
    """

    call: AttentionCall
    gradient: Float[Tensor, "1 query head dim"] | None

    @property
    def active(self) -> Bool[Tensor, "query"]:
        """The queries whose output is used."""
        if self.call.active_queries is not None:
            return self.call.active_queries[0]
        device = self.call.query.device
        return torch.ones(self.call.query_count, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class ObservedPass:
    """`embeddings`: what the LLM gets, one vector a token. Gradients are None without a backward
    pass.
    """

    answer: TargetResponse
    layers: list[list[CallPart]]  # from the first
    embeddings: Float[Tensor, "token width"]
    embedding_gradient: Float[Tensor, "token width"] | None
    logprob: Float[Tensor, " chosen"]

    @classmethod
    def of(
        cls,
        subject: Subject,
        answer: TargetResponse,
        features: Features,
        backward: bool,
    ) -> "ObservedPass":
        """Raises ProbeError where the LLM's layers do not run on all tokens among themselves, and
        for attention that cannot be observed.
        """
        nothing = torch.full_like(features.tokens, NO_FEATURE)
        perturbed = PerturbedModel(subject, answer, Perturbation("none", nothing, nothing))
        observer = _Observer(subject, len(features.tokens))
        with torch.set_grad_enabled(backward), observer.attached():
            logprob = perturbed(torch.ones(1, len(features)))[0]
            together = logprob.sum()
        gradients: list[Tensor | None] = [None] * len(observer.zeros)
        if backward:
            if not together.requires_grad:
                refuse_without_gradient("flow")
            gradients = list(torch.autograd.grad(together, observer.zeros, allow_unused=True))
            if any(gradient is None for gradient in gradients):
                refuse_without_gradient("flow")
        layers: dict[str, list[CallPart]] = {}
        for call, gradient in zip(observer.calls, gradients[1:], strict=True):
            layers.setdefault(call.name, []).append(CallPart(call, gradient))
        at_input = None if gradients[0] is None else gradients[0][0].float()
        embeddings = observer.embeddings[0].float()
        return cls(answer, list(layers.values()), embeddings, at_input, logprob.detach())


class _Observer:
    """Keeps the calls, and adds zeros whose gradient is that of what they are added to: first to
    the LLM's input, then to the output of each call.
    """

    def __init__(self, subject: Subject, length: int):
        self.model, self.length = subject.model, length
        self.calls: list[AttentionCall] = []
        self.zeros: list[Tensor] = []
        self.embeddings: Tensor

    @model_block
    def attached(self) -> Iterator[None]:
        decoder: Any = text_decoder(self.model)
        attention = stacks(self.model)["llm"].attention
        with ExitStack() as undo:
            add_hook(undo, decoder.register_forward_pre_hook, self._note_input, with_kwargs=True)
            options: Any = {"innermost": True, "weights": self._refuse_weights}
            undo.enter_context(routed(attention, self._around, **options))
            yield

    def _note_input(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kwargs.get("inputs_embeds") is None:
            raise ProbeError(
                "flow",
                expected="an LLM that is given embeddings of all tokens",
                got=f"{type(module).__name__}, which embeds them itself",
            )
        self.embeddings = kwargs["inputs_embeds"].detach()
        return args, kwargs | {"inputs_embeds": self._with_zeros(kwargs["inputs_embeds"])}

    def _around(self, call: AttentionCall, kernel: Kernel) -> Output:
        output, weights = kernel(call)
        if not call.query_count == call.key_count == self.length:
            raise ProbeError(
                "flow",
                expected=f"attention among all {self.length} tokens of prompt and answer",
                got=f"{call.query_count} queries, {call.key_count} keys in {call.name}",
                fix="encode the image inside the reducer's block",
            )
        runs_again = call.name in (known.name for known in self.calls)
        if call.active_queries is None and runs_again:
            raise ProbeError(
                "flow",
                expected="layers that run once on each token",
                got=f"another call of {call.name}",
                fix="use probe.attribute(method='ablation')",
            )
        parts = {name: getattr(call, name).detach() for name in ("query", "key", "value")}
        self.calls.append(replace(call, **parts))
        return self._with_zeros(output), weights

    def _with_zeros(self, values: Tensor) -> Tensor:
        zeros = torch.zeros_like(values, requires_grad=torch.is_grad_enabled())
        self.zeros.append(zeros)
        return values + zeros if torch.is_grad_enabled() else values

    def _refuse_weights(self, call: AttentionCall | AttentionWeights) -> None:
        raise ProbeError(
            "flow",
            expected="attention through transformers' interface",
            got=call.name,
            fix="use probe.attribute(method='ablation')",
        )
