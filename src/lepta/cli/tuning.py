"""Commands that tune instruct models: on conversations, and on their own answers."""

from pathlib import Path
from typing import Annotated

import typer

from lepta.cli.common import AsJson, Force, ModelPath, Output, Seed, result
from lepta.core.errors import LeptaError

Data = Annotated[
    list[str], typer.Option(help="File of conversations: `messages`, or `prompt` and `answer`, a row each; repeat.")
]
Rank = Annotated[int, typer.Option(help="Of the low-rank changes.")]
Alpha = Annotated[int, typer.Option(help="They are scaled by alpha / rank.")]
PeakRate = Annotated[float, typer.Option(help="Peak rate.")]
MicroBatch = Annotated[int | None, typer.Option(help="Conversations that one process holds at once.")]
Epochs = Annotated[int, typer.Option(help="How often each conversation is seen.")]
CopyText = Annotated[list[str] | None, typer.Option(help="Text source of what is to be repeated; repeat.")]
CopyCharacters = Annotated[int, typer.Option(help="Longest of them.")]
CopyLanguage = Annotated[str, typer.Option(help="Language of the request: ru or en.")]
ApartFrom = Annotated[
    list[str] | None, typer.Option(help="Training text that copies may share no 13 words with; repeat.")
]


def tune(
    model: ModelPath,
    data: Data,
    output: Output,
    trains: Annotated[
        str,
        typer.Option(help="lora, lora+head (paper), embeddings+lora, or full."),
    ] = "lora+head",
    rank: Rank = 32,
    alpha: Alpha = 16,
    targets: Annotated[list[str] | None, typer.Option(help="Linear layers such as q_proj (default: all).")] = None,
    layers: Annotated[list[int] | None, typer.Option(help="Layers by number, -1 the last (default: all).")] = None,
    learning_rate: PeakRate = 5e-5,
    weight_decay: Annotated[float, typer.Option(help="Pulls what trains towards 0.")] = 0.05,
    batch: Annotated[int, typer.Option(help="Conversations per step, over all processes.")] = 128,
    micro_batch: MicroBatch = None,
    epochs: Epochs = 1,
    max_length: Annotated[int, typer.Option(help="Tokens; longer conversations are left out whole.")] = 4096,
    packing: Annotated[bool, typer.Option("--packing", help="Several conversations to a row.")] = False,
    copy_text: CopyText = None,
    copies: Annotated[int, typer.Option(help="Texts to repeat, with --copy-text.")] = 2000,
    copy_characters: CopyCharacters = 2000,
    copy_language: CopyLanguage = "ru",
    apart_from: ApartFrom = None,
    preference: Annotated[
        list[str] | None,
        typer.Option(help="File of `prompt`, `chosen`, `rejected` (or `answer`, `label`) for a step after tuning."),
    ] = None,
    preference_method: Annotated[str, typer.Option(help="kto, dpo or simpo.")] = "kto",
    preference_beta: Annotated[
        float | None,
        typer.Option(help="Beta of that method (default: kto 0.15, dpo 0.1, simpo 2.5)."),
    ] = None,
    preference_learning_rate: Annotated[float, typer.Option(help="Peak rate of that step.")] = 1e-5,
    preference_batch: Annotated[int, typer.Option(help="Rows per step of it.")] = 32,
    body_dtype: Annotated[str, typer.Option(help="Of a frozen body: auto, float32, bfloat16, float16, 4bit.")] = "auto",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory for more time.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    report_to: Annotated[list[str] | None, typer.Option(help="Tracker such as tensorboard; repeat.")] = None,
    seed: Seed = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Tune an instruct model on conversations; the loss counts what the assistant says.

    Several GPUs: accelerate launch --num_processes 8 -m lepta tune ... A run that was interrupted goes on when the same
    command is given again.
    """
    from lepta.calibration.settings import CopySettings
    from lepta.core.output import refuse_existing
    from lepta.core.settings import validated
    from lepta.text.sources import BENCHMARK
    from lepta.training.settings import PreferenceSettings, TuneSettings
    from lepta.training.tune import tune_stage

    refuse_existing(output, force)
    settings = validated(
        TuneSettings,
        {
            "trains": trains,
            "lora": {"rank": rank, "alpha": alpha, "targets": targets or "all-linear", "layers": layers},
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "batch": batch,
            "micro_batch": micro_batch,
            "epochs": epochs,
            "max_length": max_length,
            "packing": packing,
            "body_dtype": body_dtype,
            "gradient_checkpointing": gradient_checkpointing,
            "save_every": save_every,
            "report_to": report_to or [],
        },
        "lepta tune",
    )
    repeated = validated(
        CopySettings,
        {
            "text": copy_text or [],
            "number": copies if copy_text else 0,
            "characters": copy_characters,
            "language": copy_language,
            "apart_from": [*(apart_from or []), BENCHMARK],
        },
        "lepta tune",
    )
    step = validated(
        PreferenceSettings,
        {
            "method": preference_method,
            "beta": preference_beta,
            "learning_rate": preference_learning_rate,
            "batch": preference_batch,
            "lora": {"rank": rank, "alpha": alpha},
            "max_length": max_length,
        },
        "lepta tune --preference",
    )
    facts = tune_stage(model, data, settings, seed, output, force, repeated, preference, step)
    result({"output": str(output), **facts}, as_json)


def calibrate(
    model: Annotated[Path, typer.Option(help="Folder of the propagated instruct model.")],
    output: Annotated[Path, typer.Option(help="Folder for answers, grades, examples, model and report.")],
    prompts: Annotated[
        list[str] | None, typer.Option(help="File of conversations; their last answers are left out; repeat.")
    ] = None,
    original: Annotated[str | None, typer.Option(help="Instruct model with its own vocabulary.")] = None,
    server: Annotated[str | None, typer.Option(help="Or the OpenAI-compatible server it is on, with /v1.")] = None,
    server_model: Annotated[str | None, typer.Option(help="Its name there.")] = None,
    judge: Annotated[str | None, typer.Option(help="Model that grades; original: the one that answers.")] = None,
    judge_server: Annotated[str | None, typer.Option(help="Or the server it is on, with /v1.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its name there.")] = None,
    no_judge: Annotated[bool, typer.Option("--no-judge", help="Keep all answers that came to their end.")] = False,
    keep: Annotated[int, typer.Option(help="Answers are kept with both grades at least so high.")] = 4,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many different prompts.")] = None,
    samples: Annotated[int, typer.Option(help="Answers to each prompt; the best graded one is taken.")] = 1,
    temperature: Annotated[float, typer.Option(help="0: greedy (paper).")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer; one that has not ended by then is left out.")] = 1024,
    answer_batch: Annotated[int, typer.Option(help="Prompts that a local model answers at once.")] = 8,
    copy_text: CopyText = None,
    copies: Annotated[int, typer.Option(help="Texts to repeat, with --copy-text.")] = 10_000,
    copy_characters: CopyCharacters = 2000,
    copy_language: CopyLanguage = "ru",
    apart_from: ApartFrom = None,
    rank: Rank = 8,
    alpha: Alpha = 1,
    learning_rate: PeakRate = 2.5e-5,
    batch: Annotated[int, typer.Option(help="Examples per step, over all processes.")] = 64,
    micro_batch: MicroBatch = None,
    epochs: Epochs = 1,
    max_length: Annotated[int, typer.Option(help="Tokens; longer examples are left out whole.")] = 8096,
    valid: Annotated[list[str] | None, typer.Option(help="Held-out text of the new language.")] = None,
    source_valid: Annotated[list[str] | None, typer.Option(help="Held-out text of the language it knows.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Darumeru task for the report (default: copying).")] = None,
    benchmark: Annotated[str, typer.Option(help="Data of the tasks: builtin, hub or a folder.")] = "builtin",
    task_rows: Annotated[int | None, typer.Option(help="Rows of each task (default: all).")] = None,
    shown: Annotated[int, typer.Option(help="Prompts put aside, for the report.")] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it costs; run nothing.")] = False,
    seed: Seed = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a propagated instruct model on the original's own graded answers and on copies (self-calibration).

    Each step is a folder of the output; a run that was interrupted goes on when the same command is given again.
    """
    from lepta.calibration.calibrate import Place, calibrate_folder
    from lepta.calibration.settings import CalibrateSettings, EffectSettings, calibration_tuning
    from lepta.core.settings import validated
    from lepta.plan.calibration import cost_here
    from lepta.text.sources import BENCHMARK

    judges = [judge is not None, judge_server is not None, no_judge]
    if (original is None) == (server is None) or (server is not None and not server_model):
        raise LeptaError("calibrate: give --original MODEL, or --server URL with --server-model NAME")
    if sum(judges) != 1:
        raise LeptaError("calibrate: give one of --judge MODEL, --judge-server URL with --judge-model NAME, --no-judge")
    tuning = calibration_tuning().model_dump()
    tuning["lora"] |= {"rank": rank, "alpha": alpha}
    tuning |= {"learning_rate": learning_rate, "batch": batch, "micro_batch": micro_batch}
    settings = validated(
        CalibrateSettings,
        {
            "prompts": prompts or [],
            "limit": limit,
            "shown": shown,
            "answers": {
                "samples": samples,
                "temperature": temperature,
                "max_tokens": max_tokens,
                "batch": answer_batch,
            },
            "judge": None
            if no_judge
            else {"model": judge, "server": judge_server, "server_model": judge_model, "keep": keep},
            "copies": {
                "text": copy_text or [],
                "number": copies if copy_text else 0,
                "characters": copy_characters,
                "language": copy_language,
            },
            "tune": tuning | {"epochs": epochs, "max_length": max_length},
        },
        "lepta calibrate",
    )
    place = Place(server_model or "", server) if server else Place(original or "")
    if dry_run:
        result(cost_here(model, settings), as_json)
        return
    effect = {"target": valid or [], "source": source_valid or [], "benchmark": benchmark, "limit": task_rows}
    effect |= {"tasks": task} if task else {}
    facts = calibrate_folder(
        model,
        place,
        settings,
        validated(EffectSettings, effect, "lepta calibrate"),
        [*(apart_from or []), BENCHMARK],
        seed,
        output,
        force,
    )
    result({"output": str(output / "model"), "report": str(output / "report" / "report.html"), **facts}, as_json)
