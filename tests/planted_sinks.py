"""Plants sinks in the planted model: a massive activation in a dimension nothing else uses, and
heads that love it.
"""

import torch

from probe.models.planted import AT, GRID, SHARP, Planted

MASSIVE = 1000.0


def with_sinks(known: Planted, patches: tuple[int, ...], bos: bool = True) -> Planted:
    """The model, changed in place: head 1 of every layer attends to these patches (and the first
    token) alone.
    """
    model, unused = known.model, AT["unused"]
    with torch.no_grad():
        marks = torch.full((GRID * GRID,), -1.0)
        marks[list(patches)] = 1.0
        embeddings = model.model.vision_tower.embeddings.position_embedding.weight
        embeddings[1:, 8], embeddings[1:, 9] = marks, -marks
        first, second = (
            model.model.multi_modal_projector.linear_1,
            model.model.multi_modal_projector.linear_2,
        )
        for unit, sign in ((8, 1), (9, -1)):
            first.weight[unit, 8], first.bias[unit] = 16.0, 0.5 * sign
            second.weight[unused, unit] = MASSIVE * sign
        if bos:
            model.get_input_embeddings().weight[known.processor.tokenizer.bos_token_id, unused] = (
                MASSIVE
            )
        for layer in model.get_decoder().layers:
            half = model.config.text_config.head_dim
            layer.self_attn.q_proj.weight[half + 2, AT["text"]] = SHARP
            layer.self_attn.q_proj.weight[half + 2, AT["vision"]] = SHARP
            layer.self_attn.k_proj.weight[half + 2, unused] = 1.0
    return known
