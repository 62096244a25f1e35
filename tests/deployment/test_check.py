"""What `lepta check` says of model folders; each rule is one that the consumer itself was seen to follow."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.deployment.check import check_model
from lepta.deployment.consumers import CONSUMERS, keys_of_version_4
from lepta.models.folder import Checkpoint
from lepta.stages import Hashes
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.source import open_tokenizer


@pytest.fixture
def folder(tiny_model_folder, tiny_extended):
    return tiny_model_folder(rows=4300, tokenizer=tiny_extended)


def verdicts(folder, *consumers, **options):
    return check_model(Checkpoint(folder), consumers, **options).verdicts


def edit(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_folder_that_lepta_never_saw_gets_all_verdicts(folder):
    found = verdicts(folder)
    assert len(found) == len(CONSUMERS)
    assert {name for name, verdict in found.items() if verdict.status == "fails"} == set()
    assert found["transformers 5"].status == "works" and found["transformers 5"].tried
    assert found["draft model"].status == "unknown"
    assert 'res = "smollm"' in found["llama.cpp"].lines


def test_transformers_4_is_told_what_version_5_writes_otherwise(folder):
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0}
    edit(folder / "config.json", rope_parameters=rope, rope_theta=None, rope_scaling=None, torch_dtype=None)
    found = verdicts(folder, "transformers-4", "vllm", "ctranslate2")
    assert {verdict.status for verdict in found.values()} == {"step"}
    lines = json.loads("{" + found["transformers 4"].lines.rstrip(",") + "}")
    assert lines["rope_theta"] == 100000.0 and lines["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    edit(folder / "config.json", **lines)
    assert {verdict.status for verdict in verdicts(folder, "transformers-4", "vllm").values()} == {"works"}


def test_a_package_that_only_this_machine_lacks_is_no_verdict_on_servers(folder, monkeypatch):
    """Transformers imports mistral_common for a Mistral, where that is installed, with or without what it needs."""
    from transformers import AutoTokenizer

    def missing(*_, **__):
        raise ImportError("No module named 'pydantic_extra_types'", name="pydantic_extra_types")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    edit(folder / "config.json", rope_theta=10000.0)
    found = verdicts(folder, "transformers-5", "vllm")
    assert found["transformers 5"].step == "pip install pydantic-extra-types"
    assert found["vLLM"].status == "works"


def test_rotary_embeddings_by_kind_of_layer():
    """As Gemma 3 has them."""
    local, whole = {"rope_theta": 20000.0}, {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    layers = {"sliding_attention": local, "full_attention": whole}
    scaling = {"rope_type": "linear", "factor": 8.0}
    found = keys_of_version_4({"model_type": "gemma3_text", "rope_parameters": layers})
    assert found == {"rope_local_base_freq": 20000.0, "rope_theta": 1e6, "rope_scaling": scaling}
    assert keys_of_version_4({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}) == {}
    assert keys_of_version_4({"rope_theta": 5e5}) == {}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tokenizer_class": "TokenizersBackend"}, '"tokenizer_class": "PreTrainedTokenizerFast",'),
        ({"extra_special_tokens": ["<|im_start|>"]}, '"additional_special_tokens": ["<|im_start|>"],'),
    ],
)
def test_transformers_4_cannot_read_what_version_5_saves(folder, change, line):
    edit(folder / "tokenizer_config.json", **change)
    verdict = verdicts(folder, "transformers-4")["transformers 4"]
    assert (verdict.status, verdict.lines) == ("step", line)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vocab_size": 4299}, "vocab_size 4299, the matrix has 4,300 rows"),
        ({"eos_token_id": 3}, "eos_token_id is 3, <|im_end|> is 2"),
    ],
)
def test_a_config_that_contradicts_the_folder(folder, change, reason):
    edit(folder / "config.json", **change)
    assert all(reason in verdict.reason for verdict in verdicts(folder, "transformers-5", "vllm", "sglang").values())


def test_a_head_that_the_config_drops(folder):
    """VLLM and llama.cpp's converter follow the flag, transformers the file."""
    edit(folder / "config.json", tie_word_embeddings=True)
    found = verdicts(folder, "vllm", "sglang", "llama.cpp", "transformers-5")
    assert {name for name, verdict in found.items() if "false" in verdict.lines} == {"vLLM", "SGLang", "llama.cpp"}


def test_rows_are_padded_and_limit_lora(tiny_model_folder, tiny_extended):
    assert "pads to 4,352" in verdicts(tiny_model_folder(rows=4300, tokenizer=tiny_extended), "vllm")["vLLM"].reason
    found = verdicts(tiny_model_folder(rows=257_088, hidden=4, tokenizer=tiny_extended), "vllm", "sglang")
    assert (found["vLLM"].status, found["SGLang"].status) == ("limits", "works")


def test_a_hole_shifts_the_tokens_of_ctranslate2(tiny_model_folder, tiny_extended):
    spec = json.loads(json.dumps(tiny_extended.spec))
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 4_302, "content": "<late>"})
    model = tiny_model_folder(rows=4304, tokenizer=replace(tiny_extended, spec=spec))
    verdict = verdicts(model, "ctranslate2")["CTranslate2"]
    assert verdict.status == "fails" and "first 4300" in verdict.reason


def test_unigram_has_no_bytes_in_javascript(tiny_model_folder, tiny_tokenizer):
    tokenizer = build_vocabulary(tiny_tokenizer, ["starter:ru/valid"], "unigram", size=1000)
    found = verdicts(tiny_model_folder(rows=1000, tokenizer=tokenizer), "tokenizers-js", "llama.cpp", "tokenizers")
    assert found["tokenizers"].status == "works"
    assert found["tokenizers (JS)"].status != "works" and "<unk>" in found["tokenizers (JS)"].reason


@pytest.fixture(scope="module")
def mistral():
    return open_tokenizer("package:mistral_common/data/tokenizer.model.v1")


def test_pieces_are_read_from_the_model_file(tiny_model_folder, mistral):
    """Without `tokenizer.model`, or with the original's beside more tokens, llama.cpp reads other ids."""
    folder = tiny_model_folder(rows=32_100, tokenizer=mistral, hidden=8)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    assert verdicts(folder, "llama.cpp")["llama.cpp"].status == "step"
    (folder / "tokenizer.model").write_bytes(mistral_file().read_bytes())
    assert verdicts(folder, "llama.cpp")["llama.cpp"].status == "works"
    extended = build_vocabulary(mistral, ["starter:ru/valid"], "extended", add=100)
    extended.save(folder)
    (folder / "tokenizer.model").write_bytes(mistral_file().read_bytes())
    verdict = verdicts(folder, "llama.cpp")["llama.cpp"]
    assert verdict.status == "fails" and "32,000 pieces" in verdict.reason


def test_no_space_before_text_is_a_step_for_llama_cpp(tiny_model_folder, mistral):
    steps = [step for step in mistral.spec["normalizer"]["normalizers"] if step["type"] != "Prepend"]
    spec = mistral.spec | {"normalizer": {"type": "Sequence", "normalizers": steps}}
    folder = tiny_model_folder(rows=32_000, tokenizer=replace(mistral, spec=spec))
    verdict = verdicts(folder, "llama.cpp")["llama.cpp"]
    assert verdict.status == "step" and "export gguf" in verdict.step


def mistral_file():
    from lepta.text.locate import locate

    return locate("package:mistral_common/data/tokenizer.model.v1", hub_files=[])


def test_a_draft_model_must_mean_the_same_by_each_id(folder, tiny_model_folder, tiny_tokenizer, tiny_extended):
    old = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    assert verdicts(folder, "draft", draft=old)["draft model"].status == "fails"
    same = tiny_model_folder(rows=4300, tokenizer=tiny_extended, seed=1)
    assert verdicts(folder, "draft", draft=same)["draft model"].status == "works"


def run(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_verdict_fits_one_screen_and_lines_to_paste_are_whole(folder):
    printed = run(folder).stdout.splitlines()
    verdict, _, pasted = "\n".join(printed).partition("\nInto ")
    assert len(verdict.splitlines()) <= 24 + 2
    assert all(len(line) <= 80 for line in verdict.splitlines()[1:])
    assert any(line.startswith('if chkhsh == "') and line.endswith('":') for line in pasted.splitlines())


def test_what_was_not_run_says_so(folder):
    printed = run(folder).stdout
    row = {line.split("  ")[0]: line for line in printed.splitlines()}
    for name in ("transformers 5", "tokenizers"):
        assert "run here" in row[name]
    for name in ("vLLM", "SGLang", "llama.cpp", "CTranslate2"):
        assert "by rules" in row[name]
    assert "by rules: not run" in printed
    assert "not run" not in run(folder, "--consumer", "tokenizers").stdout


def test_writing_the_verdict_into_the_folder_breaks_no_hash(folder, tmp_path):
    before = Hashes().content(folder)
    (folder / "manifest.json").write_text("{}")
    result = run(folder, "--output", folder / "deployment.json", "--consumer", "peft")
    assert result.exit_code == 0
    assert Hashes().content(folder) == before
    written = json.loads((folder / "deployment.json").read_text())
    assert [verdict["consumer"] for verdict in written["consumers"]] == ["PEFT"]
    refused = run(folder, "--output", folder / "other.json")
    assert isinstance(refused.exception, LeptaError) and "deployment.json" in str(refused.exception)


def test_a_verdict_replaces_no_other_file_and_leaves_nothing_where_it_cannot_be_written(folder, tmp_path):
    config = (folder / "config.json").read_bytes()
    refused = run(folder, "--output", folder / "config.json", "--consumer", "peft")
    assert isinstance(refused.exception, LeptaError) and "config.json: exists already" in str(refused.exception)
    assert (folder / "config.json").read_bytes() == config
    (tmp_path / "file").write_text("")
    refused = run(folder, "--output", tmp_path / "file" / "verdict.json", "--consumer", "peft")
    assert isinstance(refused.exception, LeptaError) and "cannot be written" in str(refused.exception)
    (tmp_path / "deployment.json").mkdir()
    refused = run(folder, "--output", tmp_path / "deployment.json", "--consumer", "peft")
    assert isinstance(refused.exception, LeptaError) and "cannot be written" in str(refused.exception)
    assert not list(tmp_path.glob(".*"))


def test_a_consumer_that_cannot_run_it_is_exit_code_1(folder):
    edit(folder / "config.json", vocab_size=4299)
    assert run(folder, "--consumer", "vllm").exit_code == run(folder, "--consumer", "vLLM").exit_code == 1
    assert run(folder, "--consumer", "tokenizers-js").exit_code == 0


@pytest.mark.parametrize("spoil", ["tokenizer.json", "config.json", "broken"])
def test_bad_folders_are_one_line(folder, spoil):
    if spoil == "broken":
        (folder / "config.json").write_text('{"vocab_size": ')
    else:
        (folder / spoil).unlink()
    result = run(folder)
    assert isinstance(result.exception, LeptaError) and str(folder) in str(result.exception)


def test_an_unknown_consumer_is_named(folder):
    with pytest.raises(LeptaError, match="--consumer vlm: unknown"):
        check_model(Checkpoint(folder), ["vlm"])
