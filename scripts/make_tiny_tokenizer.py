"""Makes the tokenizer that ships in `crucible_adapters/builtin/tiny_qwen3`: byte-level BPE with 2,048 tokens.

The corpus is the project's own: rows of the word-problem generator, the prose in `tiny_tokenizer_text.txt` and the
words in `tiny_tokenizer_words.txt` (the last two so that other English does not fall apart into single bytes).
`--check` writes nothing and fails where the shipped files differ from what this script makes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from crucible_adapters.builtin import word_problems

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "adapters" / "crucible_adapters" / "builtin" / "tiny_qwen3"
VOCAB_SIZE = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROLES = ("system", "user", "assistant", "tool")
GENERATED_ROWS = 400
# Times each line or word is repeated: enough that common English outranks the rarest words of generated rows.
TEXT_WEIGHT = 4
WORD_WEIGHT = 6

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def corpus() -> Iterator[str]:
    for row in word_problems.generate(GENERATED_ROWS, seed=1):
        yield f"{row['question']}\n{row['answer']}"
    for role in ROLES:
        yield from [role] * GENERATED_ROWS
    for line in (HERE / "tiny_tokenizer_text.txt").read_text(encoding="utf-8").splitlines():
        yield from [line] * TEXT_WEIGHT
    for word in (HERE / "tiny_tokenizer_words.txt").read_text(encoding="utf-8").split():
        yield from [f" {word}"] * WORD_WEIGHT


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            # A newline never merges, so a rendered prompt (it ends in one) is a token prefix of the whole conversation.
            pre_tokenizers.Split("\n", "isolated"),
            # One token a digit: arithmetic on numbers that the vocabulary happens not to have stays learnable.
            pre_tokenizers.Split(Regex(r" ?\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def files() -> dict[str, str]:
    settings = {
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "chat_template.jinja": CHAT_TEMPLATE,
        "tokenizer.json": train().to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True) + "\n",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the shipped files; write nothing")
    check = parser.parse_args().check
    stale = []
    for name, text in files().items():
        path = TARGET / name
        if check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
            continue
        fresh = path.with_suffix(path.suffix + ".new")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    if stale:
        print(f"stale: {', '.join(stale)}: run {Path(__file__).name} without --check", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
