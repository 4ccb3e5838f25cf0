import models
import torch


def overflowing(at=1):
    """A float16 model whose hidden states overflow from a layer on; in bfloat16 or float32 they
    would not.
    """
    model, processor = models.llava_llama3()
    model = model.half()
    with torch.no_grad():
        for layer in model.model.language_model.layers[at:]:
            layer.mlp.down_proj.weight.mul_(3e5).clamp_(-6e4, 6e4)
            layer.mlp.up_proj.weight.mul_(50)
    return model, processor
