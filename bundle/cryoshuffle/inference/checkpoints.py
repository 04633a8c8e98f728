"""Checkpoints: the state a fit goes on from, and the model it leaves behind.

Both hold tensors and plain containers only and are read with ``weights_only=True``. A model names the network that
its weights belong to, as a config limited to this package, so that a foreign checkpoint cannot run code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch import Tensor, nn

import cryoshuffle
from cryoshuffle.errors import FileError, InputError, UserError, unreadable
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.lattice import BlindSet, Triple
from cryoshuffle.network import BlindSpotNet
from cryoshuffle.noise.linear_filter import as_widths
from cryoshuffle.noise.spectrum import GRID, full_spectrum
from cryoshuffle.noise.whitening import WhitenNoise

logger = logging.getLogger("cryoshuffle")
FORMAT = 2
BESIDE = "cryoshuffle"
_TARGETS = (
    "cryoshuffle.network.BlindSpotNet",
    "cryoshuffle.network.ShuffleUNet",
    "cryoshuffle.lattice.Lattice",
    "cryoshuffle.lattice.BlindSet",
)


def _read_model(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, of any version."""
    if (path / "model.pt").is_file():
        raise FileError(f"{path}: is a folder, name the network in it: {path / 'model.pt'}")
    if not path.is_file():
        raise FileError(f"{path}: there is no such checkpoint, check the path or make one with cryoshuffle fit")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{path}: is not a checkpoint, or is damaged; make one with cryoshuffle fit") from error
    if isinstance(content, dict) and isinstance(content.get(BESIDE), dict):
        weights = {name: value for name, value in content.items() if name != BESIDE}
        content = {**content[BESIDE], "model": weights}
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path}: holds no model of cryoshuffle, make one with cryoshuffle fit")
    return content


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a checkpoint of ours, of any version.

    Args:
        path: of the file; False for one that is not there.

    Raises:
        FileError: if it cannot be read.
    """
    try:
        return Path(path).is_file() and bool(_read_model(Path(path)))
    except InputError:
        return False


def load_plain(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint that holds tensors and plain containers only.

    Raises:
        FileError: if it is missing or cannot be read.
        InputError: if it is not a checkpoint of ours or of another format, or holds anything that could run code.
    """
    path = Path(path)
    content = _read_model(path)
    if "settings" in content and content.get("format") != FORMAT:
        raise InputError(
            f"{path}: was written by another version of cryoshuffle ({content.get('version', 'unknown')}, this is "
            f"{cryoshuffle.__version__}) and would mean something else here, make it anew with cryoshuffle fit"
        )
    return content


def _refuse_code(config: Any, path: str | os.PathLike[str]) -> None:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "_target_":
                if value not in _TARGETS:
                    raise InputError(f"{path}: names the component '{value}', which a checkpoint may not do")
            elif str(key).startswith("_"):
                raise InputError(f"{path}: its network has the key '{key}', which a checkpoint may not have")
            else:
                _refuse_code(value, path)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _refuse_code(value, path)
    elif isinstance(config, str) and not config.isalpha():
        raise InputError(f"{path}: its network holds the text '{config}', which a checkpoint may not do")


@dataclass(frozen=True)
class ModelSettings:
    """What a model was fitted with, as far as a config needs it to apply the model.

    Attributes:
        blind_set: offsets its predictions do not see.
        stride: lattice stride along (Z, Y, X), voxels; None for the blind set's default.
        whitening: of the noise, as plain values; None for none.
        blend: of network and linear filter, as plain values; None for the network alone.
    """

    blind_set: BlindSet
    stride: Sequence[int] | None
    whitening: Mapping[str, Any] | None
    blend: Mapping[str, Any] | None = None


@contextmanager
def _whole(path: str | os.PathLike[str], part: str) -> Iterator[None]:
    """Say so where a part of a model lacks a value, or has one that it cannot take."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        words = str(error) if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path}: its {part} is not as a fit wrote it ({words}), make one with cryoshuffle fit"
        ) from error


def _blend(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mixture of network and linear filter that a model asks for, as plain values; None for the network alone."""
    blend = checkpoint.get("blend")
    if blend is None:
        return None
    trust, kernels = blend["trust"], ("kernel", "linear_part")
    return {
        "trust": [float(t) for t in trust] if isinstance(trust, Sequence) else float(trust),
        "sigma": list(as_widths(blend["sigma"])),
        "gain": float(blend["gain"]),
        **{name: torch.as_tensor(blend[name]) for name in kernels if blend.get(name) is not None},
        **({"linear_trust": [float(t) for t in blend["linear_trust"]]} if "linear_trust" in blend else {}),
    }


@dataclass(frozen=True)
class StoredNoise:
    """The noise of the tomogram that a model was fitted to.

    Attributes:
        spectrum: power on a grid of :data:`cryoshuffle.noise.spectrum.GRID`, of the standardised tomogram.
        levels: whether it is stronger at some places than at others.
        order: of the axes of the tomogram, the beam first, as of :func:`cryoshuffle.noise.wedge.beam_first`.
    """

    spectrum: Tensor
    levels: bool
    order: Triple = (0, 1, 2)


def stored_order(content: Mapping[str, Any], path: str | os.PathLike[str]) -> Triple:
    """The order of the axes of the tomogram that a model was fitted to, the beam first; older models name none.

    Args:
        content: of :func:`load_plain`.
        path: of it, for the message.

    Raises:
        InputError: if it is no order of three axes.
    """
    with _whole(path, "order"):
        z, y, x = (int(axis) for axis in content.get("order", (0, 1, 2)))
        if sorted((z, y, x)) != [0, 1, 2]:
            raise ValueError(f"{(z, y, x)} does not name each axis once")
    return z, y, x


class Model:
    """A checkpoint, read once, and what is in it.

    Args:
        path: of it.

    Attributes:
        content: as :func:`load_plain` gives it.

    Raises:
        FileError, InputError: see :func:`load_plain`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.content = path, load_plain(path)

    @property
    def network_config(self) -> dict[str, Any]:
        """The network that the weights belong to, as a MONAI component config.

        Raises:
            InputError: if the checkpoint does not name it (its body is not ours), or names anything but this package's
                network and plain numbers.
        """
        config = self.content.get("network_def")
        if not isinstance(config, dict) or "_target_" not in config:
            raise InputError(
                f"{self.path}: does not say which network it belongs to, its body is not ours; "
                "run it with the configs it was fitted with: python -m monai.bundle run"
            )
        _refuse_code(config, self.path)
        return config

    def network(self) -> BlindSpotNet:
        """The network with its weights, in evaluation mode, on the CPU.

        Raises:
            InputError: see :attr:`network_config`; or if the weights do not fit the network.
        """
        network = ConfigParser({"net": self.network_config}).get_parsed_content("net")
        load_weights(network, self.content["model"], self.path)
        network.eval()
        return network

    def settings(self) -> ModelSettings:
        """What it was fitted with.

        Raises:
            InputError: if it names more than plain settings, or less.
        """
        whitening = self.content.get("whitening")
        if whitening is not None:
            with _whole(self.path, "whitening"):
                whitening = WhitenNoise(**whitening).whitening.config()
        lattice = self.content.get("lattice")
        if lattice is None:
            raise InputError(f"{self.path}: does not say which lattice it was fitted on, make one with cryoshuffle fit")
        _refuse_code(lattice, self.path)
        with _whole(self.path, "lattice"):
            blind_set = BlindSet(**{name: lattice["blind_set"][name] for name in ("shape", "axis", "radius")})
            stride = lattice["stride"]
        with _whole(self.path, "blend"):
            return ModelSettings(blind_set, stride, whitening, _blend(self.content))

    def noise(self) -> StoredNoise | None:
        """The noise that it keeps; None where it keeps none.

        Raises:
            InputError: if the noise is of another shape, or negative.
        """
        stored = self.content.get("noise")
        if not isinstance(stored, Mapping) or not isinstance(stored.get("spectrum"), Tensor):
            return None
        spectrum = stored["spectrum"].float()
        if spectrum.shape != (GRID, GRID, GRID // 2 + 1) or not bool((spectrum >= 0).all()):
            shape = tuple(spectrum.shape)
            raise InputError(f"{self.path}: its noise is of shape {shape} or negative, fit a model anew")
        return StoredNoise(full_spectrum(spectrum), bool(stored.get("levels")), stored_order(self.content, self.path))

    def needed_noise(self, without: str) -> StoredNoise:
        """The same, where nothing can be done without.

        Args:
            without: what its absence means, for the message.

        Raises:
            InputError: see :meth:`noise`; or if it keeps none.
        """
        noise = self.noise()
        if noise is None:
            raise InputError(
                f"{self.path}: does not know the noise of its tomogram, {without}: fit a model anew, and not with "
                "--no-refine"
            )
        return noise


def read_model_settings(path: str | os.PathLike[str]) -> ModelSettings:
    """What a model was fitted with; where there is no model yet, the blind plane across y.

    Without a model nothing is denoised: :class:`ModelLoader` stops such a run. The default lets MONAI export and verify
    the network of a bundle that is not fitted.

    Raises:
        InputError: if the file is no checkpoint, or names more than plain settings.
    """
    if not Path(path).is_file():
        return ModelSettings(BlindSet("plane", "y"), None, None)
    return Model(path).settings()


def read_noise(path: str | os.PathLike[str], without: str) -> StoredNoise:
    """The noise that a model keeps, where nothing can be done without, see :meth:`Model.needed_noise`.

    Raises:
        FileError: if it is missing.
        InputError: if it is no model of ours, or keeps no noise.
    """
    return Model(path).needed_noise(without)


def load_network(path: str | os.PathLike[str]) -> BlindSpotNet:
    """The network of a checkpoint with its weights, in evaluation mode, on the CPU.

    Raises:
        FileError: if the file is missing.
        InputError: if it is not a checkpoint, or its weights do not fit the network it names.
    """
    return Model(path).network()


def load_weights(network: nn.Module, weights: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Put the weights of a checkpoint into a network.

    Args:
        network: to fill.
        weights: its state.
        path: of the checkpoint, for the message.

    Raises:
        InputError: if they do not fit.
    """
    try:
        network.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(
            f"{path}: its weights do not fit the configured network ({first}), "
            "use the blind set, stride and body it was fitted with"
        ) from error


class ModelLoader:
    """Loads the weights of a model when an engine starts, or says why it cannot; never runs with random weights.

    Args:
        path: of the checkpoint.
        network: that gets the weights.
        whitening: that the run applies, as plain values; it must be the one the model was fitted with.
        inferer: that mixes network and linear filter as the model says; None for the network alone.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        whitening: Mapping[str, Any] | None = None,
        inferer: HaloWindowInferer | None = None,
    ) -> None:
        self.path = path
        self.network, self.inferer = network, inferer
        self.whitening = None if whitening is None else dict(whitening)

    def attach(self, engine: Engine) -> None:
        """Load at the start of the engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load now."""
        checkpoint = load_plain(self.path)
        named = checkpoint.get("lattice")
        own = self.network.lattice.config() if isinstance(self.network, BlindSpotNet) else None
        if named is not None and own is not None and named != own:
            with _whole(self.path, "lattice"):
                raise InputError(
                    f"{self.path}: was fitted with lattice {_plain(named)}, the config says {_plain(own)}; "
                    "use the same blind set and stride"
                )
        if checkpoint.get("whitening") != self.whitening:
            raise InputError(
                f"{self.path}: was fitted with whitening {checkpoint.get('whitening')}, the config says "
                f"{self.whitening}; use the same"
            )
        load_weights(self.network, checkpoint["model"], self.path)
        if self.inferer is not None:
            with _whole(self.path, "blend"):
                blend = _blend(checkpoint)
            self.inferer.use_blend(blend)


def _plain(lattice: Mapping[str, Any]) -> str:
    blind = lattice["blind_set"]
    return f"{blind['shape']} across {blind['axis']}, half-widths {blind['radius']}, stride {lattice['stride']}"
