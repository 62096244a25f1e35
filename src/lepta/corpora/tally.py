"""Counts of documents and characters: what was read is what was kept and what was dropped, by reason."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from lepta.core.errors import LeptaError

SAMPLES = 5  # dropped documents to look at, of each source and reason
SHOWN = 300  # characters of each
COUNTED = ("read", "kept", "written", "removed", "dropped", "dropped_characters")


class Tally:
    """Counts of one task or of all, by source.

    `characters` are those read. Of kept documents, `removed` says how many of them cleaning took out, by what it was.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, Any]] = {}  # by source; JSON can hold them

    def _of(self, source: str) -> dict[str, Any]:
        if source not in self.counts:
            counts: dict[str, Any] = {name: Counter() for name in COUNTED}
            self.counts[source] = counts | {"samples": {}}
        return self.counts[source]

    def read(self, source: str, characters: int) -> None:
        """Count a document that was read."""
        self._of(source)["read"].update(documents=1, characters=characters)

    def keep(self, source: str, characters: int, removed: dict[str, int], copies: int) -> None:
        """Count a document that is kept: its characters as read, what was removed of them, how often it is written."""
        counts = self._of(source)
        counts["kept"].update(documents=1, characters=characters)
        counts["removed"].update(removed)
        left = characters - sum(removed.values())
        counts["written"].update(documents=copies, characters=copies * left)

    def drop(self, source: str, reason: str, characters: int, name: str, text: str) -> None:
        """Count a document that is dropped, and keep the beginning of the first few to look at."""
        counts = self._of(source)
        counts["dropped"][reason] += 1
        counts["dropped_characters"][reason] += characters
        samples = counts["samples"].setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append({"doc": name, "text": text[:SHOWN]})

    @staticmethod
    def sum(parts: Iterable[dict[str, dict[str, Any]]]) -> "Tally":
        """Add up `counts`, in their order."""
        total = Tally()
        for part in parts:
            for source, counts in part.items():
                into = total._add(source, counts)
                for reason, samples in counts["samples"].items():
                    there = into["samples"].setdefault(reason, [])
                    there += samples[: SAMPLES - len(there)]
        return total

    def report(self) -> dict[str, Any]:
        """Describe each source, and all together as `total`; LeptaError if the counts do not add up.

        `read`, `kept` and `written` hold documents and characters; `dropped`, by reason, the same and samples (not in
        the total); `removed` the characters that cleaning took out of kept documents.
        """
        total = Tally()
        for counts in self.counts.values():
            total._add("total", counts)
        return {
            "total": _describe("total", total._of("total"), samples=False),
            "sources": {source: _describe(source, counts, samples=True) for source, counts in self.counts.items()},
        }

    def _add(self, source: str, counts: dict[str, Any]) -> dict[str, Any]:
        into = self._of(source)
        for name in COUNTED:
            into[name].update(counts[name])
        return into


def _describe(source: str, counts: dict[str, Any], samples: bool) -> dict[str, Any]:
    _check(source, counts)
    dropped = {}
    for reason, documents in sorted(counts["dropped"].items(), key=lambda item: (-item[1], item[0])):
        dropped[reason] = {"documents": documents, "characters": counts["dropped_characters"][reason]}
        if samples:
            dropped[reason]["samples"] = counts["samples"][reason]
    read, kept, written = _sizes(counts["read"]), _sizes(counts["kept"]), _sizes(counts["written"])
    removed = dict(sorted(counts["removed"].items(), key=lambda item: (-item[1], item[0])))
    return {"read": read, "kept": kept, "dropped": dropped, "removed": removed, "written": written}


def _sizes(counts: dict[str, int]) -> dict[str, int]:
    return {"documents": counts["documents"], "characters": counts["characters"]}


def _check(source: str, counts: dict[str, Any]) -> None:
    for unit, dropped in (("documents", counts["dropped"]), ("characters", counts["dropped_characters"])):
        read, kept, lost = counts["read"][unit], counts["kept"][unit], sum(dropped.values())
        if read != kept + lost:
            raise LeptaError(
                f"{source}: {read:,} {unit} were read, but {kept:,} kept and {lost:,} dropped, which do not add up; "
                "this is a fault of LEPTA's: please report it with the settings"
            )
