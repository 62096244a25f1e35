"""What a corpus would come to, from the beginning of each source."""

import time
from typing import Any

from lepta.core.machine import load_above_cores
from lepta.corpora.executors import workers_of
from lepta.corpora.overlap import Signatures, minhash_config
from lepta.corpora.settings import CorpusSettings
from lepta.corpora.steps import DocumentFilter, read_task
from lepta.corpora.tally import Tally
from lepta.corpora.work import Task, Work, inputs_of

CHARACTERS_PER_TOKEN = 4.0  # of a vocabulary made for the language; 2 to 3 with one that was not
OVERHEAD = 1.4  # measured: the whole run against reading, cleaning and signing


def sample(settings: CorpusSettings, work: Work, characters: int) -> dict[str, Any]:
    """Clean so many characters of the beginning of each source in this process, and tell what the whole would come to.

    `sample` holds the counts; `estimate`, for each source, bytes of its files, share of them sampled, characters kept
    and about how many tokens (weighed; duplicates are not looked for); `seconds` is for all of it, on this machine,
    which is `busy` with other work.
    """
    parts, estimate, seconds = [], {}, 0.0
    for name, source in settings.sources.items():
        task = Task(name, inputs_of(source))
        document_filter, started, position = DocumentFilter(settings, work), time.monotonic(), 0
        sign = _signer(settings, work)
        read = kept = 0
        for document, place in read_task(task, document_filter, settings.on_error):
            position = place
            row = document_filter.filter(name, document)
            if row:
                kept += len(row["text"])
                if sign:
                    sign.get_signature(sign.get_shingles(row["text"]))
            read += len(document.text)
            if read >= characters:
                break
        else:
            position = task.size
        parts.append(document_filter.tally.counts)
        share = position / task.size if task.size else None
        estimate[name] = _estimate(read, kept, share, source.weight, task.size)
        if share:
            seconds += (time.monotonic() - started) / share
    whole = seconds * OVERHEAD / workers_of(settings.executor)
    return {
        "sample": Tally.sum(parts).counts,
        "estimate": estimate,
        "seconds": round(whole),
        "busy": load_above_cores(),
    }


def _signer(settings: CorpusSettings, work: Work) -> Signatures | None:
    if settings.deduplicate is None:
        return None
    return Signatures(str(work.folder / "signatures"), minhash_config(settings.deduplicate, settings.seed))


def _estimate(read: int, kept: int, share: float | None, weight: float, size: int) -> dict[str, Any]:
    estimate = {"bytes": size, "sampled": share, "kept_of_read": kept / max(read, 1)}
    whole = tokens = None
    if share:
        whole = round(kept * weight / share)
        tokens = round(whole / CHARACTERS_PER_TOKEN)
    return estimate | {"characters": whole, "tokens_about": tokens}
