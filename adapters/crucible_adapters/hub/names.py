"""Names of repositories on a hub."""

from __future__ import annotations

import re

from crucible_kit.errors import field_error

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO_NAME = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@=-]*")


def is_hub_name(name: str) -> bool:
    """Whether a name is owner/name."""
    return _REPO_NAME.fullmatch(name) is not None


def check_revision(revision: str, *, field: str) -> None:
    """Raises INVALID_ARGUMENT FIELD_INVALID for what git takes for no branch, tag or commit; empty is fine.

    Revisions become parts of addresses and of paths in the cache.
    """
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise field_error(field, f"{revision!r} is no name of a branch, a tag or a commit")
