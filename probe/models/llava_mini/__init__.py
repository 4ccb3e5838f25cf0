"""LLaVA-Mini as a native transformers model: one vision token per image, fused with the text before
the LLM.

    model = from_original(state_dict, config, vision_config)
    model(input_ids=ids, pixel_values=pixels)

Importing it makes the model known to transformers' Auto classes, so `from_pretrained` works on a
saved folder.

    configuration  what it is made of, and its variants
    vision         pixels -> patches -> compressed tokens
    compressor     C x C queries look at the patches
    prefusion      the text reads the image, before the LLM
    reading        ... for every frame of a batch, averaged
    fusing         a few frames at a time, up to the LLM
    layout         whose images and frames these are
    encoding       what all questions about an image share
    in_llm         the variant that does both inside the LLM
    modeling       the whole
    generation     ... and its answers
    shards         weight files, one at a time
    conversion     the authors' names and config
    folder         the authors' folder, as a native one
    pixels         images and videos as views
    prompts        chat templates
    processing     images, videos and words -> inputs
    initialisation a LLaVA-Mini made of a LLaVA
    batches        training data -> batches
    training       its two stages
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.conversion import from_original
from probe.models.llava_mini.encoding import EncodedVision
from probe.models.llava_mini.folder import convert, is_original, load_original
from probe.models.llava_mini.modeling import LlavaMiniForConditionalGeneration, LlavaMiniModel
from probe.models.llava_mini.processing import LlavaMiniProcessor
from probe.models.llava_mini.weight_files import CheckpointError

AutoConfig.register("llava_mini", LlavaMiniConfig, exist_ok=True)
AutoModel.register(LlavaMiniConfig, LlavaMiniModel, exist_ok=True)
AutoModelForImageTextToText.register(
    LlavaMiniConfig, LlavaMiniForConditionalGeneration, exist_ok=True
)
AutoProcessor.register(LlavaMiniConfig, LlavaMiniProcessor, exist_ok=True)

__all__ = [
    "LlavaMiniConfig",
    "LlavaMiniModel",
    "LlavaMiniForConditionalGeneration",
    "LlavaMiniProcessor",
    "EncodedVision",
    "from_original",
    "load_original",
    "convert",
    "is_original",
    "CheckpointError",
]
