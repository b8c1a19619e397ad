"""What every system trains: one model folder, and rows of equal length in the forms that the systems take.

Everything is made from seeds. A row is one user's message that the tokenizer's template turns into at least
`length` + 1 tokens and that every system cuts to these: `length` inputs, each with the next token as its target.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file
from tokenizers import Tokenizer

from benchmarks.scale import Scale
from crucible_adapters.builtin import weights, word_problems

_TOKENIZER_FILES = ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_SHIPPED = weights.ASSETS / "tiny_qwen3"
_PROBLEMS_A_ROW = 24


@dataclass(frozen=True, kw_only=True)
class Material:
    """Files that the systems read.

    Attributes:
        model: folder in transformers' format.
        dataset: JSONL of conversations.
        rows: JSON, a list of token ids for each row, `length` + 1 of them.
    """

    model: Path
    dataset: Path
    rows: Path

    def tokens(self) -> list[list[int]]:
        """The rows' token ids."""
        return json.loads(self.rows.read_text())


def make_material(folder: Path, scale: Scale) -> Material:
    """Writes the files of a scale."""
    made = Material(model=folder / "model", dataset=folder / "rows.jsonl", rows=folder / "rows.json")
    _write_model(made.model, scale)
    count = scale.batch * (scale.warmup + scale.steps)
    texts = _texts(count)
    with made.dataset.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n")
    tokenizer = Tokenizer.from_file(str(_SHIPPED / "tokenizer.json"))
    rows = [_encode(tokenizer, text)[: scale.length + 1] for text in texts]
    if any(len(row) <= scale.length for row in rows):
        raise ValueError(f"a row has fewer than {scale.length + 1} tokens: raise _PROBLEMS_A_ROW")
    made.rows.write_text(json.dumps(rows))
    return made


def _write_model(folder: Path, scale: Scale) -> None:
    folder.mkdir()
    config = json.loads((_SHIPPED / "config.json").read_text())
    config |= {"vocab_size": scale.vocab, "hidden_size": scale.hidden, "num_hidden_layers": scale.layers}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = weights.qwen3_initial_weights(config, seed=0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in _TOKENIZER_FILES:
        shutil.copy(_SHIPPED / name, folder / name)


def _texts(count: int) -> list[str]:
    problems = word_problems.generate(count * _PROBLEMS_A_ROW, 1)
    lines = [f"{each['question']} {each['answer']}" for each in problems]
    return ["\n".join(lines[start : start + _PROBLEMS_A_ROW]) for start in range(0, len(lines), _PROBLEMS_A_ROW)]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a conversation of one message, in the shipped ChatML template."""
    return tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n", add_special_tokens=False).ids
