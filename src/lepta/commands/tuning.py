"""Commands that tune instruct models: on conversations, and on their own answers."""

from typing import Annotated

import typer

from lepta.commands.common import AsJson, Force, ModelPath, Output, result

Data = Annotated[
    list[str], typer.Option(help="File of conversations: `messages`, or `prompt` and `answer`, a row each; repeat.")
]


def tune(
    model: ModelPath,
    data: Data,
    output: Output,
    trains: Annotated[
        str,
        typer.Option(help="lora, lora+head (paper), embeddings+lora, or full."),
    ] = "lora+head",
    rank: Annotated[int, typer.Option(help="Of the low-rank changes.")] = 32,
    alpha: Annotated[int, typer.Option(help="They are scaled by alpha / rank.")] = 16,
    targets: Annotated[list[str] | None, typer.Option(help="Linear layers such as q_proj [default: all].")] = None,
    layers: Annotated[list[int] | None, typer.Option(help="Layers by number, -1 the last [default: all].")] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = 5e-5,
    weight_decay: float = 0.05,
    batch: Annotated[int, typer.Option(help="Conversations per step, over all processes.")] = 128,
    micro_batch: Annotated[int | None, typer.Option(help="Conversations that one process holds at once.")] = None,
    epochs: int = 1,
    max_length: Annotated[int, typer.Option(help="Tokens; longer conversations are left out whole.")] = 4096,
    packing: Annotated[bool, typer.Option("--packing", help="Several conversations to a row.")] = False,
    body_dtype: Annotated[str, typer.Option(help="Of a frozen body: auto, float32, bfloat16, float16, 4bit.")] = "auto",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory for more time.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    report_to: Annotated[list[str] | None, typer.Option(help="Tracker such as tensorboard; repeat.")] = None,
    seed: int = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Tune an instruct model on conversations; the loss counts what the assistant says.

    Several GPUs: accelerate launch --num_processes 8 -m lepta tune ... A run that was interrupted goes on when the same
    command is given again.
    """
    from lepta.pipeline import refuse_existing
    from lepta.settings import validated
    from lepta.training.settings import TuneSettings
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
    result({"output": str(output), **tune_stage(model, data, settings, seed, output, force)}, as_json)
