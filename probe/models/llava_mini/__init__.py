"""LLaVA-Mini as a native transformers model: one vision token per image, fused with the text before the LLM.

    model = from_original(state_dict, config, vision_config)     # or AutoModelForImageTextToText.from_pretrained(folder)
    model(input_ids=ids, pixel_values=pixels)

    configuration  what it is made of, and its variants
    vision         pixels -> patches -> compressed tokens
    compressor     C x C queries look at the patches
    prefusion      the text reads the image, before the LLM
    reading        ... for every frame of a batch, averaged
    layout         whose images and frames these are
    encoding       what all questions about an image share
    modeling       the whole
    conversion     the authors' names and config
    folder         the authors' folder, shard by shard
    pixels         pictures and videos as views
    prompts        chat templates
    processing     pictures, videos and words -> inputs
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration import LlavaMiniConfig
from .conversion import from_original
from .encoding import EncodedVision
from .folder import convert, is_original, load_original
from .modeling import LlavaMiniForConditionalGeneration, LlavaMiniModel
from .processing import LlavaMiniProcessor

AutoConfig.register("llava_mini", LlavaMiniConfig, exist_ok=True)
AutoModel.register(LlavaMiniConfig, LlavaMiniModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaMiniConfig, LlavaMiniForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavaMiniConfig, LlavaMiniProcessor, exist_ok=True)
