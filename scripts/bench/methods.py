"""The methods that ``quality.py`` compares: what each is told, and how each is run on one tomogram.

Every program runs in a process of its own with MRC files in and out; its wall time is that of the whole command.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.provenance import ROOT
from cryoshuffle import starting_network
from cryoshuffle.boxes import draw_box, fit_window
from cryoshuffle.fit.handlers import Budget
from cryoshuffle.inference.checkpoints import read_model_settings
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.network import BlindSpotNet
from cryoshuffle.noise.linear_filter import gaussian
from cryoshuffle.scores.metrics import correlation

WINDOW = 48
GRADIENT_NORM = 0.3
# Of our network on the halves: as many as a best effort has behind the blind network.
CEILING_STEPS = 525
CONFIGS = ("train.json", "inference.json", "denoise.yaml", "refine.yaml")
UNET = """\
network_def#body: &body
  {_target_: UNet, spatial_dims: 3, in_channels: 24, out_channels: 1, channels: [24, 40, 64], strides: [2, 2]}
network_def#body_multiple: 4
refine#network_def#body: *body
refine#network_def#body_multiple: 4
warm_start: none
halo: [16, 24, 16]
"""


class NotRunError(Exception):
    """A method gave no result; the text says why, in one line without paths."""

    def __init__(self, reason: str) -> None:
        super().__init__(re.sub(r"\s+", " ", re.sub(r"(?<!\w)/(?:[\w.+-]+/)+", "", reason)).strip()[:160])


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        key: in files and options.
        label: in tables.
        told: what it gets beside the tomogram.
        kind: ``noisy``, ``gaussian``, ``ceiling``, ``ours`` (command line), ``config`` (MONAI bundle), ``start`` (the
            starting network as it is) or ``peer``.
        options: of the command, for ours.
        grid: strengths, or names of models, of which the best against the truth is taken.
        unit: of the strengths.
        venv: of a peer.
        package: of a peer, whose version is stated.
        cases: it is run on; empty for all.
    """

    key: str
    label: str
    told: str = ""
    kind: str = "ours"
    options: tuple[str, ...] = ()
    grid: tuple[float | str, ...] = ()
    unit: str = ""
    venv: str = ""
    package: str = ""
    cases: tuple[str, ...] = ()


WIDTHS = tuple(0.5 + 0.25 * i for i in range(15))
SIMULATIONS = "simulations of other molecules"
STRENGTH = "the truth, to choose its strength"
METHODS = (
    Method("noisy", "noisy tomogram", kind="noisy"),
    Method("gaussian", "Gaussian", "the truth, to choose its width", "gaussian", grid=WIDTHS, unit="width in voxels"),
    Method("tv", "total variation (scikit-image)", STRENGTH, "peer",
           grid=(0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8), unit="weight", venv="classic", package="scikit-image"),
    Method("nlm", "non-local means (scikit-image)", STRENGTH, "peer",
           grid=(0.4, 0.5, 0.6, 0.7, 0.8, 1.0), unit="h", venv="classic", package="scikit-image"),
    Method("diffusion", "curvature anisotropic diffusion (SimpleITK)", STRENGTH, "peer",
           grid=(1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0), unit="conductance of 20 steps",
           venv="classic", package="SimpleITK"),
    Method("bm4d", "BM4D", STRENGTH, "peer",
           grid=(0.7, 1.0, 1.4, 2.0, 2.8), unit="sigma of white noise", venv="classic", package="bm4d"),
    Method("bm4d-alone", "BM4D, sigma estimated from the tomogram", kind="peer", venv="classic", package="bm4d"),
    Method("topaz", "Topaz Denoise 3-D, `unet-3d-10a` or `unet-3d-20a`",
           "other tomograms; the truth, to choose its model", "peer",
           grid=("unet-3d-10a", "unet-3d-20a"), venv="topaz", package="topaz-em"),
    Method("n2v", "Noise2Void 3-D (CAREamics)", kind="peer", venv="careamics", package="careamics"),
    Method("cryocare", "cryoCARE", "even and odd half", "peer", venv="cryocare", package="cryocare"),
    Method("auto", "**cryoshuffle**", SIMULATIONS),
    Method("fast", "cryoshuffle, `--effort fast`", SIMULATIONS, options=("--effort", "fast")),
    Method("best", "cryoshuffle, `--effort best`", SIMULATIONS, options=("--effort", "best")),
    Method("cold", "cryoshuffle, `--cold-start --steps 600`", options=("--cold-start", "--steps", "600")),
    Method("start", "cryoshuffle's starting network, no fit", SIMULATIONS, kind="start"),
    Method("blind", "cryoshuffle, blind network only", options=("--no-refine", "--steps", "600")),
    Method("voxel", "cryoshuffle, blind voxel", options=("--blind", "voxel", "--no-refine", "--steps", "600")),
    Method("paper", "cryoshuffle, as in the paper",
           options=("--blind", "voxel", "--preset", "paper", "--no-refine", "--steps", "600")),
    Method("ceiling", "our network on the halves, from random weights", "even and odd half", "ceiling"),
)  # fmt: skip
ABLATED_CASES = ("wbp", "aligned")
ABLATION = (
    Method("no-whitening", "`--blind plane --tilt-axis y`: no whitening",
           told=SIMULATIONS, options=("--blind", "plane", "--tilt-axis", "y"), cases=("aligned",)),
    Method("stride2", "`--stride 1,2,1`", SIMULATIONS, options=("--stride", "1,2,1"), cases=ABLATED_CASES),
    Method("stride4", "`--stride 1,4,1`", SIMULATIONS, options=("--stride", "1,4,1"), cases=ABLATED_CASES),
    Method("guided", "`--preset paper`", SIMULATIONS, options=("--preset", "paper"), cases=ABLATED_CASES),
    Method("fidelity", "without edge and smoothness terms", SIMULATIONS, kind="config",
           options=("--loss_weights#unbiased", "{'fidelity': 1.0}"), cases=ABLATED_CASES),
    Method("unet", "body: MONAI's `UNet`, 24, 40, 64 channels (compare with `--cold-start`)", kind="config",
           options=("--steps", "600"), cases=ABLATED_CASES),
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One tomogram, and how methods are run on it.

    Attributes:
        folder: holds ``tomogram``, ``even``, ``odd`` and ``truth`` as MRC, all on the scale of a standardised tomogram.
        seed: of the simulation and of the fits.
        steps: of our fits that name none themselves; None for those of the effort.
        peer_steps: of the fits of peers.
        cap_s: no program may take longer.
        device: ``cpu`` or ``cuda``.
        peers: folder of the peers' environments.
    """

    folder: Path
    seed: int
    steps: int | None
    peer_steps: int
    cap_s: float
    device: str
    peers: Path | None


@dataclass(frozen=True)
class Outcome:
    """What a method made.

    Attributes:
        path: of the result.
        seconds: the run took; None where there was nothing to run.
        strength: that was chosen from the grid.
        at_end: the strength is the first or the last of a grid of numbers.
        stride: of the lattice along (Z, Y, X), for ours.
    """

    path: Path
    seconds: float | None = None
    strength: float | str | None = None
    at_end: bool = False
    stride: tuple[int, ...] | None = None


def read(path: Path) -> Tensor:
    """A volume (Z, Y, X) as float32."""
    return torch.from_numpy(np.array(mrcfile.read(path), dtype=np.float32))


def write(volume: Tensor, path: Path) -> None:
    """A volume as MRC."""
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(volume.numpy().astype(np.float32))
        mrc.set_volume()


def call(command: list[str], log: Path, job: Job) -> float:
    """Run a program, with all it says in a file.

    Returns:
        Wall time, seconds.

    Raises:
        NotRunError: if it fails or takes too long.
    """
    environment = dict(os.environ)
    if job.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    begin = time.monotonic()
    # A session of its own, so that what a peer has started ends with it.
    with (
        log.open("wb") as said,
        subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        ) as process,
    ):
        try:
            code = process.wait(job.cap_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NotRunError(f"takes more than {job.cap_s / 60:g} min") from error
            raise
    seconds = time.monotonic() - begin
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        # An error may go on for lines behind its name.
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        raise NotRunError((named or lines or [f"ended with code {code}"])[-1])
    return seconds


def run(method: Method, job: Job) -> Outcome:
    """Run a method on a tomogram.

    Raises:
        NotRunError: if it gave no result.
    """
    runners = {
        "noisy": lambda m, j: Outcome(j.folder / "tomogram.mrc"),
        "gaussian": _run_gaussian,
        "ceiling": _run_ceiling,
        "ours": _run_ours,
        "config": _run_ours,
        "start": _run_start,
        "peer": _run_peer,
    }
    return runners[method.kind](method, job)


def _run_gaussian(method: Method, job: Job) -> Outcome:
    noisy, truth = read(job.folder / "tomogram.mrc"), read(job.folder / "truth.mrc")
    scores = {sigma: correlation(gaussian(noisy, float(sigma)), truth) for sigma in method.grid}
    sigma = max(scores, key=lambda s: scores[s])
    path = job.folder / f"{method.key}.mrc"
    begin = time.monotonic()
    smooth = gaussian(noisy, float(sigma))
    seconds = time.monotonic() - begin
    write(smooth, path)
    return Outcome(path, seconds, sigma, sigma in (method.grid[0], method.grid[-1]))


def _run_ours(method: Method, job: Job) -> Outcome:
    result, report = job.folder / f"{method.key}.mrc", job.folder / f"{method.key}_run"
    # What an earlier, interrupted run has left must not be taken for this one's.
    shutil.rmtree(report, ignore_errors=True)
    tomogram = str(job.folder / "tomogram.mrc")
    if method.kind == "ours":
        command = [sys.executable, "-m", "cryoshuffle", "denoise", tomogram, str(result)]
        command += ["--report", str(report), "--device", job.device, "--overwrite", "--quiet"]
    else:
        configs = [str(ROOT / "configs" / name) for name in CONFIGS]
        if method.key == "unet":
            overlay = job.folder / "unet.yaml"
            overlay.write_text(UNET, encoding="utf-8")
            configs.append(str(overlay))
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), "--tomogram", tomogram]
        command += ["--output", str(result), "--output_dir", str(report), "--device_name", job.device]
        command += ["--overwrite", "True", "--quiet", "True"]
    command += [] if job.steps is None else ["--steps", str(job.steps)]
    command += ["--seed", str(job.seed), *method.options]
    seconds = call(command, job.folder / f"{method.key}.log", job)
    blind = report / "blind.pt"
    fitted = read_model_settings(blind if blind.is_file() else report / "model.pt")
    stride = Lattice(fitted.stride, fitted.blind_set).stride_zyx
    return Outcome(result, seconds, stride=stride)


def _run_start(method: Method, job: Job) -> Outcome:
    result, report = job.folder / f"{method.key}.mrc", job.folder / f"{method.key}_run"
    command = [sys.executable, "-m", "cryoshuffle", "apply", str(starting_network())]
    command += [str(job.folder / "tomogram.mrc"), str(result), "--report", str(report), "--device", job.device]
    return Outcome(result, call([*command, "--overwrite", "--quiet"], job.folder / f"{method.key}.log", job))


def _run_peer(method: Method, job: Job) -> Outcome:
    """The best of the grid against the truth; without a grid the one run there is."""
    python = peer_python(method, job.peers)
    truth = read(job.folder / "truth.mrc")
    best: tuple[float, Path, float, float | str | None] | None = None
    reason = ""
    for strength in method.grid or (None,):
        result = job.folder / f"{method.key}_{strength}.mrc"
        command = [str(python), str(Path(__file__).with_name("peers.py")), method.key, "--output", str(result)]
        command += [f"--{name}={job.folder / name}.mrc" for name in ("tomogram", "even", "odd")]
        command += ["--steps", str(job.peer_steps), "--seed", str(job.seed)]
        command += ["--gpu", "-1" if job.device == "cpu" else "0"]
        if strength is not None:
            command += ["--model" if isinstance(strength, str) else "--strength", str(strength)]
        try:
            seconds = call(command, job.folder / f"{method.key}.log", job)
            score = correlation(read(result), truth)
        except (NotRunError, OSError, ValueError) as error:
            reason = str(error)
            continue
        if best is not None and score <= best[0]:
            result.unlink()
            continue
        if best is not None:
            best[1].unlink()
        best = (score, result, seconds, strength)
    if best is None:
        raise NotRunError(reason)
    _, result, seconds, strength = best
    path = result.replace(job.folder / f"{method.key}.mrc")
    numbers = [s for s in method.grid if not isinstance(s, str)]
    return Outcome(path, seconds, strength, bool(numbers) and strength in (numbers[0], numbers[-1]))


def peer_python(method: Method, peers: Path | None) -> Path:
    """The interpreter of a peer's environment.

    Raises:
        NotRunError: if there is none.
    """
    if peers is None:
        raise NotRunError("no --peers given")
    python = peers.absolute() / method.venv / "bin" / "python"
    if not python.is_file():
        raise NotRunError(f"no environment '{method.venv}' among the peers")
    return python


def peer_version(method: Method, peers: Path | None) -> str:
    """Name and version of the package of a peer; empty if it has none.

    Raises:
        NotRunError: if it is not installed.
    """
    if not method.package:
        return ""
    asked = f"import importlib.metadata as m; print(m.version({method.package!r}))"
    found = subprocess.run([str(peer_python(method, peers)), "-c", asked], capture_output=True, text=True, check=False)
    if found.returncode:
        raise NotRunError(f"{method.package} is not installed")
    return f"{method.package} {found.stdout.strip()}"


def _run_ceiling(method: Method, job: Job) -> Outcome:
    noisy, even, odd = (read(job.folder / f"{name}.mrc") for name in ("tomogram", "even", "odd"))
    begin = time.monotonic()
    result = train_on_halves((even - noisy.mean()) / noisy.std(), (odd - noisy.mean()) / noisy.std(),
                             job.steps or CEILING_STEPS, job.seed, job.device)  # fmt: skip
    seconds = time.monotonic() - begin
    path = job.folder / f"{method.key}.mrc"
    write(result, path)
    return Outcome(path, seconds)


def train_on_halves(even: Tensor, odd: Tensor, steps: int, seed: int = 0, device: str = "cpu") -> Tensor:
    """Denoise with our own network, hiding nothing, trained to predict one half from the other.

    What the network can reach where the noise of the target is known to be independent.

    Args:
        even: one half, ``(Z, Y, X)``.
        odd: the other; its noise is independent.
        steps: of AdamW, a window each.
        seed: of weights, windows and flips.
        device: that computes.

    Returns:
        Mean of the predictions from both halves, ``(Z, Y, X)``.

    Source:
        Lehtinen et al. 2018, "Noise2Noise"; for tomograms Buchholz et al. 2019, "Cryo-CARE".
    """
    torch.manual_seed(seed)
    random = np.random.RandomState(seed)
    network = BlindSpotNet(Lattice(blind_set=BlindSet("none"))).to(device)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, Budget(steps).learning_rate_factor)
    halves = torch.stack([even, odd])
    window = fit_window(WINDOW, even.shape, network.period)
    for _ in range(steps):
        pair = halves[(slice(None), *draw_box(even.shape, window, random))]
        pair = pair.flip([0] * int(random.randint(2)) + [axis for axis in (1, 2, 3) if random.randint(2)])
        source, target = pair[:, None, None].to(device)
        loss = (network(source) - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
    final: Any = average.module.eval()
    inferer = HaloWindowInferer(precision="fp32", device=device)
    with torch.no_grad():
        return (inferer(even[None, None], final) + inferer(odd[None, None], final))[0, 0] / 2
