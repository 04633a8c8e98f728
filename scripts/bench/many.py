#!/usr/bin/env python3
"""Measures when one network will do for many tomograms: one for all, one for each, or one that each begins with.

    scripts/bench/many.py                                  # most of an hour; stop and start again as you like
    scripts/bench/many.py --cases wbp --ways fast,shared   # a piece of it
    scripts/bench/many.py --report-only                    # the documents from what is there

The tomograms of a session are simulated: of one case, each with a phantom and noise of its own. A network is fitted to
the first ``--fitted`` of them. What is finished stays in ``--work`` and is not run again. The documents are section
"Many tomograms" of ``docs/explain/benchmarks.md`` and ``docs/data/benchmarks_many.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from cryoshuffle.files.writing import write_json
from cryoshuffle.report.log import read_history

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import methods
from bench.markdown import table, wrapped, write_section
from bench.methods import Job, NotRunError, Outcome
from bench.options import check_settings, check_shape, name_list, refuse_unknown, stored_settings, whole_numbers
from bench.provenance import ROOT, commit, machine, own_versions
from bench.quality import BY_KEY, SNR, prepare, score

BEGIN, END = "<!-- many: begin, written by scripts/bench/many.py -->", "<!-- many: end -->"
# One thread: the time of the processor is then the time on a machine that does nothing else.
COMMAND = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "cryoshuffle"]
# In options: the network of the session, that of another session, and the number of steps of a short fit.
NET, OTHER, FEW = "NET", "OTHER", "FEW"
FIT, ALONE = "fit", "alone"
REFERENCES = {"noisy": "noisy tomogram", "gaussian": "Gaussian, its width chosen by the truth"}
# Label, and what the command is told; it is apply where it begins with a network, else denoise.
WAYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "fast": ("`denoise --effort fast`", ("--effort", "fast")),
    "shared": ("`apply net.pt`", (NET,)),
    "settled": ("`denoise --effort fast --warm-start net.pt`", ("--effort", "fast", "--warm-start", NET)),
    "few": ("`denoise --steps FEW`", ("--steps", FEW)),
    "tuned": ("`denoise --steps FEW --warm-start net.pt`", ("--steps", FEW, "--warm-start", NET)),
    ALONE: ("`denoise`", ()),
    "other": ("`apply` of the `net.pt` of session OTHER", (OTHER,)),
}
Result = Mapping[str, Any]


def other_case(cases: Sequence[str], case: str) -> str | None:
    """The case whose network is tried on a case; None if there is only one."""
    return cases[(cases.index(case) + 1) % len(cases)] if len(cases) > 1 else None


def totals(results: Sequence[Result], way: str) -> tuple[int, float] | None:
    """What a way takes for all tomograms of a session, the fit of the network that it needs included.

    Args:
        results: of one session.
        way: one of :data:`WAYS`.

    Returns:
        optimiser steps, and seconds; None where that fit is not there, or is of another session.

    Example:
        >>> fit = {"way": "fit", "steps": 300, "seconds": 200.0}
        >>> totals([fit, {"way": "shared", "steps": 0, "seconds": 3.0}], "shared")
        (300, 203.0)
    """
    fits = [r for r in results if r["way"] == FIT] if NET in WAYS[way][1] else []
    if OTHER in WAYS[way][1] or (NET in WAYS[way][1] and not fits):
        return None
    spent = [*fits, *(r for r in results if r["way"] == way)]
    return sum(r["steps"] for r in spent), sum(r["seconds"] for r in spent)


def session_table(results: Sequence[Result], settings: Mapping[str, Any], case: str) -> str:
    """One session: a way a row, a tomogram a column; what was lost on average, and what it took.

    Args:
        results: of all sessions.
        settings: as of :func:`many_section`.
        case: of the session.
    """
    mine = [r for r in results if r["case"] == case]
    found = {(r["way"], r["tomogram"]): r["scores"]["correlation"] for r in mine if "scores" in r}
    numbers = range(len(settings["ratios"]))
    heads = [f"{n + 1}, {'fitted' if n < settings['fitted'] else 'new'}" for n in numbers]
    rows = []
    for way, text in {**REFERENCES, **{key: told for key, (told, _) in WAYS.items()}}.items():
        scores = {n: found[way, n] for n in numbers if (way, n) in found}
        if not scores:
            continue
        differences = [scores[n] - found[ALONE, n] for n in scores if (ALONE, n) in found]
        whole = len(scores) == len(heads)
        lost = f"{mean(differences):+.3f}" if whole and len(differences) == len(heads) and way != ALONE else ""
        spent = totals(mine, way) if way in WAYS and whole else None
        text = text.replace(OTHER, other_case(settings["cases"], case) or "").replace(FEW, str(settings["few"]))
        cells = [f"{scores[n]:.3f}" if n in scores else "–" for n in numbers]
        rows.append([text, *cells, lost, *(["", ""] if spent is None else [f"{one:.0f}" for one in spent])])
    return table(["CC", *heads, "mean, less `denoise`'s", "steps", "s"], rows, 1)


def many_section(results: Sequence[Result], settings: Mapping[str, Any]) -> str:
    """The section as Markdown, markers included.

    Args:
        results: dictionaries with ``case`` and ``way``; of a tomogram also ``tomogram`` and ``scores``; of what was
            run ``steps`` and ``seconds``.
        settings: ``cases``, ``shape``, ``snr`` by case, ``ratios``, ``fitted``, ``window``, ``steps`` (None for the
            command's own), ``few``.
    """
    ratios = settings["ratios"]
    shape, window = (" x ".join(map(str, settings[name])) for name in ("shape", "window"))
    parts = [
        BEGIN,
        "## Many tomograms",
        f"Sessions of {len(ratios)} simulated tomograms of {shape} voxels. A session has one case; each tomogram has a "
        f"phantom and noise of its own. One network, `net.pt`, is fitted to the first {settings['fitted']} "
        f"(`cryoshuffle fit`, with as many steps as `denoise` takes for one tomogram). A step sees {window} voxels, "
        "fewer than by default, because the volumes are small. The tilt axis is given (`--tilt-axis y`). CC: Pearson's "
        "correlation with the noise-free reconstruction. Steps: steps of the optimiser for all tomograms. s: processor "
        "time of whole programs on one thread, for all tomograms. Both include the fit of `net.pt` where it is used. "
        "Raw numbers: [benchmarks_many.json](../data/benchmarks_many.json).",
    ]
    others = [f"tomogram {n + 1} has {ratio:g} times that" for n, ratio in enumerate(ratios) if ratio != 1]
    for case in settings["cases"]:
        if any(r["case"] == case for r in results):
            told = "; ".join([f"SNR {settings['snr'][case]:g}", *others])
            parts += [f"### Session {case}", f"{told}.", session_table(results, settings, case)]
    facts = {
        name: "; ".join(sorted({r[name] for r in results if r.get(name)})) for name in ("machine", "commit", "version")
    }
    facts["command"] = "`scripts/bench/many.py`"
    return wrapped([*parts, "### Made with", "\n".join(f"- {n}: {f}" for n, f in facts.items()), END])


def run(words: Sequence[str], folder: Path, name: str, job: Job) -> dict[str, Any]:
    """Run a command of ours by itself.

    Args:
        words: of the command line, from the subcommand on, but for the folder of the run.
        folder: for log and run.
        name: of both.
        job: how.

    Returns:
        what it took.

    Raises:
        NotRunError: if it fails.
    """
    own = folder / f"{name}_run"
    # What an earlier, interrupted run has left must not be taken for this one's.
    shutil.rmtree(own, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    more = ["--report", str(own), "--device", job.device, "--overwrite", "--quiet"]
    methods.call([*COMMAND, *words, *more], folder / f"{name}.log", job)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime,
        "steps": sum({line["stage"]: line["step"] for line in read_history(own)}.values()),
        "version": own_versions(),
        "machine": machine(),
        "commit": commit(),
    }


def words_of(way: str, job: Job, nets: Mapping[str, Path], settings: Mapping[str, Any]) -> list[str]:
    """The command line of a way, from the subcommand on.

    Args:
        way: of :data:`WAYS`.
        job: the tomogram.
        nets: networks by their place in the options.
        settings: as of :func:`many_section`.
    """
    given = {**{name: str(path) for name, path in nets.items()}, FEW: str(settings["few"])}
    options = [given.get(word, word) for word in WAYS[way][1]]
    source, result = str(job.folder / "tomogram.mrc"), str(job.folder / f"{way}.mrc")
    if WAYS[way][1][:1] in ((NET,), (OTHER,)):
        return ["apply", *options, source, result]
    return ["denoise", source, result, *options, *_fit_options(settings, way == ALONE), "--seed", str(job.seed)]


def measure(
    way: str, job: Job, nets: Mapping[str, Path], settings: Mapping[str, Any], voxel_size_angstrom: float
) -> dict[str, Any]:
    """Denoise a tomogram in one way, and score what comes out.

    Args:
        way: of :data:`REFERENCES` or :data:`WAYS`.
        job: the tomogram.
        nets: networks by their place in the options.
        settings: as of :func:`many_section`.
        voxel_size_angstrom: of the tomogram.

    Raises:
        NotRunError: if it fails.
    """
    truth = job.folder / "truth.mrc"
    if way in REFERENCES:
        return {"scores": score(methods.run(BY_KEY[way], job), truth, voxel_size_angstrom)}
    spent = run(words_of(way, job, nets, settings), job.folder, way, job)
    return {"scores": score(Outcome(job.folder / f"{way}.mrc"), truth, voxel_size_angstrom), **spent}


def load_results(work: Path) -> list[dict[str, Any]]:
    """All results there are, in the order of sessions, ways and tomograms."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob("*/results/*.json")]
    order = [*REFERENCES, FIT, *WAYS]
    return sorted(found, key=lambda r: (r["case"], order.index(r["way"]), r.get("tomogram", -1)))


def write_documents(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """The section and the raw numbers, from what is in the work folder."""
    results = load_results(options.work)
    content = {"settings": dict(settings), "results": results}
    write_section(options.docs, "many", many_section(results, settings), (BEGIN, END), content)


class Session:
    """Tomograms of one case, and the network that is fitted to some of them.

    Args:
        case: of the simulation.
        settings: as of :func:`many_section`.
        work: where sessions are kept.
    """

    def __init__(self, case: str, settings: Mapping[str, Any], work: Path) -> None:
        self.case, self.settings, self.work = case, settings, work
        self.sizes = [
            prepare(work / f"{case}_{n}", case, settings["shape"], ratio * settings["snr"][case], n)
            for n, ratio in enumerate(settings["ratios"])
        ]

    def job(self, name: str | int) -> Job:
        """How things are run on a tomogram, or for all."""
        seed = name if isinstance(name, int) else 0
        return Job(self.work / f"{self.case}_{name}", seed, None, 0, 3600, "cpu", None)

    def network(self) -> Path:
        """The network; it is fitted if it is not there."""
        job = self.job(FIT)
        path = job.folder / "net.pt"
        sources = [str(self.job(n).folder / "tomogram.mrc") for n in range(self.settings["fitted"])]
        words = ["fit", *sources, "--checkpoint", str(path), *_fit_options(self.settings)]
        keep(job.folder / "results" / f"{FIT}.json", self.case, FIT, lambda: run(words, job.folder, FIT, job))
        return path

    def measure(self, way: str, number: int, nets: Mapping[str, Path]) -> None:
        """Denoise a tomogram in one way and keep the score, unless it is there."""
        job = self.job(number)
        path = job.folder / "results" / f"{way}.json"
        keep(path, self.case, way, lambda: measure(way, job, nets, self.settings, self.sizes[number]), tomogram=number)


def keep(path: Path, case: str, way: str, make: Callable[[], Mapping[str, Any]], **more: Any) -> None:
    """Make a result, say and keep it, unless it is there."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"case": case, "way": way, **more, **make()}
    write_json(found, path)
    words = [f"CC {found['scores']['correlation']:.3f}"] if "scores" in found else []
    words += [f"{found['steps']} steps, {found['seconds']:.0f} s"] if "steps" in found else []
    print(f"{path.parent.parent.name}, {way}: {', '.join(words)}", flush=True)


def _fit_options(settings: Mapping[str, Any], whole: bool = True) -> list[str]:
    """What all fits are told; the number of steps is for whole ones.

    The axis, because volumes as small as these do not always show it.
    """
    steps = ["--steps", str(settings["steps"])] if whole and settings["steps"] else []
    return ["--window", ",".join(map(str, settings["window"])), "--tilt-axis", "y", *steps]


def _ratios(text: str) -> list[float]:
    try:
        return [float(part) for part in name_list(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not numbers with commas between") from None


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ",".join((*REFERENCES, *WAYS))
    parser.add_argument("--cases", type=name_list, default=["wbp", "aligned"], help="sessions (default: wbp,aligned)")
    parser.add_argument("--only", type=name_list, help="the sessions to run now (default: all)")
    parser.add_argument(
        "--ways", type=name_list, default=name_list(known), help=f"to run now, of {known} (default: all)"
    )
    parser.add_argument("--ratios", type=_ratios, default=[1.0, 1.0, 1.0, 0.5],
                        help="a tomogram each: its SNR over that of the case (default: 1,1,1,0.5)")  # fmt: skip
    parser.add_argument("--fitted", type=int, default=2, help="so many of them make the network (default: 2)")
    parser.add_argument("--shape", type=whole_numbers, default=[48, 80, 80], help="z,y,x, voxels (default: 48,80,80)")
    parser.add_argument(
        "--window", type=whole_numbers, default=[24, 36, 24], help="of a step, voxels (default: 24,36,24)"
    )
    parser.add_argument("--steps", type=int, help="of the fits that are not short (default: those of the command)")
    parser.add_argument("--few", type=int, default=60, help="steps of a short fit (default: 60)")
    parser.add_argument("--work", type=Path, default=ROOT / "run" / "many", help="keeps volumes and results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the documents go (default: docs)")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the documents")
    return parser


def check_options(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what there is not."""
    refuse_unknown(parser, "case", options.cases, SNR)
    refuse_unknown(parser, "session", options.only or [], options.cases)
    refuse_unknown(parser, "way", options.ways, (*REFERENCES, *WAYS))
    if not 1 <= options.fitted <= len(options.ratios):
        parser.error(f"--fitted is {options.fitted}, and there are {len(options.ratios)} tomograms (--ratios)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the documents."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    check_options(options, parser)
    options.work = options.work.absolute()
    if options.report_only:
        write_documents(options, stored_settings(options.work, parser))
        return
    check_shape(options.shape, parser)
    settings = {
        name: getattr(options, name) for name in ("cases", "shape", "ratios", "fitted", "window", "steps", "few")
    }
    settings["snr"] = {case: SNR[case] for case in options.cases}
    check_settings(options.work, settings, "many")
    sessions = {case: Session(case, settings, options.work) for case in options.cases}
    try:
        for case in options.only or options.cases:
            for way in (name for name in (*REFERENCES, *WAYS) if name in options.ways):
                needs = WAYS.get(way, ("", ()))[1]
                given = {NET: case, OTHER: other_case(options.cases, case)}
                if OTHER in needs and given[OTHER] is None:
                    continue
                nets = {place: sessions[name].network() for place, name in given.items() if name and place in needs}
                for number in range(len(options.ratios)):
                    sessions[case].measure(way, number, nets)
    except NotRunError as error:
        sys.exit(f"many: {error}")
    write_documents(options, settings)


if __name__ == "__main__":
    main()
