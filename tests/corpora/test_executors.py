"""Where stages run. Slurm's own commands are stood in for by scripts that run the jobs here, one after the other."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lepta.core.errors import LeptaError
from lepta.corpora.executors import Stage, Stopped, run_stage
from lepta.corpora.settings import Executor
from lepta.corpora.work import Work
from lepta.stages import Hashes

SBATCH = """#!/bin/bash
# Runs each task of an array in turn; a job's number is how many there were. Waiting for others is being last in line.
for last; do :; done
cp "$last" {folder}/job$(ls {folder} | grep -c job).slurm
export SLURM_JOB_ID=1 SLURM_NODELIST=here
array=$(grep -oP '(?<=--array=0-)\\d+' "$last")
for task in $(seq 0 $array); do SLURM_ARRAY_TASK_ID=$task bash "$last" >> {folder}/log 2>&1 || exit 1; done
echo Submitted batch job $(ls {folder} | grep -c job)
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do if [[ $1 == -n ]]; then shift; fi; shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands `sbatch` and `srun` that run jobs here."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, script in (("sbatch", SBATCH.format(folder=folder)), ("srun", SRUN)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    source = str(Path(__file__).parents[2] / "src")
    monkeypatch.setenv("PYTHONPATH", source)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    return folder


SLURM = {"kind": "slurm", "partition": "cpu", "time": "01:00:00", "memory_gb": 3, "tasks": 2, "workers": 5}


def test_slurm_makes_the_same_corpus_in_chained_jobs(run, tmp_path, write_rows, documents, cluster):
    path = write_rows("a.jsonl", [*documents, *documents[:3]])
    options = {"environment": "export READY=1", "sbatch": {"account": "me"}}
    facts = run({"a": path}, name="slurm", executor=SLURM | options, deduplicate={"buckets": 2, "hashes": 4})
    run({"a": path}, name="here", deduplicate={"buckets": 2, "hashes": 4})
    assert len(facts["jobs"]) == 6
    assert Hashes().files(tmp_path / "slurm") == Hashes().files(tmp_path / "here")
    scripts = [script.read_text() for script in sorted(cluster.glob("job*.slurm"))]
    assert [script.split("lepta-")[1].split("\n")[0] for script in scripts] == [
        *("clean", "signatures", "buckets", "clusters", "write", "publish")
    ]
    for line in ("--partition=cpu", "--time=01:00:00", "--mem-per-cpu=3G", "--array=0-1%5", "--account=me"):
        assert f"#SBATCH {line}\n" in scripts[2]
    assert "export READY=1" in scripts[2]
    assert "launch_pickled_pipeline" in scripts[2]


TIME_LIMIT = """
case $(grep -oP '(?<=job-name=lepta-)\\w+' "$last") in
    clean) ;;
    signatures) array=0 ;; # its other tasks are stopped
    *) echo Submitted batch job 9; exit 0 ;; # and jobs after it never start
esac
for task"""


@pytest.mark.parametrize("executor", [SLURM | {"tasks": 3}, {"workers": 1}], ids=["more jobs", "here"])
def test_another_division_starts_after_cleaning(run, tmp_path, write_rows, documents, cluster, monkeypatch, executor):
    monkeypatch.setattr("lepta.corpora.work.TASK", 1)
    for number in range(4):
        write_rows(f"raw/{number}.jsonl", documents[15 * number :][:15])
    sources, few = {"raw": tmp_path / "raw"}, {"buckets": 2, "hashes": 4}
    script = (cluster / "sbatch").read_text()
    (cluster / "sbatch").write_text(script.replace("\nfor task", TIME_LIMIT))
    run(sources, executor=SLURM, deduplicate=few)
    assert not (tmp_path / "out").exists()
    cleaned = {file: file.stat().st_ino for file in (tmp_path / ".out.work" / "clean").iterdir()}
    (cluster / "sbatch").write_text(script)
    monkeypatch.setattr("lepta.corpora.work.Work.remove", lambda work: None)
    run(sources, executor=executor, deduplicate=few)
    assert {file: file.stat().st_ino for file in cleaned} == cleaned and len(cleaned) == 4
    run(sources, name="whole", deduplicate=few)
    assert Hashes().files(tmp_path / "out") == Hashes().files(tmp_path / "whole")


def test_slurm_without_its_commands_says_so(run, write_rows, documents, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LeptaError, match="no command sbatch here; run this on a login node"):
        run({"a": write_rows("a.jsonl", documents)}, executor=SLURM)


def test_slurm_that_refuses_says_so(run, write_rows, documents, cluster):
    (cluster / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    with pytest.raises(LeptaError, match="sbatch refused the stage clean"):
        run({"a": write_rows("a.jsonl", documents)}, executor=SLURM)


def test_a_ray_address_where_nothing_answers_is_refused_at_once(run, write_rows, documents):
    pytest.importorskip("ray", reason="the package ray is not installed (pip install 'lepta[ray]')")
    executor = {"kind": "ray", "address": "127.0.0.1:9"}
    with pytest.raises(LeptaError, match=r"executor.address 127.0.0.1:9: no Ray cluster there"):
        run({"a": write_rows("a.jsonl", documents)}, executor=executor)


@pytest.fixture(scope="module")
def ray():
    if importlib.util.find_spec("ray") is None:
        pytest.skip("the package ray is not installed (pip install 'lepta[ray]')")
    import ray

    source = str(Path(__file__).parents[2] / "src")
    env = {"env_vars": {"PYTHONPATH": source}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40, runtime_env=env)
    yield ray
    ray.shutdown()


@pytest.mark.usefixtures("ray")
def test_ray_makes_the_same_corpus_and_names_bad_lines(run, tmp_path, write_rows, documents):
    path = write_rows("a.jsonl", [*documents, *documents[:3]])
    few = {"buckets": 2, "hashes": 4}
    ray_tasks = {"kind": "ray", "workers": 2, "memory_gb": 0.1}
    run({"a": path}, name="ray", executor=ray_tasks, deduplicate=few)
    run({"a": path}, name="here", deduplicate=few)
    assert Hashes().files(tmp_path / "ray") == Hashes().files(tmp_path / "here")
    with path.open("a") as file:
        file.write("no json\n")
    with pytest.raises(LeptaError, match=r"a\.jsonl, line 64: not JSON"):
        run({"a": path}, name="bad", executor=ray_tasks)


def dies(data, rank, world_size):
    """A worker that the system kills."""
    if rank == 1:
        os.kill(os.getpid(), 9)
    time.sleep(0.1)


def fails(data, rank, world_size):
    """A worker that meets a full disk."""
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("step", "words"), [(dies, "killed for memory"), (fails, "No space left on device")])
def test_workers_that_stop_are_noticed_and_what_is_done_is_kept(tmp_path, step, words):
    work = Work(tmp_path / "work", "zst")
    work.open({})
    started = time.monotonic()
    with pytest.raises(Stopped, match=f"try: a worker stopped .*{words}.*the same command goes on"):
        run_stage(Stage("try", [step], 3, work), Executor(workers=2))
    assert time.monotonic() - started < 60
    assert work.folder.is_dir()


def test_interrupt_leaves_no_process(tmp_path):
    code = (
        "import signal, time\nfrom pathlib import Path\nfrom lepta.corpora.executors import Stage, run_stage\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from lepta.corpora.settings import Executor\nfrom lepta.corpora.work import Work\n"
        "from test_executors import sleeps\n"
        f"work = Work(Path({str(tmp_path / 'work')!r}), 'zst')\nwork.open({{}})\n"
        "if __name__ == '__main__':\n    run_stage(Stage('try', [sleeps], 4, work), Executor(workers=2))\n"
    )
    (tmp_path / "main.py").write_text(code)
    paths = f"{Path(__file__).parents[2] / 'src'}:{Path(__file__).parent}"
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    logs = tmp_path / "work" / "logs" / "try"
    deadline = time.monotonic() + 60
    while not (logs.is_dir() and len(list(logs.iterdir())) == 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(2)
    assert process.wait(timeout=60) != 0
    deadline = time.monotonic() + 60
    while any(child.is_running() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= 2
    assert not any(child.is_running() for child in children)


def sleeps(data, rank, world_size):
    """A worker that takes long."""
    time.sleep(60)
