"""The network that a fit begins with: what it is trained on, what it knows, and what may take its place."""

from __future__ import annotations

from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from phantoms import CONFIGS, write_mrc
from sizes import suite_start

from cryoshuffle import starting_network
from cryoshuffle.commands.cli import main
from cryoshuffle.errors import FileError, InputError, SettingError
from cryoshuffle.files.writing import save_whole
from cryoshuffle.fit.comparison import compare_with_filter
from cryoshuffle.fit.noise_model import NoiseModel, measure_noise_model
from cryoshuffle.fit.sampling import HeldOutSlab
from cryoshuffle.fit.starting import begin_with, interpolate_weights, update_attention_means
from cryoshuffle.inference.checkpoints import load_network, load_plain
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.losses import RelativeError
from cryoshuffle.network import BlindSpotNet, ShuffleUNet
from cryoshuffle.noise.linear_filter import choose_filter, gaussian
from cryoshuffle.noise.spectrum import smooth_spectrum
from cryoshuffle.scores.metrics import correlation
from cryoshuffle.simulation.phantoms import TEMPLATES
from cryoshuffle.simulation.tilt_series import simulate
from cryoshuffle.simulation.windows import SimulatedWindows, SimulationRanges, _damped, _turned


def windows(**other: object) -> SimulatedWindows:
    settings = {"length": 6, "window": (16, 16, 16), "shape": (16, 24, 24), "pool": 3, "windows_per_volume": 2}
    return SimulatedWindows(None, **{**settings, **other})


def unblind(channels: tuple[int, ...] = (24, 40, 64)) -> BlindSpotNet:
    body = ShuffleUNet(24, channels=channels, factors=(2,) * (len(channels) - 1))
    return BlindSpotNet(Lattice(blind_set=BlindSet("none")), body)


def test_a_window_depends_on_seed_epoch_and_index_alone():
    """In any order, with anything before; another seed, epoch or index is another window."""
    one, two = windows(), windows()
    one.set_epoch(1)
    first = one[4]
    two.set_epoch(3)
    _ = two[5]
    two.set_epoch(1)
    again = two[4]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])
    other = windows(seed=1)
    other.set_epoch(1)
    two.set_epoch(2)
    assert not any(torch.equal(first["image"], w["image"]) for w in (one[3], two[4], other[4]))
    with pytest.raises(IndexError):
        _ = one[6]


def test_processes_that_simulate_ahead_change_no_window():
    """Neither the first nor those of volumes that came later."""
    alone, helped = windows(), windows(workers=2)
    for epoch in (1, 2):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        for index in range(len(alone)):
            assert all(torch.equal(alone[index][key], helped[index][key]) for key in ("image", "label"))


def test_volumes_make_room_for_new_ones():
    """Never more than the pool, and each a function of its number."""
    data = windows()
    seen = set()
    for epoch in range(1, 4):
        data.set_epoch(epoch)
        for index in range(len(data)):
            _ = data[index]
            assert len(data._volumes) <= data.pool
            seen |= set(data._volumes)
    assert len(seen) > data.pool
    number = max(seen)
    assert all(torch.equal(a, b) for a, b in zip(data.simulate(number), windows().simulate(number), strict=True))


def test_the_truth_is_what_is_left_of_the_tomogram_without_its_noise():
    """On its scale: what remains is not correlated with the truth, and of the power that the SNR says. With the truth
    of another volume it is not so (negative control)."""
    data = windows(shape=(24, 32, 32), ranges=SimulationRanges(cases=("wbp",), snr=(0.2, 0.2), turned=0, damped=0))
    for number in range(3):
        tomogram, truth = data.simulate(number)
        assert float(tomogram.mean()) == pytest.approx(0, abs=1e-4)
        assert float(tomogram.std()) == pytest.approx(1, abs=1e-4)
        noise = tomogram - truth
        assert abs(correlation(noise, truth)) < 0.1
        assert float(truth.var() / noise.var()) == pytest.approx(0.2, rel=1e-2)
        assert float(data.simulate(number + 1)[1].var() / (tomogram - data.simulate(number + 1)[1]).var()) < 0.19


@pytest.mark.parametrize("changed", [{"turned": 1, "damped": 0}, {"turned": 0, "damped": 1}])
def test_what_is_done_to_the_tomogram_is_done_to_the_truth(changed, monkeypatch):
    """Without noise the one is the other, turned or damped; a truth left as it was is not (negative control)."""
    made = simulate("wbp", (24, 32, 32), snr=0.2, seed=1)
    without = replace(made, tomogram=made.truth)
    monkeypatch.setattr("cryoshuffle.simulation.windows.simulate", lambda *_: without)
    ranges = SimulationRanges(cases=("wbp",), turned_deg=30.0, damping=(0.1, 0.2), **changed)
    for number in range(4):
        tomogram, truth = windows(shape=(24, 32, 32), ranges=ranges).simulate(number)
        assert correlation(tomogram, truth) > 0.999
        # As it was, mirrored in its diagonal or not.
        assert max(abs(correlation(tomogram, t)) for t in (made.truth, made.truth.transpose(1, 2))) < 0.99


def test_volumes_are_of_both_contrasts_and_axes(monkeypatch):
    """One simulation comes bright and dark, with its axis along y and along x, and its truth with it."""
    made = simulate("wbp", (24, 32, 32), snr=0.2, seed=1)
    monkeypatch.setattr("cryoshuffle.simulation.windows.simulate", lambda *_: made)
    data = windows(shape=(24, 32, 32), ranges=SimulationRanges(turned=0, damped=0))
    seen = set()
    for number in range(24):
        tomogram, truth = data.simulate(number)
        for turned, t in ((False, tomogram), (True, tomogram.transpose(1, 2))):
            sign = correlation(t, made.tomogram)
            if abs(sign) > 0.999:
                seen.add((turned, sign > 0))
                own = truth.transpose(1, 2) if turned else truth
                assert correlation(own, made.truth) * sign > 0.999
    assert len(seen) == 4


def test_volumes_are_turned_and_damped_as_named():
    """A point goes where a turn takes it, in a volume that is not square; a wave at the named frequency keeps 0.6 of
    its amplitude, a constant all of it; a volume that is neither is another one."""
    point = torch.zeros(2, 40, 60)
    point[1, 20, 48] = 1
    z, y, x = np.unravel_index(int(_turned(point, 30.0).argmax()), point.shape)
    assert (z, y, x) == (1, 11, 46)
    assert torch.allclose(_turned(point, 0.0), point, atol=1e-5)
    wave = torch.cos(2 * torch.pi * 0.25 * torch.arange(32))[None, None].expand(8, 8, 32)
    assert torch.allclose(_damped(wave, 0.25), float(np.exp(-0.5)) * wave, atol=1e-5)
    assert torch.allclose(_damped(torch.ones(8, 8, 9), 0.25), torch.ones(8, 8, 9), atol=1e-5)
    plain = windows(ranges=SimulationRanges(turned=0, damped=0)).simulate(0)[0]
    assert torch.equal(plain, windows(ranges=SimulationRanges(turned=0, damped=0)).simulate(0)[0])
    for other in (SimulationRanges(turned=1, damped=0), SimulationRanges(turned=0, damped=1)):
        assert not torch.allclose(plain, windows(ranges=other).simulate(0)[0], atol=0.1)


def test_densities_are_those_named():
    """No others are read; one that is not there is told, and sizes that do not fit."""
    names = [path.stem for path in TEMPLATES.glob("*.mrc")]
    assert len(windows(only=names[:1]).molecules) == 1
    with pytest.raises(FileError, match=r"has no density nothing\.mrc"):
        windows(only=["nothing"])
    with pytest.raises(SettingError, match="does not fit"):
        windows(window=(32, 16, 16))
    with pytest.raises(SettingError, match="at least 1"):
        windows(pool=0)


def test_faint_and_strong_signals_count_alike():
    """An error in proportion has the same weight at any strength; the plain mean square has not (negative control)."""
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(2, 1, 8, 8, 8, generator=random)
    loss = RelativeError(floor=1e-6)
    strong, faint = loss(0.5 * truth, truth), loss(0.05 * truth, 0.1 * truth)
    assert float(strong) == pytest.approx(0.25, rel=1e-3)
    assert float(faint) == pytest.approx(float(strong), rel=1e-3)
    assert float((0.05 * truth).square().mean()) < 0.02 * float((0.5 * truth).square().mean())
    assert float(loss(truth, truth)) == 0
    assert float(loss.terms["error"]) == 0
    assert float(RelativeError()(torch.ones(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))) < 1000
    with pytest.raises(SettingError, match="floor"):
        RelativeError(0)


@pytest.mark.parametrize(("case", "snr", "gain"), [("wbp", 0.06, 0.1), ("white", 0.1, 0.03), ("sirt", 0.1, 0.03)])
def test_the_starting_network_knows_more_than_a_gaussian(case, snr, gain):
    """On molecules it has not been trained on, against the best width; with random weights it does not
    (negative control)."""
    made = simulate(case, (48, 96, 96), snr, seed=11)
    mean, deviation = made.tomogram.mean(), made.tomogram.std()
    noisy = (made.tomogram - mean) / deviation
    best = max(correlation(gaussian(noisy, sigma), made.truth) for sigma in (1.0, 1.5, 2.0, 2.5, 3.0))
    torch.manual_seed(0)
    start, random = load_network(starting_network()), unblind().eval()
    with torch.no_grad():
        known, unknown = (correlation(n(noisy[None, None])[0, 0], made.truth) for n in (start, random))
    assert known > best + gain
    assert unknown < best


def test_the_starting_network_is_not_trained_on_what_benchmarks_use():
    """The densities of the package, from which they are made, are none of those its config reads."""
    only = yaml.safe_load((CONFIGS / "start.yaml").read_text(encoding="utf-8"))["only"]
    assert len(only) == 16
    assert not {path.stem for path in TEMPLATES.glob("*.mrc")} & set(only)
    settings = load_plain(starting_network())["settings"]
    assert settings["only"] == only
    assert settings["batch_size"] == 8  # on a GPU, behind 6500 and 3000 steps of one window


def test_a_network_begins_with_the_weights_it_is_given(tmp_path, monkeypatch):
    """Without any it keeps its own; those of a blind network or of another body are refused with a way out, and so are
    several processes."""
    network = unblind()
    own = {name: value.clone() for name, value in network.state_dict().items()}
    assert begin_with(network, None) is network
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    begun = begin_with(network, str(starting_network()))
    given = load_plain(starting_network())["model"]
    assert all(torch.equal(value, given[name]) for name, value in begun.state_dict().items())
    blind = BlindSpotNet(Lattice((1, 3, 1), BlindSet("plane", "y")))
    path = tmp_path / "blind.pt"
    save_whole({"model": blind.state_dict(), "lattice": blind.lattice.config()}, path)
    with pytest.raises(InputError, match=r"blind spot.*--cold-start"):
        begin_with(unblind(), str(path))
    with pytest.raises(InputError, match=r"not of the configured body.*--cold-start"):
        begin_with(unblind((24, 40)), str(starting_network()))
    with pytest.raises(FileError, match="no such checkpoint"):
        begin_with(unblind(), str(tmp_path / "nothing.pt"))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(SettingError, match="one process"):
        begin_with(unblind(), None)


def test_a_network_is_settled_on_a_volume_it_was_not_fitted_to():
    """Settled, it gives what it gives with the means of that volume; before it does not (negative control). Over two
    volumes the means are those of both."""
    volumes = [
        torch.randn(1, 16, 24, 20, generator=torch.Generator().manual_seed(seed)) * (1 + seed) for seed in (0, 1)
    ]
    network = load_network(starting_network())
    with torch.no_grad():
        before = network(volumes[0][None])
        network.train()
        own = network(volumes[0][None])
        network.eval()
        update_attention_means(network, [{"image": volumes[0]}])
        assert not network.training
        after = network(volumes[0][None])
    assert torch.allclose(after, own, atol=1e-5)
    assert not torch.allclose(before, own, atol=1e-3)
    means = []
    for some in ([volumes[0]], [volumes[1]], volumes):
        update_attention_means(network, [{"image": volume} for volume in some])
        means.append(network.body.encoder[0][0].attention.running_mean.clone())
    assert torch.allclose(means[2], (means[0] + means[1]) / 2, atol=1e-6)


def means_of(network: BlindSpotNet) -> torch.Tensor:
    """All attention means in one."""
    return torch.cat([value.flatten() for name, value in network.state_dict().items() if "running_mean" in name])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_a_fit_stays_near_its_start(share):
    """Each weight lies on the line between both, and the attention means are those of the volumes, which the means on
    that line are not (negative control)."""
    volumes = [{"image": torch.randn(1, 16, 24, 20, generator=torch.Generator().manual_seed(3))}]
    start, fitted, expected = (load_network(starting_network()) for _ in range(3))
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for one, other in zip(fitted.parameters(), expected.parameters(), strict=True):
            one += 0.1 * torch.randn(one.shape, generator=random)
            other += share * (one - other)
    for name, value in fitted.named_buffers():
        if "running_mean" in name:
            value += 1
    between = means_of(start) + share * (means_of(fitted) - means_of(start))
    update_attention_means(expected, volumes)
    interpolate_weights(fitted, str(starting_network()), share, volumes)
    assert not fitted.training
    for name, value in fitted.state_dict().items():
        assert torch.allclose(value, expected.state_dict()[name], atol=1e-5), name
    assert not torch.allclose(means_of(fitted), between, atol=1e-2)


def test_all_of_a_fit_is_kept_bit_by_bit():
    """With share 1, and with the attention means that it has; share 0 of the same changes it (negative control)."""
    fitted, volumes = load_network(starting_network()), [{"image": torch.ones(1, 16, 16, 16)}]
    with torch.no_grad():
        for value in fitted.parameters():
            value += 0.1
    before = {name: value.clone() for name, value in fitted.state_dict().items()}
    interpolate_weights(fitted, str(starting_network()), 1, volumes)
    assert all(torch.equal(value, before[name]) for name, value in fitted.state_dict().items())
    interpolate_weights(fitted, str(starting_network()), 0, volumes)
    assert not all(torch.equal(value, before[name]) for name, value in fitted.state_dict().items())


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1)])
def test_a_network_begins_turned_where_the_volume_lies_another_way(tmp_path, order):
    """It does to that volume what the start does to the usual one; a model that was fitted to such a volume is kept as
    it is for it, and turned for others. Unturned it does not (negative control)."""
    start, back = load_network(starting_network()), [order.index(axis) for axis in range(3)]
    volume = gaussian(torch.randn(24, 28, 32, generator=torch.Generator().manual_seed(1)), 1.0)
    lying = volume.permute(back)
    begun = begin_with(unblind(), str(starting_network()), order=order).eval()
    path = str(tmp_path / "model.pt")
    torch.save({**load_plain(starting_network()), "model": begun.state_dict(), "order": list(order)}, path)
    again, upright = begin_with(unblind(), path, order=order).eval(), begin_with(unblind(), path).eval()
    with torch.no_grad():
        expected = start(volume[None, None])[0, 0]
        for network, seen, shown in ((begun, lying, order), (again, lying, order), (upright, volume, (0, 1, 2))):
            result = network(seen[None, None])[0, 0].permute(shown)
            assert (result - expected).abs().max() < 1e-4 * expected.abs().max()
        unturned = start(lying[None, None])[0, 0].permute(order)
    assert (unturned - expected).abs().max() > 0.05 * expected.abs().max()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_what_is_compared_and_written_lies_between_start_and_fit(tmp_path, order):
    """The model has the share of the fit that is asked for; all of it without a start (negative control). The start is
    that of the way in which the volume lies, which the model keeps."""
    random = torch.Generator().manual_seed(5)
    fitted = begin_with(unblind(), str(starting_network()), order=order)
    begun = {name: value.clone() for name, value in fitted.state_dict().items()}
    volume = torch.randn(1, 24, 24, 24, generator=random)
    with torch.no_grad():
        for value in fitted.parameters():
            value += 0.01
    path, model = str(tmp_path / "fitted.pt"), str(tmp_path / "model.pt")
    torch.save({**load_plain(starting_network()), "model": fitted.state_dict()}, path)
    spectrum = smooth_spectrum(torch.randn(24, 24, 24, generator=random))
    noise = NoiseModel(spectrum, choose_filter([volume[0]], spectrum), "")
    inferer, held_out = HaloWindowInferer(precision="fp32"), HeldOutSlab()

    def written(start: str | None) -> dict[str, torch.Tensor]:
        compare_with_filter(
            [{"image": volume}], fitted, path, noise, inferer, held_out, model, str(tmp_path),
            start=start, fit_share=0.75, draws=1, order=order,
        )  # fmt: skip
        assert load_plain(model)["order"] == list(order)
        return load_plain(model)["model"]

    between, whole = written(str(starting_network())), written(None)
    for name, value in fitted.named_parameters():
        assert torch.allclose(between[name], begun[name] + 0.75 * 0.01, atol=1e-6), name
        assert torch.equal(whole[name], value), name


def test_a_small_volume_whose_noise_leans_is_not_fitted(tmp_path, monkeypatch):
    """The judge gets the starting network, settled, and the model says so; noise that does not lean, or more volume, is
    reliable (negative controls). Where a missing wedge shows, it tells how far the noise leans."""
    monkeypatch.setattr("cryoshuffle.noise.estimate.find_wedge", lambda power: None)
    made = simulate("wbp", (36, 72, 72), snr=0.02, seed=4)
    straight = (made.tomogram - made.tomogram.mean()) / made.tomogram.std()
    blind = BlindSpotNet(Lattice((1, 4, 1), BlindSet("plane", "y", 1)), ShuffleUNet(24)).eval()
    path = tmp_path / "blind.pt"
    save_whole({"model": blind.state_dict(), "lattice": blind.lattice.config()}, path)

    def found(*volumes: torch.Tensor) -> bool:
        items = [{"image": volume[None]} for volume in volumes]
        return measure_noise_model(items, blind, str(path), HaloWindowInferer(precision="fp32")).reliable

    leaning = _turned(straight.permute(2, 1, 0), 8.0).permute(2, 1, 0).contiguous()
    assert found(straight)
    assert not found(leaning)
    source = tmp_path / "in.mrc"
    write_mrc(source, leaning.numpy())
    options = ["--steps", "3", "--window", "16,24,16", "--quiet", "--blind", "plane", "--tilt-axis", "y"]
    assert main(["denoise", str(source), str(tmp_path / "out.mrc"), *options]) == 0
    model = load_plain(tmp_path / "out_run" / "model.pt")
    given = load_plain(suite_start())["model"]
    moved = {name for name, value in model["model"].items() if not torch.equal(value, given[name])}
    assert moved
    assert all(name.endswith("running_mean") for name in moved)
    assert "refining" not in (tmp_path / "out_run" / "history.jsonl").read_text()
    assert "too small to fit a network to it" in (tmp_path / "out_run" / "run.log").read_text()
    again = ["apply", str(tmp_path / "out_run" / "model.pt"), str(source), str(tmp_path / "again.mrc"), "--quiet"]
    assert main(again) == 0
    assert np.array_equal(mrcfile.read(tmp_path / "again.mrc"), mrcfile.read(tmp_path / "out.mrc"))
    assert main(["denoise", str(source), str(tmp_path / "cold.mrc"), "--cold-start", *options]) == 0
    assert "refining" in (tmp_path / "cold_run" / "history.jsonl").read_text()
