"""Operations on repositories of models. Each takes the arguments of one call and answers with plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import RepoFile, get_cached_repo_tree
from huggingface_hub.errors import CachedRepoTreeNotFoundError, RevisionResolutionError

from crucible_adapters.huggingface.errors import is_unreachable
from crucible_adapters.huggingface.library import Library, is_commit
from crucible_adapters.huggingface.verified import VerifiedFiles, git_blob_hash
from crucible_kit.errors import FailedPreconditionError

_DOWNLOADS_AT_A_TIME = 4


def describe(library: Library) -> dict[str, Any]:
    """Commit, time of the last change in seconds since 1970, and files. From the cache when the hub is not there."""
    subject = library.subject
    try:
        info = library.api.model_info(subject.repo, revision=subject.revision or None, files_metadata=True)
    except Exception as error:
        if is_unreachable(error) and (cached := _cached(library)) is not None:
            return cached
        raise
    if info.gated:
        # What is in it everybody may see; only this tells who may download it.
        library.api.auth_check(subject.repo)
    files = [
        {"path": each.rfilename, "size": each.size or 0, "sha256": each.lfs.sha256 if each.lfs else ""}
        for each in info.siblings or ()
    ]
    return {
        "commit": info.sha,
        "update_time": info.last_modified.timestamp() if info.last_modified else None,
        "files": sorted(files, key=lambda each: each["path"]),
    }


def _cached(library: Library) -> dict[str, Any] | None:
    """What an earlier snapshot told of a repository."""
    try:
        commit = library.commit(cached=True)
        tree = get_cached_repo_tree(library.subject.repo, revision=commit)
    except (RevisionResolutionError, CachedRepoTreeNotFoundError):
        return None
    files = [{"path": each.path, "size": each.size, "sha256": ""} for each in tree]
    return {"commit": commit, "update_time": None, "files": sorted(files, key=lambda each: each["path"])}


def snapshot(library: Library, *, allow_patterns: list[str], ignore_patterns: list[str], record: str) -> dict[str, Any]:
    """Brings files into the cache and checks their hashes; answers with the folder and the commit."""
    subject = library.subject
    folder = Path(
        library.api.snapshot_download(
            subject.repo,
            revision=subject.revision or None,
            allow_patterns=allow_patterns or None,
            ignore_patterns=ignore_patterns or None,
            max_workers=_DOWNLOADS_AT_A_TIME,
        )
    )
    # A repository without such a file has no folder yet.
    folder.mkdir(parents=True, exist_ok=True)
    VerifiedFiles(Path(record)).check((path for path in sorted(folder.rglob("*")) if path.is_file()), subject.repo)
    return {"folder": str(folder), "commit": folder.name}


def download(library: Library, *, path: str, record: str) -> dict[str, Any]:
    """Brings one file into the cache and checks its hash; answers with its place."""
    subject = library.subject
    file = Path(library.api.hf_hub_download(subject.repo, path, revision=subject.revision or None))
    VerifiedFiles(Path(record)).check([file], subject.repo)
    return {"file": str(file)}


def upload(library: Library, *, path: str, file: str, sha256: str) -> dict[str, Any]:
    """Commits one file onto the branch `revision`; if that is a commit, onto the default branch while it is there."""
    repo, revision = library.subject.repo, library.subject.revision
    pinned = is_commit(revision)
    commit = library.api.upload_file(
        path_or_fileobj=file,
        path_in_repo=path,
        repo_id=repo,
        revision=None if pinned else revision or None,
        parent_commit=revision if pinned else None,
        commit_message=f"Upload {path}",
    ).oid
    held = any(
        isinstance(each, RepoFile) and _holds(each, sha256, Path(file))
        for each in library.api.get_paths_info(repo, [path], revision=commit)
    )
    if not held:
        raise FailedPreconditionError(
            f"{repo}: {path} was sent, but commit {commit} does not hold it: look at the repository's .gitignore",
            reason="HUB_REFUSED",
            metadata={"repo": repo, "path": path, "commit": commit},
        )
    return {"commit": commit}


def _holds(found: RepoFile, sha256: str, file: Path) -> bool:
    return found.lfs.sha256 == sha256 if found.lfs is not None else found.blob_id == git_blob_hash(file)
