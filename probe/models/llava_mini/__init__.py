"""LLaVA-Mini as a native transformers model: one vision token per image, fused with the text before
the LLM.

    model = from_original(state_dict, config, vision_config)
    model(input_ids=ids, pixel_values=pixels)

Importing this package registers the model with transformers' Auto classes, so that
`from_pretrained` opens a saved folder.

    configuration       fields and variants
    vision              pixels -> patches -> compressed tokens
    compressor          C x C queries attend to the patches
    prefusion           the text reads the image, before the LLM
    frames              images and videos of a batch as one list of frames
    frame_fusion        the text reads every frame of a batch, averaged; `encode_image`
    placeholder_layout  which row each image belongs to, words packed together
    fusion_in_llm       the variant that compresses inside the LLM
    modeling            vision tower, compressor, pre-fusion and LLM as one model
    conditional_generation  ... with the head that predicts words
    generation          its answers
    cache_argument      the KV cache under any name that transformers gives it
    original_format     the authors' names and fields
    image_processing    images and videos as views
    chat_templates      the prompts of LLaVA's checkpoints
    processing          images, videos and text -> inputs
    from_llava          a LLaVA-Mini made from a LLaVA
    training_data       conversations -> labels and batches
    training            the two training stages
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from probe.models.llava_mini.conditional_generation import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.frame_fusion import EncodedVision
from probe.models.llava_mini.modeling import LlavaMiniModel
from probe.models.llava_mini.original_format import from_original
from probe.models.llava_mini.processing import LlavaMiniProcessor
from probe.models.original import CheckpointError, convert, load_original

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
    "CheckpointError",
]
