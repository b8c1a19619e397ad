"""What follows from interactions and their signals: scores, examples, pairs, drift. Pure functions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import NamedTuple, TypeVar

from google.protobuf.message import Message

from crucible.port.feedback.v1 import feedback_pb2 as pb
from crucible.type.v1 import comparison_pb2
from crucible_adapters.fakes.seeded import content_of

MAX_EXPORTED = 256
_MAX_EXPORTED_BYTES = 8 * 1024 * 1024
_THUMBS_UP, _RATING = pb.SIGNAL_KIND_THUMBS_UP, pb.SIGNAL_KIND_RATING
_CORRECTION, _FLAG = pb.SIGNAL_KIND_CORRECTION, pb.SIGNAL_KIND_FLAG
_A, _B, _TIE = (
    comparison_pb2.COMPARISON_LABEL_A,
    comparison_pb2.COMPARISON_LABEL_B,
    comparison_pb2.COMPARISON_LABEL_TIE,
)

Exported = TypeVar("Exported", bound=Message)


@dataclass
class Entry:
    """One interaction with its signals, in the order they were recorded.

    Attributes:
        number: of the interaction in the order of ingestion.
    """

    interaction: pb.Interaction
    number: int
    signals: list[pb.Signal] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The interaction's id."""
        return self.interaction.interaction_id

    @property
    def score(self) -> float | None:
        """Mean of the signals' values; None without signals."""
        return fmean(_value(each) for each in self.signals) if self.signals else None

    @property
    def corrections(self) -> list[pb.Signal]:
        """The corrections, newest last."""
        found = [each for each in self.signals if each.kind == _CORRECTION]
        return sorted(found, key=lambda each: each.time.ToNanoseconds())

    @property
    def flagged(self) -> bool:
        """Whether somebody reported the answer."""
        return any(each.kind == _FLAG for each in self.signals)


def _value(signal: pb.Signal) -> float:
    return signal.value if signal.kind == _RATING else float(signal.kind == _THUMBS_UP)


def mean_score(entries: Iterable[Entry]) -> float | None:
    """Mean score of the entries that have one; None: none has."""
    scores = [each.score for each in entries]
    known = [score for score in scores if score is not None]
    return fmean(known) if known else None


class Curated(NamedTuple):
    """Chosen examples, and how many interactions were left out by reason."""

    examples: list[pb.Example]
    dropped: Counter[str]

    @property
    def fingerprint(self) -> str:
        """Equal exactly for equal examples in an equal order."""
        total = hashlib.sha256()
        for each in self.examples:
            content = content_of(each)
            total.update(len(content).to_bytes(8, "little") + content)
        return total.hexdigest()


def curate(entries: Sequence[Entry], request: pb.CurateExamplesRequest) -> Curated:
    """Chooses examples as the request says."""
    dropped: Counter[str] = Counter()
    kept: list[pb.Example] = []
    seen: set[bytes] = set()
    for entry in sorted(entries, key=lambda each: each.id):
        example = _example(entry, use_corrections=request.use_corrections)
        reason = _reason(entry, example, request)
        if not reason and request.remove_duplicates:
            content = b"".join(content_of(each) + b"\0" for each in example.messages)
            reason = "duplicate" if content in seen else ""
            seen.add(content)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(example)
    kept.sort(key=lambda each: (-(each.score if each.HasField("score") else -1.0), each.interaction_id))
    if request.max_examples and len(kept) > request.max_examples:
        dropped["over_limit"] = len(kept) - request.max_examples
        del kept[request.max_examples :]
    return Curated(kept, dropped)


def _example(entry: Entry, *, use_corrections: bool) -> pb.Example:
    interaction = entry.interaction
    corrected = entry.corrections if use_corrections else []
    completion = corrected[-1].correction if corrected else interaction.completion
    return pb.Example(
        interaction_id=entry.id,
        messages=[*interaction.prompt_conversation, *completion],
        score=1.0 if corrected else entry.score,
        corrected=bool(corrected),
        labels=interaction.labels,
    )


def _reason(entry: Entry, example: pb.Example, request: pb.CurateExamplesRequest) -> str:
    """Why an interaction is left out; empty: it is not."""
    if entry.flagged:
        return "flagged"
    if not request.HasField("min_score"):
        return ""
    if not example.HasField("score"):
        return "no_score"
    return "low_score" if example.score < request.min_score else ""


def preference_pairs(
    entries: Sequence[Entry], request: pb.ExportPreferencePairsRequest, is_new: set[str]
) -> list[pb.PreferencePair]:
    """The pairs among a model line's interactions. `is_new` are the ids of those that are."""
    pairs = [_corrected(entry, each) for entry in entries for each in entry.corrections]
    by_prompt: dict[bytes, list[Entry]] = {}
    for entry in sorted(entries, key=lambda each: each.id):
        if entry.score is not None:
            prompt = b"".join(content_of(each) + b"\0" for each in entry.interaction.prompt_conversation)
            by_prompt.setdefault(prompt, []).append(entry)
    for group in by_prompt.values():
        for a, b in combinations(group, 2):
            pair = _compared(a, b, request.min_margin)
            if pair.labeled_comparison.label != _TIE or request.include_ties:
                pairs.append(pair)
    if request.only_new:
        pairs = [each for each in pairs if {each.interaction_id_a, each.interaction_id_b} & is_new]
    return sorted(pairs, key=lambda each: (each.interaction_id_a, each.interaction_id_b))


def _corrected(entry: Entry, signal: pb.Signal) -> pb.PreferencePair:
    comparison = comparison_pb2.Comparison(
        prompt_conversation=entry.interaction.prompt_conversation,
        completion_a=signal.correction,
        completion_b=entry.interaction.completion,
    )
    return _pair(comparison, _A, entry, entry, 1.0)


def _compared(a: Entry, b: Entry, min_margin: float) -> pb.PreferencePair:
    comparison = comparison_pb2.Comparison(
        prompt_conversation=a.interaction.prompt_conversation,
        completion_a=a.interaction.completion,
        completion_b=b.interaction.completion,
    )
    difference = (a.score or 0.0) - (b.score or 0.0)
    label = _A if difference > 0 else _B
    if not difference or abs(difference) < min_margin:
        label = _TIE
    return _pair(comparison, label, a, b, abs(difference))


def _pair(
    comparison: comparison_pb2.Comparison, label: comparison_pb2.ComparisonLabel, a: Entry, b: Entry, margin: float
) -> pb.PreferencePair:
    return pb.PreferencePair(
        labeled_comparison=comparison_pb2.LabeledComparison(comparison=comparison, label=label),
        interaction_id_a=a.id,
        interaction_id_b=b.id,
        margin=margin,
    )


def batches(messages: Iterable[Exported]) -> Iterator[list[Exported]]:
    """The messages in batches of at most 256 and 8 MiB, or of one that is larger."""
    batch: list[Exported] = []
    size = 0
    for each in messages:
        if batch and (len(batch) == MAX_EXPORTED or size + each.ByteSize() > _MAX_EXPORTED_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.ByteSize()
    if batch:
        yield batch
