"""How much an answer depends on parts of the image and words of the prompt, and the attention that
these received.

    dataset = probe.attribute(subject, "cat.jpg", "What is on the mat?", over="grid")
    dataset["attribution"]                     # (feature): nats of the answer's log-probability
    probe.plots.agreement(dataset)             # does attention agree?

| file | what |
|---|---|
| `regions.py`, `words.py` | what one feature is: patches, cells, masks; words |
| `features.py` | all of them as one vector: the tokens and pixels of each |
| `baselines.py` | the values of ablated features |
| `perturbed_model.py` | f(z): the model with features partly ablated |
| `shared_prefix.py` | the same on a prefix that all ablations share, where that is exact |
| `methods.py` | ablation, Shapley values, integrated gradients (captum), gradient x attention |
| `attention_per_feature.py` | mass, lift, received and contribution of the same features |
| `deletion_curves.py` | deletion and insertion: regions ablated, or restored, in a score's order |
| `weight_randomisation.py` | the same model with shuffled weights: the control |
| `attribute.py`, `dataset.py` | `attribute`, and its dataset |
"""

from probe.measures.attribution.attribute import attribute
from probe.measures.attribution.deletion_curves import deletion_curves

__all__ = ["attribute", "deletion_curves"]
