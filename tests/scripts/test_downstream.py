"""The downstream benchmark scores what it says: chance is near nothing, all that is right is 1, and axes keep order."""

from __future__ import annotations

import importlib.util
import json
from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage

from cryoshuffle.simulation.tilt_series import TiltScheme, apply_ctf, project, reconstruct

needs_acryo = pytest.mark.skipif(importlib.util.find_spec("acryo") is None, reason="acryo is in the extra 'bench'")
BENCH = ("wbp", "--shape", "32,64,64", "--seeds", "0", "--rotations", "3", "--unet-steps", "2")


@pytest.fixture
def detection(load_script):
    return load_script("bench.detection")


@pytest.fixture
def membranes(load_script):
    return load_script("bench.membranes")


def _particles(count=60, side=200.0):
    random = np.random.default_rng(0)
    return random.uniform(0, side, (count, 3)), random.uniform(3, 6, count)


def test_all_that_is_right_scores_1_and_shuffled_positions_near_nothing(detection):
    """Exact and slightly moved picks have everything; picks at random places, or with axes turned round, have not."""
    positions, radii = _particles()
    scores = np.random.default_rng(1).random(len(positions))
    moved = positions + 0.5 * radii[:, None] / 3**0.5
    for picks in (positions, moved):
        detections = detection.match(picks, scores, positions, radii)
        assert detections.average_precision() == 1
        assert detections.at(0) == {"recall": 1, "precision": 1, "dice": 1}
    shuffled = np.random.default_rng(2).permuted(positions, axis=0)
    for picks in (shuffled, positions[:, ::-1], positions + 1.01 * radii[:, None] / 3**0.5):
        assert detection.match(picks, scores, positions, radii).average_precision() < 0.05


def test_a_particle_is_taken_once(detection):
    """The surer of two picks is right and the other wrong; two particles side by side have a pick each."""
    detections = detection.match(np.array([[0, 0, 1.0], [0, 0, 0]]), np.array([0.5, 0.9]), np.zeros((1, 3)), [3.0])
    assert detections.correct.tolist() == [False, True]
    assert detections.at(0)["precision"] == 0.5
    pair = np.array([[0, 0, 0], [0, 0, 2.0]])
    assert detection.match(pair, np.ones(2), pair, np.full(2, 3.0)).correct.all()


def test_what_is_excused_is_neither_right_nor_wrong(detection):
    """A pick on an excused particle is left out; a second pick on a target stays wrong, and so does one on nothing."""
    targets, excused = np.zeros((1, 3)), np.array([[0, 0, 20.0]])
    picks = np.array([[0, 0, 0], [0, 0, 20], [0, 0, 1], [0, 0, 50.0]])
    detections = detection.match(picks, np.arange(4.0), targets, np.array([2.0]), excused, [2.0])
    assert len(detections.scores) == 3
    assert detections.correct.sum() == 1
    assert len(detection.match(picks, np.arange(4.0), targets, np.array([2.0])).scores) == 4


def test_nothing_picked_or_nothing_there(detection):
    """Both are 0 and no error."""
    none = np.empty((0, 3))
    assert detection.match(none, np.empty(0), np.zeros((2, 3)), np.ones(2)).average_precision() == 0
    assert detection.match(np.zeros((1, 3)), np.ones(1), none, np.empty(0)).at(0)["precision"] == 0
    assert detection.match(none, np.empty(0), none, np.empty(0)).best_threshold() == 0


def test_average_precision_is_the_sum_over_ranks(detection):
    """As written out by hand; random scores have the share of positives; order within a tie changes nothing."""
    correct, scores = np.array([1, 0, 1, 1, 0], dtype=bool), np.array([5.0, 4, 3, 2, 1])
    assert detection.Detections(scores, correct, 4).average_precision() == pytest.approx((1 + 2 / 3 + 3 / 4) / 4)
    random = np.random.default_rng(0)
    truth = random.random((40, 40, 40)) < 0.1
    none = np.zeros_like(truth)
    chance = detection.voxels(random.random(truth.shape), truth, none)
    assert chance.average_precision() == pytest.approx(0.1, abs=0.01)
    assert detection.voxels(truth.astype(float), truth, none).average_precision() == 1
    tied = [
        detection.Detections(np.ones(4), np.array(order), 2)
        for order in ([True] * 2 + [False] * 2, [False] * 2 + [True] * 2)
    ]
    assert tied[0].average_precision() == tied[1].average_precision() == 0.5


def test_the_threshold_with_the_best_dice_is_chosen(detection):
    """No other has a higher one; what is ignored does not count."""
    random = np.random.default_rng(0)
    truth = random.random((20, 20, 20)) < 0.2
    scores = truth + random.normal(0, 0.6, truth.shape)
    detections = detection.voxels(scores, truth, np.zeros_like(truth))
    best = detections.at(detections.best_threshold())["dice"]
    assert best == pytest.approx(max(detections.at(t)["dice"] for t in np.unique(scores)))
    wrong_half = np.where(np.arange(20)[:, None, None] < 10, -scores, scores)
    ignored = np.broadcast_to(np.arange(20)[:, None, None] < 10, truth.shape)
    right = detection.voxels(scores[10:], truth[10:], np.zeros_like(truth[10:])).average_precision()
    assert detection.voxels(wrong_half, truth, ignored).average_precision() == right
    assert detection.voxels(wrong_half, truth, np.zeros_like(truth)).average_precision() < right - 0.2


def test_a_bright_sheet_is_a_ridge_and_a_dark_one_or_a_ball_is_less(membranes):
    """Whichever way it lies."""
    grid = np.stack(np.meshgrid(*(np.arange(32.0) - 16,) * 3, indexing="ij"))
    for normal in ((1, 0, 0), (0, 1, 0), (0.6, 0, 0.8)):
        sheet = np.exp(-(np.tensordot(normal, grid, 1) ** 2) / 8).astype(np.float32)
        assert membranes.ridges(sheet, 2.0)[16, 16, 16] > 10 * membranes.ridges(-sheet, 2.0)[16, 16, 16]
    ball = np.exp(-np.square(grid).sum(0) / 8).astype(np.float32)
    assert membranes.ridges(ball, 2.0)[16, 16, 16] < 0.1 * membranes.ridges(sheet, 2.0)[16, 16, 16]


@pytest.mark.parametrize(("axis", "seen"), [(0, False), (1, True), (2, True)])
def test_a_sheet_across_the_beam_is_not_seen(membranes, axis, seen):
    """One whose normal is the tilt axis or lies across the beam is."""
    sheet = np.zeros((24, 24, 24), dtype=bool)
    sheet[tuple(slice(10, 14) if a == axis else slice(None) for a in range(3))] = True
    inner = (slice(4, -4),) * 3
    shown = membranes.visible(sheet)[inner][sheet[inner]]
    # Along the tilt axis alone the normal is at the edge of the wedge: neither z nor x.
    assert shown.mean() > 0.9 if seen else shown.mean() < 0.1


def test_a_network_learns_a_bright_sheet(membranes):
    """In a few steps, and on a volume it has not seen; before it has learnt it does not."""
    random = np.random.default_rng(0)
    truth = np.zeros((2, 24, 32, 32), dtype=bool)
    truth[0, :, 12:16], truth[1, :, :, 20:24] = True, True
    volumes = 3 * truth + random.normal(size=truth.shape)
    unseen = np.zeros_like(truth[0])
    shares = []
    for steps in (1, 40):
        network = membranes.train(volumes[0], truth[0], unseen, steps)
        scores = membranes.segment(network, volumes[1])
        shares.append(float(scores[truth[1]].mean() - scores[~truth[1]].mean()) / float(scores.std()))
    assert shares[1] > 1.5 > shares[0]


@needs_acryo
def test_picks_lie_where_molecules_were_put(load_script):
    """In both sizes of voxels, in the order (z, y, x); the same picks in the reverse order are not there (control)."""
    picking = load_script("bench.picking")
    scheme = TiltScheme(step_deg=10.0)
    for size in (10.0, 20.0):
        molecule = picking.ribosome(size)
        specimen = torch.zeros([round(n / size) for n in (600, 900, 1000)])
        corner = [round(n / size) - side // 2 for n, side in zip((300, 500, 700), molecule.shape, strict=True)]
        specimen[tuple(slice(c, c + n) for c, n in zip(corner, molecule.shape, strict=True))] = torch.tensor(molecule)
        middle = np.array(corner) + (np.array(molecule.shape) - 1) / 2
        images = apply_ctf(project(specimen, scheme.angles_deg()), scheme, size)
        volume = reconstruct(images, scheme.angles_deg(), len(specimen)).numpy()
        volume += np.random.default_rng(0).normal(0, 0.1 * volume.std(), volume.shape).astype(np.float32)
        bank = picking.make_bank(molecule, size, 20, 10.0)
        outputs = (
            picking.match_templates(volume, bank, size),
            picking.pick_log(volume, 50 / size),
            picking.pick_dog(volume, 50 / size),
        )
        for picks, scores in outputs:
            best = picks[scores.argmax()]
            # The heaviest part of a ribosome lies 25 Å beside the middle of its density.
            assert np.linalg.norm(best - middle) < 60 / size
            assert np.linalg.norm(best[::-1] - middle) > 100 / size


@needs_acryo
def test_a_gaussian_in_front_of_a_laplacian_is_a_wider_laplacian(load_script, monkeypatch):
    """Blobs in noise are picked as well either way; if border planes were repeated outwards, noise would win there."""
    picking, detection = load_script("bench.picking"), load_script("bench.detection")
    random = np.random.default_rng(0)
    places = np.stack(np.meshgrid((16, 32, 48), (16, 32, 48), (16, 32, 48), indexing="ij"), axis=-1).reshape(-1, 3)
    blobs = np.zeros((65, 65, 65), dtype=np.float32)
    blobs[tuple(places.T)] = 1
    blobs = ndimage.gaussian_filter(blobs, 3.0)
    noisy = 0.2 * blobs / blobs.max() + 0.4 * random.normal(size=blobs.shape).astype(np.float32)

    def precision(volume: np.ndarray, sigma: float) -> float:
        return detection.match(*picking.pick_log(volume, sigma), places, np.full(len(places), 4.0)).average_precision()

    before, behind = precision(noisy, 5**0.5 * 1.5), precision(ndimage.gaussian_filter(noisy, 1.5), 3.0)
    assert before == pytest.approx(behind, abs=0.1)
    assert before > 0.5
    monkeypatch.setattr(picking, "_BOUNDARY", "nearest")
    assert precision(noisy, 5**0.5 * 1.5) < before - 0.15


@pytest.fixture
def downstream(load_script):
    return load_script("bench.downstream")


@pytest.mark.parametrize("tasks", ["ridge,unet", pytest.param("templates,log,dog,ridge,unet", marks=needs_acryo)])
def test_the_benchmark_runs_and_writes_its_section(downstream, tmp_path, capsys, tasks):
    """Each input and task has its cell; a second run measures nothing again; other settings are refused.

    Membranes need no acryo.
    """
    arguments = ["--cases", *BENCH, "--inputs", "noisy,truth", "--work", str(tmp_path / "w"), "--docs", str(tmp_path)]
    arguments += ["--tasks", tasks]
    downstream.main(arguments)
    assert "wbp, truth, unet: AP" in capsys.readouterr().out
    written = json.loads((tmp_path / "data" / "benchmarks_downstream.json").read_text(encoding="utf-8"))
    assert len(written["results"]) == 3 * len(tasks.split(","))
    assert all(0 <= one["ap"] <= 1 for r in written["results"] for one in r["scores"].values())
    ap = {(r["input"], r["task"]): r["scores"]["0"]["ap"] for r in written["results"]}
    assert ap["truth", "ridge"] > ap["noisy", "ridge"] > ap["chance", "ridge"]
    page = (tmp_path / "explain" / "benchmarks.md").read_text(encoding="utf-8")
    assert "| noisy tomogram |" in page
    assert str(tmp_path) not in page + json.dumps(written)
    assert [r["task"] for r in written["results"] if "at_end" in r] == [
        task for _ in range(2) for task in ("log", "dog", "ridge") if task in tasks
    ]
    downstream.main(arguments)
    assert "AP" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was begun with rotations 3"):
        downstream.main([*arguments, "--rotations", "4"])


@pytest.mark.parametrize("tasks", ["ridge,log", "templates", "dog,unet"])
def test_picking_without_acryo_is_refused_before_any_work(downstream, tmp_path, capsys, monkeypatch, tasks):
    """In one sentence with both ways out; what is made with a program that is absent does not name it."""
    monkeypatch.setattr(downstream, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        downstream.main(["--tasks", tasks, "--work", str(tmp_path / "w"), "--docs", str(tmp_path)])
    told = 'picking needs acryo: pip install -e ".[bench]", or leave it out of --tasks'
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert "acryo" not in downstream._versions()
    monkeypatch.setattr(downstream, "find_spec", lambda name: name)
    monkeypatch.setattr(downstream, "version", lambda name: f"of {name}")
    assert downstream._versions().endswith(", acryo of acryo")


def test_settings_that_would_score_what_was_tuned_are_refused(downstream, tmp_path, capsys):
    """In one sentence each, and before a work folder is begun; so is a case without tilts."""
    for words, sentence in (
        (["--seeds", "0,3"], "--tune-seed 3 is among --seeds"),
        (["--inputs", "fog"], "there is no input 'fog'"),
        (["--cases", "wbp,white"], "--cases white has no tilt series, and templates have the contrast transfer and"),
        (["--cases", "fog"], "there is no case 'fog': choose of wbp, aligned"),
        (["--seeds", "x"], "is not whole numbers"),
        (["--report-only"], "holds no results"),
    ):
        with pytest.raises(SystemExit):
            downstream.main([*words, "--work", str(tmp_path / "w"), "--docs", str(tmp_path)])
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "w").exists()


def test_a_choice_at_the_end_of_its_grid_is_marked(downstream):
    """The first and the last have a star, which is explained; one within does not, nor one that had no others."""
    assert downstream.at_end("20 Å", ["20 Å", "30 Å", "40 Å"]) == {"at_end": True}
    assert downstream.at_end("40 Å", ["20 Å", "30 Å", "40 Å"]) == {"at_end": True}
    assert downstream.at_end("30 Å", ["20 Å", "30 Å", "40 Å"]) == {"at_end": False}
    assert downstream.at_end("400 steps", ["400 steps"]) == {}
    facts = {"machine": "M", "commit": "abc", "version": "V", "counts": {}}
    one = {"case": "wbp", "input": "noisy", "scores": {"0": {"ap": 0.5, "recall": 0.5, "precision": 0.25, "dice": 0.5}}}
    results = [{**one, "task": "log", "at_end": True, **facts}, {**one, "task": "dog", "at_end": False, **facts}]
    assert "| 0.50 (0.50, 0.25) \\* | 0.50 (0.50, 0.25) |" in downstream.case_table(results, "wbp")
    settings = {"shape": [8, 9, 10], "seeds": [0], "tune_seed": 1, "rotations": 5, "unet_steps": 6}
    assert "\n\\* The width is the smallest or the largest of those tried.\n" in downstream.section(results, settings)
    assert "\\*" not in downstream.section(results[1:], settings)


def test_the_section_tells_losses_and_stays_beside_the_others(downstream, load_script):
    """What denoising loses is said in words; what was not run is a dash; the rest of the page stays."""
    facts = {"machine": "M", "commit": "abc", "version": "V"}
    counts = {"0": {"ribosomes": 3, "blobs": 9, "membrane": 0.05}}

    def result(name, task, ap):
        scores = {"0": {"ap": ap, "recall": 0.5, "precision": 0.25, "dice": 0.125}}
        return {"case": "wbp", "input": name, "task": task, "scores": scores, "counts": counts, **facts}

    results = [
        result("noisy", "templates", 0.75), result("fast", "templates", 0.5), result("fast", "ridge", 0.5),
        result("noisy", "ridge", 0.25), result("chance", "ridge", 0.05),
    ]  # fmt: skip
    settings = {"shape": [8, 9, 10], "seeds": [0], "tune_seed": 1, "rotations": 5, "unet_steps": 6}
    text = downstream.section(results, settings)
    assert "| noisy tomogram | 0.75 (0.50, 0.25) | – | – | 0.25 (0.12) | – |" in text
    assert "| chance | – | – | – | 0.05 | – |" in text
    plain = text.replace("\n", " ")
    assert "lost against the noisy tomogram: templates -0.25 (cryoshuffle, `--effort fast`)." in plain
    assert "lost against the Gaussian" not in plain
    behind = downstream.losses([*results, result("gaussian", "ridge", 0.5)], "wbp")
    assert behind.endswith("lost against the Gaussian: none.")
    assert "-0.25" in downstream.losses([*results, result("gaussian", "ridge", 0.75)], "wbp").partition("Gaussian")[2]
    alone = downstream.section([result("noisy", "ridge", 0.25)], settings)
    assert "lost against" not in alone
    assert "\n\n\n" not in alone
    assert "ridge filter +" not in text
    assert "To find: 3 ribosomes, 9 molecules, 5.0% membrane (seed 0)." in text
    replace = partial(load_script("bench.markdown").replace_section, begin=downstream.BEGIN, end=downstream.END)
    page = replace("# Benchmarks\n\n## Speed\n\nfast\n", text)
    assert "## Speed" in page
    assert replace(page, text) == page
