"""`builtin:tiny-qwen3-base`: the shipped pretrained weights, the text they come from and the script that makes them."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from crucible_adapters.builtin import weights, word_problems
from crucible_adapters.torch_engine.models import load_model
from scripts import tiny_base_text

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_tiny_base.py"
# Changed only together with the shipped file: other weights make published figures incomparable.
WEIGHTS_SHA256 = "b6c268e8c23754780ca20982d996a2b2e69c212d30bb063e4efb68e8ee9539aa"
MODEL_SHA256 = "aa9b12d614aea7705507b36f852e680ee8904d2b87b7cc41d0d3bd7a0b4bb575"
MAX_BYTES = 8_000_000

# Written by hand, in the wording of the text that the model was trained on.
FAMILIAR_DOCUMENTS = (
    "Priya has 23 oranges. Then Hugo gives Priya 14 more. How many oranges is that?\n"
    "Now there are 23 + 14 = 37 oranges.\nThe answer is 37.",
    "Omar had 50 dollars and bought 6 lemons at 7 dollars each. How many dollars are left?\n\n"
    "All of them cost 6 * 7 = 42 dollars.\nThat leaves 50 - 42 = 8 dollars.\n#### 8",
    "Zoe\nFinn puts 36 beads into 4 boxes, the same number in each. How many beads are in each?\n"
    "Kofi\nFor each there are 36 divided by 4, so 9 beads.\nSo it is 9.",
)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
OPERATIONS |= {"plus": operator.add, "minus": operator.sub, "times": operator.mul, "divided by": operator.truediv}
CALCULATION = re.compile(r"(\d+) ([-+*/]|plus|minus|times|divided by) (\d+)(?: =|, so| is|\?) (\d+)")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.materialise("tiny-qwen3-base", tmp_path_factory.mktemp("builtin") / "base").path


@pytest.fixture(scope="module")
def model(model_folder: Path):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path):
    return AutoTokenizer.from_pretrained(model_folder)


# The shipped files


def test_the_shipped_weights_are_those_that_figures_were_published_for(model_folder: Path):
    data = (model_folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == WEIGHTS_SHA256
    assert WEIGHTS_SHA256 in SCRIPT.read_text(encoding="utf-8")
    assert weights.content_hash("tiny-qwen3-base") == MODEL_SHA256
    assert len(data) <= MAX_BYTES


def test_every_tensor_is_bfloat16_and_there_is_no_other(model_folder: Path):
    config = json.loads((model_folder / "config.json").read_text())
    tensors = load_file(model_folder / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == dict(weights.qwen3_shapes(config))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_it_differs_from_the_random_model_in_its_weights_alone(model_folder: Path, tmp_path: Path):
    random = weights.materialise("tiny-qwen3", tmp_path / "random").path
    differing = {file.name for file in model_folder.iterdir() if file.read_bytes() != (random / file.name).read_bytes()}
    assert differing == {"config.json", "model.safetensors"}
    configs = [json.loads((folder / "config.json").read_text()) for folder in (model_folder, random)]
    assert configs[0] == configs[1] | {"dtype": "bfloat16"}


def test_transformers_loads_every_tensor_in_bfloat16_and_wants_no_other(model_folder: Path):
    loaded: Any = Qwen3ForCausalLM.from_pretrained(model_folder, dtype="auto", output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    assert model.dtype == torch.bfloat16


def test_the_engine_loads_it_in_float32_on_a_cpu(model_folder: Path, model, tokenizer):
    loaded = load_model(model_folder, device="cpu")
    assert loaded.dtype == torch.float32
    tokens_BT = torch.tensor([tokenizer.encode(FAMILIAR_DOCUMENTS[0])])
    with torch.no_grad():
        torch.testing.assert_close(loaded.net(tokens_BT).logits, model(tokens_BT).logits)


# What it has learned


@torch.no_grad()
def test_it_predicts_text_of_its_kind_far_better_than_token_frequencies_can(model, tokenizer):
    documents = [tokenizer.encode(document) for document in FAMILIAR_DOCUMENTS]
    nll = sum(
        cross_entropy(model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="sum").item()
        for ids in documents
    )
    scored = [token for ids in documents for token in ids[1:]]
    # the documents' own frequencies: no predictor that ignores context does better on them
    unigram_nll = -sum(count * math.log(count / len(scored)) for count in Counter(scored).values())
    assert nll < unigram_nll / 3


@torch.no_grad()
def test_it_knows_its_tables(model, tokenizer):
    right = 0
    for a in range(2, 10):
        for b in range(2, 10):
            prompt = tokenizer.encode(f"What is {a} * {b}?")
            answer = tokenizer.encode(f"What is {a} * {b}? {a * b}")[len(prompt) :]
            predicted = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].argmax(-1)
            right += predicted.tolist() == answer
    assert right >= 58, f"{right} of 64"


# The text


def masked_sentences(text: str) -> set[str]:
    """Sentences with all numbers alike, and all names, things, holders, days, colours and jobs alike."""
    kinds = {
        "NAME": tiny_base_text.PEOPLE,
        "THING": (*tiny_base_text.GOODS, "dollars", "hours", "pages"),
        "HOLDER": word_problems.HOLDERS,
        "DAY": word_problems.DAYS,
        "COLOUR": tiny_base_text.COLOURS,
    }
    kind_of = {word: kind for kind, words in kinds.items() for word in words}
    for job in word_problems.JOBS:
        text = text.replace(job, "JOB")
    text = re.sub(r"[A-Za-z]+", lambda word: kind_of.get(word[0], word[0]), re.sub(r"\d+", "0", text))
    return {sentence.strip() for sentence in re.split(r"(?<=[.?:])\s|\n", text) if sentence.strip()}


def test_no_sentence_of_the_word_problems_is_in_the_text():
    rows = [row for split in ("train", "test") for row in word_problems.generate(2000, split=split)]
    asked = set().union(*(masked_sentences(row["question"]) for row in rows))
    worked = set().union(*(masked_sentences(row["answer"]) for row in rows))
    text = set().union(*(masked_sentences(document) for document in islice(tiny_base_text.documents(), 10_000)))
    assert len(text) > 150
    assert len(asked) > 20
    # the mark of the last line tells no one what stands there
    assert text & (asked | worked) == {"#### 0"}


def test_no_document_is_chat(tokenizer):
    special = set(tokenizer.all_special_ids).union(
        *(tokenizer.encode(role) for role in ("user", "assistant", "system"))
    )
    for document in islice(tiny_base_text.documents(), 1000):
        assert not special & set(tokenizer.encode(document))


def test_every_calculation_in_the_text_is_right():
    found = 0
    for document in islice(tiny_base_text.documents(), 5000):
        calculations = CALCULATION.findall(document)
        for left, op, right, result in calculations:
            assert OPERATIONS[op](int(left), int(right)) == int(result), document
        assert re.findall(r"\d+", document)[-1] == calculations[-1][-1], document
        found += len(calculations)
    assert found > 10_000


# The script


def test_the_script_makes_the_same_bytes_in_every_process(model_folder: Path, tmp_path: Path):
    runs = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "--steps", "3", "--out", str(tmp_path / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]
    for run in runs:
        _, said = run.communicate(timeout=100)
        assert run.returncode == 0, said
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    shipped = (model_folder / "model.safetensors").read_bytes()
    assert len(one) == len(shipped)
    assert one != shipped
    assert (tmp_path / "one" / "config.json").read_bytes() == (model_folder / "config.json").read_bytes()
