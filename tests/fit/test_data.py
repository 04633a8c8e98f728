"""What a fit reads: the stream of windows, epochs, batches of one, presets."""

from __future__ import annotations

import pytest
import torch
from monai.data import CacheDataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose

from cryoshuffle.errors import SettingError
from cryoshuffle.files.intensity import StandardiseIntensityd
from cryoshuffle.fit.data import (
    Epochs,
    WindowDataset,
    choose_preset,
    collate_one,
    forget,
    seed_everything,
)
from cryoshuffle.fit.transforms import RandLatticeWindowd


def test_the_window_stream_depends_on_seed_epoch_and_index_alone():
    """Any item can be asked for at any time, and is the same in a second stream."""
    volume = {"image": torch.randn(1, 20, 20, 20)}

    def stream(seed: int) -> WindowDataset:
        return WindowDataset([volume], Compose([RandLatticeWindowd("image", 8, 4)]), length=5, seed=seed)

    first, second, other = stream(0), stream(0), stream(1)
    forward = [first[i]["image"] for i in range(5)]
    backward = [second[i]["image"] for i in reversed(range(5))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not all(torch.equal(a, other[i]["image"]) for i, a in enumerate(forward))
    second.set_epoch(1)
    assert not all(torch.equal(a, second[i]["image"]) for i, a in enumerate(forward))
    assert len(first) == 5
    many = WindowDataset([{"image": torch.full((1, 9, 9, 9), float(i))} for i in range(7)], first.transform, length=3)
    seen = set()
    for epoch in range(7):
        many.set_epoch(epoch)
        seen |= {float(many[i]["image"].mean()) for i in range(3)}
    assert seen == set(map(float, range(7))), "every volume has its turn, however short the epoch"
    with pytest.raises(IndexError):
        first[5]
    seed_everything(0, 1)
    a = torch.rand(1)
    seed_everything(0, 1)
    assert torch.equal(a, torch.rand(1))


@pytest.mark.parametrize(
    ("steps", "epochs", "length"), [(600, 24, 25), (1, 1, 1), (60, 3, 20), (101, 5, 21), (25, 1, 25)]
)
def test_epochs_make_at_least_the_steps(steps, epochs, length):
    """All epochs are of one length, and overshoot by less than one step each."""
    ours = Epochs(steps, 25)
    assert (ours.count, ours.length, ours.steps) == (epochs, length, epochs * length)
    assert 0 <= epochs * length - steps < epochs
    with pytest.raises(SettingError):
        Epochs(0, 25)


def test_a_batch_of_one_is_a_view():
    """What MONAI's own collation gives, without its copy; more than one is refused."""
    image = MetaTensor(torch.randn(1, 4, 5, 6), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    item = {"image": StandardiseIntensityd("image")({"image": image})["image"], "number": 3}
    batch, usual = collate_one([item]), list_data_collate([item])
    assert torch.equal(batch["image"].as_tensor(), usual["image"].as_tensor())
    assert batch["image"].data_ptr() == item["image"].data_ptr()
    assert batch["image"].is_batch
    assert torch.equal(batch["image"].affine, usual["image"].affine)
    assert torch.equal(batch["number"], usual["number"])
    one, other = (decollate_batch(b)[0]["image"] for b in (batch, usual))
    assert one.applied_operations[0]["class"] == other.applied_operations[0]["class"]
    with pytest.raises(SettingError, match="use a batch size of 1"):
        collate_one([item, item])


def test_volumes_of_a_fit_are_forgotten():
    """Cached datasets and lists alike."""
    cached, listed = CacheDataset([{"image": 1}], Compose([]), progress=False), [{"image": 2}]
    forget([cached, listed])
    assert len(cached) == len(listed) == 0


def test_a_preset_that_is_not_there_is_refused_in_words():
    """The message says what it is called and what there is."""
    presets = {"fast": {"steps": 1}, "best": {"steps": 2}}
    assert choose_preset(presets, "best", "effort") == {"steps": 2}
    with pytest.raises(SettingError, match="effort is 'slow': choose one of fast, best"):
        choose_preset(presets, "slow", "effort")
