"""The report page and the lines for programs, of whole runs."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from phantoms import small_tomogram, write_mrc

from cryoshuffle.commands.cli import main
from cryoshuffle.commands.napari import read_run
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.writing import checksum, save_whole
from cryoshuffle.inference.checkpoints import load_plain
from cryoshuffle.report import measurement as measured
from cryoshuffle.report.findings import findings
from cryoshuffle.report.log import read_history
from cryoshuffle.report.page import FINDINGS_NAME, PAGE_NAME, read_verdict
from cryoshuffle.report.provenance import locate
from cryoshuffle.scores.shells import fourier_shell_correlation

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)


class _Page(html.parser.HTMLParser):
    """What a page holds, by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="session")
def run(make_once) -> Path:
    """The folder of a short run whose result has a name that is no HTML."""

    def denoise(folder: Path) -> None:
        tomogram = small_tomogram(folder / "in.mrc", (24, 100, 80))
        command = ["denoise", str(tomogram), str(folder / "<b>&out.mrc"), "--steps", "40", "--window", "16"]
        assert main([*command, "--cold-start", "--quiet"]) == 0

    return make_once("page", denoise) / "<b>&out_run"


@pytest.fixture(scope="session")
def halved(make_once) -> Path:
    """A folder with even and odd half, their mean, what becomes of it and the run, cut into windows."""

    def denoise(folder: Path) -> None:
        names = ("even", "odd")
        halves = [small_tomogram(folder / f"{name}.mrc", (24, 64, 64), seed) for seed, name in enumerate(names)]
        tomogram = write_mrc(folder / "in.mrc", np.mean([mrcfile.read(half) for half in halves], axis=0))
        command = ["denoise", str(tomogram), str(folder / "out.mrc"), "--even", str(halves[0]), "--odd", str(halves[1])]
        few = ["--steps", "6", "--window", "16", "--no-refine", "--inference-window", "24,24,24", "--quiet"]
        assert main([*command, *few]) == 0

    return make_once("halved", denoise)


def _told(folder: Path) -> tuple[str, dict]:
    """What the page of a run says, and its numbers; written into a copy, as others may be reading."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder, Path(temporary) / folder.name)
        assert main(["report", str(copy)]) == 0
        text = html.unescape((copy / PAGE_NAME).read_text(encoding="utf-8"))
        return text, json.loads((copy / FINDINGS_NAME).read_text())["numbers"]


def _volume(path: Path) -> torch.Tensor:
    return torch.from_numpy(mrcfile.read(path).copy())


def test_the_page_needs_nothing_but_itself_and_can_be_heard(run):
    """No address is fetched; pictures have words, sliders labels, the page a language; names are not taken for HTML."""
    text = (run / PAGE_NAME).read_text(encoding="utf-8")
    page = _Page(text)
    addresses = [value for _, attributes in page.tags for name in ("src", "href") if (value := attributes.get(name))]
    assert addresses
    assert all(
        value.startswith("data:") or value in {"run.log", "provenance.json", "noise.json"} for value in addresses
    )
    assert "default-src 'none'" in str(page.of("meta"))
    assert not re.search(r"url\(|@import", text)
    assert len(page.of("img")) == 3 * (15 + 1 + 1)
    assert all(picture["alt"] for picture in page.of("img"))
    assert len(page.of("input")) == 3 + 1
    assert all(slider["aria-label"] for slider in page.of("input"))
    assert len(page.of("figcaption")) == len(page.of("svg")), "each chart is explained"
    assert text.index('class="verdict') < text.index("<h1>")
    assert len(text) < 3_000_000
    assert all(chart["aria-label"] for chart in page.of("svg"))
    assert len({chart["viewbox"] for chart in page.of("svg")}) == 1, "one size for all charts"
    assert page.of("html") == [{"lang": "en"}]
    assert "&lt;b&gt;&amp;out.mrc" in text
    assert not page.of("b")


def test_the_page_has_commands_for_other_looks_that_run_as_they_stand(run):
    """Copied into a shell: a smoother result, and one with more of the tomogram, beside the first."""
    text = html.unescape((run / PAGE_NAME).read_text(encoding="utf-8"))
    commands = [shlex.split(one) for one in re.findall(r"<code>(cryoshuffle apply .*?)</code>", text)]
    assert len(commands) == 2
    assert not any("--mirrors" in command for command in commands)
    for command in commands:
        assert main([*command[1:], "--quiet", "--overwrite"]) == 0
    result, smooth, detailed = (_volume(run.parent / f"{look}<b>&out.mrc") for look in ("", "smooth_", "detail_"))
    tomogram = _volume(run.parent / "in.mrc")
    fine = [float((v[:, :, 1:] - v[:, :, :-1]).std()) for v in (smooth, result)]
    assert fine[0] < fine[1]
    told = {n: json.loads((run.parent / f"{n}_<b>&out_run" / FINDINGS_NAME).read_text()) for n in ("smooth", "detail")}
    assert "Gaussian of 0.8 voxels" in str(told["smooth"]["findings"])
    assert ["power" in told[name]["numbers"] for name in ("smooth", "detail")] == [False, True]
    assert torch.allclose(detailed, 0.9 * result + 0.1 * tomogram, atol=1e-3 * float(tomogram.std()))


def test_the_page_tells_what_the_run_found(run):
    """Noise, share of the network, residual, risk, provenance: as the files of the run have them."""
    text = html.unescape((run / PAGE_NAME).read_text(encoding="utf-8"))
    noise = json.loads((run / "noise.json").read_text())
    assert noise["reason"] in text
    assert f"{json.loads((run / 'refinement.json').read_text())['trust']:.0%} of the result" in text
    assert json.loads((run / "provenance.json").read_text())["output"]["sha256"] in text
    points = Counter(line["stage"] for line in read_history(run) if line["risk"] is not None)
    assert {"refining", "fitting"} <= set(points)
    for stage, count in points.items():
        assert (f"Held-out risk while {stage}" in text) == (count > 2), "two points are no curve"
    assert "24 × 100 × 80 voxels" in text


def test_the_page_is_written_anew_and_only_of_a_run(run, tmp_path, capsys):
    """The same bytes; a folder without a run, or whose result is gone, is named in a sentence."""
    again = shutil.copytree(run, tmp_path / "again" / run.name)
    (again / PAGE_NAME).unlink()
    assert main(["report", str(again)]) == 0
    assert (again / PAGE_NAME).read_bytes() == (run / PAGE_NAME).read_bytes()
    said = capsys.readouterr().out
    assert "report:" in said
    assert said.splitlines()[-1] == f"verdict:    {read_verdict(again)}"
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    other = shutil.copytree(run, tmp_path / "moved_run")
    provenance = json.loads((other / "provenance.json").read_text())
    provenance["output"]["path"] = str(tmp_path / "gone.mrc")
    (other / "provenance.json").write_text(json.dumps(provenance))
    assert main(["report", str(other)]) == 2
    assert "gone.mrc: there is no such file" in capsys.readouterr().err
    (tmp_path / "gone.mrc").write_bytes(b"no volume")
    assert main(["report", str(other)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_is_read_from_any_folder(fitted, tmp_path, monkeypatch, capsys):
    """Its files are named from the root; files of their names in the working directory are none of it.

    So it is where they are named as version 0.1.0 did, relative to where the run was started.
    """
    tomogram, model = fitted
    (tmp_path / "project" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    shutil.copy(tomogram, "in.mrc"), shutil.copy(model, "own.pt")
    assert main(["apply", "own.pt", "in.mrc", "results/out.mrc", "--residual", "results/rest.mrc", "--quiet"]) == 0
    run = tmp_path / "project" / "results" / "out_run"
    provenance = json.loads((run / "provenance.json").read_text())
    named = {
        "input": "in.mrc", "output": "results/out.mrc", "residual": "results/rest.mrc", "network": "own.pt",
    }  # fmt: skip
    assert {name: provenance[name]["path"] for name in named} == {
        name: str(tmp_path / "project" / path) for name, path in named.items()
    }
    assert provenance["settings"]["checkpoint"] == str(tmp_path / "project" / "own.pt")
    report = json.loads((run / FINDINGS_NAME).read_text())
    (tmp_path / "other" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    for name in ("in.mrc", "results/out.mrc"):
        write_mrc(Path(name), np.ones((4, 4, 4), np.float32))
    old = {**provenance, **{name: {**provenance[name], "path": path} for name, path in named.items()}}
    for written in (provenance, old):
        (run / "provenance.json").write_text(json.dumps(written))
        assert main(["report", str(run)]) == 0
        assert json.loads((run / FINDINGS_NAME).read_text()) == report
        layers = read_run(run)
        assert [Path(options["metadata"]["path"]).parent for _, options, _ in layers] == [
            run.parent.parent, run.parent, run.parent,
        ]  # fmt: skip
        capsys.readouterr()
        command = ["apply", str(model), "in.mrc", "results/second.mrc", "--report", str(run)]
        assert main(command) == 2
        assert f"holds the report of {run.parent / 'out.mrc'}" in capsys.readouterr().err
    moved = (tmp_path / "project").rename(tmp_path / "moved") / "results" / "out_run"
    assert main(["report", str(moved)]) == 0
    numbers = json.loads((moved / FINDINGS_NAME).read_text())["numbers"]
    assert numbers == report["numbers"]
    run = (tmp_path / "moved").rename(tmp_path / "project") / "results" / "out_run"
    # The working directory is the last place (control).
    (run.parent / "out.mrc").unlink()
    assert locate("results/out.mrc", run).samefile("results/out.mrc")


@pytest.mark.parametrize("missing", ["all", "is a list", "settings", "noise", "device", "input"])
def test_damaged_provenance_is_a_sentence(run, tmp_path, capsys, missing):
    """And no page; whole it gets one (control)."""
    place = shutil.copytree(run, tmp_path / "a_run")
    provenance = json.loads((place / "provenance.json").read_text())
    assert main(["report", str(place)]) == 0
    provenance.pop(missing, None)
    content = {"all": {}, "is a list": []}.get(missing, provenance)
    (place / "provenance.json").write_text(json.dumps(content))
    (place / PAGE_NAME).unlink()
    capsys.readouterr()
    assert main(["report", str(place)]) == 2
    said = capsys.readouterr().err
    assert f"{place / 'provenance.json'}: is not as a run wrote it, denoise again to have a report" in said
    assert said.count("\n") == 1
    assert not (place / PAGE_NAME).exists()


def test_a_finished_fit_has_no_result_to_report_on(fitted, tmp_path, capsys):
    """One that was cut short is told from it (control)."""
    place = shutil.copytree(fitted[1].with_name("c_run"), tmp_path / "c_run")
    assert main(["report", str(place)]) == 2
    assert "c_run: holds a fit and no result, so there is nothing to report on: denoise" in capsys.readouterr().err
    state = place / "state.pt"
    save_whole({**load_plain(state), "finished": False}, state)
    assert main(["report", str(place)]) == 2
    assert "holds an unfinished fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [("out.mrc", "wrote"), ("in.mrc", "denoised"), ("c.pt", "applied"), ("out.zarr", "wrote")],
)
def test_files_that_are_other_ones_get_no_page(fitted, tmp_path, capsys, name, words):
    """A result, tomogram or network of its name that is not the run's; those that are get one (control)."""
    tomogram, model = (Path(shutil.copy(path, tmp_path)) for path in fitted)
    result = tmp_path / ("out.zarr" if name == "out.zarr" else "out.mrc")
    assert main(["apply", str(model), str(tomogram), str(result), "--quiet"]) == 0
    assert main(["report", str(tmp_path / "out_run")]) == 0
    page = (tmp_path / "out_run" / PAGE_NAME).read_bytes()
    if name == "c.pt":
        save_whole({**load_plain(model), "version": "another"}, model)
    elif name == "in.mrc":
        write_mrc(tomogram, mrcfile.read(tomogram) * 2)
    else:
        save_tomogram(load_tomogram(tomogram), result)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out_run")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / name}: is not what the run {words}, its SHA-256 is not" in said
    assert said.count("\n") == 1
    assert (tmp_path / "out_run" / PAGE_NAME).read_bytes() == page


def test_the_verdict_is_one_and_the_same(run):
    """At the head of the page, in report.json, in a line; as its findings say. Without a report there is none."""
    report = json.loads((run / FINDINGS_NAME).read_text())
    verdict, levels = report["verdict"], {one["level"] for one in report["findings"]}
    assert verdict["word"] == ("doubt" if "bad" in levels else "look" if "look" in levels else "good")
    text = html.unescape((run / PAGE_NAME).read_text(encoding="utf-8"))
    assert f"{verdict['reason']} {verdict['advice']}</p>" in text[: text.index("<h1>")]
    assert read_verdict(run) == f"{verdict['word']}. {verdict['reason']} {verdict['advice']}"
    assert read_verdict(run.parent) == ""


def _with_noise(run: Path, place: Path, spectrum: torch.Tensor, result: np.ndarray) -> Path:
    """A copy of a run with another result, and a model that keeps the noise."""
    shutil.copytree(run, place)
    provenance = json.loads((place / "provenance.json").read_text())
    model = place / "model.pt"
    save_whole({**load_plain(model), "noise": {"spectrum": spectrum, "levels": False}}, model)
    provenance["network"] = {"path": str(model), "sha256": checksum(model)}
    output = write_mrc(place / "result.mrc", result)
    provenance["output"] = {"path": str(output), "sha256": checksum(output)}
    (place / "provenance.json").write_text(json.dumps(provenance))
    return place


@pytest.mark.parametrize(("factor", "smoothed"), [(1.0, False), (1.5, False), (0.67, False), (1.0, True)])
def test_noise_that_was_misjudged_is_an_alarm(run, tmp_path, caplog, factor, smoothed):
    """Too strong, too weak, or the signal gone: console, report and verdict say so. Of the very truth there is no word.

    The noise is white, of a deviation of 10 grey values.
    """
    tomogram = mrcfile.read(json.loads((run / "provenance.json").read_text())["input"]["path"])
    z, y, x = np.indices(tomogram.shape, dtype=np.float32)
    truth = 100 + 10 * ((z - 12) ** 2 + (y - 50) ** 2 + (x - 40) ** 2 < 64).astype(np.float32)
    flat = 100 + np.random.default_rng(0).standard_normal(tomogram.shape).astype(np.float32) / 5
    spectrum = torch.full((64, 64, 33), factor * 100 / float(tomogram.var()))
    place = _with_noise(run, tmp_path / "a_run", spectrum, flat if smoothed else truth)
    assert main(["report", str(place)]) == 0
    report = json.loads((place / FINDINGS_NAME).read_text())
    levels = {one["level"] for one in report["findings"] if one["subject"] == "power"}
    wrong = factor != 1 or smoothed
    assert levels == {"bad" if wrong else "ok"}
    assert ("times the power of the measured noise" in caplog.text) == wrong
    assert ("the power of the measured noise" in read_verdict(place)) == wrong
    assert (report["verdict"]["word"] == "doubt") == wrong


def test_a_fit_that_was_cut_short_is_told_of(run, tmp_path, capsys):
    """In the history of the run, so on the page and in the last lines of the console, once."""
    place = shutil.copytree(run, tmp_path / "a_run")
    assert main(["report", str(place)]) == 0
    assert "cut short" not in capsys.readouterr().out
    *lines, last = (place / "history.jsonl").read_text().splitlines()
    short = json.dumps({**json.loads(last), "out_of_time": True})
    (place / "history.jsonl").write_text("\n".join([*lines, short]) + "\n")
    assert main(["report", str(place)]) == 0
    said = capsys.readouterr()
    assert said.out.count("fit:        cut short by --minutes: ") == 1
    assert "cut short" not in said.err
    assert "cut short by --minutes" in (place / PAGE_NAME).read_text(encoding="utf-8")


def test_errors_are_laid_over_the_result_where_the_run_has_some(run, tmp_path):
    """A button and a legend in grey values; without errors neither."""
    place = shutil.copytree(run, tmp_path / "a_run")
    provenance = json.loads((place / "provenance.json").read_text())
    shape = mrcfile.read(provenance["input"]["path"]).shape
    errors = np.linspace(2, 3, shape[2], dtype=np.float32) + np.zeros(shape, np.float32)
    before = (run / PAGE_NAME).read_text(encoding="utf-8")
    provenance["error"] = {"path": str(write_mrc(place / "error.mrc", errors)), "sha256": ""}
    (place / "provenance.json").write_text(json.dumps(provenance))
    assert main(["report", str(place)]) == 0
    after = (place / PAGE_NAME).read_text(encoding="utf-8")
    for words in ('<button type="button" data-show="error"', "standard error, grey values"):
        assert words in after
        assert words not in before
    legend = re.search(r'class="legend"><span>(\S+)</span><span class="ramp"></span><span>(\S+)</span>', after)
    assert legend is not None
    assert [float(end) for end in legend.groups()] == pytest.approx([2, 3], abs=0.03)


def test_what_the_data_hold_is_shown_where_there_are_halves(halved, run):
    """The curve is that of the raw halves, its crossing stands in the findings; without halves no word of it."""
    text, numbers = _told(halved / "out_run")
    frequency, values = fourier_shell_correlation(_volume(halved / "even.mrc"), _volume(halved / "odd.mrc"))
    assert numbers["halves"]["frequency"] == frequency
    assert numbers["halves"]["fsc"] == pytest.approx(values)
    assert f"The data hold signal to {numbers['halves']['resolution_angstrom']:.1f} Å" in text
    assert "Agreement of the halves" in text
    text, numbers = _told(run)
    assert "halves" not in numbers
    assert "Agreement of the halves" not in text
    assert "The data hold" not in text


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("kind", ["a spike", "next to nothing", "large", "tiny"])
def test_numbers_of_strange_volumes_are_numbers(fitted, tmp_path, kind):
    """One voxel of 1e30, all but two voxels filled, values of 1e31, a few voxels: a page, and JSON that others read."""
    values = 10 * np.random.default_rng(0).standard_normal((24, 40, 40)).astype(np.float32)
    if kind == "a spike":
        values[5, 5, 5] = 1e30
    elif kind == "next to nothing":
        values[:] = np.nan
        values[3, 3, 3], values[4, 4, 4] = 1, 2
    elif kind == "large":
        values *= 1e30
    else:
        values = values[:8, :8]
    tomogram, out = write_mrc(tmp_path / "in.mrc", values), tmp_path / "out.mrc"
    assert main(["apply", str(fitted[1]), str(tomogram), str(out), "--fill-nan", "--quiet"]) == 0
    text = (tmp_path / "out_run" / FINDINGS_NAME).read_text()
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", text))
    assert "nan" not in read_verdict(tmp_path / "out_run").split()


def test_halves_are_compared_in_the_middle_the_page_is_of(halved, monkeypatch):
    """As large as the rest of the page's numbers, which bounds its memory; of the whole it is another curve."""
    monkeypatch.setattr(measured, "_SIDE", 32)
    paths = [str(halved / f"{name}.mrc") for name in ("in", "out", "even", "odd")]
    found = measured.measure(*paths[:2], [1, 1, 1], halves=paths[2:])["halves"]
    even, odd = (_volume(path)[:, 16:48, 16:48] for path in paths[2:])
    assert found["fsc"] == pytest.approx(fourier_shell_correlation(even, odd)[1])
    assert len(found["fsc"]) < len(fourier_shell_correlation(*map(_volume, paths[2:]))[1])


def test_halves_that_share_nothing_or_are_gone_are_said_so(halved, tmp_path):
    """Noise alone agrees at no frequency; a missing half takes nothing else from the page."""
    noise = np.random.default_rng(5).standard_normal((2, 24, 64, 64)).astype(np.float32)
    paths = [str(write_mrc(tmp_path / f"{index}.mrc", half)) for index, half in enumerate(noise)]
    files = str(halved / "in.mrc"), str(halved / "out.mrc")
    numbers = measured.measure(*files, [1, 1, 1], halves=paths)
    said = {one.words: one.level for one in findings(None, None, numbers)}
    assert [level for words, level in said.items() if "agree at no frequency beyond chance" in words] == ["look"]
    numbers = measured.measure(*files, [1, 1, 1], halves=[paths[0], str(tmp_path / "gone.mrc")])
    assert "gone.mrc" in numbers["halves_not_measured"]
    assert "halves" not in numbers
    assert "residual" in numbers


def test_the_model_of_a_run_is_read_once_and_its_noise_checked(fitted, tmp_path, monkeypatch, capsys):
    """Settings and noise come from one reading; noise of another shape is a sentence, and there is no page."""
    tomogram, model = fitted
    own = Path(shutil.copy(model, tmp_path / "own.pt"))
    assert main(["apply", str(own), str(tomogram), str(tmp_path / "out.mrc"), "--quiet"]) == 0
    reads, load = [], torch.load

    def counted(path, **more):
        reads.append(Path(path))
        return load(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", counted)
        _, numbers = _told(tmp_path / "out_run")
    assert reads == [own]
    assert len(numbers["power"]["ratios"]) == 4
    checkpoint = torch.load(own, weights_only=True)
    checkpoint["noise"]["spectrum"] = torch.ones(4, 4, 3)
    torch.save(checkpoint, own)
    provenance = json.loads((tmp_path / "out_run" / "provenance.json").read_text())
    provenance["network"]["sha256"] = checksum(own)
    (tmp_path / "out_run" / "provenance.json").write_text(json.dumps(provenance))
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out_run")]) == 2
    assert "own.pt: its noise is of shape (4, 4, 3) or negative, fit a model anew" in capsys.readouterr().err


def test_scores_in_the_folder_of_the_run_are_shown_if_they_are_of_its_result(halved, tmp_path):
    """Curves and numbers of ``evaluate``; a half that is in the result is said to flatter; others' scores stay out."""
    place = shutil.copytree(halved / "out_run", tmp_path / "out_run")
    result, other = str(halved / "out.mrc"), str(small_tomogram(tmp_path / "other.mrc", (24, 64, 64), 7))
    assert "Agreement with" not in _told(place)[0]
    evaluate = ["evaluate", result, "--report", str(place), "--overwrite"]
    assert main([*evaluate, "--truth", other]) == 0
    scores, (text, _) = json.loads((place / "evaluation.json").read_text()), _told(place)
    assert "Agreement with the truth" in text
    assert f"{scores['truth']['correlation']:.3f}" in text
    assert other in text
    assert "Agreement with the other half" not in text
    assert main([*evaluate, "--other-half", other]) == 0
    text, _ = _told(place)
    assert "Agreement with the other half" in text
    assert "flatters" not in text
    assert main([*evaluate, "--other-half", str(halved / "odd.mrc")]) == 0
    assert "flatters" in _told(place)[0]
    assert main(["evaluate", other, *evaluate[2:], "--truth", result]) == 0
    text, _ = _told(place)
    assert "evaluation.json is of another result" in text
    assert "Agreement with" not in text


def test_seams_are_looked_for_at_the_borders_of_the_windows(halved, run, tmp_path, monkeypatch):
    """Those that were used; steps planted there are told, also in a part; elsewhere, or in one window, none."""
    text, numbers = _told(halved / "out_run")
    assert numbers["seams"]["window"] == json.loads((halved / "out_run" / "provenance.json").read_text())["window_zyx"]
    assert numbers["seams"]["window"][1:] == [24, 24]
    assert "No seams between the windows" in text
    assert "jumps at window borders" in text
    text, numbers = _told(run)
    assert "seams" not in numbers
    assert "It was denoised in one window" in text
    result = mrcfile.read(halved / "out.mrc").copy()
    result[:, 24:48] += 4 * result.std()
    files = str(halved / "in.mrc"), str(write_mrc(tmp_path / "seamed.mrc", result))
    for side in (160, 40):
        monkeypatch.setattr(measured, "_SIDE", side)
        levels = []
        for window in ([24, 24, 64], [24, 20, 64]):
            found = findings(None, None, measured.measure(*files, [1, 1, 1], window=window))
            levels += [one.level for one in found if "windows it was" in one.words]
        assert levels == ["look", "ok"]


def test_programs_get_a_line_an_epoch(tmp_path, capsys):
    """What is printed is what ``history.jsonl`` holds; steps grow to the last; the files stand at the end."""
    tomogram, out = small_tomogram(tmp_path / "in.mrc"), tmp_path / "out.mrc"
    command = [
        "denoise",
        str(tomogram),
        str(out),
        "--steps",
        "4",
        "--window",
        "16,24,16",
        "--no-refine",
        "--json-lines",
    ]
    assert main(command) == 0
    said = capsys.readouterr()
    *lines, last = [json.loads(line) for line in said.out.splitlines()]
    assert "fitting" not in said.err
    assert lines == read_history(tmp_path / "out_run")
    assert lines
    assert [line["step"] for line in lines][-1] == lines[-1]["steps"] == 4
    assert last["result"] == str(out)
    assert set(last) == {"result", "report", "picture", "log"}
    assert main([*command, "--overwrite"]) == 0
    assert len(read_history(tmp_path / "out_run")) == len(lines), "another run begins its own"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to look at the page with")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_a_browser_shows_the_page(run, tmp_path, width, dark):
    """Nothing is wider than the window, all pictures are shown; line, slices, layers and zoom do what they say."""
    asked = """<script>
const viewer = document.querySelector(".viewer"), view = viewer.querySelector(".view");
const shown = (name) => getComputedStyle(viewer.querySelector(".slice:not([hidden]) ." + name)).display !== "none";
function slide(name, value) {
  const slider = viewer.querySelector(name); slider.value = value; slider.dispatchEvent(new Event("input"));
}
const bar = () => viewer.querySelector(".length").getBoundingClientRect().width;
const told = {wide: document.documentElement.scrollWidth, plane: view.clientWidth, room: viewer.clientWidth,
  shown: [...document.images].every((i) => i.naturalWidth > 0), paper: getComputedStyle(document.body).backgroundColor};
slide(".cut", 20); slide(".pick", 0);
told.cut = view.style.cssText;
told.slices = [...viewer.querySelectorAll(".slice")].map((slice) => !slice.hidden);
told.name = viewer.querySelector("output").textContent;
told.before = [viewer.querySelector(".words").textContent, shown("residual")];
view.dispatchEvent(new KeyboardEvent("keydown", {key: "+"}));
viewer.querySelector("button[data-zoom]").click();
told.scale = [viewer.querySelector(".words").textContent, bar() / view.clientWidth];
told.zoom = view.style.getPropertyValue("--zoom");
viewer.querySelector("button[data-show=residual]").click();
told.after = shown("residual");
document.title = JSON.stringify(told);
</script></body>"""
    copy = tmp_path / "page.html"
    copy.write_text((run / PAGE_NAME).read_text(encoding="utf-8").replace("</body>", asked), encoding="utf-8")
    call = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900", *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True).stdout
    told = json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", shown)[0]))
    # Headless Chromium has windows of 500 pixels at least.
    assert told["wide"] <= max(width, 500)
    assert told["plane"] == told["room"]
    assert told["shown"]
    assert "--cut: 20%" in told["cut"]
    assert told["slices"] == [True] + 14 * [False]
    assert told["name"] == "xy, z = 0"
    assert float(told["zoom"]) == 2.25
    words, share = told["scale"]
    assert told["before"] == ["10 nm", False]
    assert (words, share) == ("5 nm", pytest.approx(2.25 * 5 / 80, rel=0.02))
    assert told["after"]
    assert told["paper"] == ("rgb(22, 24, 26)" if dark else "rgb(255, 255, 255)")
    assert (tmp_path / "page.png").stat().st_size > 10_000
