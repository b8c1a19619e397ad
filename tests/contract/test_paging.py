"""Page tokens go back only to the list they come from."""

from __future__ import annotations

import base64

import pytest

from crucible_kit import paging
from crucible_kit.errors import InvalidArgumentError
from tests.contract.refusals import refused


@pytest.mark.parametrize("position", [["a/b"], [0], [-5, "x"], [2**62, "\u00e9\U0001f389"], [None], [1.5]])
def test_a_token_gives_its_position_back(position: list[object]) -> None:
    assert paging.decode(paging.encode(position, "ListRuns\0a"), "ListRuns\0a") == position


def test_no_token_is_the_start() -> None:
    assert paging.decode("", "ListRuns") == []


def test_a_token_of_another_list_is_refused() -> None:
    token = paging.encode(["k"], "ListBlobs\0a")
    with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID", field="page_token"):
        paging.decode(token, "ListBlobs\0b")


def test_no_changed_token_is_accepted() -> None:
    token = paging.encode(["some/key"], "scope")
    for place in range(len(token)):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        # The last character's unused bits may decode to the same bytes.
        if base64.urlsafe_b64decode(changed + "=" * (-len(changed) % 4)) == base64.urlsafe_b64decode(
            token + "=" * (-len(token) % 4)
        ):
            continue
        with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID"):
            paging.decode(changed, "scope")


@pytest.mark.parametrize("token", ["x", "not a token", "\u00e9", "====", "A" * 5000])
def test_what_is_no_token_is_refused(token: str) -> None:
    with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID", field="page_token"):
        paging.decode(token, "scope")


def test_page_sizes() -> None:
    assert [paging.page_size(each) for each in (0, 1, 50, 500, 501, 2**31 - 1)] == [50, 1, 50, 500, 500, 500]
    with refused(InvalidArgumentError, "FIELD_INVALID", field="page_size"):
        paging.page_size(-1)
