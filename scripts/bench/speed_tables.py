"""The section "Speed" of the benchmarks' page, from measured units: ratios, rates, shares, memory, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench.markdown import number, table, wrapped
from bench.subject import CHANNELS, MEMORY, PAPER_CHANNELS
from bench.turns import Row

BEGIN, END = "<!-- speed: begin, written by scripts/bench/speed.py -->", "<!-- speed: end -->"
NETWORKS = {
    "blind": "blind plane, stride 1,3,1",
    "open": "second stage, hides nothing",
    "voxel": "blind voxel, stride 2,2,2",
}
TASKS = {"training": "Training", "window": "Inference, one window", "volume": "Inference, a volume"}


class Results:
    """Measured units, and how their rows are found and told.

    Args:
        units: as they were kept.
        places: names of the columns.
    """

    def __init__(self, units: Sequence[Mapping[str, Any]], places: Sequence[str]) -> None:
        self.units, self.places = {unit["unit"]: unit for unit in units}, places

    def rows(self, unit: str, **wanted: Any) -> list[Row]:
        """The rows of a unit with some properties."""
        found = self.units.get(unit, {}).get("rows", [])
        return [row for row in found if all(row.get(name) == value for name, value in wanted.items())]

    def best(self, unit: str, **wanted: Any) -> float | str:
        """Work per second of the fastest such row; where there is none, why."""
        if unit not in self.units:
            return "not measured"
        if "reason" in self.units[unit]:
            return f"not run: {self.units[unit]['reason']}"
        rows = self.rows(unit, **wanted)
        done = [row["work"] / median(row["seconds"]) for row in rows if "reason" not in row]
        reasons = [f"not run: {row['reason']}" for row in rows if "reason" in row]
        return max(done) if done else (reasons or ["not measured"])[-1]

    def rate(self, unit: str, scale: float, **wanted: Any) -> str:
        """Work per second as text."""
        found = self.best(unit, **wanted)
        return found if isinstance(found, str) else number(found / scale)

    def ratio(self, ours: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]], place: str) -> str:
        """How many times faster ours is, as text."""
        a, b = (self.best(unit, **{"place": place, **wanted}) for unit, wanted in (ours, other))
        if isinstance(a, str) or isinstance(b, str):
            return a if isinstance(a, str) else str(b)
        return f"{a / b:.2f}"

    def share(self, precision: str, place: str) -> str:
        """What all convolutions of the body together reach of the matrix product, percent as text."""
        unit = f"matmul_{precision}"
        peak = self.best(unit, task="matmul", place=place)
        rows = self.rows(unit, task="convolution", place=place)
        reasons = [f"not run: {row['reason']}" for row in rows if "reason" in row]
        if isinstance(peak, str) or reasons:
            return peak if isinstance(peak, str) else reasons[-1]
        work = sum(row["count"] * row["work"] for row in rows)
        return f"{100 * work / sum(row['count'] * median(row['seconds']) for row in rows) / peak:.0f} %"


def ratio_table(results: Results, settings: Mapping[str, Any]) -> str:
    """The ratios that tell the most, a place a column."""
    ours = {"formulation": "sub-lattices", "channels": list(CHANNELS), "network": "blind", "memory": "contiguous"}
    plain = {**ours, "precision": "fp32"}
    compared = [
        (f"{what}: ours over {letter}, {how}", (f"paper_{task}", mine), (f"paper_{task}", theirs))
        for formulation, letter in (("plain", "(a)"), ("dilated", "(a) out of our layers"))
        for how, mine, width in (
            ("at equal width", plain, CHANNELS),
            ("both at the paper's widths", {**plain, "channels": list(PAPER_CHANNELS)}, PAPER_CHANNELS),
            ("at the paper's widths, ours at its own", plain, PAPER_CHANNELS),
        )
        for theirs in [{"formulation": formulation, "network": "blind", "channels": list(width)}]
        for task, what in (("training", "training"), ("window", "inference"))
    ]
    compared += [
        ("training: ours over (b) Noise2Void", ("n2v", {"task": "training"}), ("n2v", {"task": "n2v"})),
        ("inference: ours over (c) Topaz", ("topaz", {"task": "volume"}), ("topaz", {"task": "topaz"})),
    ]
    rows = [[label, *(results.ratio(a, b, place) for place in results.places)] for label, a, b in compared]
    fewest, *more = [place for place in results.places if "thread" in place] or [""]
    for task, what in (("training", "training"), ("window", "inference")) if more else ():
        here, there = (f"rates_{task}", plain), (f"rates_{task}", {**plain, "place": fewest})
        cells = [results.ratio(here, there, place) if place in more else "" for place in results.places]
        rows.append([f"{what}: over {fewest}", *cells])
    for precision in settings["precisions"]:
        shares = [results.share(precision, place) for place in results.places]
        rows.append([f"convolutions of the body: share of (d), {precision}", *shares])
    return table(["times as fast", *results.places], rows, 1)


def rate_table(results: Results, task: str, settings: Mapping[str, Any]) -> str:
    """Voxels per second of one task."""
    rows = []
    for network in ("blind", "open"):
        for precision in settings["precisions"]:
            for layout in MEMORY:
                wanted = {"network": network, "precision": precision, "memory": layout}
                cells = [results.rate(f"rates_{task}", 1e3, place=place, **wanted) for place in results.places]
                rows.append([NETWORKS[network], precision, f"`{layout}`", *cells])
    return table(["10³ voxels/s", "precision", "memory format", *results.places], rows, 3)


def paper_table(results: Results) -> str:
    """Ours and the dilated formulations."""
    rows = []
    for formulation, network, channels in (
        ("sub-lattices", "blind", CHANNELS),
        ("sub-lattices", "blind", PAPER_CHANNELS),
        *(
            (formulation, network, channels)
            for formulation in ("plain", "dilated")
            for network, channels in (("blind", CHANNELS), ("blind", PAPER_CHANNELS), ("voxel", PAPER_CHANNELS))
        ),
    ):
        wanted = {"formulation": formulation, "network": network, "channels": list(channels)}
        cells = [
            results.rate(f"paper_{task}", 1e3, place=place, **wanted)
            for task in ("training", "window")
            for place in results.places
        ]
        rows.append([f"{formulation}, {NETWORKS[network]}", ", ".join(map(str, channels)), *cells])
    head = [f"{task}, {place}" for task in ("training", "inference") for place in results.places]
    return table(["10³ voxels/s", "channels", *head], rows, 2)


def peer_table(results: Results) -> str:
    """Ours and the peers."""
    rows = [
        [label, *(results.rate(unit, 1e3, task=task, place=place) for place in results.places)]
        for label, unit, task in (
            ("training, cryoshuffle, blind network", "n2v", "training"),
            ("training, (b) Noise2Void 3-D (CAREamics)", "n2v", "n2v"),
            ("inference, cryoshuffle, second network", "topaz", "volume"),
            ("inference, (c) Topaz Denoise 3-D, `unet-3d-10a`", "topaz", "topaz"),
        )
        # Ours is measured beside a peer that is there, not by itself.
        if task == unit or results.rows(unit)
    ]
    return table(["10³ voxels/s", *results.places], rows, 1)


def matmul_table(results: Results, precision: str) -> str:
    """GFLOP/s of the matrix product and of each convolution, with its share."""
    unit = f"matmul_{precision}"
    peaks = {place: results.best(unit, task="matmul", place=place) for place in results.places}
    cells = [peak if isinstance(peak, str) else number(peak / 1e9) for peak in peaks.values()]
    rows = [["(d) product of matrices", "", "", "", *cells]]
    kinds = [row for row in results.rows(unit, task="convolution") if row["place"] == results.places[0]]
    for kind in kinds:
        same = {name: kind[name] for name in ("task", "channels", "shape", "kernel", "memory")}
        cells = []
        for place, peak in peaks.items():
            found = results.best(unit, place=place, **same)
            told = isinstance(found, str) or isinstance(peak, str)
            cells.append(str(found) if told else f"{number(found / 1e9)} ({100 * found / peak:.0f} %)")
        name = f"{kind['channels'][0]} → {kind['channels'][1]}, {' x '.join([str(kind['kernel'])] * 3)}"
        shape, layout = " x ".join(map(str, kind["shape"])), f"`{kind['memory']}`"
        rows.append([name, shape, layout, str(kind["count"]), *cells])
    return table([f"GFLOP/s, {precision}", "B x Z x Y x X", "memory format", "times", *results.places], rows, 3)


def middle(row: Row, name: str) -> str:
    """The median of what a row holds, as text."""
    values = [value for value in row.get(name, ()) if value is not None]
    if "reason" in row:
        return f"not run: {row['reason']}"
    return number(median(values)) if values else "not counted on this device"


def process_tables(results: Results) -> list[str]:
    """Memory and start."""
    label = {"training": "training step", "window": "inference, one window"}
    peaks = [
        [label[row["task"]], NETWORKS[row["network"]], row["precision"], row["place"], middle(row, "mib")]
        for row in results.rows("memory")
    ]
    label = {"help": "`cryoshuffle --help`", "first step": "`cryoshuffle denoise`, until its first step begins"}
    starts = [[label[row["task"]], row["place"], middle(row, "seconds")] for row in results.rows("start")]
    found = [table(["", "network", "precision", "place", "peak, MiB"], peaks, 4)] if peaks else []
    return [*found, *([table(["from the start of the program", "place", "s"], starts, 2)] if starts else [])]


def cube_table(results: Results) -> str:
    """Inference by size."""
    rows = []
    for row in (row for name in results.units if name.startswith("cube_") for row in results.rows(name)):
        cost = "" if "reason" in row else number(1e9 * median(row["seconds"]) / row["work"])
        told = [middle(row, "seconds"), cost, middle(row, "mib"), str(len(row["seconds"]))]
        rows.append([f"{row['shape'][0]}³", row["place"], row["precision"], *told])
    return table(["volume", "place", "precision", "s", "ns per voxel", "peak, MiB", "repetitions"], rows, 3)


def speed_section(units: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The section as Markdown, markers included.

    Args:
        units: as they were kept.
        settings: that they have in common.
    """
    results = Results(units, settings["places"])
    done = {unit["part"] for unit in units if "rows" in unit}
    sides = {name: " x ".join(map(str, settings[name])) for name in ("window", "inference_window", "volume")}
    parts = [
        BEGIN,
        "## Speed",
        f"Medians of {settings['repeats']} repetitions ({settings['process_repeats']} where a repetition is a program "
        f"or a cube), each of at least {settings['least_seconds']:g} s of wall time, without warm-up. What is "
        "compared was measured in turns. Each number of threads has a process of its own, which keeps the memory that "
        f"it frees, as a fit does. Ours has the values of the configs: channels {', '.join(map(str, CHANNELS))}, and "
        "unless stated precision fp32 and memory format `contiguous`. Raw numbers: "
        "[benchmarks_speed.json](../data/benchmarks_speed.json).",
        "### Ratios",
        ratio_table(results, settings),
        "(a) is the paper's formulation of the same network: dilated convolutions on the full grid, made of torch's "
        "layers or of ours, in the faster of two memory formats. Its depth and lattice are ours. From the same weights "
        "it gives the same output, by test. "
        f"(b), (c): see *Peers*. (d) is a product of matrices of {settings['matmul']} x {settings['matmul']} at the "
        "same precision and number of threads. The share is that of all convolutions together.",
    ]
    if "rates" in done:
        parts += [
            "### Voxels per second",
            f"Training: a whole optimiser step on a window of {sides['window']} in memory (forward, loss `unbiased`, "
            "backward, clipping, fused AdamW, averaged weights), batch 1. Inference, one window: "
            f"{sides['inference_window']} without halo. Inference, a volume: {sides['volume']} through "
            "`HaloWindowInferer`, which chooses window and pieces by the memory of the machine.",
        ]
        for task, title in TASKS.items():
            parts += [f"#### {title}", rate_table(results, task, settings)]
    if "paper" in done:
        parts += [
            "### The paper's formulation",
            "fp32. Dilated convolutions made of torch's layers (`plain`) and of ours (`dilated`), in the faster of two "
            "memory formats. Training and inference of one window as above.",
            paper_table(results),
        ]
    if any(unit["part"] == "peers" for unit in units):
        parts += [
            "### Peers",
            f"Programs with the same number of threads on a tomogram of {sides['volume']}. Noise2Void: the time of "
            f"{1 + settings['peer_epochs']} epochs minus the time of one, for the voxels of the patches in the steps "
            "between. So start and prediction do not count; the validation after each epoch does. Topaz: its default "
            "patches; its start, timed on a single patch, is subtracted. Ours: the same volume through "
            "`HaloWindowInferer`, without reading and writing.",
            peer_table(results),
        ]
    if "matmul" in done:
        parts += [
            "### Share of what the machine can do",
            f"The forward pass of each convolution of the blind network's body on a training window of "
            f"{sides['window']}, by itself, in the memory format of the fit. In brackets: the share of (d).",
            *(matmul_table(results, precision) for precision in settings["precisions"]),
        ]
    if "process" in done:
        parts += [
            "### Memory and start",
            "Peak: the largest resident memory of a process that does nothing else, minus its memory with libraries "
            "loaded and without network and data. On CUDA: the memory of the tensors. First step: the time until the "
            "progress bar of the fit appears, when the first step begins. Before that the command reads a tomogram of "
            f"{sides['volume']}, measures its noise, proves that the network is blind and scores it once.",
            *process_tables(results),
        ]
    if "cubes" in done:
        parts += [
            "### By size of the volume",
            "The second network on random volumes through `HaloWindowInferer`. Volumes of more than some millions of "
            "voxels are streamed within a quarter of the memory. Peak: as above, with volume and result. "
            "Repetitions end when their time is used up.",
            cube_table(results),
        ]
    parts += ["### Made with", made_with(units, settings), END]
    return wrapped(parts)


def made_with(units: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Machine, commit, versions and command, as a list."""

    def listed(name: str) -> str:
        return "; ".join(sorted({part for u in units for part in str(u.get(name, "")).split("; ") if part}))

    gpus = [place for place in settings["places"] if "thread" not in place]
    facts = {
        "machine": listed("machine"),
        "places": ", ".join(settings["places"]) + ("" if gpus else "; neither CUDA nor MPS was there, or asked for"),
        "commit": listed("commit"),
        "versions": listed("version"),
        "command": "`scripts/bench/speed.py --peers DIR`, after `scripts/bench/peers_setup DIR`",
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)
