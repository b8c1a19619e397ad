"""What ships for `sl_basic --preset tiny`: the word problems, the tokenizer and the model made from a seed."""

from __future__ import annotations

import hashlib
import json
import operator
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from crucible_adapters.builtin import weights, word_problems

ROOT = Path(__file__).resolve().parents[2]
# Changed only on purpose: other rows or weights make recorded runs and published figures incomparable.
ROWS_SHA256 = {
    "train": "095e5dc8fde7ee6755c63deb2cd4bc2ff93a913829307528f28ead042c0b0b12",
    "test": "9c3de43f4842dfc628ea6148a5deaa54b6840617ee64169e9be00580c565a7ba",
}
MODEL_SHA256 = "6a3ce1fe83586f0741e6a7f06a9e39e3bf4a92153d440f20406b12857006b8eb"

STEP = re.compile(r"(?<!\d)(\d+) ([-+*/]) (\d+) = (\d+)(?!\d)")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.materialise("tiny-qwen3", tmp_path_factory.mktemp("builtin") / "tiny").path


@pytest.fixture(scope="module")
def hf_tokenizer(model_folder: Path):
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def raw_tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_folder / "tokenizer.json"))


# Word problems


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_are_the_same_on_every_machine(split: word_problems.Split):
    rows = word_problems.generate(word_problems.DEFAULT_ROWS[split], split=split)
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == ROWS_SHA256[split]


def test_a_larger_count_begins_with_the_smaller_and_another_seed_differs():
    assert word_problems.generate(300)[:100] == word_problems.generate(100)
    assert word_problems.generate(100, seed=1) != word_problems.generate(100)


def test_splits_of_any_seeds_never_share_a_question_and_rows_are_distinct():
    train = [row["question"] for seed in range(4) for row in word_problems.generate(1600, seed=seed)]
    held_out = [row["question"] for seed in range(4) for row in word_problems.generate(400, seed=seed, split="test")]
    assert not set(train) & set(held_out)
    questions = [row["question"] for row in word_problems.generate(5000)]
    assert len(set(questions)) == 5000


def test_every_worked_step_is_right_and_stands_on_numbers_that_are_known():
    steps_per_row = Counter()
    for row in word_problems.generate(2000, seed=3):
        *lines, last = row["answer"].split("\n")
        known = set(re.findall(r"\d+", row["question"])) | {"2"}  # "twice as many" is written in words
        for line in lines:
            (step,) = STEP.findall(line)
            left, op, right, result = step
            assert OPERATIONS[op](int(left), int(right)) == int(result), line
            assert {left, right} <= known, row
            assert 0 < int(result) < 1000
            known.add(result)
        assert last == f"#### {result}"
        steps_per_row[len(lines)] += 1
    assert set(steps_per_row) == {1, 2, 3}
    assert min(steps_per_row.values()) > 300


@pytest.mark.parametrize(
    ("rows", "split", "said"),
    [(-1, "train", "rows is -1"), (10**9, "train", "rows is 10"), (1, "dev", "split is 'dev'")],
)
def test_bad_arguments_are_named(rows: int, split: str, said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        word_problems.generate(rows, split=split)  # type: ignore[arg-type]


# Tokenizer


def test_the_shipped_tokenizer_is_what_its_script_makes():
    script = ROOT / "scripts" / "make_tiny_tokenizer.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_special_tokens_have_their_ids_and_nothing_is_added_around_a_text(raw_tokenizer: Tokenizer, hf_tokenizer):
    assert [raw_tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert (hf_tokenizer.pad_token_id, hf_tokenizer.eos_token_id, hf_tokenizer.bos_token_id) == (0, 2, None)
    assert raw_tokenizer.get_vocab_size() == 2048
    assert hf_tokenizer.encode("hi") == raw_tokenizer.encode("hi").ids


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60))
def test_any_text_survives_and_transformers_gives_the_same_ids(raw_tokenizer: Tokenizer, hf_tokenizer, text: str):
    ids = raw_tokenizer.encode(text).ids
    assert hf_tokenizer.encode(text) == ids
    assert raw_tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(deadline=None, max_examples=100)
@given(question=st.text(max_size=30), answer=st.text(max_size=30), system=st.booleans())
def test_the_generation_prompt_is_a_token_prefix_of_the_conversation(
    hf_tokenizer, question: str, answer: str, system: bool
):
    messages = [{"role": "system", "content": "Be brief."}] * system + [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "\n\n 7"},
    ]
    for k in range(1 + system, len(messages), 2):
        prompt = hf_tokenizer.apply_chat_template(messages[:k], add_generation_prompt=True, return_dict=False)
        whole = hf_tokenizer.apply_chat_template(messages[: k + 1], return_dict=False)
        assert whole[: len(prompt)] == prompt


def test_the_chat_template_renders_chatml(hf_tokenizer):
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    text = hf_tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"


def test_common_english_does_not_fall_apart_into_bytes(raw_tokenizer: Tokenizer):
    # Not in the tokenizer's corpus. One token a word would be 27.
    text = (
        "My uncle keeps bees behind his workshop, and every autumn we help him carry the honey into town, "
        "where our neighbours buy nearly all of it."
    )
    assert len(raw_tokenizer.encode(text).ids) < 50


# Model


def test_weights_are_the_same_on_every_machine(model_folder: Path):
    made = weights.materialise("tiny-qwen3", model_folder)
    assert made.sha256 == weights.content_hash("tiny-qwen3") == MODEL_SHA256
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(model_folder.iterdir())]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == MODEL_SHA256


def test_transformers_loads_every_tensor_and_wants_no_other(model_folder: Path):
    loaded: Any = Qwen3ForCausalLM.from_pretrained(model_folder, output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    assert model.dtype == torch.float32
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 5e6
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 0)


def test_names_and_shapes_are_those_that_transformers_saves(model_folder: Path, tmp_path: Path):
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(tmp_path)
    saved, made = load_file(tmp_path / "model.safetensors"), load_file(model_folder / "model.safetensors")
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in made.items()}
    assert all(np.array_equal(saved[name], made[name]) for name in saved)


def test_an_untied_config_gets_a_head_of_its_own(model_folder: Path):
    config = json.loads((model_folder / "config.json").read_text())
    tied = weights.qwen3_initial_weights(config, seed=0)
    untied = weights.qwen3_initial_weights(config | {"tie_word_embeddings": False}, seed=0)
    assert set(untied) - set(tied) == {"lm_head.weight"}


def test_initial_weights_are_normal_and_norms_are_one(model_folder: Path):
    config = json.loads((model_folder / "config.json").read_text())
    made = weights.qwen3_initial_weights(config, seed=7)
    for name, value in made.items():
        assert value.dtype == np.float32
        if name.endswith("norm.weight"):
            assert (value == 1).all()
        else:
            assert abs(value.std() - 0.02) < 5e-4
            assert abs(value.mean()) < 5e-4
    other = weights.qwen3_initial_weights(config, seed=8)
    assert not np.array_equal(made["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_materialise_writes_once_and_leaves_nothing_beside(tmp_path: Path):
    folder = weights.materialise("tiny-qwen3", tmp_path / "deep" / "tiny").path
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    weights.materialise("tiny-qwen3", folder)
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == before
    assert [f.name for f in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("damage", ["flip a byte", "a file too many", "a file less", "a file in its place"])
def test_a_folder_that_holds_anything_else_is_refused_and_kept(tmp_path: Path, damage: str):
    target = tmp_path / "tiny"
    if damage == "a file in its place":
        target.write_text("mine")
    else:
        weights.materialise("tiny-qwen3", target)
        data = bytearray((target / "model.safetensors").read_bytes())
        data[-1] ^= 1
        if damage == "flip a byte":
            (target / "model.safetensors").write_bytes(data)
        elif damage == "a file too many":
            (target / "notes.txt").write_text("mine")
        else:
            (target / "config.json").unlink()
    with pytest.raises(FileExistsError, match="delete that folder or give another"):
        weights.materialise("tiny-qwen3", target)
    assert target.exists()


def test_a_failed_write_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        weights.materialise("tiny-qwen3", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_names_the_nearest(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean tiny-qwen3"):
        weights.materialise("tiny-qwen", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []
