"""Many tomograms, one after another or side by side, here or on Dask workers; what is finished is not done again.

Each tomogram is a process of its own, which runs what the command line would. It takes the end of its standard input
for a request to stop, so it ends with the batch, or with the worker of Dask, that started it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from cryoshuffle.commands.lists import Item, file_states, last_file
from cryoshuffle.devices import count_gpus
from cryoshuffle.errors import FileError, InputError, named_changes
from cryoshuffle.files.mean import save_mean
from cryoshuffle.files.writing import write_json, write_text
from cryoshuffle.memory import memory_bytes

RECORD_NAME = "batch.json"
# How long a run waits for the one before it, whose worker was killed, to let go of its folder.
_LET_GO_S = 120.0
_BUSY = "another run"
# Works from a checkout and beside an installed wheel; the versions are those of the extra "cluster".
_INSTALL = 'pip install "distributed>=2024.8" "dask-jobqueue>=0.9"'
# Processes of this process's runs.
_running: set[subprocess.Popen[str]] = set()
# What Slurm is told in the words of a YAML file, and what is a list even if it is one thing.
_AS_WRITTEN = ("walltime", "account", "project", "queue", "job_name", "memory", "job_mem", "interface")
_LISTED = ("job_extra_directives", "job_directives_skip", "job_script_prologue", "worker_extra_args")


@dataclass(frozen=True)
class Outcome:
    """How the run of one tomogram ended.

    Attributes:
        name: of the item.
        status: ``done``, ``skipped`` (it was done before), ``failed`` or ``stopped``.
        words: the sentence it failed with; empty otherwise.
        seconds: it took.
    """

    name: str
    status: str
    words: str = ""
    seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether there is a result, new or from before."""
        return self.status in {"done", "skipped"}


def command_of(item: Item, options: Sequence[str], checkpoint: str | None = None) -> list[str]:
    """The words of the command line that denoise one tomogram of a batch.

    Args:
        item: to denoise.
        options: words for all items.
        checkpoint: path of a network that is applied instead of a fit to each; None for fits.
    """
    if checkpoint is not None:
        files = ["--", os.path.abspath(checkpoint), item.tomogram, item.output]
        return ["apply", *options, f"--report={item.folder}", "--quiet", *files]
    halves = [] if item.even is None else [f"--even={item.even}", f"--odd={item.odd}"]
    return ["denoise", *options, *halves, f"--report={item.folder}", "--quiet", "--", item.tomogram, item.output]


def is_done(item: Item, command: Sequence[str]) -> bool:
    """Whether a tomogram was denoised before, by this command.

    Raises:
        InputError: if it was by another one, or another tomogram was; the message names the difference.
        FileError: if the result is not one of a batch.
    """
    record, output = _record(item), Path(item.output)
    if record is None:
        if output.exists():
            raise FileError(f"{output}: exists already and no batch wrote it, choose another folder")
        return False
    now = _as_record(item, command)
    # Older versions recorded neither networks nor halves.
    before = {key: record.get(key, now[key] if key in {"network", "halves"} else None) for key in now}
    # Other words alone are told; a command line of two screens would hide them.
    words = _other_words(before.pop("command") or [], now.pop("command"))
    changes = ", ".join(part for part in (words, named_changes(before, now)) if part)
    if changes:
        raise InputError(f"{output}: is of another run ({changes}), choose another folder, or say --overwrite")
    return bool(record["done"]) and output.exists()


def check_index(folder: Path, items: Sequence[Item]) -> None:
    """Refuse a folder whose ``index.html`` or ``batch.json`` no batch wrote.

    Args:
        folder: of the results.
        items: of the batch.

    Raises:
        FileError: if it is one, or the page cannot be read.
    """
    _check_outcomes(folder / RECORD_NAME)
    path = folder / "index.html"
    if not path.exists() or any((item.folder / RECORD_NAME).is_file() for item in items):
        return
    try:
        is_ours = 'content="cryoshuffle"' in path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}), choose another folder") from error
    if not is_ours:
        raise FileError(f"{path}: exists and no batch wrote it, choose another folder")


def _check_outcomes(path: Path) -> None:
    """Refuse to replace a file that does not list the outcomes of a batch; the record of one run does not."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, list) or not all(isinstance(one, dict) and "status" in one for one in content):
        raise FileError(f"{path}: exists and no batch wrote it, choose another folder")


def _other_words(before: Sequence[str], now: Sequence[str]) -> str:
    """How two command lines differ; empty if they do not."""
    if list(before) == list(now):
        return ""
    gone, new = ([word for word in ours if word not in other] for ours, other in ((before, now), (now, before)))
    return f"it was run with {' '.join(gone) or 'fewer options'}, now with {' '.join(new) or 'fewer options'}"


def _as_record(item: Item, command: Sequence[str]) -> dict[str, Any]:
    return {
        "command": list(command), **item.state(), "halves": _halves_state(item, command),
        "network": _network_state(command),
    }  # fmt: skip


def _halves_state(item: Item, command: Sequence[str]) -> list[list[int]] | None:
    """What tells halves that a command reads from others under their names; None for none, or if they are the item."""
    if item.is_mean or not any(word.startswith("--even=") for word in command):
        return None
    return file_states([Path(half) for half in (item.even, item.odd) if half])


def _network_state(command: Sequence[str]) -> list[int] | None:
    """What tells the network that a command applies or begins with from another one under its name; None for none."""
    named = [word.partition("=")[2] for word in command if word.startswith("--warm-start=")]
    path = Path(command[-3] if command[0] == "apply" else named[-1] if named else "")
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None


def _record(item: Item) -> dict[str, Any] | None:
    path = item.folder / RECORD_NAME
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read ({error}), remove it") from error
    return content


def _is_begun(item: Item, command: Sequence[str]) -> bool:
    """Whether a run of this command has begun and is not done."""
    try:
        record = _record(item)
    except FileError:
        return False
    return record is not None and not record.get("done") and record.get("command") == list(command)


def run_item(
    item: Mapping[str, Any],
    command: Sequence[str],
    more: Sequence[str] = (),
    surroundings: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Denoise one tomogram in a process of its own, from where an earlier one was interrupted. Runs on a worker.

    Args:
        item: as a dictionary.
        command: of :func:`command_of`.
        more: words that do not change the result, the memory it may take for instance.
        surroundings: environment variables of the process, on top of those of the worker.
        overwrite: begin anew whatever is there.
    """
    from cryoshuffle.fit.checkpoint import FINISHED_NAME

    one, began = Item(**item), time.monotonic()
    try:
        if not overwrite and is_done(one, command):
            return Outcome(one.name, "skipped")
        # A result without "done" is of a process that was killed before it could say so. A fit that is finished has no
        # states to go on from, and its result may be gone.
        is_begun = Path(one.output).exists() or (one.folder / FINISHED_NAME).is_file()
        again = ["--overwrite"] if overwrite else ["--resume", *(["--overwrite"] if is_begun else [])]
        with _recorded(one, command) as run, _tomogram_of(one, "--permissive" in command):
            run.code, words = _run([command[0], *again, *more, *command[1:]], surroundings or {})
        code = run.code
    except (OSError, ValueError) as error:
        code, words = 2, str(error)
    status = {0: "done", 3: "stopped"}.get(code, "failed")
    return Outcome(one.name, status, "" if code == 0 else words, round(time.monotonic() - began, 1))


@dataclass
class _Recorded:
    """A run with a record: its exit code, 2 until it has one."""

    code: int = 2


@contextlib.contextmanager
def _recorded(item: Item, command: Sequence[str]) -> Iterator[_Recorded]:
    """The folder of an item has a record of the run in the block, which says afterwards whether it is done.

    A run that is refused before it begins leaves result and record of the run before as they were.
    """
    path, run, before = item.folder / RECORD_NAME, _Recorded(), _states(item)
    record = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    item.folder.mkdir(parents=True, exist_ok=True)
    write_json({**_as_record(item, command), "done": False}, path)
    try:
        yield run
    finally:
        if run.code == 0:
            write_json({**_as_record(item, command), "done": True}, path)
        elif run.code == 2 and _states(item) == before:
            if record is not None:
                write_text(record, path)
            else:
                path.unlink()
                with contextlib.suppress(OSError):
                    item.folder.rmdir()


def _states(item: Item) -> dict[Path, tuple[int, int]]:
    """Size and time of the result and of what is in the folder of a run, but for log, record and mean of halves."""
    folder = [path for path in item.folder.glob("*") if not path.name.startswith(".") and path.is_file()]
    others = (item.folder / RECORD_NAME, item.folder / "run.log", Path(item.tomogram))
    files = [*last_file(Path(item.output)), *(path for path in folder if path not in others)]
    return {path: ((status := path.stat()).st_size, status.st_mtime_ns) for path in files}


@contextlib.contextmanager
def _tomogram_of(item: Item, permissive: bool) -> Iterator[None]:
    """The tomogram of an item is there while the block runs; one that is the mean of halves is made for it."""
    if not item.is_mean:
        yield
        return
    assert item.even is not None
    assert item.odd is not None
    try:
        save_mean(item.even, item.odd, item.tomogram, permissive)
        yield
    finally:
        Path(item.tomogram).unlink(missing_ok=True)


def _run(command: Sequence[str], surroundings: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and last words of a process that ends when this one does."""
    ends = time.monotonic() + _LET_GO_S
    while True:
        # Nothing is ever written to its input: that closes when this process is gone, however it went.
        with subprocess.Popen(
            [sys.executable, "-m", "cryoshuffle.commands.worker", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **surroundings},
        ) as process:
            assert process.stderr is not None
            _running.add(process)
            lines = [line.strip() for line in process.stderr if line.strip()]
        _running.discard(process)
        if process.returncode < 0:
            # What it wrote last, a note perhaps, is not why.
            return process.returncode, _killed_by(-process.returncode)
        said = lines[-1].removeprefix("cryoshuffle: ") if lines else f"ended with code {process.returncode}"
        if process.returncode != 2 or _BUSY not in said or time.monotonic() > ends:
            return process.returncode, said
        time.sleep(1)


def _killed_by(number: int) -> str:
    """Why a process was ended by a signal, and the way out, in a sentence."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if name == "SIGKILL":
        return f"was killed by {name}, out of memory perhaps: give a smaller --memory, or fewer --workers"
    return f"was killed by {name}, see the run.log in its folder"


def _ask_to_stop(outputs: Collection[str] | None = None) -> int:
    """Ask runs of this process to stop: all, or those with one of some results. How many there were."""
    asked = [one for one in [*_running] if outputs is None or cast("list[str]", one.args)[-1] in outputs]
    for process in asked:
        if process.stdin is not None:
            process.stdin.close()
    return len(asked)


def share_machine(count: int, gpus: int, cores: int) -> tuple[int, int]:
    """How many runs at once on this machine, and threads for each: one a GPU, else about four cores each.

    Two threads of one run are 1.8 times one, many are far from many times: where there are many tomograms, several runs
    side by side do more than one with all cores.

    Args:
        count: tomograms.
        gpus: of the machine.
        cores: of the machine.
    """
    workers = max(1, min(count, gpus or cores // 4 or 1))
    return workers, max(1, cores // workers)


@dataclass(frozen=True)
class Cluster:
    """Where a batch runs.

    Attributes:
        scheduler: address of a Dask scheduler that runs already, ``tcp://...``.
        slurm: path of a YAML file with the arguments of ``dask_jobqueue.SLURMCluster``, and ``jobs``, how many.
        workers: runs at once on this machine; None for :func:`share_machine`.
        cores: of this machine that the runs may take together; None for all that this process may use.
    """

    scheduler: str | None = None
    slurm: str | None = None
    workers: int | None = None
    cores: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is this machine alone, without Dask."""
        return self.scheduler is None and self.slurm is None


def _dask() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise InputError(
            f"--scheduler and --slurm need Dask: {_INSTALL}, or leave them out for this machine"
        ) from error
    # Its workers come and go here; what matters of that is said by us.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return distributed


def _slurm_cluster(path: str) -> tuple[Any, int]:
    """A cluster of Slurm jobs, none of them asked for yet, and how many are wanted."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        asked, written = yaml.safe_load(text), yaml.load(text, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FileError(f"{path}: cannot be read as YAML, check it") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("jobs"), int) or asked["jobs"] < 1:
        raise InputError(f"{path}: names no number of jobs, write jobs: 16, say, and what a job may take")
    _dask()
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise InputError(f"--slurm needs dask-jobqueue: {_INSTALL}") from error
    jobs = asked.pop("jobs")
    # YAML takes 12:00:00 for 43200, which are minutes for Slurm, and account 0123 for 83.
    asked.update({name: written[name] for name in _AS_WRITTEN if asked.get(name) is not None})
    asked.update({name: [asked[name]] for name in _LISTED if isinstance(asked.get(name), str)})
    if str(asked.get("memory", "GB")).isdigit():
        raise InputError(f"{path}: memory is {asked['memory']} without a unit, write {asked['memory']}GB, say")
    try:
        # A run is a process of its own, so one at a time in each job; another batch may have the usual port.
        usual = {"cores": 1, "scheduler_options": {"dashboard_address": ":0"}}
        return SLURMCluster(**{**usual, **asked, "processes": 1, "worker_extra_args": ["--nthreads", "1"]}), jobs
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".,: ")
        raise InputError(f"{path}: {reason}, see the documentation of dask_jobqueue.SLURMCluster") from error


def job_script(path: str) -> str:
    """The job script that a YAML file for Slurm makes.

    Raises:
        FileError, InputError: if it cannot be read, or is none.
    """
    cluster, _ = _slurm_cluster(path)
    with cluster:
        return str(cluster.job_script())


@contextlib.contextmanager
def _client(cluster: Cluster) -> Iterator[Any]:
    """A client of Dask, of a scheduler that runs already or of Slurm jobs."""
    distributed = _dask()
    if cluster.scheduler is not None:
        try:
            client = distributed.Client(cluster.scheduler, timeout=5)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{cluster.scheduler}: no scheduler of Dask answers there, check the address that it printed"
            ) from error
        with client:
            yield client
    elif cluster.slurm is not None:
        jobs, wanted = _slurm_cluster(cluster.slurm)
        with jobs, distributed.Client(jobs) as client:
            jobs.scale(jobs=wanted)
            yield client


@dataclass(frozen=True)
class _Share:
    """What the runs of a batch may take.

    Attributes:
        workers: runs at once on this machine.
        threads: of each run; None where the cluster says.
        gpus: of this machine, which its runs take turns on.
        words: for each run, of its memory.
    """

    workers: int = 1
    threads: int | None = None
    gpus: int = 0
    words: tuple[str, ...] = ()


def _device_of(command: Sequence[str]) -> str:
    """The name of the device that a command asks for."""
    return next((word.removeprefix("--device=") for word in command if word.startswith("--device=")), "auto")


def _count_cores() -> int:
    """Cores that this process may use: of a node those of its job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share_of(cluster: Cluster, runs: int, memory_gib: float | None, device: str = "auto") -> _Share:
    """What each of some runs on a device of this name may take."""
    if not cluster.is_here:
        return _Share(words=() if memory_gib is None else (f"--memory={memory_gib:g}",))
    cores, gpus = cluster.cores or _count_cores(), count_gpus(device)
    workers, threads = share_machine(runs, gpus, cores)
    if cluster.workers is not None:
        workers, threads = cluster.workers, max(1, cores // cluster.workers)
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(allowed)) if allowed.isdigit() and int(allowed) else threads
    most = memory_gib or memory_bytes(torch.device("cpu")) / 2**31
    return _Share(workers, threads, gpus, (f"--memory={most / workers:.3f}",))


def _run_shared(
    item: Mapping[str, Any], command: Sequence[str], share: _Share, overwrite: bool, again: bool, place: int = 0
) -> dict[str, Any]:
    """:func:`run_item` with its share of a machine, on one of its GPUs; in a thread here, or on a worker of Dask.

    A second attempt begins anew only if the first one had not begun.
    """
    overwrite = overwrite and not (again and _is_begun(Item(**item), command))
    surroundings = {}
    if share.threads is not None:
        surroundings = {name: str(share.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if share.gpus > 1:
        # Of the GPUs that the batch itself may see.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(share.gpus)))
        surroundings["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place % share.gpus].strip()
    return asdict(run_item(item, command, share.words, surroundings, overwrite))


def _outcomes_here(
    runs: Mapping[str, tuple[Item, Sequence[str]]], share: _Share, overwrite: bool
) -> Generator[Outcome]:
    """The outcomes of runs on this machine, as they come; what failed is tried once more first, behind the others.

    Where the batch is stopped, its runs are asked to stop, and waited for.
    """
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(share.workers):
        places.put(place)

    def run(item: Item, command: Sequence[str], again: bool) -> Outcome:
        place = places.get()
        try:
            return Outcome(**_run_shared(asdict(item), command, share, overwrite, again, place))
        finally:
            places.put(place)

    with ThreadPoolExecutor(share.workers) as pool:
        attempts = {pool.submit(run, *pair, False): (name, 0) for name, pair in runs.items()}
        try:
            while attempts:
                for future in wait(attempts, return_when=FIRST_COMPLETED).done:
                    name, attempt = attempts.pop(future)
                    outcome = future.result()
                    if outcome.status == "failed" and attempt == 0:
                        attempts[pool.submit(run, *runs[name], True)] = (name, 1)
                    else:
                        yield outcome
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # One may just have been started, so they are asked until all are done.
            while not all(future.done() for future in attempts):
                _ask_to_stop()
                time.sleep(0.1)
            raise


def _outcomes_of_dask(
    client: Any, runs: Mapping[str, tuple[Item, Sequence[str]]], share: _Share, overwrite: bool
) -> Generator[Outcome]:
    """The outcomes of runs on the workers of a client, as they come; what failed is tried once more first.

    Where the batch is stopped, what has not begun is taken back, and its runs are asked to stop, and waited for.
    """
    distributed = _dask()

    def submit(name: str, attempt: int) -> Any:
        item, command = runs[name]
        return client.submit(
            _run_shared, asdict(item), command, share, overwrite, attempt > 0,
            key=f"{name}, attempt {attempt + 1}", pure=False,
        )  # fmt: skip

    names = {submit(name, 0): (name, 0) for name in runs}
    coming = distributed.as_completed(list(names))
    try:
        for future in coming:
            name, attempt = names.pop(future)
            try:
                outcome = Outcome(**future.result())
            except (distributed.scheduler.KilledWorker, distributed.CancelledError) as error:
                outcome = Outcome(name, "failed", f"its worker died again and again ({type(error).__name__})")
            if outcome.status == "failed" and attempt == 0:
                again = submit(name, 1)
                names[again] = (name, 1)
                coming.add(again)
            else:
                yield outcome
    except BaseException:
        client.cancel(list(names))
        outputs, ends = {item.output for item, _ in runs.values()}, time.monotonic() + _LET_GO_S
        # The workers go on by themselves. One run may just have been started, so they are asked until none is left.
        with contextlib.suppress(OSError, RuntimeError):
            while any(client.run(_ask_to_stop, outputs).values()) and time.monotonic() < ends:
                time.sleep(0.1)
        raise


def _outcomes(
    cluster: Cluster, runs: Mapping[str, tuple[Item, Sequence[str]]], share: _Share, overwrite: bool
) -> Generator[Outcome]:
    """The outcomes of runs wherever they are, as they come."""
    if cluster.is_here:
        yield from _outcomes_here(runs, share, overwrite)
        return
    with _client(cluster) as client:
        if getattr(client, "dashboard_link", None) and importlib.util.find_spec("bokeh"):
            logging.getLogger("cryoshuffle").info("Dask's dashboard: %s", client.dashboard_link)
        yield from _outcomes_of_dask(client, runs, share, overwrite)


def run_batch(
    items: Sequence[Item],
    commands: Sequence[Sequence[str]],
    cluster: Cluster,
    overwrite: bool = False,
    memory_gib: float | None = None,
    tell: Callable[[Outcome, int, float], None] = lambda outcome, count, seconds: None,
) -> list[Outcome]:
    """Run the commands of a batch, here or on workers of Dask; a failure is tried once more, the others go on.

    Args:
        items: tomograms.
        commands: of :func:`command_of`, one for each, with the same options.
        cluster: where.
        overwrite: begin all anew.
        memory_gib: that runs on this machine may take together; None for half of what there is.
        tell: called with each outcome as it comes, how many have come, and the seconds since the beginning.

    Returns:
        the outcomes, in the order of the items.

    Raises:
        InputError: if Dask is asked for and not installed, or no scheduler answers.
        FileError, InputError: before the first run, if a result there is not of this batch.
    """
    todo = [overwrite or not is_done(item, command) for item, command in zip(items, commands, strict=True)]
    outcomes = {item.name: Outcome(item.name, "skipped") for item, do in zip(items, todo, strict=True) if not do}
    began = time.monotonic()
    for count, outcome in enumerate(outcomes.values(), 1):
        tell(outcome, count, 0.0)
    runs = {item.name: (item, command) for item, command, do in zip(items, commands, todo, strict=True) if do}
    if runs:
        share = _share_of(cluster, len(runs), memory_gib, _device_of(commands[0]))
        # Closed here: where the batch is stopped its runs are, too.
        with contextlib.closing(_outcomes(cluster, runs, share, overwrite)) as coming:
            for outcome in coming:
                outcomes[outcome.name] = outcome
                tell(outcome, len(outcomes), time.monotonic() - began)
    return [outcomes[item.name] for item in items]
