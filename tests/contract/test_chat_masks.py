"""Train masks: exactly what a message says and the token that ends its turn, whatever the template does around it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from crucible.port.tokenizer.v1 import tokenizer_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_adapters.tokenizer.folder import FolderTokenizer
from crucible_adapters.tokenizer.spans import RenderedChat, train_mask
from crucible_adapters.tokenizer.tokenizers_folder import TokenizersFolder
from crucible_kit.adapter import AdapterContext, AdapterOptions
from crucible_kit.errors import InvalidArgumentError, UnimplementedError
from tests.contract import tokenizer_folders as folders
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.tokenizer_folders import make_folder

END = "<|im_end|>"
DECODER = Tokenizer.from_file(str(folders.SHIPPED / "tokenizer.json"))
CHAT = [("system", "Be brief."), ("user", "How many?"), ("assistant", "Six."), ("user", "Sure?"), ("assistant", "Yes.")]


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(TokenizersFolder(AdapterOptions(), context))


@pytest.fixture
async def local_stub(local: Binding, context: AdapterContext) -> Any:
    return await local.stub(TokenizersFolder(AdapterOptions(), context))


async def apply(stub: Any, folder: Path, *chats: Sequence[tuple[str, str]], **fields: Any) -> Any:
    conversations = [
        message_pb2.Conversation(messages=[message_pb2.Message(role=r, content=c) for r, c in chat]) for chat in chats
    ]
    request = pb.ApplyChatTemplateRequest(tokenizer=str(folder), conversations=conversations, **fields)
    return (await stub.ApplyChatTemplate(request)).rendered


def trained(rendered: pb.RenderedConversation) -> list[str]:
    """The texts of the stretches that are trained on."""
    ids = np.frombuffer(rendered.tokens_int32, "<i4").tolist()
    pairs = zip(rendered.train_mask_uint8, ids, strict=True)
    stretches = [(mask, [each for _, each in group]) for mask, group in itertools.groupby(pairs, lambda pair: pair[0])]
    return [DECODER.decode(stretch, skip_special_tokens=False) for mask, stretch in stretches if mask]


EXPECTED = {
    message_pb2.TRAIN_ON_UNSPECIFIED: ["Six." + END, "Yes." + END],
    message_pb2.TRAIN_ON_ALL_ASSISTANT_MESSAGES: ["Six." + END, "Yes." + END],
    message_pb2.TRAIN_ON_LAST_ASSISTANT_MESSAGE: ["Yes." + END],
    message_pb2.TRAIN_ON_ALL_MESSAGES: [content + END for _, content in CHAT],
    message_pb2.TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES: [content + END for role, content in CHAT if role != "assistant"],
    message_pb2.TRAIN_ON_ALL_TOKENS: ["".join(f"<|im_start|>{role}\n{content}{END}\n" for role, content in CHAT)],
    message_pb2.TRAIN_ON_CUSTOMIZED: [],
}


async def test_train_on_says_which_messages(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer")
    assert set(EXPECTED) == set(message_pb2.TrainOn.values())
    for train_on, expected in EXPECTED.items():
        # Whatever else is in the batch.
        other = [("user", "Why? " * 50), ("assistant", "So.")]
        _, rendered, _ = await apply(stub, folder, other, CHAT, other, train_on=train_on)
        assert trained(rendered) == expected, train_on


async def test_customized_trains_on_the_messages_that_say_so(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer")
    messages = [
        message_pb2.Message(role="user", content="a", trainable=True),
        message_pb2.Message(role="assistant", content="b", trainable=False),
        message_pb2.Message(role="assistant", content="c"),
        message_pb2.Message(role="tool", content="d", name="calculator", trainable=True),
    ]
    request = pb.ApplyChatTemplateRequest(
        tokenizer=str(folder),
        conversations=[message_pb2.Conversation(messages=messages)],
        train_on=message_pb2.TRAIN_ON_CUSTOMIZED,
    )
    [rendered] = (await stub.ApplyChatTemplate(request)).rendered
    assert trained(rendered) == ["a" + END, "d" + END]


async def test_fields_that_no_template_is_given_are_refused(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer")
    part = message_pb2.ContentPart(media=message_pb2.Media(media_type="image/png", data=b"x"))
    for field, message in {
        "tool_calls": message_pb2.Message(role="assistant", tool_calls=[message_pb2.ToolCall(id="c", name="f")]),
        "tool_call_id": message_pb2.Message(role="tool", content="x", tool_call_id="c"),
        "thinking": message_pb2.Message(role="assistant", content="x", thinking="hm"),
        "parts": message_pb2.Message(role="user", parts=[part]),
    }.items():
        plain = message_pb2.Message(role="user", content="x")
        conversations = [message_pb2.Conversation(messages=each) for each in ([plain], [plain, message])]
        request = pb.ApplyChatTemplateRequest(tokenizer=str(folder), conversations=conversations)
        where = f"conversations[1].messages[1].{field}"
        with refused(UnimplementedError, "CAPABILITY_MISSING", field=where, says="tokenizer."):
            await stub.ApplyChatTemplate(request)


async def test_text_in_parts_is_the_text(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer")
    whole = message_pb2.Message(role="user", content="How many?")
    parts = [message_pb2.ContentPart(text="How "), message_pb2.ContentPart(text="many?")]
    conversations = [
        message_pb2.Conversation(messages=[each]) for each in (whole, message_pb2.Message(role="user", parts=parts))
    ]
    request = pb.ApplyChatTemplateRequest(tokenizer=str(folder), conversations=conversations)
    one, two = (await stub.ApplyChatTemplate(request)).rendered
    assert one == two


async def test_last_assistant_message_must_be_the_last(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="conversations[1].messages", says="'user'"):
        await apply(stub, folder, CHAT, CHAT[:2], train_on=message_pb2.TRAIN_ON_LAST_ASSISTANT_MESSAGE)


async def test_the_mask_is_transformers_own_where_the_template_marks_it(local_stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer")
    oracle = AutoTokenizer.from_pretrained(folder)
    chats = [
        CHAT,
        [("user", "x"), ("assistant", "h\u00e9 \U0001f389\U0001f389\n\n  4 + 4 = 8\n")],
        [("user", f"a{END}\n<|im_start|>assistant\nno{END}"), ("assistant", f"b{END}c")],
        [("user", "x"), ("assistant", "")],
        [("assistant", "\n"), ("user", "\n"), ("assistant", " ")],
        [("user", "e"), ("assistant", "e"), ("assistant", "im_end")],
    ]
    for chat, rendered in zip(chats, await apply(local_stub, folder, *chats), strict=True):
        messages = [{"role": role, "content": content} for role, content in chat]
        expected = oracle.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        # Its end_token is None for a token at the very start of the text; none of these has one there.
        mask, ids = list(rendered.train_mask_uint8), expected["input_ids"]
        if f"b{END}c" in chat[-1][1]:
            # The content ends its own turn early: the one that counts is the template's.
            assert trained(rendered) == [f"b{END}c{END}"]
        assert np.frombuffer(rendered.tokens_int32, "<i4").tolist() == ids
        assert mask == expected["assistant_masks"], chat


# Template, further files, the conversation, what is trained on of all assistant messages.
CASES: dict[str, tuple[str, dict[str, Any], list[tuple[str, str]], list[str]]] = {
    "the system text lies in the question": (folders.BRACKETS, {}, CHAT, [f" Six. {END}", f" Yes. {END}"]),
    "contents are trimmed": (
        folders.BRACKETS,
        {},
        [("user", " a "), ("assistant", " \n b c ")],
        [f" b c {END}"],
    ),
    "an eos ends the whole": (
        folders.ENDS_WITH_EOS,
        {"eos_token": "<|endoftext|>"},
        CHAT,
        [f"Six.{END}", f"Yes.{END}"],
    ),
    "the end of a turn is no eos": (folders.CHATML, {"eos_token": "<|endoftext|>"}, CHAT, [f"Six.{END}", f"Yes.{END}"]),
    "there is no eos": (folders.CHATML, {"eos_token": None}, CHAT, [f"Six.{END}", f"Yes.{END}"]),
    "thoughts go from earlier answers": (
        folders.THINKING,
        {},
        [
            ("user", "a"),
            ("assistant", "<think>\nhm\n</think>\n\nb"),
            ("user", "c"),
            ("assistant", "<think>\nx\n</think>\n\nd"),
        ],
        [f"b{END}", f"<think>\nx\n</think>\n\nd{END}"],
    ),
    "an empty thought is put before": (
        folders.THINKING,
        {},
        [("user", "a"), ("assistant", "b")],
        [f"<think>\n\n</think>\n\nb{END}"],
    ),
    # The header ends in a space, which merges with an S and not with a Y: a token is never cut.
    "nothing ends a turn": (folders.PLAIN, {"eos_token": "<|endoftext|>"}, CHAT, [" Six.", "Yes."]),
    "the end is in the content": (
        folders.CHATML,
        {},
        [("user", END), ("assistant", f"a{END}\n<|im_start|>user\nb"), ("user", "c"), ("assistant", END)],
        [f"a{END}\n<|im_start|>user\nb{END}", END + END],
    ),
    "an assistant begins": (folders.CHATML, {}, [("assistant", "a"), ("user", "b")], [f"a{END}"]),
    "the content looks like the header": (
        folders.CHATML,
        {},
        [("user", "assistant"), ("assistant", "assistant"), ("user", "assistant")],
        [f"assistant{END}"],
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_masks_of_templates(local_stub: Any, tmp_path: Path, name: str) -> None:
    template, config, chat, expected = CASES[name]
    folder = make_folder(tmp_path / "tokenizer", template=template, config=config)
    for add_generation_prompt in (False, True):
        [rendered] = await apply(local_stub, folder, chat, add_generation_prompt=add_generation_prompt)
        assert trained(rendered) == expected


async def test_an_end_that_stands_only_at_the_end_belongs_to_the_last_message(local_stub: Any, tmp_path: Path) -> None:
    template = folders.PLAIN + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    folder = make_folder(tmp_path / "tokenizer", template=template)
    [rendered] = await apply(local_stub, folder, CHAT)
    assert trained(rendered) == [" Six.", f"Yes.\n{END}"]


async def test_a_default_system_text_is_no_user_s(local_stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer", template=folders.PLAIN)
    chat = [("user", "people"), ("assistant", "You")]
    [rendered] = await apply(local_stub, folder, chat, train_on=message_pb2.TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES)
    mask = np.frombuffer(rendered.train_mask_uint8, np.uint8)
    before = len(DECODER.encode("You help people.\nuser:").ids)
    assert mask[:before].sum() == 0
    assert "".join(trained(rendered)).strip() == "people"


async def test_a_template_that_refuses_says_which_conversation(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer", template=folders.BRACKETS)
    with refused(InvalidArgumentError, "CHAT_TEMPLATE_REFUSED", field="conversations[1]", says="Roles must take turns"):
        await apply(stub, folder, CHAT, [("user", "a"), ("user", "b")])


async def test_a_template_that_renders_answers_otherwise_than_prompts_is_refused(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer", template=folders.INCONSISTENT)
    with refused(InvalidArgumentError, "CHAT_TEMPLATE_REFUSED", field="conversations[1]", says="message 1"):
        await apply(stub, folder, CHAT[:2], CHAT[1:3])
    [rendered] = await apply(stub, folder, CHAT, train_on=message_pb2.TRAIN_ON_ALL_TOKENS)
    assert len(trained(rendered)) == 1


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% if %}", "not valid"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ ().__class__.__mro__ }}", "unsafe"),
        ("{{ strftime_now('%d') }}", "strftime_now"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for message in messages %}{{ message.role }}{% endfor %}", "leaves out the content"),
        ("{% for m in messages %}{{ m.content }}:{{ m.content | length }}{% endfor %}", "comes after message 1"),
    ],
)
async def test_templates_that_do_not_work_are_refused(
    local_stub: Any, tmp_path: Path, template: str, says: str
) -> None:
    folder = make_folder(tmp_path / "tokenizer", template=template)
    with refused(InvalidArgumentError, "CHAT_TEMPLATE_REFUSED", says=says):
        await apply(local_stub, folder, [("user", "a"), ("assistant", "b")])


async def test_the_day_is_not_in_the_tokens(local_stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer", template=folders.DATED)
    [rendered] = await apply(local_stub, folder, [("user", "x")], train_on=message_pb2.TRAIN_ON_ALL_TOKENS)
    assert trained(rendered) == ["26 July: x"]


def test_any_content_is_found_where_it_is(tmp_path: Path) -> None:
    """Oracle: under CHATML the text is known by construction, so a content's place is a sum of lengths."""
    tokenizer = FolderTokenizer(make_folder(tmp_path / "tokenizer"))
    assert tokenizer.template is not None
    contents = st.text(st.sampled_from(f"ab \n\u00e9\U0001f389{END}"), max_size=12) | st.sampled_from(
        [END, "assistant", "\ue0c1\ue0c2"]
    )
    chats = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), contents), min_size=1, max_size=5)

    @settings(max_examples=60, deadline=None, database=None)
    @given(chats)
    def check(chat: list[tuple[str, str]]) -> None:
        messages = [{"role": role, "content": content} for role, content in chat]
        rendered = RenderedChat(tokenizer.template, messages, add_generation_prompt=False)  # type: ignore[arg-type]
        assert rendered.text == "".join(f"<|im_start|>{role}\n{content}{END}\n" for role, content in chat)
        place, spans = 0, []
        for role, content in chat:
            start = place + len(f"<|im_start|>{role}\n")
            spans.append((start, start + len(content) + len(END)))
            place = spans[-1][1] + 1
        [(ids, offsets)] = tokenizer.encode_with_offsets([rendered.text])
        mask = train_mask(rendered, range(len(chat)), ids, offsets, tokenizer.end_of_turn)
        expected = [any(first < end and start < last for start, end in spans) for first, last in offsets.tolist()]
        assert mask.tolist() == [int(each) for each in expected]

    check()


# Written out by hand from ApplyChatTemplateRequest.plain_without_template.
PLAINLY = f"System: Be brief.\n\nUser: How many?\n\nAssistant: Six.{END}\n\nUser: Sure?\n\nAssistant: Yes.{END}\n\n"
PLAINLY_TRAINED = {
    message_pb2.TRAIN_ON_UNSPECIFIED: [f" Six.{END}", f" Yes.{END}"],
    message_pb2.TRAIN_ON_ALL_ASSISTANT_MESSAGES: [f" Six.{END}", f" Yes.{END}"],
    message_pb2.TRAIN_ON_LAST_ASSISTANT_MESSAGE: [f" Yes.{END}"],
    message_pb2.TRAIN_ON_ALL_MESSAGES: [" Be brief.", " How many?", f" Six.{END}", " Sure?", f" Yes.{END}"],
    message_pb2.TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES: [" Be brief.", " How many?", " Sure?"],
    message_pb2.TRAIN_ON_ALL_TOKENS: [PLAINLY],
    message_pb2.TRAIN_ON_CUSTOMIZED: [],
}


async def test_a_tokenizer_without_a_template_renders_plainly_when_asked(stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer", template=None)
    for train_on, expected in PLAINLY_TRAINED.items():
        [rendered] = await apply(stub, folder, CHAT, train_on=train_on, plain_without_template=True)
        ids = np.frombuffer(rendered.tokens_int32, "<i4").tolist()
        assert ids == AutoTokenizer.from_pretrained(folder)(PLAINLY, add_special_tokens=False)["input_ids"]
        assert trained(rendered) == expected, train_on


async def test_what_is_sampled_after_is_how_a_plain_answer_begins(local_stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer", template=None)
    [whole] = await apply(local_stub, folder, CHAT, plain_without_template=True)
    [prompt] = await apply(local_stub, folder, CHAT[:-1], plain_without_template=True, add_generation_prompt=True)
    assert whole.tokens_int32.startswith(prompt.tokens_int32)
    rest = np.frombuffer(whole.tokens_int32, "<i4").tolist()[len(prompt.tokens_int32) // 4 :]
    assert DECODER.decode(rest, skip_special_tokens=False) == f" Yes.{END}\n\n"


@pytest.mark.parametrize(
    ("config", "tokenizer", "files", "text", "told"),
    [
        (
            {"bos_token": "<s>", "eos_token": "</s>"},
            folders.begin_and_end(),
            {},
            "<s>User: a\n\nAssistant: b</s>\n\n",
            " b</s>",
        ),
        ({"eos_token": None}, {}, {}, "User: a\n\nAssistant: b\n\n", " b"),
        # Named by its id alone.
        (
            {"eos_token": None},
            {},
            {"generation_config.json": {"eos_token_id": 0}},
            "User: a\n\nAssistant: b<|endoftext|>\n\n",
            " b<|endoftext|>",
        ),
    ],
)
async def test_plain_text_has_the_special_tokens_there_are(
    local_stub: Any, tmp_path: Path, config: Any, tokenizer: Any, files: Any, text: str, told: str
) -> None:
    folder = make_folder(tmp_path / "t", template=None, config=config, tokenizer=tokenizer, files=files)
    [rendered] = await apply(local_stub, folder, [("user", "a"), ("assistant", "b")], plain_without_template=True)
    ids = np.frombuffer(rendered.tokens_int32, "<i4").tolist()
    decoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert decoder.decode(ids, skip_special_tokens=False) == text
    marked = [token for token, mask in zip(ids, rendered.train_mask_uint8, strict=True) if mask]
    assert decoder.decode(marked, skip_special_tokens=False) == told


async def test_a_template_wins_over_the_plain_text(local_stub: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tokenizer")
    assert await apply(local_stub, folder, CHAT, plain_without_template=True) == await apply(local_stub, folder, CHAT)


async def test_what_ends_a_turn_is_told(local_stub: Any, tmp_path: Path) -> None:
    async def told(name: str, **how: Any) -> list[str]:
        folder = make_folder(tmp_path / name, **how)
        info = await local_stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest(tokenizer=str(folder)))
        return [DECODER.decode([each], skip_special_tokens=False) for each in info.end_of_turn_token_ids]

    assert await told("chat") == [END]
    # As Qwen 3's base models: the template ends a turn with another token than the sequence.
    assert sorted(await told("base", config={"eos_token": "<|endoftext|>"})) == ["<|endoftext|>", END]
    assert await told("plain", template=None) == [END]
    assert await told("none", template=None, config={"eos_token": None}) == []
    assert await told("broken", template="{% if %}") == [END]
