"""Windows with more noise added and taken away: training pairs from one noisy volume."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from cryoshuffle.errors import SettingError
from cryoshuffle.noise.fields import draw_noise, lay_noise, noise_level


class RandRecorruptd(Randomizable, MapTransform):
    """Adds noise of the tomogram's own kind to the input, and takes it from the target.

    Args:
        keys: the input and the target, in this order; both hold the same noisy window.
        spectrum: of the noise, as of :func:`noise_spectrum`.
        strength: a in ``x + a z`` and ``x - z / a``.
        fixed: draw the same noise each time, for a risk that can be compared.
        levels: make the noise as strong as the volume's is at each place (:func:`noise_level`).

    Invariant:
        If the spectrum is that of the noise in x, the noise in input and target is uncorrelated.

    Raises:
        SettingError: if there are not two keys, or the strength is not positive.

    Source:
        Pang et al. 2021, "Recorrupted-to-Recorrupted".
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        spectrum: Tensor,
        strength: float = 1.0,
        fixed: bool = False,
        levels: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys)
        if len(self.keys) != 2:
            raise SettingError(f"recorruption has keys {self.keys}: name the input and the target")
        if not strength > 0:
            raise SettingError(f"recorruption strength is {strength}: give more than 0")
        self.spectrum = spectrum
        self.strength = strength
        self.fixed = fixed
        self.levels = levels

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Recorrupt a window."""
        result: dict[Hashable, Any] = dict(data)
        seed = 0 if self.fixed else int(self.R.randint(2**31))
        random = torch.Generator().manual_seed(seed)
        tile = draw_noise(self.spectrum, random)
        given, target = (convert_to_tensor(result[key]) for key in self.keys)
        noise = lay_noise(tile, given.shape[1:])[None]
        if self.levels:
            noise = noise * noise_level(given[0], self.spectrum)
        result[self.keys[0]] = given + self.strength * noise
        result[self.keys[1]] = target - noise / self.strength
        return result


RandRecorruptD = RandRecorruptDict = RandRecorruptd
