"""What --set makes of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from crucible_kitchen.cli.values import parse_settings, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("True", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("3", 3),
        ("-3", -3),
        ("+3", 3),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("2.0", 2.0),
        ("[a,b]", ["a", "b"]),
        ("[1, 2.5, true, x y]", [1, 2.5, True, "x y"]),
        ("[[a, b], 'c,d', \"e,f\"]", [["a", "b"], "c,d", "e,f"]),
        ("[]", []),
        ('{"question": "problem"}', {"question": "problem"}),
        ('"7"', "7"),
        ("'7'", "7"),
        ("'it''s'", "it's"),
        ("", ""),
        ("builtin:tiny-qwen3", "builtin:tiny-qwen3"),
        ("7b", "7b"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("NaN", "NaN"),
        ("a=b", "a=b"),
    ],
)
def test_values(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_settings() -> None:
    assert parse_settings(["learning_rate=1e-3", "name = x=y ", "learning_rate=2e-3"]) == {
        "learning_rate": 0.002,
        "name": "x=y",
    }


@pytest.mark.parametrize("word", ["learning_rate", "=3", " =3"])
def test_words_that_are_no_settings(word: str) -> None:
    with pytest.raises(click.BadParameter, match="key=value"):
        parse_settings([word])


def test_paths_that_exist_here_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["dataset=rows.jsonl", "eval_dataset=~/rows.jsonl", "model=./model", "model_name=model"]
    assert parse_settings(words) == {
        "dataset": str(tmp_path / "rows.jsonl"),
        "eval_dataset": str(tmp_path / "rows.jsonl"),
        "model": str(tmp_path / "model"),
        "model_name": "model",
    }


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "../missing", "~/missing", "some/missing.parquet#test"])
def test_what_can_only_be_a_path_becomes_absolute_though_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A mistyped name: the server then says which path is not there, not that the path is not absolute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    told = parse_settings([f"dataset={name}"])["dataset"]
    assert told.startswith("/")
    assert told == str(tmp_path / name) if not name.startswith("~") else told == "/home/me/missing"


@pytest.mark.parametrize(
    "name", ["builtin:word-problems#train", "openai/gsm8k#train", "hf://datasets/o/n/x.jsonl", "#"]
)
def test_other_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_settings([f"dataset={name}", f"start_from={name}"]) == {"dataset": name, "start_from": name}
