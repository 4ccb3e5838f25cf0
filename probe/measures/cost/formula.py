"""The cost formula that papers on token reducers print: one line, of the LLM's sizes and the tokens
of each layer.

    layer = 4 n d² + 2 n² d + 2 n d m         n tokens, d hidden size, m feed-forward size

It counts a multiply-add as one, two feed-forward matrices (Llama has three), four square
projections (grouped queries have smaller ones), and neither the vision encoder nor the head. So
compare its ratios, never its value, with counted operations.

Source: VisionZip (arXiv 2412.04467); FastV (arXiv 2403.06764) has the same.
"""

from collections.abc import Sequence


def formula_flops(tokens: Sequence[int], hidden_size: int, intermediate_size: int) -> float:
    """The formula's cost of a prefill. `tokens`: how many each LLM layer has, text included.

    >>> formula_flops([10, 10], hidden_size=8, intermediate_size=16)
    13440.0
    """
    d, m = hidden_size, intermediate_size
    return float(sum(4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m for n in tokens))
