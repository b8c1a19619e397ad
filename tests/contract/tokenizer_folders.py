"""Tokenizer folders for tests: the builtin's tokenizer.json, changed in what a case is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crucible_adapters.builtin import weights as builtin_models

SHIPPED = builtin_models.ASSETS / "tiny_qwen3"

# {% generation %} marks what transformers' own assistant mask counts, the oracle of ours.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Llama 2: the system text lies in the first question, contents are trimmed, roles must take turns.
BRACKETS = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = false %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must take turns: user, assistant, user, ...') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|im_start|>[INST] ' + ('<<SYS>>' + system + '<</SYS>>' if loop.first and system else '') "
    "+ message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
# As Phi 3: the end of a turn is no eos, and an eos ends the whole.
ENDS_WITH_EOS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# As Qwen 3: thoughts stay only in the last answer, which has an empty one when it has none.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% set parts = message.content.split('</think>') %}{% set answer = parts[-1].lstrip('\\n') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip('\\n') if parts | length > 1 else '' %}"
    "{% if loop.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + answer }}{% else %}{{ answer }}{% endif %}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# A system text by default, and no token that ends a turn.
PLAIN = (
    "{{ 'You help people.\\n' }}"
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# As DeepSeek R1's: what is sampled after is not how an answer is rendered.
INCONSISTENT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
# As Llama 3.2: the day it is, if there is a way to ask.
DATED = "{{ strftime_now('%d') if strftime_now is defined else '26' }} July: {{ messages[0].content }}"


def make_folder(
    folder: Path,
    *,
    template: str | None = CHATML,
    config: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
) -> Path:
    """A tokenizer folder.

    Args:
        template: chat_template.jinja; None: no such file.
        config: over tokenizer_config.json; a value None takes a key away.
        tokenizer: over tokenizer.json.
        files: further JSON files by name.
    """
    folder.mkdir()
    merged = json.loads((SHIPPED / "tokenizer_config.json").read_text()) | (config or {})
    contents = {
        "tokenizer.json": json.loads((SHIPPED / "tokenizer.json").read_text()) | (tokenizer or {}),
        "tokenizer_config.json": {key: value for key, value in merged.items() if value is not None},
        **(files or {}),
    }
    for name, value in contents.items():
        (folder / name).write_text(json.dumps(value))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def added(content: str, **flags: bool) -> dict[str, Any]:
    """An added token as the files write it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **plain, **flags}


def begin_and_end() -> dict[str, Any]:
    """tokenizer.json with <s>, </s>, a post-processor that puts <s> first, and truncation and padding unasked."""
    shipped = json.loads((SHIPPED / "tokenizer.json").read_text())
    tokens = [*shipped["added_tokens"], {"id": 2048, **added("<s>")}, {"id": 2049, **added("</s>")}]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    first = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [2048], "tokens": ["<s>"]}},
    }
    return {
        "added_tokens": tokens,
        "post_processor": {"type": "Sequence", "processors": [byte_level, first]},
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
    }
