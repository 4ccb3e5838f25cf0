"""The processor of the tiny models: vocabulary, tokenizer, chat template, images.

Whole words, lower-cased, punctuation apart; other words are `<unk>`. The chat template is Vicuna's,
as in LLaVA-1.5, with a default system prompt where the conversation brings none:

    A chat between a user and an assistant. USER: <image>
    What colour is the circle? ASSISTANT: it is red</s>

>>> processor = build_processor()
>>> processor.tokenizer.tokenize("What COLOUR is the circle?")
['what', 'colour', 'is', 'the', 'circle', '?']
"""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from probe.models.tiny.questions import NUMBER_WORDS, TEMPLATES, plural
from probe.models.tiny.scenes import COLOURS, COLUMN_NAMES, ROW_NAMES, SHAPES, SIZE

PATCH = 10  # pixels a side: 6 x 6 patches, two by two to a cell
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
SYSTEM_PROMPT = "A chat between a user and an assistant."

CHAT_TEMPLATE = (
    "{%- macro text(content) -%}"
    "{%- if content is string -%}{{ content }}"
    "{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{%- if messages and messages[0]['role'] == 'system' -%}{{ text(messages[0]['content']) }}"
    "{%- else -%}{{ '" + SYSTEM_PROMPT + "' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ ' USER: ' + text(message['content']) }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ ' ASSISTANT: ' }}{%- generation -%}"
    "{{ text(message['content']) + '</s>' }}{%- endgeneration -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"
)


def vocabulary() -> tuple[str, ...]:
    """Special tokens, then every word of the questions, answers and template, then some a user may
    type.
    """
    text = " ".join(template for templates in TEMPLATES.values() for template in templates)
    for blank in ("{the}", "{cell}", "{many}", "{a}"):
        text = text.replace(blank, " ")
    words = set(
        "".join(
            letter if letter.isalnum() else " " for letter in f"{text} {SYSTEM_PROMPT}".lower()
        ).split()
    )
    words |= {*COLOURS, *SHAPES, *ROW_NAMES, *COLUMN_NAMES, *NUMBER_WORDS, *map(plural, SHAPES)}
    words |= {*"user assistant it is a an at the object objects nothing yes no and in of".split()}  # noqa: SIM905
    words |= {*"centre thing things picture pictures image images photo this that on to".split()}  # noqa: SIM905
    return (*SPECIAL, ".", ",", "?", "!", ":", ";", "'", '"', "-", *sorted(words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level; adds `<s>` in front, like LLaVA-1.5's, so that templates need not."""
    words = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words["<s>"])]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # "a , b ." reads "a, b."
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=16384,
    )


def build_processor() -> LlavaProcessor:
    """The processor that is shipped: 60 x 60 pixels (without torchvision), 36 vision tokens an
    image.
    """
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
