"""A configured connection to the hub, inside the process that uses the libraries."""

from __future__ import annotations

import re

from huggingface_hub import HfApi

from crucible_adapters.huggingface import http
from crucible_adapters.huggingface.errors import Subject

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str) -> bool:
    """Whether a revision is a whole commit, which never means anything else."""
    return _COMMIT.fullmatch(revision) is not None


class Library:
    """The library's client, and what it is asked about. The token and the cache come from the environment.

    Attributes:
        api: the library's own client.
        subject: the repository.
    """

    def __init__(self, subject: Subject, *, version: str, timeout_seconds: float) -> None:
        """`version` is ours, for the hub's logs; `timeout_seconds` the longest wait for the next piece of an answer."""
        http.install(timeout=timeout_seconds)
        self.subject = subject
        self.api = HfApi(endpoint=subject.endpoint, library_name="crucible-kitchen", library_version=version)

    def commit(self, *, cached: bool = False) -> str:
        """The commit that the subject's revision stands for; what it stood for last when the hub is not there.

        Args:
            cached: do not ask the hub.
        """
        subject = self.subject
        return self.api.resolve_revision(
            subject.repo, repo_type=subject.kind, revision=subject.revision or None, local_files_only=cached
        ).resolved
