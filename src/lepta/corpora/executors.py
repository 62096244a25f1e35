"""Where stages run: processes of this machine, jobs of Slurm, tasks of Ray. datatrove's executors, quiet and exact."""

import logging
import multiprocessing
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats

from lepta.core.errors import LeptaError, optional, reason_of
from lepta.core.machine import usable_cores
from lepta.core.progress import progress
from lepta.corpora.settings import Executor
from lepta.corpora.work import Work

MEGABYTE = 1_000_000
CONNECT_SECONDS = 10


class Stopped(LeptaError):
    """A stage that did not end for a reason other than the input; what is done is kept."""


@dataclass
class Stage:
    """Steps that many workers run at once."""

    name: str
    steps: list[Any]  # datatrove's pipeline
    tasks: int  # parts that the work is divided into
    work: Work
    size: int = 0  # bytes to read, for the progress; 0 if unknown


class _Quiet(PipelineExecutor):
    """Runs a task with its log in a file only, and leaves the reason if it fails."""

    work: Work
    stage: str

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        if self.is_rank_completed(rank):
            return PipelineStats()
        logger.remove()
        # catch=False: by default loguru prints a traceback where the log cannot be written, as on a full disk.
        logger.add(str(self.work.folder / "logs" / self.stage / f"{rank:06d}.log"), mode="w", catch=False)
        try:
            data: Any = None
            for step in self.pipeline:
                data = step(data, rank, self.world_size)
            deque(data or (), maxlen=0)
            stats = PipelineStats(self.pipeline)
            with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
                stats.save_to_disk(file)
            self.mark_rank_as_completed(rank)
            return stats
        except Exception as error:  # whatever a step raises is written down for the first process, and raised again
            with suppress(OSError):  # on a full disk there is no place for the reason either
                logger.exception(error)
                self.work.write_failure(self.stage, rank, error)
            raise
        finally:
            logger.remove()


class _Local(_Quiet, LocalPipelineExecutor):
    """datatrove waits for ever for a process that was killed; this pool sees it."""

    def run(self) -> None:
        ranks = self.get_incomplete_ranks(range(self.tasks))
        if self.workers == 1 or len(ranks) < 2:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)  # a copy for each task: steps count as they run
            return
        with ProcessPoolExecutor(
            min(self.workers, len(ranks)), mp_context=multiprocessing.get_context("forkserver")
        ) as pool:
            futures = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, (KeyboardInterrupt, SystemExit)):  # SIGINT, SIGTERM
                    for process in multiprocessing.active_children():
                        process.terminate()
                raise


class _Ray(_Quiet, RayPipelineExecutor):
    pass


class _Slurm(_Quiet, SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """No job to add up datatrove's statistics: the last stage adds up ours."""


def workers_of(settings: Executor) -> int:
    """Tell how many tasks run at once."""
    return settings.workers or usable_cores()


def run_stage(stage: Stage, settings: Executor) -> None:
    """Run a stage to its end, here or on Ray, and show how far it is.

    LeptaError says what was wrong with the input, as the first worker that met it did; `Stopped` has another reason.
    """
    if not stage.tasks:
        return
    executor: _Local | _Ray
    if settings.kind == "ray":
        executor = _ray(stage, settings)
    else:
        executor = _Local(stage.steps, stage.tasks, workers_of(settings), _records(stage))
    executor.work, executor.stage = stage.work, stage.name
    logger.remove()
    try:
        with _watching(stage):
            executor.run()
    except Exception as error:  # of a worker, through datatrove or Ray, which wrap it in types of their own
        _raise_failure(stage, error)
    if left := executor.get_incomplete_ranks(skip_completed=True):
        _raise_failure(stage, f"{len(left)} of its {stage.tasks} tasks did not end")


def submit(stages: list[Stage], settings: Executor) -> list[str]:
    """Queue stages on Slurm, each after the one before it; returns the ids of the jobs."""
    if shutil.which("sbatch") is None:
        raise LeptaError(
            "executor.kind slurm: no command sbatch here; run this on a login node of the cluster, or give kind local"
        )
    executor, jobs = None, []
    for stage in stages:
        executor = _slurm(stage, settings, executor)
        executor.work, executor.stage = stage.work, stage.name
        try:
            executor.launch_job()
        except (OSError, subprocess.SubprocessError) as error:  # there is no sbatch, or it says no
            raise LeptaError(f"executor.kind slurm: sbatch refused the stage {stage.name} ({error})") from error
        if executor.job_id != -1:  # datatrove's sign of a stage that is done already
            jobs.append(str(executor.job_id))
    return jobs


def _records(stage: Stage) -> str:
    """Where datatrove notes which tasks are done."""
    return str(stage.work.divided / "datatrove" / stage.name)


def _ray(stage: Stage, settings: Executor) -> _Ray:
    with optional("executor.kind ray", "ray"):
        import ray
    if not ray.is_initialized():
        _refuse_dead(settings.address)
        cpus = None if settings.address else workers_of(settings) * settings.cpus_per_task
        try:
            ray.init(
                settings.address,
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LeptaError(f"executor.address {settings.address}: no Ray cluster there ({error})") from error
    return _Ray(
        stage.steps,
        stage.tasks,
        settings.workers or -1,
        logging_dir=_records(stage),
        cpus_per_task=settings.cpus_per_task,
        mem_per_cpu_gb=settings.memory_gb / settings.cpus_per_task,
    )


def _refuse_dead(address: str | None) -> None:
    """LeptaError if nothing answers at HOST:PORT: Ray itself would ask there again and again, for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port):  # "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise LeptaError(
            f"executor.address {address}: no Ray cluster there ({reason_of(error)}); start one with: ray start --head"
        ) from error


def _slurm(stage: Stage, settings: Executor, after: _Slurm | None) -> _Slurm:
    return _Slurm(
        stage.steps,
        tasks=stage.tasks,
        time=settings.time,
        partition=settings.partition,
        cpus_per_task=settings.cpus_per_task,
        mem_per_cpu_gb=max(round(settings.memory_gb / settings.cpus_per_task), 1),
        workers=settings.workers or -1,
        job_name=f"lepta-{stage.name}",
        qos=settings.qos,
        env_command=settings.environment,
        sbatch_args=dict(settings.sbatch),
        logging_dir=_records(stage),
        depends=after,
    )


def _raise_failure(stage: Stage, error: Exception | str) -> None:
    failures = stage.work.failures()
    if failures and failures[0]["input"]:
        raise LeptaError(failures[0]["message"]) from None
    reason = f"{failures[0]['kind']}: {failures[0]['message']}" if failures else f"{error}"
    raise Stopped(
        f"{stage.name}: a worker stopped ({reason}); if it was killed for memory, give fewer executor.workers. "
        f"What is done is kept: the same command goes on. Its log is in {stage.work.folder / 'logs' / stage.name}"
    ) from None


@contextmanager
def _watching(stage: Stage) -> Iterator[None]:
    """Show how far the workers say that they are, while this process waits for them."""
    over = threading.Event()
    total = stage.size / MEGABYTE or None

    def watch() -> None:
        started = time.monotonic()
        with progress(f"{stage.name}, MB", total) as meter:
            while not over.wait(1.0):
                done = stage.work.pulses(stage.name) / MEGABYTE
                meter.set(round(done), f"{done / (time.monotonic() - started):.1f} MB/s")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
