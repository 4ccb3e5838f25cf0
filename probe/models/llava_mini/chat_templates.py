"""The prompts that LLaVA's checkpoints were trained with, as chat templates.

    processor = LlavaMiniProcessor(..., chat_template=chat_template("llava_llama_3_1"))
    processor.apply_chat_template(conversation, add_generation_prompt=True)

The released LLaVA-Mini uses "llava_llama_3_1" (the same string as "llava_llama_3"). A checkpoint
whose tokenizer has a chat template was trained with that: `template_for` keeps it.

Source: `llavamini/conversation.py` of the authors.
"""

from dataclasses import dataclass
from typing import Any

HELPFUL = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
CHAT = (
    "A chat between a curious {who} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
)
MPT = (
    "A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)


@dataclass(frozen=True)
class Style:
    """The text around the words of each speaker."""

    system: str = ""
    start: str = "{system}"
    user: tuple[str, str] = ("", "")
    assistant: tuple[str, str] = ("", "")
    generation: str = ""
    later_user: str | None = None  # opens the user's later turns, where that differs
    closing_header: bool = False  # the generation prompt is written after an answer too


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
{%- if item.type == 'text' -%}{{ item.text }}
{%- else -%}{{ '<' ~ item.type ~ '>' }}{{ '\\n' }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
OF_TOKENIZER = """\
{%- set with_system = namespace(messages=[{'role': 'system', 'content': SYSTEM}]) -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set with_system.messages = [] -%}
{%- endif -%}
{%- for message in messages -%}
{%- set turn = {'role': message.role, 'content': words(message.content)} -%}
{%- set with_system.messages = with_system.messages + [turn] -%}
{%- endfor -%}
{%- set messages = with_system.messages -%}
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
        template = template.replace(name, repr(value))  # Jinja reads Python's string literals
    return template


def template_for(tokenizer: Any) -> str:
    """The chat template of a checkpoint of the authors, recognised by its tokenizer.

    For Llama 3's headers it is the tokenizer's, which supports neither images nor LLaVA's system
    prompt: it is given "<image>" as text, and the authors' system prompt as a message if the
    conversation has none. Other checkpoints were trained with "v1".
    """
    if "<|start_header_id|>" not in tokenizer.get_vocab():
        return chat_template("v1")
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        return chat_template("llava_llama_3_1")
    return WORDS + OF_TOKENIZER.replace("SYSTEM", repr(HELPFUL)) + template
