"""Trained rivals of LLaVA-Mini that have public code: one paper, one file.

model = mqt.from_original(state_dict, config, vision_config)
model.vision_tokens(pixel_values, num_visual_tokens=36)

base              vision tower, compressor, LLM; placeholders; generation
original_format   the authors' names and fields
mqt               MQT-LLaVA: any number of queries
tokenpacker       TokenPacker: a query for each region
voco              VoCo-LLaMA: the LLM compresses, by its mask
"""

from probe.models.rivals import llama_vid, mqt, tokenpacker, voco

__all__ = ["llama_vid", "mqt", "tokenpacker", "voco"]
