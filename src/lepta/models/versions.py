"""`config.json` as transformers 4 and 5 both read it.

transformers 5 keeps all settings of rotary embeddings in `rope_parameters` and the weights' type in `dtype`.
transformers 4, and much that was written for it, looks for `rope_theta`, `rope_scaling` and `torch_dtype`. Where they
are missing it takes its defaults without a warning: rope_theta 10,000 instead of 100,000, say. Both forms may stand
side by side.
"""

from collections.abc import Mapping
from typing import Any

# Rotary settings that transformers 4 has beside `rope_scaling`, and what some families call them there.
BESIDE = ("rope_theta", "partial_rotary_factor")
OWN_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
# Families of transformers 4 whose layers rotate in two ways. transformers 5 has more, which fields of 4 would confuse.
TWO_WAYS = ("gemma3_text", "gemma3n_text")


def for_all_versions(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a model config, and of the configs inside it, that has what transformers 4 reads as well."""
    changed = dict(config)
    for name, value in config.items():
        if name.endswith("_config") and isinstance(value, dict):
            changed[name] = for_all_versions(value)
    dtype = config.get("dtype") or config.get("torch_dtype")
    if isinstance(dtype, str):
        changed["dtype"] = changed["torch_dtype"] = dtype
    parameters, kind = config.get("rope_parameters"), config.get("model_type")
    # transformers 5 takes `rope_scaling`, where it is given, for all of them.
    if not isinstance(parameters, dict) or config.get("rope_scaling"):
        return changed
    if kind in TWO_WAYS and isinstance(parameters.get("full_attention"), dict):
        nearby = parameters.get("sliding_attention") or {}
        if "rope_theta" in nearby:
            changed["rope_local_base_freq"] = nearby["rope_theta"]
        parameters = parameters["full_attention"]
    if "rope_type" in parameters:
        changed |= _rotary(parameters, OWN_NAMES.get(str(kind), {}))
    return changed


def _rotary(parameters: Mapping[str, Any], own_names: Mapping[str, str]) -> dict[str, Any]:
    """The settings of transformers 4 that say the same as the rotary parameters of a layer."""
    settings = {own_names.get(name, name): parameters[name] for name in BESIDE if name in parameters}
    scaling = {name: value for name, value in parameters.items() if name not in BESIDE}
    settings["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    return settings
