"""A tokenizer as a model folder holds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer

from crucible_adapters.tokenizer.spans import text_after_turn
from crucible_adapters.tokenizer.template import PLAIN, ChatTemplate, TemplateRefusal
from crucible_kit.chunks import canonical_json
from crucible_kit.errors import InvalidArgumentError, field_error

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
GENERATION_CONFIG = "generation_config.json"
TEMPLATE = "chat_template.jinja"
FILES = (TOKENIZER, CONFIG, SPECIAL_TOKENS_MAP, GENERATION_CONFIG, TEMPLATE)
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Encoded(NamedTuple):
    """A text's tokens: ids of shape [n], int32, and first and last-but-one character of each, shape [n, 2], int64."""

    ids: np.ndarray
    offsets: np.ndarray


class FolderTokenizer:
    """The tokenizer of one folder: tokenizer.json, and what stands beside it.

    Attributes:
        fingerprint: SHA-256 over everything that decides its ids.
        template_source: text of its chat template; None without one.
        special_tokens: texts by name, such as eos_token.
    """

    def __init__(self, folder: Path) -> None:
        """Raises INVALID_ARGUMENT FIELD_INVALID when a file can't be read."""
        self._folder = folder
        self._definition = _read_json(folder / TOKENIZER)
        config = _read_json(folder / CONFIG)
        if "added_tokens_decoder" not in config:
            # As transformers does: the map is older than the list of added tokens, and counts only without it.
            config |= _read_json(folder / SPECIAL_TOKENS_MAP)
        self.special_tokens = {name: _text(config[name]) for name in _SPECIAL_NAMES if config.get(name)}
        self.template_source = _template(folder, config)
        self._listed, self._named = _added_tokens(config, self.special_tokens.values())
        self._split_special = bool(config.get("split_special_tokens", False))
        # Its post-processor adds special tokens and trims offsets: without it, texts are encoded as they stand.
        self._plain = self._load({**self._definition, "post_processor": None})
        self._generation_eos = _as_list(_read_json(folder / GENERATION_CONFIG).get("eos_token_id"))
        self.fingerprint = hashlib.sha256(
            canonical_json(
                {
                    "tokenizer": self._definition,
                    "added": [repr(token) for token in (*self._listed, *self._named)],
                    "special": self.special_tokens,
                    "split_special_tokens": self._split_special,
                    "eos_token_id": self.token_id("eos_token"),
                    "chat_template": PLAIN if self.template_source is None else self.template_source,
                }
            )
        ).hexdigest()

    def _load(self, definition: dict[str, Any]) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_str(json.dumps({**definition, "truncation": None, "padding": None}))
        except Exception as error:  # the library raises nothing narrower
            raise field_error("tokenizer", f"{self._folder / TOKENIZER} can't be read: {error}") from error
        tokenizer.add_tokens(self._listed)
        known = {str(token.content) for token in tokenizer.get_added_tokens_decoder().values()}
        tokenizer.add_tokens([token for token in self._named if token.content not in known])
        tokenizer.encode_special_tokens = self._split_special
        return tokenizer

    @cached_property
    def _with_special(self) -> Tokenizer:
        return self._load(self._definition)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included."""
        return max(self._plain.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template; None without one. Raises TemplateRefusal when it is not valid."""
        return None if self.template_source is None else ChatTemplate(self.template_source, self.special_tokens)

    @cached_property
    def plain_template(self) -> ChatTemplate:
        """The template of a tokenizer without one."""
        eos = self.token_id("eos_token")
        # The generation configuration may be the only one to name it, by its id.
        named = {} if eos is None else {"eos_token": self._plain.id_to_token(eos) or ""}
        return ChatTemplate(PLAIN, self.special_tokens | named)

    @cached_property
    def end_of_turn(self) -> np.ndarray:
        """Ids that end a turn, shape [k]: eos tokens, and the first special token the template puts after an answer."""
        ids = [*self._generation_eos]
        eos = self.token_id("eos_token")
        if eos is not None:
            ids.append(eos)
        try:
            template = self.template
        except TemplateRefusal:  # whoever renders with it is told
            template = None
        if template is not None:
            special = {i for i, token in self._plain.get_added_tokens_decoder().items() if token.special}
            after = self._plain.encode(text_after_turn(template), add_special_tokens=False).ids
            ids.extend([each for each in after if each in special][:1])
        return np.unique(np.asarray(ids, dtype=np.int32))

    def token_id(self, name: str) -> int | None:
        """Id of a special token by its name, such as eos_token; None when it has none."""
        text = self.special_tokens.get(name)
        if text is not None:
            return self._plain.token_to_id(text)
        return self._generation_eos[0] if name == "eos_token" and self._generation_eos else None

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[np.ndarray]:
        """Ids of each text, shape [n], int32."""
        tokenizer = self._with_special if add_special_tokens else self._plain
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [np.asarray(each.ids, dtype=np.int32) for each in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokens of each text with their places, without special tokens beyond those in the text."""
        return [
            Encoded(np.asarray(each.ids, dtype=np.int32), np.asarray(each.offsets, dtype=np.int64).reshape(-1, 2))
            for each in self._plain.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The texts; ids that no token has are left out, as models with a padded vocabulary may sample them."""
        return self._plain.decode_batch([list(each) for each in sequences], skip_special_tokens=skip_special_tokens)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} without one."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unreadable(path, "it holds no JSON object")
    return value


def _unreadable(path: Path, why: str) -> InvalidArgumentError:
    return field_error("tokenizer", f"{path} can't be read: {why}")


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """The default chat template: its own file, or the configuration's only one or the one named default."""
    path = folder / TEMPLATE
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    given = config.get("chat_template")
    if isinstance(given, list):
        given = {each["name"]: each["template"] for each in given}.get("default")
    return given if isinstance(given, str) else None


def _text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _added_tokens(config: dict[str, Any], special: Iterable[str]) -> tuple[list[AddedToken], list[AddedToken]]:
    """The tokens that the configuration lists by id, and the special ones it only names."""
    listed = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    named = dict.fromkeys((*special, *(_text(token) for token in extra)))
    return [_added_token(token) for _, token in listed], [AddedToken(text, special=True) for text in named]


def _added_token(token: dict[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(token["content"], **{flag: bool(token[flag]) for flag in flags if flag in token})


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(each) for each in value] if isinstance(value, list) else [int(value)]
