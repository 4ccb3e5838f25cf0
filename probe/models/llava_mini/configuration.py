"""The configuration of LLaVA-Mini: a LLaVA that compresses its image, which the text reads before
the LLM.

    config = LlavaMiniConfig(vision_config=clip, text_config=llama, compressor_size=1)

Source: arXiv 2501.03895, section 4; for the authors' config.json see `original_format.py`.
"""

from typing import Any, Literal, no_type_check

from huggingface_hub.dataclasses import strict
from transformers.models.llava.configuration_llava import LlavaConfig

Compression = Literal["query", "average", "none"]
Fusion = Literal["released", "paper", "in_llm"]


@no_type_check  # `strict` checks the fields, and ignores other keys of a config.json
@strict
class LlavaMiniConfig(LlavaConfig):
    """A LLaVA config with the fields of LLaVA-Mini.

    compressor_size: C; an image or frame becomes C x C tokens. 0: no vision token reaches the LLM,
        only fused text.
    num_prefusion_layers: layers of pre-fusion, each like a layer of the LLM. 0: text is not fused.
    compression: "query" (learned queries attend to the patches), "average" (mean of blocks of
        patches) or "none" (all patches reach the LLM): the paper's Tables 8 and 11.
    fusion: "released": compressed tokens run through pre-fusion between image and text, and go from
        there to the LLM. "paper": they bypass it. "in_llm": the LLM's first layers see image and
        text, and compression follows them (Table 12).
    frames_per_chunk: images or frames that run through vision tower and pre-fusion at a time.

    The id of the image token is the size of the text vocabulary: it has no embedding.
    """

    model_type = "llava_mini"

    vision_config: Any = None  # configs, or dicts of their fields
    text_config: Any = None
    image_token_index: int | None = None
    compressor_size: int = 1
    compressor_num_heads: int = 8
    num_prefusion_layers: int = 4
    compression: Compression = "query"
    fusion: Fusion = "released"
    frames_per_chunk: int = 8

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.image_token_index is None:
            self.image_token_index = self.text_config.vocab_size
        if min(self.compressor_size, self.num_prefusion_layers) < 0 or self.frames_per_chunk < 1:
            raise ValueError(
                "LlavaMiniConfig: expected compressor_size and num_prefusion_layers of at least 0 "
                f"and frames_per_chunk of at least 1, got {self.compressor_size}, "
                f"{self.num_prefusion_layers} and {self.frames_per_chunk}"
            )
        self.image_seq_length = self.tokens_per_frame(views=1)

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a view (24 for 336 pixels and patches of 14)."""
        return self.vision_config.image_size // self.vision_config.patch_size

    def tokens_per_frame(self, views: int) -> int:
        """Vision tokens that the LLM gets for an image or frame of `views` views."""
        if self.compression == "none":
            return views * self.patches_per_side**2
        return self.compressor_size**2
