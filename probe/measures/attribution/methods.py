"""Four methods of attribution, all of one function f(z) of one vector (`perturbed_model.py`); three
of them are captum's.

    ablation                what the answer loses when one feature is ablated
    shapley                 the same, averaged over the orders in which features are ablated
    integrated_gradients    the gradient along the straight line from z = 0 to z = 1; sums to
                            f(1) - f(0)
    gradient_x_attention    Σ over text queries and heads of a_ij ∂f/∂a_ij in each layer, by one
                            backward pass

captum's own multimodal path is not used: its `LLMAttribution` silently never passes the image to
transformers 5.

Source: captum (FeatureAblation, ShapleyValueSampling, IntegratedGradients); arXiv 1703.01365
(integrated gradients); arXiv 2103.15679 (gradient x attention; here with its sign, not clamped).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from captum.attr import FeatureAblation, IntegratedGradients, ShapleyValueSampling
from jaxtyping import Float
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output
from probe.interventions.attention_edits import replace_keys_values
from probe.measures.attribution.features import Features
from probe.measures.attribution.perturbed_model import PerturbedModel

LogProb = Callable[[Float[Tensor, "batch feature"]], Float[Tensor, "batch chosen"]]  # f(z)
COMPLETE = ("shapley", "integrated_gradients")  # their attributions sum to f(1) - f(0)


@dataclass(frozen=True)
class Plan:
    """How a method samples f. `batch`: vectors z in one forward."""

    batch: int
    steps: int
    samples: int
    seed: int


def evaluations(method: str, features: int, plan: Plan) -> int:
    """The number of vectors z that a method evaluates f for."""
    return {
        "ablation": features + 1,
        "shapley": plan.samples * features + 1,
        "integrated_gradients": plan.steps + 2,
    }.get(method, 1)


def ablation(f: LogProb, features: int, plan: Plan) -> Float[Tensor, "chosen feature"]:
    """f(1) - f(1 without the feature)."""
    method = FeatureAblation(f)
    effects = method.attribute(
        torch.ones(1, features), baselines=0, perturbations_per_eval=plan.batch
    )
    return effects.reshape(-1, features)


def shapley(f: LogProb, features: int, plan: Plan) -> Float[Tensor, "chosen feature"]:
    """Shapley values, sampled over `plan.samples` orders."""
    method = ShapleyValueSampling(f)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        effects = method.attribute(
            torch.ones(1, features),
            baselines=0,
            n_samples=plan.samples,
            perturbations_per_eval=plan.batch,
        )
    return effects.reshape(-1, features)


def integrated_gradients(f: LogProb, features: int, plan: Plan) -> Float[Tensor, "1 feature"]:
    """Of the chosen tokens together: for each token apart it would need a backward pass."""
    method = IntegratedGradients(lambda z: f(z).sum(-1))
    effects: Any = method.attribute(
        torch.ones(1, features),
        baselines=0.0,
        n_steps=plan.steps,
        internal_batch_size=plan.batch,
    )
    return effects.float()


METHODS = {"ablation": ablation, "shapley": shapley, "integrated_gradients": integrated_gradients}
GRADIENT_X_ATTENTION = "gradient_x_attention"


def gradient_x_attention(
    perturbed: PerturbedModel, features: Features
) -> Float[Tensor, "layer feature"]:
    """Multiplies what text reads of each key by a gate of 1. The gradient of the gate is
    Σ a_ij ∂f/∂a_ij, so no attention map is needed.
    """
    target = perturbed.target
    layers = len(perturbed.target.layers)
    gates = torch.ones(layers, len(features.tokens), requires_grad=True)

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        sequence = perturbed.sequences.running()
        of_layer = gates[target.layer_of(call.name)].to(call.value)
        value = call.value * of_layer[None, None, :, None]
        return replace_keys_values(call, kernel, ~sequence.vision, value=value)

    with torch.enable_grad(), perturbed.sequences.followed(), target.routed(around):
        logprob = perturbed(torch.ones(1, len(features))).sum()
        of_keys = None
        if logprob.requires_grad:
            (of_keys,) = torch.autograd.grad(logprob, gates, allow_unused=True)
    if of_keys is None:
        refuse_without_gradient("attribute")
    # Keys without a feature (-1) are summed into a last column, which is dropped.
    columns = len(features) + 1
    column = features.tokens % columns
    of_features = of_keys.new_zeros(layers, columns).index_add(1, column, of_keys)
    return of_features[:, :-1]


def refuse_without_gradient(called: str) -> NoReturn:
    """Raises ProbeError for a model through which no gradient comes back (4 bits on a CPU)."""
    raise ProbeError(
        called,
        expected="a model with gradients, for a method that needs them",
        got="none: products of its weights have no gradient here",
        fix="use method='ablation', or load the model without quantization",
    )
