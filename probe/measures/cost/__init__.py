"""What a model costs: floating-point operations by component, cache, and (measured) time and
memory.

    costs = probe.cost("tiny-llava", vision_tokens=9)    # counted from shapes: no weights needed
    costs["flops"].sum("operation")                      # by component
    probe.cost(subject, measure=5)["latency"]            # seconds to the first token
    table(join([probe.cost(config, frames=n) for n in (1, 10, 100)]))

One call is one case; `join` combines cases, `table` makes rows of them, `probe.plots.flops`,
`latency` and `memory` draw them.

| file | what |
|---|---|
| `cost.py` | `cost` |
| `meta_model.py` | the model of a config, without weights |
| `prompt_shape.py` | the image or video and the number of words that a cost is of |
| `flop_count.py` | operations and cache of each component, as the config says |
| `own_prompt.py` | the same where only the processor knows what becomes of an image |
| `flop_meter.py`, `shapes_only.py` | counting, and running a model without weights |
| `formula.py` | the formula of reducers' papers |
| `timing.py` | time and memory |
| `dataset.py` | the labelled dataset; `join`, `table`, `write`, `read` |
"""

from probe.measures.cost.cost import cost
from probe.measures.cost.dataset import join, read, table, write
from probe.measures.cost.formula import formula_flops
from probe.measures.cost.meta_model import own_view

__all__ = ["cost", "join", "table", "write", "read", "formula_flops", "own_view"]
