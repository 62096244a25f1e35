"""What a run leaves behind and a recipe says, damaged: every command ends in one line, or does what it is for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz.conftest import COMMANDS, run, write
from fuzz.mutations import accepted, changed, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from lepta.card import write_card


@pytest.fixture(scope="session")
def recipe(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe with all stages, that runs in seconds."""
    place = tmp_path_factory.mktemp("texts")
    for name in ("text.txt", "held-out.txt"):
        (place / name).write_text("Привет, привет!\nПрошло пять лет, прибежал принц.\n" * 40, encoding="utf-8")
    turns = [{"role": "user", "content": "the thing"}, {"role": "assistant", "content": "in the thing"}]
    rows = [json.dumps({"messages": [{**turns[0], "content": f"the {n}"}, turns[1]]}) for n in range(8)]
    (place / "talk.jsonl").write_text("\n".join(rows) + "\n")
    text = {"train": [str(place / "text.txt")], "valid": [str(place / "held-out.txt")]}
    return {
        "name": "tiny",
        "output": "out",
        "base": str(model_folder),
        "variants": {"chat": {"model": str(model_folder)}},
        "text": {"target": {"language": "ru", **text}, "source": {"language": "en", **text}},
        "vocabulary": {"add": 8, "corpus": text["train"]},
        "pretrain": {
            "tokens": 200,
            "block": 32,
            "batch": 2,
            "warmup_steps": 1,
            "measure_characters": 100,
            "keep": "last",
        },
        "propagate": {"method": "swap"},
        "calibrate": {
            "prompts": [str(place / "talk.jsonl")],
            "limit": 4,
            "shown": 1,
            "answers": {"max_tokens": 4},
            "copies": {"text": text["train"], "number": 4, "characters": 100, "apart_from": []},
            "tune": {"batch": 2, "max_length": 500},
        },
        "evaluate": {
            "characters": 100,
            "speed_characters": 100,
            "speed_repeats": 1,
            "prompts": ["the"],
            "max_tokens": 2,
            "darumeru": {"tasks": ["rucola"], "limit": 2, "shots": 0},
        },
    }


@pytest.fixture(scope="session")
def finished(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(folder, "adapt", "recipe.yaml")
    return folder


MODELS = ("initialised", "pretrained", "propagated/chat", "calibrated/chat")
LOGS = [f"darumeru/{name}-chat/samples/rucola.jsonl" for name in ("original", "propagated")]
READ = ["vocabulary/id_map.json", "report/report.json", "darumeru/original-chat/summary.json", ".hashes.json", *LOGS]


def read_again(folder: Path, file: str) -> None:
    """The commands that read a file of a finished run."""
    run(folder, "status", "recipe.yaml")
    for name in MODELS if file.endswith("manifest.json") else ():  # a card reads the manifests of all steps before
        write_card(folder / "out" / name)
    if file.startswith("darumeru"):
        run(folder, "darumeru", "show", "out/darumeru/original-chat")
        sides = [(Path("out") / log).parents[1] for log in LOGS]
        run(folder, "darumeru", "compare", *sides, "--html", "page.html", "--force")
    elif file.startswith("report"):
        run(folder, "report", "out")
    elif file.startswith("vocabulary"):
        run(folder, "vocab", "check", "--tokenizer", "out/vocabulary", "--original", "out/vocabulary")
    elif (model := str(Path(file).parent)) in MODELS:
        run(folder, "publish", f"out/{model}", "--repo", "some/model", "--dry-run")
    else:
        run(folder, "adapt", "recipe.yaml", "--dry-run")


@settings(max_examples=COMMANDS)
@given(data=st.data())
def test_what_a_run_has_left(finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("r") / "run")
    manifests = [file.relative_to(folder / "out") for file in (folder / "out").rglob("manifest.json")]
    name = data.draw(st.sampled_from([*READ, *sorted(map(str, manifests))]))
    file = folder / "out" / name
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = json.dumps(data.draw(changed(json.loads(lines[number]))))
    file.write_text("\n".join(lines) + "\n")
    accepted(lambda: read_again(folder, name), "out")


@settings(max_examples=COMMANDS)
@given(data=st.data())
def test_recipe(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("r")
    write(folder / "recipe.yaml", data.draw(changed(recipe)))  # JSON is YAML

    def read() -> None:
        run(folder, "plan", "recipe.yaml")
        run(folder, "adapt", "recipe.yaml", "--dry-run")

    accepted(read, "")


@settings(max_examples=COMMANDS)
@given(data=st.data())
def test_bytes_of_a_recipe(
    recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("r")
    text = yaml.safe_dump(recipe, allow_unicode=True).encode()
    (folder / "recipe.yaml").write_bytes(data.draw(damaged(text)))
    accepted(lambda: run(folder, "plan", "recipe.yaml"), "")


class Stop(Exception):
    """The run is interrupted here."""


TRAINING = "pretrain --text text.txt --valid held-out.txt --output out --tokens 300 --block 32 --batch 1"
TRAINING += " --save-every 2"
TRAINING += " --warmup-steps 1 --measure-characters 100 --sweep-share 0.2 --learning-rate 1e-3 --learning-rate 1e-4"


@pytest.fixture(scope="session")
def interrupted(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which training was interrupted after its checkpoints, and after a sweep of rates."""

    def stop(*_: Any) -> None:
        raise Stop

    folder = tmp_path_factory.mktemp("interrupted")
    for name in ("text.txt", "held-out.txt"):
        shutil.copyfile(recipe["text"]["target"]["train"][0], folder / name)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("lepta.training.pretrain._facts_of", stop)
        run(folder, *TRAINING.split(), "--model", recipe["base"])
    return folder


@settings(max_examples=COMMANDS)
@given(data=st.data())
def test_what_an_interrupted_run_has_left(
    interrupted: Path, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = shutil.copytree(interrupted, tmp_path_factory.mktemp("r") / "run")
    work = folder / ".out.partial" / "checkpoints"
    files = sorted(file for file in work.rglob("*") if file.is_file() and file.name != "tokens.bin")  # any ids are text
    file = files[data.draw(st.integers(0, len(files) - 1))]
    if file.suffix == ".json" and data.draw(st.booleans()):
        write(file, data.draw(changed(json.loads(file.read_text()))))
    else:
        place = data.draw(st.integers(0, file.stat().st_size))
        file.write_bytes(file.read_bytes()[:place] + data.draw(st.sampled_from([b"", b"\0" * 100])))
    accepted(lambda: run(folder, *TRAINING.split(), "--model", recipe["base"]), "out")
