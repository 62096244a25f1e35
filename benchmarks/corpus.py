"""`lepta corpus prepare` at size: memory, speed, planted duplicates found, others wrongly dropped. One command:

    python benchmarks/corpus.py --size 1 [--data DIR] [--work DIR] [--output results.json]

It makes a quarter of SIZE gigabytes of text and then SIZE, out of the sentences of the starter corpus or of any text
source (`--data`), put together at random so that no two documents are alike; of every hundred documents two are exact
copies of earlier ones, and six are copies with 1, 2 or 5 % of the words changed. Some hold markup, links and emoji.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import regex
import yaml
from rich.console import Console
from rich.table import Table

SHARES = {"near 1%": 0.01, "near 2%": 0.02, "near 5%": 0.05}
PLANTED = {"exact": 0.02} | dict.fromkeys(SHARES, 0.02)
NOISE = ("<div class='post'>{}</div>", "{} 😀👍", "{}\nhttps://example.org/page?id=7", "<p>{}</p>\u200b")
SHARD = 30_000_000  # characters
SENTENCE = regex.compile(r"(?<=[.!?…])\s+(?=\p{Lu})|\n+")


class Made(NamedTuple):
    """A document, what it is, and the number of the one that it is a copy of."""

    number: int
    kind: str
    of: int
    text: str


def sentences_of(source: str) -> list[str]:
    """All different sentences of a text source that are of a usual length."""
    from lepta.text.sources import read_documents

    parts = (part.strip() for text in read_documents([source]) for part in SENTENCE.split(text))
    return sorted({part for part in parts if 30 <= len(part) <= 300})


def make(sentences: list[str], size: int) -> Iterator[Made]:
    """Make documents of so many bytes in all, the same ones each time."""
    chance, recent, written, number = random.Random(1), [], 0, 0
    words = [word for sentence in sentences[:20_000] for word in sentence.split()]
    kinds = [*PLANTED, "distinct"]
    weights = [*PLANTED.values(), 1 - sum(PLANTED.values())]
    while written < size:
        kind, of = chance.choices(kinds, weights)[0], number
        if kind == "distinct" or not recent:
            kind, text = "distinct", " ".join(chance.choices(sentences, k=chance.randint(10, 40)))
            if len(recent) < 2000:
                recent.append((number, text))
            else:
                recent[chance.randrange(2000)] = (number, text)
        else:
            of, text = chance.choice(recent)
            text = text if kind == "exact" else change(text, SHARES[kind], words, chance)
        if chance.random() < 0.1:
            text = chance.choice(NOISE).format(text)
        yield Made(number, kind, of, text)
        written += len(text.encode())
        number += 1


def change(text: str, share: float, words: list[str], chance: random.Random) -> str:
    """Put other words in the place of some."""
    parts = text.split(" ")
    for place in chance.sample(range(len(parts)), max(round(share * len(parts)), 1)):
        parts[place] = chance.choice(words)
    return " ".join(parts)


def write(documents: Iterator[Made], folder: Path) -> int:
    """Write documents as shards; returns the bytes of text."""
    from lepta.corpora.steps import ShardWriter

    writer, size, shards = None, 0, 0
    for made in documents:
        writer = writer or ShardWriter(folder / f"{shards:05d}.jsonl.zst")
        writer.write({"text": made.text, "doc": f"{made.number}"})
        size += len(made.text.encode())
        if writer.characters > SHARD:
            writer.close()
            writer, shards = None, shards + 1
    if writer:
        writer.close()
    return size


class Watch(threading.Thread):
    """Watches the memory and processor time of a process and of all that it starts."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process, self.together, self.largest = psutil.Process(process), 0, 0
        self.seconds: dict[int, float] = {}

    def run(self) -> None:
        """Sample until the process is gone."""
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            sizes = []
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    sizes.append(process.memory_info().rss)
                    self.seconds[process.pid] = sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                pass
            self.together, self.largest = max(self.together, sum(sizes)), max(self.largest, *sizes, 0)
            time.sleep(0.1)


def measure(sentences: list[str], size: int, work: Path) -> dict[str, float]:
    """Make a corpus, prepare it, and compare what is left with what was planted."""
    from lepta.corpora.clean import Cleaner
    from lepta.corpora.judge import Judge
    from lepta.corpora.settings import Clean, Filters
    from lepta.text.formats import read_rows

    raw, output = work / f"raw-{size}", work / f"prepared-{size}"
    written = write(make(sentences, size), raw)
    settings = work / f"{size}.yaml"
    settings.write_text(yaml.safe_dump({"sources": {"made": {"text": [str(raw)]}}, "output": str(output)}))
    started = time.monotonic()
    command = [sys.executable, "-m", "lepta", "corpus", "prepare", str(settings), "--force", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid)
    watch.start()
    if process.wait():
        raise SystemExit("lepta corpus prepare failed")
    seconds = time.monotonic() - started
    shards = sorted((output / "text" / "made").glob("*"))
    kept = {int(row.value["doc"]) for shard in shards for row in read_rows(shard)}
    cleaner, judge = Cleaner(Clean()), Judge(Filters(), Clean())
    made, found, wrong = Counter(), Counter(), 0
    for document in make(sentences, size):
        made[document.kind] += 1
        if document.number in kept:
            continue
        if document.kind != "distinct":
            found[document.kind] += 1
        elif judge.reason(cleaner.clean(document.text)) is None:
            wrong += 1
    facts = {"GB": written / 1e9, "documents": sum(made.values()), "seconds": seconds, "MB/s": written / 1e6 / seconds}
    facts["processor seconds"] = sum(watch.seconds.values())  # of all processes: what other jobs do not slow down
    facts |= {"memory MiB": watch.together / 2**20, "largest process MiB": watch.largest / 2**20}
    facts |= {f"{kind} found": found[kind] / max(made[kind], 1) for kind in PLANTED}
    return facts | {"distinct wrongly dropped": wrong / made["distinct"]}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1.0, help="gigabytes of text (UTF-8)")
    parser.add_argument("--data", default="starter:ru/train", help="text source")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_corpus"), help="folder to work in")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    sentences = sentences_of(arguments.data)
    arguments.work.mkdir(parents=True, exist_ok=True)
    sizes = [int(arguments.size * 1e9 / 4), int(arguments.size * 1e9)]
    columns = [measure(sentences, size, arguments.work) for size in sizes]
    table = Table("", *("" for _ in columns), title=f"{len(sentences):,} different sentences")
    for name in columns[0]:
        table.add_row(
            name, *(f"{column[name]:,.4g}" if column[name] < 1e5 else f"{column[name]:,}" for column in columns)
        )
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps(columns, indent=2) + "\n")


if __name__ == "__main__":
    main()
