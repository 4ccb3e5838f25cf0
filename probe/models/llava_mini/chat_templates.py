"""The prompts that LLaVA's checkpoints were trained with, as chat templates.

    processor = LlavaMiniProcessor(..., chat_template=chat_template("llava_llama_3_1"))
    processor.apply_chat_template(conversation, add_generation_prompt=True)

The released LLaVA-Mini is "llava_llama_3_1" (the same string as "llava_llama_3"). A template that
its tokenizer brings along is what it was trained with: `template_for` keeps it.

Source: `llavamini/conversation.py` of the authors.
"""

from dataclasses import dataclass
from typing import Any

HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
CHAT = (
    "A chat between a curious {who} and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the {who}'s questions."
)
MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."


@dataclass(frozen=True)
class Style:
    """What is written around the words of each speaker."""

    system: str = ""
    start: str = "{system}"
    user: tuple[str, str] = ("", "")
    assistant: tuple[str, str] = ("", "")
    generation: str = ""
    later_user: str | None = None  # what opens the user's second turn, where it differs
    closing_header: bool = False  # the generation prompt is also written after an answer


LLAMA_3 = Style(
    HELPFUL,
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
    ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    closing_header=True,
)
VICUNA = Style(
    CHAT.format(who="user"), "{system} ", ("USER: ", " "), ("ASSISTANT: ", "</s>"), "ASSISTANT:"
)
STYLES = {
    "llava_llama_3_1": LLAMA_3,
    "llava_llama_3": LLAMA_3,
    "v1": VICUNA,
    "vicuna_v1": VICUNA,
    "llava_v1": Style(
        CHAT.format(who="human"), "{system} ", VICUNA.user, VICUNA.assistant, VICUNA.generation
    ),
    "llava_v0": Style(
        CHAT.format(who="human"),
        "{system}###",
        ("Human: ", "###"),
        ("Assistant: ", "###"),
        "Assistant:",
    ),
    "llava_llama_2": Style(
        HELPFUL,
        "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n",
        ("", " [/INST]"),
        (" ", " </s>"),
        later_user="<s>[INST] ",
    ),
    "mpt": Style(
        MPT,
        "<|im_start|>system\n{system}<|im_end|>",
        ("<|im_start|>user\n", "<|im_end|>"),
        ("<|im_start|>assistant\n", "<|im_end|>"),
        "<|im_start|>assistant\n",
    ),
    "plain": Style(assistant=("", "\n"), generation="\n"),
}

WORDS = """\
{%- macro words(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for item in content -%}
{%- if item.type == 'text' -%}{{ item.text }}{%- else -%}{{ '<' ~ item.type ~ '>' }}{{ '\\n' }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
OF_TOKENIZER = """\
{%- set said = namespace(messages=[{'role': 'system', 'content': SYSTEM}]) -%}
{%- if messages and messages[0].role == 'system' -%}{%- set said.messages = [] -%}{%- endif -%}
{%- for message in messages -%}
{%- set said.messages = said.messages + [{'role': message.role, 'content': words(message.content)}] -%}
{%- endfor -%}
{%- set messages = said.messages -%}
"""
TEMPLATE = """\
{%- set given = messages and messages[0].role == 'system' -%}
{{- START.replace('{system}', words(messages[0].content) | trim if given else SYSTEM) -}}
{%- set turns = messages[1:] if given else messages -%}
{%- for message in turns -%}
{%- if message.role == 'user' -%}
{{- (USER_OPEN if loop.first else LATER_USER) ~ words(message.content) | trim ~ USER_CLOSE -}}
{%- else -%}
{{- ASSISTANT_OPEN ~ words(message.content) | trim ~ ASSISTANT_CLOSE -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and (CLOSING_HEADER or not turns or turns[-1].role == 'user') -%}
{{- GENERATION -}}
{%- endif -%}
"""


def chat_template(style: str) -> str:
    """The chat template of one of `STYLES`, as transformers takes it.

    >>> "ASSISTANT:" in chat_template("vicuna_v1")
    True
    """
    if style not in STYLES:
        raise ValueError(f"chat_template: expected one of {', '.join(STYLES)}, got {style!r}")
    s = STYLES[style]
    values = {
        "START": s.start,
        "SYSTEM": s.system,
        "LATER_USER": s.user[0] if s.later_user is None else s.later_user,
        "USER_OPEN": s.user[0],
        "USER_CLOSE": s.user[1],
        "ASSISTANT_OPEN": s.assistant[0],
        "ASSISTANT_CLOSE": s.assistant[1],
        "GENERATION": s.generation,
        "CLOSING_HEADER": s.closing_header,
    }
    template = WORDS + TEMPLATE
    for name, value in values.items():
        template = template.replace(
            name, repr(value)
        )  # the strings have no quotes that would need another form
    return template


def template_for(tokenizer: Any) -> str:
    """The chat template of an authors' checkpoint, told by its tokenizer.

    With Llama 3's headers it is the tokenizer's own. That knows no images and has no system prompt
    of LLaVA's: it gets "<image>" as words, and the authors' system prompt as a message where there
    is none. Others were trained as "v1".
    """
    if "<|start_header_id|>" not in tokenizer.get_vocab():
        return chat_template("v1")
    own = getattr(tokenizer, "chat_template", None)
    own = own.get("default") if isinstance(own, dict) else own
    return (
        WORDS + OF_TOKENIZER.replace("SYSTEM", repr(HELPFUL)) + own
        if own
        else chat_template("llava_llama_3_1")
    )
