"""`lepta propagate` and `lepta patch` as commands: what they write, and what they leave when something is wrong."""

import json
import shutil

import commands
import pytest
import torch

from lepta.cli.models import _name_of
from lepta.embeddings.initialise import initialise
from lepta.embeddings.maps import METHODS
from lepta.evaluation.sweep import EQUAL
from lepta.models.folder import INDEX, Checkpoint
from lepta.models.rows import ComputedRows
from lepta.models.write import write_model
from lepta.stages import Hashes
from lepta.vocabulary.source import open_tokenizer

ROWS = 4000


@pytest.fixture(scope="module")
def models(tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path_factory):
    """Base, adapted base and two variants, in several files."""
    options = {"rows": ROWS, "tokenizer": tiny_tokenizer, "max_shard_size": "60KB"}
    base, one, two = (tiny_model_folder(seed=seed, **options) for seed in range(3))
    adapted = tmp_path_factory.mktemp("adapted")
    initialise(Checkpoint(base), tiny_extended, adapted)
    return base, adapted, one, two


def lepta(*arguments, cwd=None, limit=None):
    """Run a command; `limit` is the largest file it may write, in KiB: what a full disk does."""
    return commands.lepta(
        *arguments, cwd=cwd, environment={"COLUMNS": "160"}, largest_file=None if limit is None else limit * 1024
    )


def propagate(models, output, *options, **settings):
    base, adapted, *variants = models
    named = [part for variant in variants for part in ("--instruct", variant)]
    return lepta("propagate", "--base", base, "--adapted", adapted, *named, "--output", output, *options, **settings)


def refused(run, *words):
    """The command failed with one clear line and no traceback."""
    assert run.returncode not in (0, -9)
    assert "Traceback" not in run.stderr
    for word in words:
        assert word in run.stderr.replace("\n", ""), run.stderr


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("OWNER/CHAT@refs/pr/1", "CHAT"),
        ("/home/me@work/chat/", "chat"),
        ("package:pack/chat.Q4_1.gguf", "chat.Q4_1"),
    ],
)
def test_the_folder_of_a_variant_has_its_name(source, name):
    assert _name_of(source) == name


def test_two_variants_go_to_two_folders_that_load_and_generate(models, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = propagate(models, tmp_path / "out", "--method", "auto", "--json")
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    for variant, result in zip(models[2:], results, strict=True):
        folder = tmp_path / "out" / variant.name
        assert result["output"] == str(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["key"]["settings"] == {"method": "auto", "delta_scale": [1.0], "body_delta": []}
        assert manifest["facts"]["chosen"] == {"by": "rows alone: no held-out text or answers are named"}
        assert manifest["sources"]["instruct"] == str(variant)
        assert manifest["key"]["inputs"]["instruct"] == Hashes().content(variant)
        assert manifest["outputs"] == Hashes().files(folder)
        for fit in manifest["facts"]["maps"].values():
            assert {"rank", "condition", "residual", "held_out"} <= set(fit)
            whole = fit["held_out"]["whole"]
            assert whole[fit["method"]] == min(whole.values())
            assert fit["held_out"]["error"] == fit["held_out"]["errors"][fit["method"]]
        model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
        ids = tokenizer("Привет, мир", return_tensors="pt")
        assert model.generate(**ids, max_new_tokens=4, min_new_tokens=4).shape[1] == ids["input_ids"].shape[1] + 4


def test_rows_that_a_body_does_not_know_are_warned_of(models, tmp_path):
    base, adapted, one, _ = models
    grown = tmp_path / "grown"
    grown.mkdir()
    before = Checkpoint(adapted)
    matrices = {name: ComputedRows.of(before.load(name) * 3) for name in before.embedding_names}
    write_model(before, matrices, open_tokenizer(adapted), grown)
    run = propagate((base, grown, one), tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert "warning: " in run.stdout
    assert "its body does not know such rows" in run.stdout.replace("\n", " ")
    assert "warning: " not in propagate((base, adapted, one), tmp_path / "usual").stdout


def test_table_names_matrices_and_methods(models, tmp_path):
    run = propagate(models[:3], tmp_path / "out", "--method", "auto")
    assert run.returncode == 0, run.stderr
    for word in ("model.embed_tokens.weight", "lm_head.weight", "residual", "procrustes", "delta"):
        assert word in run.stdout
    maps = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]["maps"]
    rows = [line.split() for line in run.stdout.splitlines()]
    for fit in maps.values():  # the error that decides is shown beside that of held-out tokens
        errors, whole = fit["held_out"]["errors"], fit["held_out"]["whole"]
        assert fit["method"] == min(whole, key=whole.get)
        for method, error in whole.items():
            taken = ["taken"] if method == fit["method"] else []
            assert [method, f"{errors[method]:.3g}", f"{error:.3g}", *taken] in rows
    assert "lm_head.weight: " in run.stdout and " is taken, which has the least error" in " ".join(run.stdout.split())
    assert all(len(line.rstrip()) <= 80 for line in run.stdout.splitlines() if line.strip().startswith(METHODS))


def test_weights_by_text_are_in_the_manifest(models, tmp_path):
    run = propagate(models[:3], tmp_path / "out", "--weigh-by", "starter:ru/valid")
    assert run.returncode == 0, run.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["key"]["inputs"]) == {"base", "adapted", "instruct", "weigh_by"}


def test_scales_are_chosen_on_held_out_text(models, tmp_path):
    base, adapted, instruct, _ = models
    changed = tmp_path / "changed"
    changed.mkdir()
    model, name = Checkpoint(adapted), "model.layers.0.mlp.up_proj.weight"
    write_model(model, {name: ComputedRows.of(model.load(name) + 3.0)}, open_tokenizer(adapted), changed)
    given = [base, changed, instruct]
    refused(propagate(given, tmp_path / "out"), name, "--body-delta")
    several = ["--body-delta", "0", "--body-delta", "1", "--delta-scale", "1", "--delta-scale", "2"]
    refused(propagate(given, tmp_path / "out", *several), "--valid", "--answers")
    run = propagate(given, tmp_path / "out", *several, "--valid", "starter:ru/valid", "--json")
    assert run.returncode == 0, run.stderr
    chosen = json.loads(run.stdout)["chosen"]
    tried = {(way["delta_scale"], way["body_delta"]): way["bits_per_byte"] for way in chosen["tried"]}
    assert set(tried) == {(1.0, 0.0), (1.0, 1.0), (2.0, 0.0), (2.0, 1.0)}
    assert tried[chosen["delta_scale"], chosen["body_delta"]] == min(tried.values())
    moved = Checkpoint(instruct).load(name) + 3.0 * chosen["body_delta"]
    torch.testing.assert_close(Checkpoint(tmp_path / "out").load(name), moved)
    assert {path.name for path in tmp_path.iterdir()} == {"changed", "out"}
    again = propagate(
        given,
        tmp_path / "same",
        "--method",
        "anchored",
        "--body-delta",
        chosen["body_delta"],
        "--delta-scale",
        chosen["delta_scale"],
    )
    assert again.returncode == 0, again.stderr
    assert Hashes().content(tmp_path / "same") == Hashes().content(tmp_path / "out")


def test_auto_is_judged_through_the_variant(models, tmp_path):
    answers = write_dialogues(tmp_path / "answers.jsonl")
    options = ["--method", "auto", "--valid", "starter:ru/valid", "--answers", answers]
    run = propagate(models[:3], tmp_path / "out", *options)
    assert run.returncode == 0, run.stderr
    chosen = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]["chosen"]
    assert chosen["by"] == "bits per byte of held-out text and answers through the variant"
    assert "judged by bits per byte of held-out text and answers" in " ".join(run.stdout.split())
    assert [way["method"] for way in chosen["tried"]] == list(METHODS)
    totals = {way["method"]: way["bits_per_byte"] + way["answers_bits_per_byte"] for way in chosen["tried"]}
    assert totals[chosen["method"]] <= min(totals.values()) + EQUAL
    shown = {line.split()[0]: line.split()[1:] for line in run.stdout.splitlines() if line.strip()}
    for way in chosen["tried"]:
        scores = way["bits_per_byte"], way["answers_bits_per_byte"], totals[way["method"]]
        taken = ["taken"] if way["method"] == chosen["method"] else []
        assert shown[way["method"]] == [*(f"{score:.4f}" for score in scores), *taken]
    maps = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]["maps"]
    assert {fit["method"] for fit in maps.values()} == {chosen["method"]}


def write_dialogues(file):
    turns = [{"role": "user", "content": "Привет"}, {"role": "assistant", "content": "Здравствуйте, чем помочь?"}]
    file.write_text(json.dumps({"messages": turns}, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def damaged(models, tmp_path, change):
    folder = tmp_path / "damaged"
    shutil.copytree(models[2], folder)
    change(folder)
    return [*models[:2], folder]


def cut_shard(folder):
    shard = Checkpoint(folder).shards()[-1]
    shard.write_bytes(shard.read_bytes()[:-100])


def lose_shard(folder):
    Checkpoint(folder).shards()[-1].unlink()


def name_more(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = next(iter(index["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(index))


def leave_folder(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut_shard, ["not a whole safetensors file"]),
        (lose_shard, [INDEX, "which is missing"]),
        (name_more, [INDEX, "model.extra.weight"]),
        (leave_folder, [INDEX, "outside the folder"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
    ],
    ids=["cut", "missing", "index", "outside", "config", "tokenizer"],
)
def test_damaged_variants_are_refused_and_nothing_is_left(models, tmp_path, change, words):
    given = damaged(models, tmp_path, change)
    before = Hashes().files(given[2])
    refused(propagate(given, tmp_path / "out"), "damaged", *words)
    assert Hashes().files(given[2]) == before
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize("limit", [100, 300])
def test_full_disk_leaves_nothing_and_touches_no_source(models, tmp_path, limit):
    before = [Hashes().files(folder) for folder in models]
    refused(propagate(models[:3], tmp_path / "out", limit=limit), "out: cannot be written", "nothing was left")
    assert list(tmp_path.iterdir()) == []
    assert [Hashes().files(folder) for folder in models] == before


def test_output_that_cannot_be_made_or_exists_is_refused(models, tmp_path):
    (tmp_path / "file").write_text("")
    refused(propagate(models[:3], tmp_path / "file" / "out"), "cannot be written")
    (tmp_path / "there").mkdir()
    refused(propagate(models[:3], tmp_path / "there"), "exists already", "--force")
    assert (tmp_path / "file").read_text() == ""


def test_killed_command_leaves_no_folder_under_the_final_name_and_can_be_run_again(models, tmp_path):
    base, adapted, instruct, _ = models
    command = ["propagate", "--base", base, "--adapted", adapted, "--instruct", instruct, "--output", tmp_path / "out"]
    assert commands.killed(*command, "--method", "auto", when=(tmp_path / ".out.partial").exists) == -9
    assert not (tmp_path / "out").exists()
    run = propagate(models[:3], tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_models_that_do_not_belong_together_are_refused(models, tiny_model_folder, tiny_tokenizer, tmp_path):
    wide = tiny_model_folder(rows=ROWS, hidden=64, tokenizer=tiny_tokenizer)
    refused(propagate([*models[:2], wide], tmp_path / "out"), "widths differ", wide.name)
    refused(propagate([*models[:3], models[2]], tmp_path / "out"), "two variants with the name", models[2].name)
    refused(propagate(models[:3], tmp_path / "out", "--method", "rotate"), "lepta: propagate: --method:", "'auto'")
    assert list(tmp_path.iterdir()) == []


def test_patch_goes_out_and_comes_back(models, tmp_path):
    base, adapted, other, _ = models
    run = lepta("patch", "export", "--original", base, "--adapted", adapted, "--output", tmp_path / "patch")
    assert run.returncode == 0, run.stderr
    apply = ["patch", "apply", "--patch", tmp_path / "patch", "--output", tmp_path / "again"]
    refused(lepta(*apply, "--model", other), "is not that of the model that the patch")
    assert not (tmp_path / "again").exists()
    run = lepta(*apply, "--model", base, "--json")
    assert run.returncode == 0, run.stderr
    again, expected = Checkpoint(tmp_path / "again"), Checkpoint(adapted)
    assert json.loads(run.stdout)["rows"] == expected.rows == again.rows
    assert (again.load("lm_head.weight") == expected.load("lm_head.weight")).all()


def test_an_adapted_model_that_was_never_trained_is_noted(models, tmp_path):
    base, adapted, variant, _ = models
    made = lepta("init", "--model", base, "--tokenizer", adapted, "--output", tmp_path / "initialised")
    assert made.returncode == 0, made.stderr
    told = propagate((base, tmp_path / "initialised", variant), tmp_path / "out")
    assert told.returncode == 0 and "nothing in it was trained since `lepta init`" in told.stderr
    assert "nothing in it was trained" not in propagate((base, adapted, variant), tmp_path / "other").stderr
