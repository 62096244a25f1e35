"""Configs that transformers 4 and 5 both read; 4.57 itself reads them in an environment of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv

import pytest
from transformers import CONFIG_MAPPING

from lepta.embeddings.initialise import initialise
from lepta.models.folder import Checkpoint
from lepta.models.versions import for_all_versions

ROTARY = {
    "llama": {"rope_type": "default", "rope_theta": 100_000.0},
    "mistral": {"rope_type": "linear", "factor": 2.0, "rope_theta": 70_000.0},
    "qwen2": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "qwen3": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768, "rope_theta": 5e6},
    "glm": {"rope_type": "default", "rope_theta": 20_000.0, "partial_rotary_factor": 0.25},
    "gpt_neox": {"rope_type": "default", "rope_theta": 30_000.0, "partial_rotary_factor": 0.75},
    "gemma3_text": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
    },
}
# Model type -> fields in transformers 4.57.
IN_4 = {
    "llama": {"rope_theta": 100_000.0, "rope_scaling": None},
    "mistral": {"rope_theta": 70_000.0},
    "qwen2": {"rope_theta": 1_000_000.0, "rope_scaling": None},
    "qwen3": {"rope_theta": 5e6},
    "glm": {"rope_theta": 20_000.0, "partial_rotary_factor": 0.25},
    "gpt_neox": {"rotary_emb_base": 30_000.0, "rotary_pct": 0.75},
    "gemma3_text": {"rope_theta": 2_000_000.0, "rope_local_base_freq": 20_000.0},
}
WRAPPERS = {"gemma3": "gemma3_text", "llava": "llama", "qwen2_vl": None}
ANSWER = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, __version__
folder, configs = sys.argv[1:]
read = {}
for name, fields in json.load(open(configs)).items():
    config = AutoConfig.from_pretrained(folder + "/" + name).get_text_config()
    read[name] = {field: getattr(config, field) for field in fields} | {"dtype": str(config.dtype)}
model = AutoModelForCausalLM.from_pretrained(folder + "/model", dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder + "/model")
ids = tokenizer("Привет, world 123")["input_ids"]
with torch.inference_mode():
    logits = model(torch.tensor([ids * 4])).logits[0, -1].tolist()
print(json.dumps({"version": __version__, "configs": read, "ids": ids, "logits": logits}))
"""


def written(name):
    config = CONFIG_MAPPING[name](rope_parameters=json.loads(json.dumps(ROTARY[name])), dtype="bfloat16")
    return json.loads(json.dumps(config.to_dict(), default=str))


def wrapper(name, text):
    config = CONFIG_MAPPING[name](**({"text_config": written(text)} if text else {}), dtype="bfloat16")
    return json.loads(json.dumps(config.to_dict(), default=str))


@pytest.mark.parametrize("name", ROTARY)
def test_both_forms_say_the_same(name):
    config = written(name)
    both = for_all_versions(config)
    assert {field: both[field] for field in IN_4[name]} == IN_4[name]
    assert both["torch_dtype"] == both["dtype"] == "bfloat16"
    assert for_all_versions(both) == both
    again = CONFIG_MAPPING[name].from_dict(both)
    assert again.rope_parameters == CONFIG_MAPPING[name].from_dict(config).rope_parameters
    assert str(again.dtype).endswith("bfloat16")


@pytest.mark.parametrize("name", WRAPPERS)
def test_configs_inside_follow(name):
    config = wrapper(name, WRAPPERS[name])
    both = for_all_versions(config)
    assert "rope_theta" in both["text_config"]
    kind = CONFIG_MAPPING[name]
    before, after = (kind.from_dict(one).get_text_config() for one in (config, both))
    assert after.rope_parameters == before.rope_parameters


def test_what_only_some_version_knows_stays_as_it_is():
    two_ways = {"full_attention": {"rope_type": "default", "rope_theta": 1.0}}
    for config in ({"rope_theta": 5.0}, {"model_type": "laguna", "rope_parameters": two_ways}, {"dtype": {"": "auto"}}):
        assert for_all_versions(config) == config


@pytest.fixture(scope="module")
def python_of_4(tmp_path_factory):
    """A Python with transformers 4.57, which shares all else with this one."""
    folder = tmp_path_factory.mktemp("transformers4")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    wanted = ["transformers==4.57.*", "tokenizers>=0.22,<0.23", "huggingface_hub<1"]
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], capture_output=True)
    if done.returncode:
        pytest.skip("transformers 4.57 cannot be installed here (no package index?)")
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    with open(f"{packages}/zz_shared.pth", "w") as file:  # after its own packages
        file.write(sysconfig.get_path("purelib") + "\n")
    return python


def test_transformers_4_reads_the_same(python_of_4, tiny_model_folder, tiny_extended, tiny_tokenizer, tmp_path):
    """Slow: half a minute for the installation."""
    original = tiny_model_folder(rows=tiny_tokenizer.vocabulary().size, tokenizer=tiny_tokenizer)
    config = json.loads((original / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 100.0}  # far from the default
    (original / "config.json").write_text(json.dumps(config))
    (tmp_path / "model").mkdir()
    initialise(Checkpoint(original), tiny_extended, tmp_path / "model")
    for name in IN_4:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(for_all_versions(written(name))))
    (tmp_path / "wanted.json").write_text(json.dumps(IN_4))
    answers = []
    for python in (python_of_4, sys.executable):
        fields = IN_4 if python == python_of_4 else {}
        (tmp_path / "wanted.json").write_text(json.dumps(fields))
        command = [python, "-c", ANSWER, tmp_path, tmp_path / "wanted.json"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
        assert done.returncode == 0, done.stderr[-2000:]
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    old, new = answers
    assert (old["version"][:4], new["version"][:1]) == ("4.57", "5")
    for name, fields in IN_4.items():
        assert old["configs"][name] == {**fields, "dtype": "torch.bfloat16"}
    assert old["ids"] == new["ids"]
    assert old["logits"] == pytest.approx(new["logits"], abs=1e-5)
