"""A program that denoises is as it was afterwards, and a run works whatever that program had set."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import re
import runpy
import signal
import subprocess
import sys
import types
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose, Lambda
from monai.utils import get_seed, set_determinism
from phantoms import small_tomogram
from sizes import suite_configs, suite_start

import cryoshuffle
from cryoshuffle import devices, memory
from cryoshuffle.commands.cli import main
from cryoshuffle.commands.preflight import check_output
from cryoshuffle.errors import FileError, FitInterruptedError, InputError, SettingError, UserError, plainly
from cryoshuffle.files.formats import load_tomogram
from cryoshuffle.files.intensity import FillNotFinite, StandardiseIntensity
from cryoshuffle.fit.data import WindowDataset, image_paths
from cryoshuffle.fit.handlers import GracefulStop
from cryoshuffle.host import is_terminal, undisturbed, unheard, while_running
from cryoshuffle.inference.checkpoints import load_plain
from cryoshuffle.inference.transform import Denoise
from cryoshuffle.losses import EdgeGuidedLoss
from cryoshuffle.report.log import Progress, RunLog
from cryoshuffle.signals import NUMBERS

QUICK = {"refine": False, "steps": 3, "window": (16, 24, 16), "blind": "plane", "tilt_axis": "y"}
WORDS = ["--no-refine", "--steps", "3", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y"]


@pytest.fixture
def tomogram(tmp_path):
    return small_tomogram(tmp_path / "in.mrc", (24, 48, 36))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a host that has set nothing gets of the tomogram."""
    folder = tmp_path_factory.mktemp("expected")
    return cryoshuffle.denoise(mrcfile.read(small_tomogram(folder / "in.mrc", (24, 48, 36))), **QUICK)


@pytest.fixture
def broken_fit(monkeypatch):
    """The second step of a fit fails."""
    forward, steps = EdgeGuidedLoss.forward, []

    def fail(self, *given):
        steps.append(1)
        if len(steps) == 2:
            raise ArithmeticError("the second step")
        return forward(self, *given)

    monkeypatch.setattr(EdgeGuidedLoss, "forward", fail)
    return steps


def bundle_words(*names, **overrides):
    """What stands behind ``python -m monai.bundle`` for these configs."""
    files = "[" + ",".join(f"'{suite_configs() / name}'" for name in names) + "]"
    return ["run", "--config_file", files, *(part for k, v in overrides.items() for part in (f"--{k}", str(v)))]


def bundle_run(cwd, *names, **overrides):
    """``python -m monai.bundle run`` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["monai.bundle", *bundle_words(*names, **overrides)])
        runpy.run_module("monai.bundle", run_name="__main__")


def drawn_next():
    """What every generator would draw next; none of them moves."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    drawn = random.random(), float(np.random.rand()), float(torch.rand(1))
    random.setstate(before[0]), np.random.set_state(before[1]), torch.set_rng_state(before[2])
    return drawn


def of_the_process():
    """What engines take, whoever starts them."""
    ours = logging.getLogger("cryoshuffle")
    return {
        "signals": [signal.getsignal(number) for number in NUMBERS],
        "log": (ours.level, [*ours.handlers], [*ours.filters]),
        "allocator": [*memory._keeping],
    }


def of_the_host():
    """What a run takes besides."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        **of_the_process(),
        "rounding": (cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision),
        "cudnn": (cudnn.deterministic, cudnn.benchmark),
        "type": torch.get_default_dtype(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "path": [*sys.path],
        "random": (drawn_next(), get_seed()),
        "threads": torch.get_num_threads(),
    }


def test_a_rank_in_the_environment_costs_a_run_nothing(tomogram, tmp_path, monkeypatch):
    """A program that torchrun started for work of its own is alone here: model, state, log and history are left."""
    monkeypatch.setenv("RANK", "1")
    cryoshuffle.denoise(mrcfile.read(tomogram), report=tmp_path / "run", **QUICK)
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.pt", "fit.json", "run.log", "noise.json", "history.jsonl"} <= kept


@pytest.mark.parametrize("fails", [False, True], ids=["a run", "a run that fails"])
@pytest.mark.parametrize("way", ["python", "command line"])
def test_the_host_is_as_it_was_however_a_run_ends(tomogram, tmp_path, request, way, fails):
    """Signals, logs, the allocator, rounding, random numbers, types, modes, the module path and the memory limit."""
    if fails:
        request.getfixturevalue("broken_fit")
    volume = mrcfile.read(tomogram)
    if way == "command line":
        main(["evaluate", str(tomogram), "--report", str(tmp_path / "first")])  # sets up its notes once
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    memory.limit_memory(3.0)
    before = of_the_host()
    with pytest.raises(RuntimeError, match=r"fit.*run") if fails else contextlib.nullcontext():
        if way == "python":
            cryoshuffle.denoise(volume, precision="tf32", memory=2.0, **QUICK)
        else:
            words = ["--precision", "tf32", "--memory", "2.0", "--quiet", *WORDS]
            assert main(["denoise", str(tomogram), str(tmp_path / "out.mrc"), *words]) == 0
    assert of_the_host() == before
    assert memory.limit_memory() == 3.0


def test_a_failed_run_of_monais_command_line_leaves_signals_and_logs(tomogram, tmp_path, broken_fit):
    """The process may go on, in a notebook say; the next run's lines are not in the log of the failed one."""
    before = of_the_process()
    with pytest.raises(RuntimeError):
        bundle_run(tmp_path, "train.json", "smoke.yaml", tomogram=tomogram)
    assert len(broken_fit) == 2
    assert of_the_process() == before
    log = tmp_path / "run" / "run.log"
    assert "the network is blind as configured" in log.read_text()
    logging.getLogger("cryoshuffle").warning("of another run")
    assert "of another run" not in log.read_text()


@pytest.mark.parametrize("where", [Events.STARTED, Events.ITERATION_COMPLETED, Events.COMPLETED])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_what_is_taken_for_an_engine_is_given_back_before_an_error_is_told(where, error):
    """In reverse order, whichever handler fails; then others hear of the error, and it is raised, by us if not by them.

    An engine without anything taken raises it by itself (control).
    """

    def fail(engine):
        raise error

    def hear(engine, one):
        told.append("heard")

    for position in ("before", "behind", "nothing taken"):
        told: list[str] = []

        @contextlib.contextmanager
        def take(engine, name, told=told):
            told.append(f"take {name}")
            try:
                yield
            finally:
                told.append(f"give back {name}")

        engine = Engine(lambda engine, batch, told=told: told.append("step"))
        if position == "before":
            engine.add_event_handler(where, fail)
        if position != "nothing taken":
            while_running(engine, lambda engine: take(engine, "a"))
            while_running(engine, lambda engine: take(engine, "b"))
            engine.add_event_handler(Events.EXCEPTION_RAISED, hear)
        if position != "before":
            engine.add_event_handler(where, fail)
        with pytest.raises(type(error)):
            engine.run([0])
        taken = [] if position == "nothing taken" else ["take a", "take b", "give back b", "give back a"]
        if (where, position) == (Events.STARTED, "before"):
            assert told == []
        else:
            # Ignite tells of an error within an epoch twice.
            assert [one for one in dict.fromkeys(told) if one != "step"] == [*taken, *(["heard"] if taken else [])]
            assert len([one for one in told if one.startswith(("take", "give"))]) == len(taken)
            assert told.count("step") == (where != Events.STARTED)


def test_an_engine_gives_back_at_its_end_each_time_it_runs():
    """Behind all that other handlers do at the end."""
    told = []

    @contextlib.contextmanager
    def take(engine):
        told.append("take")
        yield
        told.append("give back")

    engine = Engine(lambda engine, batch: None)
    while_running(engine, take)
    engine.add_event_handler(Events.COMPLETED, lambda engine: told.append("end"))
    for _ in range(2):
        engine.run([0], max_epochs=1)
    assert told == ["take", "end", "give back"] * 2


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_asked_for_once_and_never_lost(number):
    """It stops the engine that runs, also where it comes at the very end; after an error the host hears it."""
    heard = []
    before = {one: signal.signal(one, lambda number, frame: heard.append(number)) for one in NUMBERS}
    try:
        stop = GracefulStop()
        for asks in (True, False):
            engine = Engine(lambda engine, batch: None)
            stop.attach(engine)
            if asks:
                engine.add_event_handler(Events.COMPLETED, lambda engine: signal.raise_signal(number))
            with pytest.raises(FitInterruptedError, match="stopped at step 1") if asks else contextlib.nullcontext():
                engine.run([0])
        assert heard == []
        for at, kept in ((Events.ITERATION_STARTED, 3), (Events.EPOCH_COMPLETED, 6)):
            engine = Engine(lambda engine, batch: None)
            engine.add_event_handler(at, lambda engine: engine.state.epoch == 2 and signal.raise_signal(number))
            GracefulStop().attach(engine)
            with pytest.raises(FitInterruptedError, match=f"goes on from step {kept}, where it was last saved"):
                engine.run([0, 1, 2], max_epochs=3)
        broken = Engine(lambda engine, batch: 1 / 0)
        GracefulStop().attach(broken)
        with pytest.raises(ZeroDivisionError):
            broken.run([0])
        signal.raise_signal(number)
        assert heard == [number]
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_a_signal_that_python_does_not_handle_is_left_alone(monkeypatch):
    """It could not be given back: Python knows it by None alone."""
    set_by_us = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *given: set_by_us.append(given))
    engine = Engine(lambda engine, batch: None)
    GracefulStop().attach(engine)
    engine.run([0])
    assert set_by_us == []


def test_a_bar_is_taken_down_after_an_error(monkeypatch):
    """It would shift the bars of the host."""
    bars = []
    monkeypatch.setattr("cryoshuffle.report.log.tqdm", lambda **given: bars.append(given) or Bar())

    class Bar:
        def update(self, steps):
            raise ArithmeticError

        def close(self):
            bars.append("closed")

    engine = Engine(lambda engine, batch: None)
    Progress(Engine(lambda engine, batch: None)).attach(engine)
    with pytest.raises(ArithmeticError):
        engine.run([0])
    assert bars[1:] == ["closed"]


def _medium():
    torch.set_float32_matmul_precision("medium")


def _newer():
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"


def _mixed():
    torch.backends.cudnn.conv.fp32_precision = "ieee"


@pytest.mark.parametrize("setting", [_medium, _newer, _mixed])
def test_rounding_stays_as_the_host_has_set_it_in_whatever_way(setting):
    """torch has three ways, and raises where one is asked for what another has said."""

    def state():
        cudnn = torch.backends.cudnn
        return [one.fp32_precision for one in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)]

    with devices.rounding_kept():
        setting()
        before = state()
        for _ in range(2):
            with undisturbed():
                for precision in ("fp32", "tf32"):
                    devices.allow_tf32(precision)
            assert state() == before
        if setting is _medium:
            assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_host_that_computes_in_double_gets_the_numbers_of_one_that_does_not(tomogram, expected):
    """And computes in double afterwards."""
    volume = mrcfile.read(tomogram)
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(cryoshuffle.denoise(volume, **QUICK), expected)
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_host_that_keeps_no_metadata_gets_the_numbers_of_one_that_does(tomogram, expected, tmp_path):
    """Axes and header come from them; MONAI's switch is as before. A checkpoint that is applied is no other case."""
    volume, denoise = mrcfile.read(tomogram), Denoise(suite_start(), device="cpu")
    applied = denoise(torch.from_numpy(volume)[None])
    set_track_meta(False)
    try:
        assert np.array_equal(cryoshuffle.denoise(tomogram, **QUICK)[0], expected)
        assert torch.equal(denoise(torch.from_numpy(volume)[None]), applied)
        assert not get_track_meta()
    finally:
        set_track_meta(True)


def test_a_host_whose_tensors_are_elsewhere_gets_the_numbers_of_one_that_has_said_nothing(tomogram, expected):
    """Its default device is as before; what is computed with double precision is on the CPU."""
    volume, denoise = mrcfile.read(tomogram), Denoise(suite_start(), device="cpu")
    given = torch.from_numpy(volume)[None]
    applied = denoise(given)
    torch.set_default_device("meta")
    try:
        for one in (denoise(given), FillNotFinite()(given), load_tomogram(tomogram)):
            assert one.device.type == "cpu"
        standard = StandardiseIntensity()
        made = standard(given)
        assert made.device.type == standard.inverse(made).device.type == "cpu"
        assert torch.equal(denoise(given).as_tensor(), applied.as_tensor())
        assert np.array_equal(cryoshuffle.denoise(tomogram, **QUICK)[0], expected)
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


def test_a_gpu_is_asked_for_its_random_numbers_only_where_the_host_uses_it(monkeypatch):
    """Asking would start it; where it sleeps, it will begin with the seed that the host gave torch."""
    seeds, asked = [], []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: asked.append([*devices]) or contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    torch.manual_seed(11)
    seeds.clear()
    with undisturbed():
        set_determinism(3)
    assert asked == [[]]
    assert seeds[-1] == 11
    seeds.clear()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with undisturbed():
        pass
    assert asked == [[], [0, 1]]
    assert 11 not in seeds


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR, logging.DEBUG])
def test_the_host_hears_of_a_run_what_its_level_lets_through(tmp_path, level):
    """The file has it all; the level is as before, after an error too. Without a log it hears the same (control)."""
    ours, root, heard = logging.getLogger("cryoshuffle"), logging.getLogger(), []

    class Host(logging.Handler):
        def emit(self, record):
            if record.name == ours.name:
                heard.append(record.levelname)

    def step(engine, batch):
        ours.debug("a"), ours.info("b"), ours.warning("c"), ours.error("d")
        if batch:
            raise ArithmeticError

    levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
    hears = levels[{logging.NOTSET: 2, logging.ERROR: 3, logging.DEBUG: 0}[level] :]
    host, before = Host(), (ours.level, root.level)
    root.addHandler(host), root.setLevel(logging.WARNING), ours.setLevel(level)
    try:
        for name in ("no log", "log", "log of a failure"):
            engine, log = Engine(step), tmp_path / name / "run.log"
            if name != "no log":
                RunLog(str(log.parent)).attach(engine)
            heard.clear()
            with pytest.raises(ArithmeticError) if "failure" in name else contextlib.nullcontext():
                engine.run(["failure" in name])
            # The log itself begins with a line.
            assert heard == (["INFO", *hears] if log.exists() and level == logging.DEBUG else hears)
            assert (ours.level, ours.handlers, ours.filters) == (level, [], [])
            if log.exists():
                lines = [line.split()[2:] for line in log.read_text().splitlines()]
                assert lines[1:] == [["INFO", "b"], ["WARNING", "c"], ["ERROR", "d"]]
    finally:
        root.removeHandler(host), root.setLevel(before[1]), ours.setLevel(before[0])


@pytest.mark.parametrize("stderr", [None, types.SimpleNamespace(write=lambda text: None, flush=lambda: None)])
def test_a_run_needs_no_stderr_nor_one_that_knows_whether_it_is_watched(
    tomogram, expected, tmp_path, monkeypatch, stderr
):
    """As in a program without a console. From Python and by command, with a bar where there is a place for one."""
    monkeypatch.setattr(sys, "stderr", stderr)
    assert np.array_equal(cryoshuffle.denoise(mrcfile.read(tomogram), quiet=False, **QUICK), expected)
    assert main(["denoise", str(tomogram), str(tmp_path / "out.mrc"), *WORDS]) == 0
    assert np.array_equal(mrcfile.read(tmp_path / "out.mrc"), expected)


def test_a_mistake_does_not_go_among_the_results_where_there_is_no_stderr(monkeypatch, capsys):
    """``print`` would take stdout, which programs read."""
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["denoise", "missing.mrc", "out.mrc", "--json-lines"]) == 2
    assert main(["denoise", "missing.mrc", "out.mrc", "--speed", "3"]) == 2
    assert capsys.readouterr().out == ""


def test_someone_watches_a_stream_that_says_so():
    """Not none, one that cannot say, or one that is closed."""
    closed = io.StringIO()
    closed.close()
    watched = types.SimpleNamespace(isatty=lambda: True)
    assert [is_terminal(one) for one in (None, object(), closed, io.StringIO(), watched)] == [False] * 4 + [True]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor], ids=lambda kind: kind.__name__)
def test_a_fit_learns_whatever_mode_the_host_is_in(tomogram, expected, mode, kind):
    """The same bits; the mode stays."""
    with mode():
        volume = kind(mrcfile.read(tomogram))
        before = of_the_host()["modes"]
        result = cryoshuffle.denoise(volume, **QUICK)
        assert of_the_host()["modes"] == before
        assert type(result) is type(volume)
        assert np.array_equal(np.asarray(result), expected)


def test_a_run_says_nothing_that_its_host_did_not_ask_for(tomogram, tmp_path):
    """On neither stream, in a program of its own: not of logging, configs, or the file that it made itself."""
    program = tmp_path / "host.py"
    program.write_text(
        "import mrcfile, sys, cryoshuffle\n"
        f"cryoshuffle.denoise(mrcfile.read(sys.argv[1]), **{QUICK!r})\n"
        "import warnings\n"
        "warnings.simplefilter('error')\n"
        f"cryoshuffle.denoise(mrcfile.read(sys.argv[1]), **{QUICK!r})\n"
    )
    done = subprocess.run([sys.executable, program, tomogram], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_logger_is_unheard_for_a_while(caplog):
    """An error ends that too."""
    one = logging.getLogger("of another library")
    with contextlib.suppress(ArithmeticError), unheard(one.name):
        one.error("unheard")
        raise ArithmeticError
    one.error("heard")
    assert caplog.messages == ["heard"]


def test_a_mistake_is_raised_as_itself_where_monai_wraps_it(tmp_path):
    """By what loads a tomogram, and by the transform that denoises; what is no mistake passes as it is."""
    path = small_tomogram(tmp_path / "in.mrc", (24, 48, 36))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"in\.mrc"):
        load_tomogram(path)
    checkpoint = tmp_path / "model.pt"
    main(["fit", str(small_tomogram(tmp_path / "whole.mrc")), "--checkpoint", str(checkpoint), "--quiet", *WORDS])
    denoise = Denoise(checkpoint)
    with pytest.raises(InputError, match="are NaN or Inf"):
        denoise(np.full((1, 24, 48, 36), np.nan, np.float32))
    with pytest.raises(ZeroDivisionError), plainly():
        raise ZeroDivisionError
    with pytest.raises(InputError, match="itself") as caught, plainly():
        raise InputError("itself")
    assert caught.value.__cause__ is None


FEW = {"steps": 2, "steps_per_epoch": 2, "window": "[16,24,16]", "blind": "plane", "tilt_axis": "y", "quiet": True}


def test_both_roots_run_with_their_own_defaults(tmp_path):
    """In a folder that holds a tomogram, and then a model: the folder of the run is made, with the result in it.

    A file of the result's name beside that folder is none of it.
    """
    small_tomogram(tmp_path / "tomogram.mrc", (24, 48, 36))
    bundle_run(tmp_path, "train.json", bundle_root=tmp_path, output_dir=tmp_path / "fit", **FEW)
    (tmp_path / "denoised.mrc").write_text("of someone else")
    bundle_run(tmp_path, "inference.json", bundle_root=tmp_path)
    assert mrcfile.read(tmp_path / "run" / "denoised.mrc").shape == (24, 48, 36)
    assert (tmp_path / "denoised.mrc").read_text() == "of someone else"


def test_only_the_folder_of_the_run_is_made(tmp_path):
    """Any other that is not there is refused, before the work; so is one that cannot be made."""
    tomogram = str(small_tomogram(tmp_path / "in.mrc", (24, 48, 36)))
    output = str(tmp_path / "run" / "deeper" / "out.mrc")
    check_output(output, tomogram, folder=str(tmp_path / "run" / "deeper"))
    for folder in (None, str(tmp_path / "run")):
        with pytest.raises(FileError, match="there is no folder"):
            check_output(output, tomogram, folder=folder)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileError, match="there is no folder"):
        check_output(str(tmp_path / "run" / "out.mrc"), tomogram, folder=str(tmp_path / "run"))


def test_a_device_may_be_a_word_on_monais_command_line_and_a_folder_a_number(tmp_path, tomogram):
    """``--device cpu`` and ``--output_dir 20240131``, which becomes a whole number on its way: the same network."""
    for name, more in {"usual": {}, "words": {"device": "cpu", "output_dir": 20240131}}.items():
        (tmp_path / name).mkdir()
        bundle_run(tmp_path / name, "train.json", tomogram=tomogram, **FEW, **more)
        bundle_run(tmp_path / name, "inference.json", tomogram=tomogram, **more)
    assert (tmp_path / "words" / "20240131" / "run.log").is_file()
    assert not (tmp_path / "words" / "run").exists()
    results = [mrcfile.read(tmp_path / path / "denoised.mrc") for path in ("usual/run", "words/20240131")]
    assert np.array_equal(*results)


@pytest.mark.parametrize(
    "names",
    [
        ["train.json"], ["inference.json"], ["train.json", "refine.yaml"], ["start.yaml"],
        ["train.json", "inference.json", "denoise.yaml", "refine.yaml"], ["train.json", "evaluate.yaml"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "auto", torch.device("cpu")], ids=str)
def test_every_config_takes_a_device_by_its_name(names, device):
    """All but the definition refers to the one device that follows from it; ``device`` itself stays MONAI's to set."""
    parser = ConfigParser()
    parser.read_config([str(suite_configs() / name) for name in names])
    parser.update({"device": device})
    assert parser.get_parsed_content("chosen_device") == devices.choose_device(device)
    text = json.dumps({key: value for key, value in parser.get().items() if "device" not in key})
    assert not re.search(r"@device(?!_)", text)
    assert not re.search(r"@output_dir", text.replace("$str(@output_dir)", ""))


def test_a_device_is_named_in_any_way_that_torch_knows():
    """A device is itself; the number of a GPU that is not there is a mistake."""
    assert devices.choose_device(torch.device("cpu")) == devices.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingError, match=r"device '99' is .*: use"):
        devices.choose_device(99)


def test_a_datalist_in_place_of_the_datasets_data_is_what_a_fit_learns_from(tmp_path, tomogram):
    """As MONAI's tools give it: the network is that of ``--tomogram``, and of another tomogram it is another."""
    other = small_tomogram(tmp_path / "other.mrc", (24, 48, 36), seed=1)
    weights = {}
    for name, given in {
        "tomogram": {"tomogram": tomogram},
        "datalist": {"train#dataset#data": [{"image": str(tomogram)}]},
        "other": {"train#dataset#data": [{"image": str(other)}]},
    }.items():
        (tmp_path / name).mkdir()
        bundle_run(tmp_path / name, "train.json", **FEW, **given)
        model = load_plain(tmp_path / name / "models" / "model.pt")["model"]
        weights[name] = torch.cat([value.flatten().double() for value in model.values()])
    assert torch.equal(weights["tomogram"], weights["datalist"])
    assert not torch.equal(weights["tomogram"], weights["other"])


@pytest.mark.parametrize("item", [{}, {"label": "in.mrc"}, {"image": 3}, "in.mrc"])
def test_a_datalist_names_paths(item):
    """An item that does not is named by its place."""
    assert image_paths([{"image": "a.mrc"}, {"image": Path("b.mrc")}]) == ["a.mrc", "b.mrc"]
    with pytest.raises(InputError, match="item 1 of the datalist is"):
        image_paths([{"image": "a.mrc"}, item])


def test_windows_are_of_what_is_read_once():
    """The dataset reads its datalist; without anything to read with the items are the volumes."""
    read = []

    def reading(item):
        read.append(item["image"])
        return {"image": torch.full((1, 2, 2, 2), float(item["image"]))}

    windows = WindowDataset([{"image": 1}, {"image": 2}], Compose([]), 4, reading=Compose([Lambda(reading)]))
    assert [float(window["image"].mean()) for window in (windows[0], windows[1], windows[2])] == [1.0, 2.0, 1.0]
    assert sorted(read) == [1, 2]
    plain = [{"image": 5}]
    assert WindowDataset(plain, Compose([]), 1).volumes is plain
