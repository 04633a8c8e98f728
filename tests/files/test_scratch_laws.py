"""Laws of volumes on disk: what a run makes of them is what it makes of volumes in memory, and nothing stays behind."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import PatchInferer, SlidingWindowSplitter
from phantoms import REAL_TOMOGRAM
from torch import nn

from cryoshuffle import memory
from cryoshuffle.errors import FileError, InputError, SettingError
from cryoshuffle.files import scratch
from cryoshuffle.files.intensity import StandardiseIntensity
from cryoshuffle.files.mrc import MrcReader
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.files.writing import partial_path
from cryoshuffle.fit.transforms import RandLatticeWindow
from cryoshuffle.inference import inferers
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.inference.mergers import JOURNAL, VALUES, WindowCleaner, WindowMerger
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.network import BlindSpotNet, ShuffleUNet
from cryoshuffle.noise.whitening import WhitenNoise
from cryoshuffle.report.pictures import preview_image


@pytest.fixture
def little():
    """So little memory that every volume of the tests goes to disk."""
    memory.limit_memory(1e-6)


@pytest.fixture
def net():
    torch.manual_seed(0)
    body = ShuffleUNet(8, 1, channels=(8, 8), blocks=1, factors=(2,))
    return BlindSpotNet(Lattice(blind_set=BlindSet("none")), body, stem_channels=8).eval()


def on_disk(values: torch.Tensor, folder: Path) -> torch.Tensor:
    volume = torch.from_numpy(scratch.empty_volume(values.shape, folder))
    assert scratch.on_disk(volume)
    return volume.copy_(values)


def test_a_volume_on_disk_is_a_tensor_like_any_other(tmp_path, little):
    """What is written is read again after it was let go of; views know where they come from; the file has no name."""
    values = torch.randn(1, 5, 6, 7)
    volume = on_disk(values, tmp_path / "new")
    scratch.release()
    assert torch.equal(volume, values)
    assert scratch.on_disk(volume[:, 1:, ::2].flip(1)[0]) is False, "a flip is a copy"
    assert scratch.on_disk(MetaTensor(volume)[0, 1:, ::2])
    assert not scratch.on_disk(values)
    assert list((tmp_path / "new").iterdir()) == []


def test_small_volumes_and_those_without_a_folder_stay_in_memory(tmp_path):
    """A volume goes to disk from a sixteenth of the memory on."""
    memory.limit_memory(2**20 / 2**30)
    assert not scratch.on_disk(torch.from_numpy(scratch.empty_volume((2**14,), tmp_path)))
    assert scratch.on_disk(torch.from_numpy(scratch.empty_volume((2**14 + 1,), tmp_path)))
    assert not scratch.on_disk(torch.from_numpy(scratch.empty_volume((2**20,), None)))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what is in memory of a map")
def test_what_is_let_go_of_is_not_memory_of_the_program(tmp_path, little):
    """Pages of a map are counted until they are released."""
    volume = torch.from_numpy(scratch.empty_volume((16, 2**20), tmp_path))

    def mapped() -> int:
        """Pages of this map alone: the sums over all maps are not exact, and other threads change them."""
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        next(line for line in lines if line.startswith(f"{volume.data_ptr():x}-"))
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss"))

    def filled() -> int:
        volume.fill_(1.0)
        return mapped()

    # The system, or a thread that an earlier test has left, may put them out of memory in between.
    assert any(filled() > 8_000 for _ in range(5)), "kB of 65,536"
    scratch.release()
    assert mapped() < 1_000
    for part in scratch.sections(volume.shape, 0):
        assert bool((volume[part] == 1.0).all())
    assert mapped() < 1_000


_GROWTH = """
import sys, threading
import torch
from cryoshuffle.files import scratch
from cryoshuffle.memory import limit_memory
from cryoshuffle.fit.sampling import robust_weights

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) // 1024

torch.set_num_threads(1)
limit_memory(0.05)
volume = torch.from_numpy(scratch.empty_volume((1, 256, 512, 512), sys.argv[1]))
for part in scratch.sections(volume.shape):
    volume[:, part] = torch.randn(volume[:, part].shape)
before = status("VmRSS")

def weigh():
    open("/proc/self/clear_refs", "w").write("5")
    robust_weights(volume)

thread = threading.Thread(target=weigh)
thread.start()
thread.join()
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux resets the peak of its memory")
def test_weighing_a_volume_on_disk_takes_no_memory_that_grows_with_it(tmp_path):
    """256 MiB on disk, on a thread as in MONAI's cache; with a small tensor kept for each row it is 243 MiB."""
    command = [sys.executable, "-c", _GROWTH, str(tmp_path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 128, f"{grown} MiB"


_GAPS = """
import torch
from cryoshuffle.memory import keep_memory, limit_memory, trim_near_limit

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024

torch.set_num_threads(1)
with keep_memory(torch.device("cpu")):
    tensors = [torch.ones(size) for _ in range(64) for size in (2**21, 2**10)]
    tensors = tensors[1::2]
    found = [resident()]
    for limit_gib in (2 * found[0] / 1024, found[0] / 1024):
        limit_memory(limit_gib)
        trim_near_limit()
        found.append(resident())
    assert all(bool((small == 1).all()) for small in tensors)
print(*found)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept with glibc alone")
def test_gaps_between_tensors_are_given_back_where_the_program_comes_near_its_limit():
    """512 MiB of gaps, each behind a small tensor that stays; far from the limit they are kept for the next layer."""
    command = [sys.executable, "-c", _GAPS]
    kept, far, near = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert far > kept - 32, f"{kept} MiB, then {far}"
    assert near < kept - 400, f"{kept} MiB, then {near}"


def test_a_part_of_a_volume_on_disk_is_taken_plane_by_plane(tmp_path, little, monkeypatch):
    """What was read is let go of after each plane; the part is a copy; one in memory stays a view."""
    values = torch.randn(1, 12, 10, 8)
    volume = on_disk(values, tmp_path)
    kept = []
    monkeypatch.setattr(scratch, "release", lambda: kept.append(1))
    for part in (
        scratch.copy_planes(volume[:, 2:7, 3:9, 1:5]),
        scratch.copy_planes(MetaTensor(volume)[:, 2:7, 3:9, 1:5]),
    ):
        assert torch.equal(torch.as_tensor(part), values[:, 2:7, 3:9, 1:5])
        assert not scratch.on_disk(part)
    assert len(kept) == 2 * 5
    assert scratch.copy_planes(values[:, 2:]).data_ptr() == values[:, 2:].data_ptr()
    assert not scratch.on_disk(central_crop(volume, 6))
    draw = RandLatticeWindow((6, 6, 6), 1).set_random_state(seed=0)
    assert not scratch.on_disk(draw(volume))


def test_a_picture_of_a_volume_on_disk_does_not_bring_all_of_it_into_memory(tmp_path, little, monkeypatch):
    """A plane across x has a voxel in every page: the pages are let go on the way; the picture is the same."""
    before, after = (torch.randn(40, 64, 80) for _ in range(2))
    monkeypatch.setattr(scratch, "SECTION", 4 * 64 * 80 * 5)
    whole = preview_image(before, after)
    kept = []
    release = scratch.release
    monkeypatch.setattr(scratch, "release", lambda: (kept.append(1), release()))
    drawn = preview_image(on_disk(before, tmp_path), on_disk(after, tmp_path))
    assert np.array_equal(np.asarray(drawn), np.asarray(whole))
    assert len(kept) >= 2 * 2 * 40 // 5


def test_files_vanish_with_their_tensors(tmp_path, little):
    """Room on the disk is given back when nothing refers to a volume any more."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    known = len(scratch._maps)
    volumes = [torch.from_numpy(scratch.empty_volume((64, 64, 64), tmp_path)) for _ in range(3)]
    assert len(scratch._maps) == known + 3
    del volumes
    gc.collect()
    assert len(scratch._maps) == known
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_full_disk_is_said_before_the_work_begins(tmp_path, little, monkeypatch):
    """Room is taken at once; a map without it would be killed by a signal when its pages are written."""

    def full(number: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match=r"no room for a volume of 1 MiB \(No space left on device; .*make room"):
        scratch.empty_volume((64, 64, 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_transforms_change_a_volume_on_disk_in_place_with_the_same_result(tmp_path, little, axis, monkeypatch):
    """Bit for bit what they make of one in memory, forth and back, whatever the sections."""
    monkeypatch.setattr(scratch, "SECTION", 2**12)
    values = 1e4 + torch.randn(1, 20, 21, 22)
    volume = on_disk(values, tmp_path)
    for transform in (StandardiseIntensity(), WhitenNoise(axis, [0.3, 0.1])):
        there, here = transform(MetaTensor(volume)), transform(MetaTensor(values))
        assert there.untyped_storage().data_ptr() == volume.untyped_storage().data_ptr()
        assert torch.equal(there.as_tensor(), here.as_tensor())
        back, again = transform.inverse(there), transform.inverse(here)
        assert back.untyped_storage().data_ptr() == volume.untyped_storage().data_ptr()
        assert torch.equal(back.as_tensor(), again.as_tensor())
    colour = WhitenNoise(axis, [0.3]).unwhiten(volume)
    assert scratch.on_disk(colour)
    assert colour.untyped_storage().data_ptr() != volume.untyped_storage().data_ptr()


def test_the_reader_takes_a_large_volume_to_disk_and_the_middle_of_one(tmp_path, little):
    """The same voxels as in memory."""
    plain, mapped = MrcReader(), MrcReader(folder=tmp_path)
    here, _ = plain.get_data(plain.read(REAL_TOMOGRAM))
    there, _ = mapped.get_data(mapped.read(REAL_TOMOGRAM))
    assert scratch.on_disk(torch.from_numpy(there))
    assert np.array_equal(here, there)
    middle = MrcReader(largest=31)
    found, _ = middle.get_data(middle.read(REAL_TOMOGRAM))
    z, y, x = ((n - 31) // 2 for n in here.shape)
    assert np.array_equal(found, here[z : z + 31, y : y + 31, x : x + 31])


def test_a_result_on_disk_is_that_in_memory(tmp_path, net):
    """The same windows give the same bits; other windows differ by rounding."""
    x = torch.randn(1, 1, 21, 35, 26)
    blend = {"trust": 0.6, "sigma": [2.0, 1.0, 0.5], "gain": 0.7}
    with torch.no_grad():
        for more in ({}, {"blend": blend, "detail": 0.2, "smooth": 0.8}):
            whole = HaloWindowInferer(99, precision="fp32", **more)(x, net)
            for window in ((8, 12, 12), (8, 36, 28)):
                here = HaloWindowInferer(window, precision="fp32", **more)(x, net)
                memory.limit_memory(1e-6)
                there = HaloWindowInferer(window, precision="fp32", **more)(on_disk(x, tmp_path), net)
                memory.limit_memory(None)
                assert scratch.on_disk(there)
                assert torch.equal(here, there)
                assert (there - whole).abs().max() < 1e-5
    assert list(tmp_path.iterdir()) == []


class _Stops(nn.Module):
    """A network that fails in its n-th window."""

    def __init__(self, network: nn.Module, after: int, error: Exception) -> None:
        super().__init__()
        self.network, self.after, self.error, self.count = network, after, error, 0
        self.period = network.period

    def receptive_radius(self) -> tuple[int, int, int]:
        return self.network.receptive_radius()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.count == self.after:
            raise self.error
        return self.network(x)


def _journalled(folder: Path, **more: object) -> HaloWindowInferer:
    identity = {"tomogram": more.pop("tomogram", "one"), "version": "1"}

    def merger(shape: tuple[int, ...]) -> WindowMerger:
        return WindowMerger(shape, folder=folder, identity=identity, **more)

    return HaloWindowInferer((8, 12, 12), precision="fp32", halo=4, merger=merger)


def test_a_result_is_gone_on_with_after_its_last_finished_window(tmp_path, net, little):
    """Not one window is computed twice, and the result has the bits of a run that was not interrupted."""
    x = on_disk(torch.randn(1, 1, 21, 35, 26), tmp_path)
    never = _Stops(net, 0, ValueError())
    with torch.no_grad():
        whole = _journalled(tmp_path)(x, never)
        count = never.count
        with pytest.raises(ValueError, match="power"):
            _journalled(tmp_path)(x, _Stops(net, 6, ValueError("power cut")))
        assert len(json.loads((tmp_path / JOURNAL).read_text())["done"]) == 5
        with pytest.raises(SettingError, match="unfinished result, add --resume"):
            _journalled(tmp_path)(x, net)
        with pytest.raises(SettingError, match="tomogram was one and is two"):
            _journalled(tmp_path, resume=True, tomogram="two")(x, net)
        rest = _Stops(net, 0, ValueError())
        again = _journalled(tmp_path, resume=True)(x, rest)
        assert rest.count == count - 5
        assert torch.equal(again, whole)
        assert list(tmp_path.iterdir()) == [], "the journal goes with the result"
        (tmp_path / JOURNAL).write_text("{}")
        with pytest.raises(InputError, match="is damaged, add --overwrite"):
            _journalled(tmp_path, resume=True)(x, net)
        assert torch.equal(_journalled(tmp_path, overwrite=True)(x, net), whole)
    assert not (tmp_path / VALUES).exists()


def test_what_a_window_clears_is_no_longer_done(tmp_path):
    """Windows may be cut in another way when memory is short: one that overlaps one that was done clears a part of
    it. Another run that cuts as before computes that anew; what it does not touch stays done (control)."""
    z, whole = (slice(0, 2), slice(2, 4), slice(4, 6)), (slice(0, 4), slice(0, 4))

    def begun(**more: Any) -> WindowMerger:
        return WindowMerger((1, 1, 6, 4, 4), folder=tmp_path, identity={"tomogram": "one"}, **more)

    merger = begun()
    for planes in z[:2]:
        merger.begin((planes, *whole))
        merger.aggregate(torch.ones(1, 1, 2, 4, 4), (planes.start, 0, 0))
        merger.mark((planes, *whole))
    merger.begin((slice(3, 5), *whole))
    again = begun(resume=True)
    assert [again.is_done((planes, *whole)) for planes in z] == [True, False, False]
    for planes in z[1:]:
        again.begin((planes, *whole))
        again.aggregate(torch.ones(1, 1, 2, 4, 4), (planes.start, 0, 0))
        again.mark((planes, *whole))
    assert bool((again.finalize() == 1).all())


def test_a_result_of_something_else_is_begun_again_where_that_is_asked_for(tmp_path):
    """Of both --resume and --overwrite, which keep a fit; --resume alone names what has changed (control)."""
    box = (slice(0, 2),) * 3
    first = WindowMerger((1, 1, 2, 2, 2), folder=tmp_path, identity={"detail": 0.0})
    first.aggregate(torch.ones(1, 1, 2, 2, 2), (0, 0, 0))
    first.mark(box)
    other: dict[str, Any] = {"folder": tmp_path, "identity": {"detail": 0.5}, "resume": True}
    with pytest.raises(SettingError, match=r"detail was 0.0 and is 0.5.*--resume --overwrite"):
        WindowMerger((1, 1, 2, 2, 2), **other)
    anew = WindowMerger((1, 1, 2, 2, 2), **other, overwrite=True)
    assert not anew.is_done(box)
    assert not bool(anew.finalize().any())


def _one_window_done(folder: Path) -> tuple[slice, slice, slice]:
    """A result of ones, of which the first of two windows is done."""
    box, merger = (slice(0, 2), slice(0, 4), slice(0, 4)), WindowMerger((1, 1, 4, 4, 4), folder=folder)
    merger.begin(box)
    merger.aggregate(torch.ones(1, 1, 2, 4, 4), (0, 0, 0))
    merger.mark(box)
    return box


@pytest.mark.parametrize(("size", "words"), [(None, "is missing"), (100, "has 100 bytes"), (512, "has 512 bytes")])
def test_a_journal_is_not_believed_without_its_values(tmp_path, size, words):
    """Windows that are called done would be zeros. With --overwrite too the result begins again; values of the size
    of the shape are gone on with (control)."""
    box = _one_window_done(tmp_path)
    control = WindowMerger((1, 1, 4, 4, 4), folder=tmp_path, resume=True)
    assert control.is_done(box)
    assert bool((control._values[:, :, :2] == 1).all())
    (tmp_path / VALUES).unlink() if size is None else os.truncate(tmp_path / VALUES, size)
    with pytest.raises(InputError, match=rf"denoising\.values: {words}.*256 bytes.*--resume --overwrite"):
        WindowMerger((1, 1, 4, 4, 4), folder=tmp_path, resume=True)
    anew = WindowMerger((1, 1, 4, 4, 4), folder=tmp_path, resume=True, overwrite=True)
    assert not anew.is_done(box)
    assert not bool(anew._values.any())


def test_the_journal_of_values_that_are_replaced_goes_first(tmp_path, monkeypatch):
    """A kill before the new journal is written: --resume does not take the new zeros for the old result."""
    box = _one_window_done(tmp_path)

    def killed(*given: Any) -> None:
        Path(given[2]).write_bytes(bytes(256))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scratch, "empty_volume", killed)
        with pytest.raises(KeyboardInterrupt):
            WindowMerger((1, 1, 4, 4, 4), folder=tmp_path, overwrite=True)
    assert not WindowMerger((1, 1, 4, 4, 4), folder=tmp_path, resume=True).is_done(box)


@pytest.mark.parametrize("keep", [True, False])
def test_windows_that_are_kept_outlive_the_result_that_is_handed_over(tmp_path, keep):
    """What is done with the result, which is undone in place, leaves them alone until they are removed. Without keeping
    they go when the result is handed over (control)."""
    box = (slice(0, 4),) * 3
    merger = WindowMerger((1, 1, 4, 4, 4), folder=tmp_path, keep=keep)
    merger.begin(box)
    merger.aggregate(torch.ones(1, 1, 4, 4, 4), (0, 0, 0))
    merger.mark(box)
    merger.finalize().mul_(7)
    assert {one.name for one in tmp_path.iterdir()} == ({JOURNAL, VALUES} if keep else set())
    again = WindowMerger((1, 1, 4, 4, 4), folder=tmp_path, resume=True, keep=keep)
    assert again.is_done(box) == keep
    assert bool((again.finalize() == (1 if keep else 0)).all())
    WindowCleaner(tmp_path)()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_memory_that_does_not_suffice_is_tried_once_more_with_less(tmp_path, place, monkeypatch, caplog):
    """The same result, and it is said; the second time it is an error."""
    net: Any = nn.Conv3d(1, 1, 3, padding=1)
    net.period, net.receptive_radius = (1, 1, 1), lambda: (1, 1, 1)
    monkeypatch.setattr(inferers, "window_bytes", lambda device, held: 6000 * inferers.BYTES_PER_VOXEL)
    x = torch.randn(1, 1, 21, 35, 26)
    opaque = _Stops(net, 0, ValueError())
    with torch.no_grad():
        whole = HaloWindowInferer(precision="fp32")(x, opaque)
        if place == "disk":
            memory.limit_memory(1e-6)
            x = on_disk(x, tmp_path)
        failing = _Stops(net, 3, MemoryError())
        again = HaloWindowInferer(precision="fp32")(x, failing)
        assert "once more with windows of a quarter of the size" in caplog.text
        assert (again - whole).abs().max() < 1e-5
        assert failing.count > opaque.count
        failing.error, failing.after = RuntimeError("can't allocate memory"), failing.count + 1
        other = HaloWindowInferer(precision="fp32")
        monkeypatch.setattr(failing, "forward", lambda x: (_ for _ in ()).throw(failing.error))
        with pytest.raises(RuntimeError, match="allocate"):
            other(x, failing)


def test_monais_patch_inferer_can_use_the_merger(net):
    """The contract of MONAI's mergers: windows that do not overlap come together."""
    x = torch.randn(1, 1, 16, 24, 8)
    splitter = SlidingWindowSplitter(patch_size=(8, 8, 8), overlap=0.0)
    with torch.no_grad():
        found = PatchInferer(splitter, WindowMerger)(x, nn.Identity())
    assert torch.equal(found, x)


def test_partial_files_of_dead_processes_are_removed(tmp_path):
    """Those of living ones, and of other machines and files, are not."""
    path = tmp_path / "out.mrc"
    own = partial_path(path)
    dead = own.with_name(own.name.replace(str(os.getpid()), str(2**22 - 1)))
    other = own.with_name(own.name.replace(f".{os.getpid()}.", f".elsewhere.{2**22 - 1}."))
    for name in (own, dead, other):
        name.touch()
    assert partial_path(path) == own
    assert own.exists()
    assert other.exists()
    assert not dead.exists()
