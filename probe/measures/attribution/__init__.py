"""What an answer owes to parts of the image and words of the prompt, beside the attention that they
got.

    found = probe.attribute(subject, "cat.jpg", "What is on the mat?", over="grid")
    found["attribution"]                       # (feature): nats of the answer's log-probability
    probe.plots.agreement(found)               # does attention say the same?

| file | what |
|---|---|
| `regions.py`, `words.py` | what one feature is: patches, cells, masks; words |
| `features.py` | all of them as one vector: which tokens and which pixels are whose |
| `baselines.py` | what stands in for what is taken away |
| `perturbing.py` | f(z): the model with features partly taken away |
| `shared.py` | the same on a prefix that all ablations share, where that is exact |
| `methods.py` | ablation, Shapley values, integrated gradients (captum), gradient x attention |
| `attention.py` | mass, lift, received and contribution of the same features |
| `curves.py` | deletion and insertion: features taken away, or given, in the order of a score |
| `randomised.py` | the same model with shuffled weights, which knows nothing: the control |
| `attributing.py`, `table.py` | `attribute`, and its dataset |
"""

from probe.measures.attribution.attribute import attribute
from probe.measures.attribution.deletion_curves import deletion_curves

__all__ = ["attribute", "deletion_curves"]
