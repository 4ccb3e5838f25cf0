"""The one-line formula of papers on token reducers, to compare ratios with."""

from collections.abc import Sequence


def formula_flops(tokens: Sequence[int], hidden_size: int, intermediate_size: float) -> float:
    """The cost of a prefill by the formula of papers on token reducers. `tokens`: in each LLM
    layer, text included.

        layer = 4 n d² + 2 n² d + 2 n d m       n tokens, d hidden size, m feed-forward size

    It counts a multiply-add as one, two feed-forward matrices (Llama has three), four square
    projections (grouped queries have smaller ones), and neither vision encoder nor head. Compare
    its ratios, never its value, with counted operations.

    >>> formula_flops([10, 10], hidden_size=8, intermediate_size=16)
    13440.0

    Source: VisionZip (arXiv 2412.04467); FastV (arXiv 2403.06764) has the same.
    """
    d = hidden_size
    m = intermediate_size
    total = 0.0
    for n in tokens:
        projections = 4 * n * d**2
        attention = 2 * n**2 * d
        feed_forward = 2 * n * d * m
        total += projections + attention + feed_forward
    return total
