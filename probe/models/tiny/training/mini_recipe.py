"""tiny-llava-mini before its training: the shipped tiny-llava with ONE vision token per image.

    model = starting_model(MiniRecipe())        # trained by `train_mini`

Experiments differ from the shipped model in fields of `MiniRecipe`.
"""

from dataclasses import dataclass
from typing import Any

from transformers import LlavaForConditionalGeneration

from probe.models.llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from probe.models.llava_mini.configuration import Compression, Fusion
from probe.models.llava_mini.from_llava import from_llava
from probe.models.llava_mini.training import Rates
from probe.models.tiny import FOLDERS
from probe.models.tiny.processor import PATCH, build_processor
from probe.models.tiny.scenes import SIZE

START = "tiny-llava"  # the model it is made from


@dataclass(frozen=True)
class MiniRecipe:
    """How tiny-llava-mini is made. Rates are AdamW's; they rise over the warm-up and fall along a
    cosine.

    >>> MiniRecipe(prefusion_layers=0).rates.prefusion      # unused without pre-fusion layers
    0.001
    """

    seed: int = 0
    compressor_size: int = 1
    compressor_heads: int = 4
    prefusion_layers: int = 4
    copied: bool = True  # pre-fusion starts as the LLM's first layers; False: at random
    # Copies of the LLM's first layers, put in front of it: the control for pre-fusion's depth.
    extra_layers: int = 0
    compression: Compression = "query"
    fusion: Fusion = "released"
    steps: int = 2000
    warmup: int = 60
    batch: int = 16  # images, with eight questions and a caption each
    llm_rate: float = 1e-3
    prefusion_rate: float = 1e-3
    compressor_rate: float = 1e-3
    projector_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0

    @property
    def rates(self) -> Rates:
        return Rates(self.projector_rate, self.compressor_rate, self.prefusion_rate, self.llm_rate)


def starting_model(recipe: MiniRecipe) -> LlavaMiniForConditionalGeneration:
    """The shipped tiny-llava, with new parts as the recipe says and nothing learned yet."""
    llava = LlavaForConditionalGeneration.from_pretrained(FOLDERS[START])
    if recipe.extra_layers:
        _deepen(llava, recipe.extra_layers)
    extra: dict[str, Any] = {"initializer_range": llava.config.initializer_range, "probe_toy": True}
    return from_llava(
        llava,
        copy_prefusion=recipe.copied,
        seed=recipe.seed,
        compressor_size=recipe.compressor_size,
        compressor_num_heads=recipe.compressor_heads,
        num_prefusion_layers=recipe.prefusion_layers,
        compression=recipe.compression,
        fusion=recipe.fusion,
        **extra,
    )


def mini_processor(recipe: MiniRecipe) -> LlavaMiniProcessor:
    """A LLaVA-Mini processor with tiny-llava's image processor, tokenizer and template."""
    old: Any = build_processor()
    return LlavaMiniProcessor(
        old.image_processor,
        old.tokenizer,
        recipe.compressor_size,
        view_tokens=(SIZE // PATCH) ** 2 if recipe.compression == "none" else None,
        chat_template=old.chat_template,
    )


def _deepen(llava: LlavaForConditionalGeneration, number: int) -> None:
    """Puts copies of the LLM's first layers in front of it."""
    text: Any = llava.config.text_config
    text.num_hidden_layers += number
    deep: Any = LlavaForConditionalGeneration(llava.config).model.language_model
    old: Any = llava.model.language_model
    for layer, source in zip(deep.layers, [*old.layers[:number], *old.layers], strict=True):
        layer.load_state_dict(source.state_dict())
    deep.embed_tokens, deep.norm = old.embed_tokens, old.norm  # the head is tied to the embeddings
    llava.model.language_model = deep
