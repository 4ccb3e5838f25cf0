"""Trained rivals of LLaVA-Mini that have public code: one paper, one file.

    model = mqt.from_original(state_dict, config, vision_config)
    model.vision_tokens(pixel_values, num_visual_tokens=36)
    subject = probe.load("MQT-LLaVA-7b")                 # the authors' folder

Importing this package registers the models with transformers' Auto classes, so that
`from_pretrained` opens a saved folder.

    base          vision tower, compressor, LLM; placeholders; generation
    processing    images and text -> inputs
    mqt           MQT-LLaVA: any number of queries
    tokenpacker   TokenPacker: a query for each region; tokenpacker_tiles: in high resolution
    voco          VoCo-LLaMA: the LLM compresses, by its mask
    llama_vid     LLaMA-VID: the question asks each frame; llama_vid_model, llama_vid_processing,
                  question_compressor
"""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from probe.models.rivals import llama_vid, mqt, tokenpacker, voco
from probe.models.rivals.llama_vid_model import LlamaVidForConditionalGeneration
from probe.models.rivals.llama_vid_processing import LlamaVidProcessor
from probe.models.rivals.processing import RivalProcessor
from probe.models.rivals.tokenpacker_tiles import TokenPackerProcessor

for model, processor in (
    (mqt.MqtForConditionalGeneration, RivalProcessor),
    (tokenpacker.TokenPackerForConditionalGeneration, TokenPackerProcessor),
    (voco.VocoForConditionalGeneration, RivalProcessor),
    (LlamaVidForConditionalGeneration, LlamaVidProcessor),
):
    config: Any = model.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model.MODEL, exist_ok=True)
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
    AutoProcessor.register(config, processor, exist_ok=True)

__all__ = ["llama_vid", "mqt", "tokenpacker", "voco"]
