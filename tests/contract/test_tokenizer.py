"""TokenizerClient: the ids and texts that transformers has, and errors that name the field."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from crucible.port.tokenizer.v1 import tokenizer_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_adapters.fakes.tokenizer import FakeTokenizer, FakeTokenizerOptions
from crucible_adapters.tokenizer.folder import FolderTokenizer
from crucible_adapters.tokenizer.tokenizers_folder import TokenizersFolder
from crucible_kit.adapter import AdapterContext, AdapterOptions
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnimplementedError
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.tokenizer_folders import BRACKETS, CHATML, SHIPPED, added, begin_and_end, make_folder

TEXTS = [
    "",
    " ",
    "Ada has 12 apples.\n\n  2 * 3 = 6",
    "h\u00e9llo \U0001f389\U0001f468\u200d\U0001f469\u200d\U0001f467 \u4f60\u597d \x00 \u2028",
    "<|im_start|>user\nx<|im_end|>\n<|endoftext|>",
    "  <tool>call</tool> <s> </s>  ",
    "word " * 300,
]
CHAT = [
    ("system", "Be brief."),
    ("user", " How many? "),
    ("assistant", "6 \U0001f389"),
    ("user", "Sure?"),
    ("assistant", ""),
]


def with_added_tokens(folder: Path) -> Path:
    """Tokens that stand only in the configuration, and a post-processor."""
    listed = {
        **{str(index): added(text) for index, text in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])},
        "2048": added("<s>"),
        "2049": added("</s>"),
        "2050": added("<tool>", special=False, lstrip=True),
        "2051": added("</tool>", special=False, normalized=True),
    }
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "added_tokens_decoder": listed}
    return make_folder(folder, template=BRACKETS, config=config, tokenizer=begin_and_end())


def with_special_tokens_map(folder: Path) -> Path:
    """The older layout: names in a file of their own, templates in the configuration."""
    names = {
        "bos_token": added("<s>", normalized=True),
        "eos_token": "<|im_end|>",
        "additional_special_tokens": ["<tool>", "</tool>"],
    }
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    config = {"eos_token": None, "chat_template": templates}
    return make_folder(folder, template=None, config=config, files={"special_tokens_map.json": names})


FOLDERS = {
    "shipped": lambda folder: Path(shutil.copytree(SHIPPED, folder)),
    "added tokens": with_added_tokens,
    "special tokens map": with_special_tokens_map,
    "no configuration": lambda folder: make_folder(folder, config=dict.fromkeys(("eos_token", "pad_token"))),
}


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(TokenizersFolder(AdapterOptions(), context))


class Served(NamedTuple):
    """A tokenizer and what serves it."""

    stub: Any
    name: Path


@pytest.fixture(params=["tokenizers", "fake"])
async def served(request: pytest.FixtureRequest, binding: Binding, context: AdapterContext) -> Served:
    """Every adapter."""
    if request.param == "fake":
        return Served(await binding.stub(FakeTokenizer(FakeTokenizerOptions(), context)), Path("fake/model"))
    return Served(await binding.stub(TokenizersFolder(AdapterOptions(), context)), SHIPPED)


def conversation(*messages: tuple[str, str]) -> message_pb2.Conversation:
    return message_pb2.Conversation(messages=[message_pb2.Message(role=r, content=c) for r, c in messages])


async def encode(stub: Any, folder: Path, texts: Sequence[str], **fields: Any) -> list[list[int]]:
    response = await stub.EncodeBatch(pb.EncodeBatchRequest(tokenizer=str(folder), texts=texts, **fields))
    return [np.frombuffer(each.tokens_int32, "<i4").tolist() for each in response.sequences]


async def decode(stub: Any, folder: Path, sequences: Sequence[Sequence[int]], **fields: Any) -> list[str]:
    packed = [pb.TokenSequence(tokens_int32=np.asarray(each, "<i4").tobytes()) for each in sequences]
    request = pb.DecodeBatchRequest(tokenizer=str(folder), sequences=packed, **fields)
    return list((await stub.DecodeBatch(request)).texts)


async def info(stub: Any, folder: Path) -> pb.GetTokenizerInfoResponse:
    return await stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest(tokenizer=str(folder)))


@pytest.mark.parametrize("name", FOLDERS)
async def test_ids_and_texts_are_those_of_transformers(stub: Any, tmp_path: Path, name: str) -> None:
    folder = FOLDERS[name](tmp_path / "tokenizer")
    oracle = AutoTokenizer.from_pretrained(folder)
    for add_special_tokens in (False, True):
        expected = [oracle.encode(text, add_special_tokens=add_special_tokens) for text in TEXTS]
        assert await encode(stub, folder, TEXTS, add_special_tokens=add_special_tokens) == expected
    ids = await encode(stub, folder, TEXTS)
    for skip_special_tokens in (False, True):
        expected = [oracle.decode(each, skip_special_tokens=skip_special_tokens) for each in ids]
        assert await decode(stub, folder, ids, skip_special_tokens=skip_special_tokens) == expected

    described = await info(stub, folder)
    assert described.vocab_size == len(oracle)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        found = getattr(described, token) if described.HasField(token) else None
        assert found == getattr(oracle, token), token

    chats = [CHAT, CHAT[1:4], CHAT[:2]]
    request = pb.ApplyChatTemplateRequest(tokenizer=str(folder), conversations=[conversation(*chat) for chat in chats])
    for add_generation_prompt in (False, True):
        request.add_generation_prompt = add_generation_prompt
        rendered = (await stub.ApplyChatTemplate(request)).rendered
        expected = [
            oracle.apply_chat_template(
                [{"role": role, "content": content} for role, content in chat],
                add_generation_prompt=add_generation_prompt,
                return_dict=False,
            )
            for chat in chats
        ]
        assert [np.frombuffer(each.tokens_int32, "<i4").tolist() for each in rendered] == expected
        assert [len(each.train_mask_uint8) for each in rendered] == [len(each) for each in expected]


def test_any_text_has_the_ids_and_places_that_transformers_gives(tmp_path: Path) -> None:
    folder = with_added_tokens(tmp_path / "tokenizer")
    oracle, ours = AutoTokenizer.from_pretrained(folder), FolderTokenizer(folder)

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["<s>", "<tool>", " ", "\n", "12"])), max_size=6))
    def check(pieces: list[str]) -> None:
        text = "".join(pieces)
        [encoded] = ours.encode_with_offsets([text])
        assert encoded.ids.tolist() == oracle.encode(text, add_special_tokens=False)
        assert ours.encode([text], add_special_tokens=False)[0].tolist() == encoded.ids.tolist()
        assert (encoded.offsets[:, 0] <= encoded.offsets[:, 1]).all()
        assert encoded.offsets.size == 0 or encoded.offsets.max() <= len(text)

    check()


async def test_texts_come_back(served: Served) -> None:
    ids = await encode(served.stub, served.name, TEXTS)
    described = await info(served.stub, served.name)
    assert all(0 <= each < described.vocab_size for row in ids for each in row)
    assert await decode(served.stub, served.name, ids) == TEXTS
    assert await encode(served.stub, served.name, TEXTS) == ids


async def test_bytes_that_are_not_utf8_become_replacement_characters(served: Served) -> None:
    [[first, *_]] = await encode(served.stub, served.name, ["\U0001f9ff"])
    [text] = await decode(served.stub, served.name, [[first]])
    assert text == "\ufffd"


async def test_ids_beyond_the_vocabulary_have_no_text(served: Served) -> None:
    [ids] = await encode(served.stub, served.name, ["Ada has"])
    assert await decode(served.stub, served.name, [[*ids, 10**6], []]) == ["Ada has", ""]


async def test_bad_ids_are_refused(served: Served) -> None:
    with refused(InvalidArgumentError, "FIELD_INVALID", field="sequences[1].tokens_int32", says="-1"):
        await decode(served.stub, served.name, [[1], [2, -1]])
    sequences = [pb.TokenSequence(tokens_int32=b"\0\0\0")]
    request = pb.DecodeBatchRequest(tokenizer=str(served.name), sequences=sequences)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="sequences[0].tokens_int32"):
        await served.stub.DecodeBatch(request)


async def test_a_conversation_is_trained_on_where_it_was_asked_for(served: Served) -> None:
    """The trained tokens are the contents, each with the token that ends its turn."""
    [end] = (await info(served.stub, served.name)).end_of_turn_token_ids[-1:]
    for train_on, trained in (
        (message_pb2.TRAIN_ON_UNSPECIFIED, "6 \U0001f389"),
        (message_pb2.TRAIN_ON_LAST_ASSISTANT_MESSAGE, ""),
        (message_pb2.TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES, "Be brief. How many? Sure?"),
        (message_pb2.TRAIN_ON_ALL_MESSAGES, "Be brief. How many? 6 \U0001f389Sure?"),
    ):
        request = pb.ApplyChatTemplateRequest(
            tokenizer=str(served.name), conversations=[conversation(*CHAT)], train_on=train_on
        )
        [rendered] = (await served.stub.ApplyChatTemplate(request)).rendered
        ids = np.frombuffer(rendered.tokens_int32, "<i4")[np.frombuffer(rendered.train_mask_uint8, "u1") == 1]
        assert await decode(served.stub, served.name, [ids[ids != end].tolist()]) == [trained]
        assert (ids == end).any()
    request.train_on = message_pb2.TRAIN_ON_ALL_TOKENS
    [rendered] = (await served.stub.ApplyChatTemplate(request)).rendered
    assert set(rendered.train_mask_uint8) == {1}
    last_by_user = [conversation(*CHAT), conversation(*CHAT[:2])]
    request = pb.ApplyChatTemplateRequest(
        tokenizer=str(served.name),
        conversations=last_by_user,
        train_on=message_pb2.TRAIN_ON_LAST_ASSISTANT_MESSAGE,
    )
    with refused(InvalidArgumentError, "FIELD_INVALID", field="conversations[1].messages"):
        await served.stub.ApplyChatTemplate(request)


async def test_a_generation_prompt_is_what_an_answer_follows(served: Served) -> None:
    request = pb.ApplyChatTemplateRequest(tokenizer=str(served.name), conversations=[conversation(*CHAT[:2])])
    request.add_generation_prompt = True
    [asked] = (await served.stub.ApplyChatTemplate(request)).rendered
    request = pb.ApplyChatTemplateRequest(tokenizer=str(served.name), conversations=[conversation(*CHAT[:3])])
    [answered] = (await served.stub.ApplyChatTemplate(request)).rendered
    assert answered.tokens_int32.startswith(asked.tokens_int32)
    assert not any(asked.train_mask_uint8)
    assert answered.train_mask_uint8.index(1) == len(asked.train_mask_uint8)


async def test_what_would_not_be_rendered_is_refused(served: Served) -> None:
    def asked(**fields: Any) -> pb.ApplyChatTemplateRequest:
        message = message_pb2.Message(role="assistant", **fields)
        chat = message_pb2.Conversation(messages=[*conversation(*CHAT[:2]).messages, message])
        return pb.ApplyChatTemplateRequest(tokenizer=str(served.name), conversations=[chat])

    refusals: dict[str, dict[str, Any]] = {
        "tool_calls": {"content": "x", "tool_calls": [message_pb2.ToolCall(id="1", name="add")]},
        "thinking": {"content": "x", "thinking": "hm"},
        "parts": {"parts": [message_pb2.ContentPart(media=message_pb2.Media(media_type="image/png", data=b"x"))]},
    }
    for name, fields in refusals.items():
        with refused(UnimplementedError, "CAPABILITY_MISSING", field=f"conversations[0].messages[2].{name}"):
            await served.stub.ApplyChatTemplate(asked(**fields))
    parts = [message_pb2.ContentPart(text=text) for text in ("six", " apples")]
    answers = [
        await served.stub.ApplyChatTemplate(asked(**each)) for each in ({"parts": parts}, {"content": "six apples"})
    ]
    assert answers[0] == answers[1]


async def test_the_fake_makes_a_token_of_each_byte(binding: Binding, context: AdapterContext) -> None:
    stub, name = await binding.stub(FakeTokenizer(FakeTokenizerOptions(), context)), Path("fake/model")
    described = await info(stub, name)
    assert described.vocab_size == 260
    assert described.has_chat_template
    assert await encode(stub, name, ["h\u00e9", ""]) == [[104, 195, 169], []]
    assert await encode(stub, name, ["h"], add_special_tokens=True) == [[described.bos_token_id, 104]]
    special = [described.bos_token_id, 104, described.eos_token_id]
    assert await decode(stub, name, [special]) == ["<|begin|>h<|end|>"]
    assert await decode(stub, name, [special], skip_special_tokens=True) == ["h"]
    with refused(NotFoundError, "TOKENIZER_NOT_FOUND", says="fake/model"):
        await info(stub, Path("fake/other"))
    assert await info(stub, SHIPPED) == described
    request = pb.ApplyChatTemplateRequest(tokenizer=str(name), conversations=[conversation(("robot", "beep"))])
    with refused(InvalidArgumentError, "CHAT_TEMPLATE_REFUSED", field="conversations[0]", says="'robot'"):
        await stub.ApplyChatTemplate(request)


async def test_the_fake_renders_plainly_as_the_real_one_does(
    binding: Binding, context: AdapterContext, tmp_path: Path
) -> None:
    fake = await binding.stub(FakeTokenizer(FakeTokenizerOptions(chat_template=False), context))
    real = await binding.stub(TokenizersFolder(AdapterOptions(), context))
    folder = make_folder(tmp_path / "tokenizer", template=None)
    request = pb.ApplyChatTemplateRequest(tokenizer=str(folder), conversations=[conversation(*CHAT)])
    with refused(FailedPreconditionError, "CHAT_TEMPLATE_MISSING"):
        await fake.ApplyChatTemplate(request)
    request.plain_without_template = True
    for add_generation_prompt in (False, True):
        request.add_generation_prompt = add_generation_prompt
        texts, trained = [], []
        for stub in (fake, real):
            [rendered] = (await stub.ApplyChatTemplate(request)).rendered
            ids = np.frombuffer(rendered.tokens_int32, "<i4")
            mask = np.frombuffer(rendered.train_mask_uint8, "u1")
            parts = [ids.tolist(), ids[mask == 1].tolist()]
            text, asked = await decode(stub, folder, parts, skip_special_tokens=True)
            texts.append(text)
            trained.append(asked)
        assert texts[0] == texts[1]
        assert trained[0] == trained[1] == " 6 \U0001f389 "


async def test_what_is_no_tokenizer_is_refused(stub: Any, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with refused(NotFoundError, "TOKENIZER_NOT_FOUND", says="tokenizer.json"):
            await info(stub, folder)
    with refused(InvalidArgumentError, "PATH_NOT_ALLOWED", field="tokenizer"):
        await info(stub, Path("Qwen/Qwen3-0.6B"))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="tokenizer"):
        await stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest())
    for name, content in (("tokenizer.json", "{}"), ("tokenizer.json", "not JSON"), ("tokenizer_config.json", "[]")):
        folder = make_folder(tmp_path / f"{name}{len(content)}")
        (folder / name).write_text(content)
        with refused(InvalidArgumentError, "FIELD_INVALID", field="tokenizer", says=name):
            await info(stub, folder)


async def test_paths_stay_within_the_allowed_folders_and_the_data_folder(binding: Binding, tmp_path: Path) -> None:
    data_dir, allowed = tmp_path / "data", tmp_path / "allowed"
    for folder in (data_dir, allowed):
        folder.mkdir()
    context = AdapterContext(data_dir=data_dir, read_roots=(allowed,))
    stub = await binding.stub(TokenizersFolder(AdapterOptions(), context))
    for folder in (data_dir, allowed):
        await info(stub, make_folder(folder / "tokenizer"))
    outside = make_folder(tmp_path / "tokenizer")
    for name in (outside, data_dir / ".." / "tokenizer"):
        with refused(InvalidArgumentError, "PATH_NOT_ALLOWED", field="tokenizer"):
            await info(stub, name)


async def test_the_fingerprint_is_of_what_decides_ids(stub: Any, tmp_path: Path) -> None:
    base = (await info(stub, make_folder(tmp_path / "base"))).fingerprint
    same = make_folder(tmp_path / "same", config={"model_max_length": 7})
    (same / "README.md").write_text("x")
    assert (await info(stub, same)).fingerprint == base
    others = [
        make_folder(tmp_path / "template", template=CHATML + " "),
        make_folder(tmp_path / "eos", config={"eos_token": "<|endoftext|>"}),
        make_folder(tmp_path / "added", config={"extra_special_tokens": ["<x>"]}),
        make_folder(tmp_path / "definition", tokenizer=begin_and_end()),
    ]
    fingerprints = {(await info(stub, folder)).fingerprint for folder in others}
    assert len(fingerprints) == len(others)
    assert base not in fingerprints


async def test_a_changed_folder_is_loaded_anew(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer")
    assert (await info(stub, folder)).has_chat_template
    (folder / "chat_template.jinja").unlink()
    described = await info(stub, folder)
    assert not described.has_chat_template
    assert described.vocab_size == 2048
    (folder / "tokenizer.json").write_text(
        json.dumps(json.loads((SHIPPED / "tokenizer.json").read_text()) | begin_and_end())
    )
    assert (await info(stub, folder)).vocab_size == 2050


async def test_the_end_of_sequence_may_stand_in_the_generation_config_alone(stub: Any, tmp_path: Path) -> None:
    files = {"generation_config.json": {"eos_token_id": [2, 0]}}
    folder = make_folder(tmp_path / "tokenizer", config={"eos_token": None}, files=files)
    assert (await info(stub, folder)).eos_token_id == 2


async def test_a_missing_template_is_a_precondition(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer", template=None)
    request = pb.ApplyChatTemplateRequest(tokenizer=str(folder), conversations=[conversation(*CHAT)])
    with refused(FailedPreconditionError, "CHAT_TEMPLATE_MISSING", says="chat_template.jinja"):
        await stub.ApplyChatTemplate(request)


def test_no_local_adapter_loads_torch_or_transformers() -> None:
    modules = [
        "tokenizer.tokenizers_folder",
        "dataset.local",
        "hub.local",
        "blob.local",
        "metrics.sqlite",
        "registry.sqlite",
    ]
    lines = [f"import crucible_adapters.{module}" for module in modules]
    program = "\n".join([*lines, "import sys", "print([m for m in ('torch', 'transformers') if m in sys.modules])"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
