"""What a model costs: floating-point operations by component, cache, and (measured) time and
memory.

    costs = probe.cost("tiny-llava", vision_tokens=9)          # counted from shapes: no weights, no kernel, any config
    costs["flops"].sum("operation")                            # by component
    probe.cost(subject, measure=5)["latency"]                  # seconds to the first token, on this machine
    table(join([probe.cost(config, frames=n) for n in (1, 10, 100)]))

One call is one case; `join` puts cases side by side, `table` makes rows of them,
`probe.plots.flops`, `latency` and `memory` draw them.

| file | what |
|---|---|
| `estimate.py` | `cost` |
| `skeleton.py` | a model of a config, without weights |
| `prompt.py` | the image, the video and the words that the cost is of |
| `counting.py` | operations and cache, component by component |
| `prefused.py` | ... of what a LLaVA-Mini does between encoder and LLM |
| `measuring.py` | time and memory |
| `formula.py` | the cost formula of the token reducers' papers |
| `dataset.py` | the labelled dataset; `join`, `table`, `write`, `read` |
"""

from probe.measures.cost.cost import cost
from probe.measures.cost.dataset import join, read, table, write
from probe.measures.cost.formula import formula_flops
from probe.measures.cost.meta_model import own_view

__all__ = ["cost", "join", "table", "write", "read", "formula_flops", "own_view"]
