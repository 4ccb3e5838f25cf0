"""Four methods of attribution, all of one function f(z) of one vector (`perturbing.py`); three of
them are captum's.

    ablation                how much the answer loses when a feature alone is taken away
    shapley                 the same, averaged over the orders in which features can be taken away
    integrated_gradients    the gradient along the way from nothing to everything: sums to what everything is worth
    gradient_x_attention    Σ over text queries and heads of a_ij ∂f/∂a_ij, layer by layer: one backward pass

captum's own multimodal path is not used: `LLMAttribution` never shows the image to transformers 5,
and says nothing.

Source: captum (FeatureAblation, ShapleyValueSampling, IntegratedGradients); arXiv 1703.01365
(integrated gradients); arXiv 2103.15679 (gradient x attention; here with its sign, not clamped).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from captum.attr import FeatureAblation, IntegratedGradients, ShapleyValueSampling
from jaxtyping import Float
from torch import Tensor

from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output
from probe.interventions.attention_edits import replace_keys_values
from probe.measures.attribution.features import Features
from probe.measures.attribution.perturbed_model import Perturbed

F = Callable[[Float[Tensor, "batch feature"]], Float[Tensor, "batch chosen"]]
COMPLETE = ("shapley", "integrated_gradients")  # their attributions sum to f(1) - f(0)


@dataclass(frozen=True)
class Plan:
    """How a method samples f. `batch`: rows of z in one forward."""

    batch: int
    steps: int
    samples: int
    seed: int


def forwards(method: str, features: int, plan: Plan) -> int:
    """Rows of z that a method asks for."""
    return {
        "ablation": features + 1,
        "shapley": plan.samples * features + 1,
        "integrated_gradients": plan.steps + 2,
    }.get(method, 1)


def ablation(f: F, features: int, plan: Plan) -> Float[Tensor, "chosen feature"]:
    ones = torch.ones(1, features)
    return (
        FeatureAblation(f)
        .attribute(ones, baselines=0, perturbations_per_eval=plan.batch)
        .reshape(-1, features)
    )


def shapley(f: F, features: int, plan: Plan) -> Float[Tensor, "chosen feature"]:
    ones = torch.ones(1, features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        found = ShapleyValueSampling(f).attribute(
            ones, baselines=0, n_samples=plan.samples, perturbations_per_eval=plan.batch
        )
    return found.reshape(-1, features)


def integrated_gradients(f: F, features: int, plan: Plan) -> Float[Tensor, "1 feature"]:
    """Of the chosen tokens together: each of them would need a backward pass of its own."""
    ones = torch.ones(1, features)
    method = IntegratedGradients(lambda z: f(z).sum(-1))
    return method.attribute(
        ones, baselines=0.0, n_steps=plan.steps, internal_batch_size=plan.batch
    ).float()  # pyright: ignore[reportReturnType]


METHODS = {"ablation": ablation, "shapley": shapley, "integrated_gradients": integrated_gradients}
GRADIENT_X_ATTENTION = "gradient_x_attention"


def gradient_x_attention(
    perturbed: Perturbed, features: Features
) -> Float[Tensor, "layer feature"]:
    """A gate on what text reads of each key: its gradient is Σ a_ij ∂f/∂a_ij, so no attention map
    is ever made.
    """
    target, layers = perturbed.target, len(perturbed.target.layers)
    gates = torch.ones(layers, len(features.tokens), requires_grad=True)

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = perturbed.sequences.running()
        share = gates[target.layer_of(call.name)].to(call.value)[None, None, :, None]
        return replace_keys_values(call, kernel, ~now.vision, value=call.value * share)

    with torch.enable_grad(), perturbed.sequences.followed(), target.routed(around):
        logprob = perturbed(torch.ones(1, len(features))).sum()
        (found,) = torch.autograd.grad(logprob, gates)
    summed = found.new_zeros(layers, len(features) + 1)
    return summed.index_add(1, features.tokens % (len(features) + 1), found)[:, :-1]
