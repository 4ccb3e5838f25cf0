"""Flow maps: what reaches the answer from each patch, followed through the layers without an S×S
map.

    dataset = probe.flow(subject, "cat.jpg", "What is on the mat?", method="rollout")
    dataset["attribution"]                     # (feature): a score a patch
    probe.plots.agreement({"ablation": probe.attribute(...), "rollout": dataset})

The datasets are those of `probe.attribute`: plots and deletion curves take both.

| file | what |
|---|---|
| `observed_pass.py` | one forward (and backward): the attention calls of the LLM, and gradients |
| `streamed_flow.py` | rows times attention maps, of which some rows exist at a time |
| `rollout.py` | attention rollout |
| `gradient_rollout.py` | attention weighted by its gradient, rolled out |
| `grad_cam.py` | Grad-CAM on the vision tokens that the LLM gets |
| `contribution.py` | norms of what the patches add to the rows that predict the answer |
| `flow.py` | `flow`: the methods as datasets |
"""

from probe.measures.flow.flow import flow

__all__ = ["flow"]
