"""Checkpoints in their authors' own layout: LLaVA-Mini's and its trained rivals'.

    model, processor = load_original("MQT-LLaVA-7b")
    convert("MQT-LLaVA-7b", "mqt-native")               # memory: one shard

layout        how the authors of one model name tensors and fields
llava_names   what the layouts of all LLaVA's descendants share
shapes        which tensors are missing, surplus or misshapen
weight_files  weight files, read one at a time
folder        a folder: what is in it, as a model, converted
layouts       every layout, and which of them a folder has
"""

from probe.models.original.folder import convert, examine, load_original
from probe.models.original.weight_files import CheckpointError

__all__ = ["CheckpointError", "convert", "examine", "load_original"]
