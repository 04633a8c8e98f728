"""Lists of tomograms: files, patterns, folders, text files and the star files of RELION 5.

Halves that AreTomo3, Warp or a simulation wrote beside a tomogram go with it.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files.formats import find_format, is_ours, split_suffix
from cryoshuffle.files.writing import written_whole
from cryoshuffle.simulation.tilt_series import simulation_files

logger = logging.getLogger("cryoshuffle")

_STAR_TOMOGRAM = "rlnTomoReconstructedTomogram"
_STAR_HALVES = ("rlnTomoReconstructedTomogramHalf1", "rlnTomoReconstructedTomogramHalf2")
_STAR_DENOISED = "rlnTomoReconstructedTomogramDenoised"
# First line of what a batch writes.
_STAR_MARK = "# Written by cryoshuffle batch."
_LISTS = (".txt", ".lst", ".list")
# AreTomo3 writes NAME_Vol.mrc and its halves side by side. Warp writes the halves under the same name to folders.
_ARETOMO = "_Vol"
_ARETOMO_HALVES = ("_EVN_Vol", "_ODD_Vol")
_WARP_HALVES = ("even", "odd")
# What is in the folder of a run, but for one that has not begun.
_RUN_MARKS = ("run.log", "provenance.json", "batch.json")
# Path of a tomogram, name it has in a list, paths of its halves.
_Named: TypeAlias = "tuple[str, str | None, str | None, str | None]"


@dataclass(frozen=True)
class Item:
    """One tomogram of a batch.

    Attributes:
        name: of the result, without suffix; no two of a batch share it.
        tomogram: path.
        output: path of the result.
        even: path of one half; None where there is none.
        odd: path of the other half; None where there is none.
        is_mean: whether the tomogram is the mean of the halves, which a run writes first and removes at its end.
    """

    name: str
    tomogram: str
    output: str
    even: str | None = None
    odd: str | None = None
    is_mean: bool = False

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.output).with_name(f"{self.name}_run")

    def state(self) -> dict[str, Any]:
        """What tells a tomogram from another one under its name, without reading it."""
        paths = [Path(one) for one in (self.even, self.odd) if one] if self.is_mean else [Path(self.tomogram)]
        return {"tomogram": self.tomogram, "state": file_states(paths)}


def file_states(paths: Sequence[Path]) -> list[list[int]]:
    """Size and time of volumes, which tell them from others under their names; none for those that are not there."""
    files = [file for path in paths for file in last_file(path)]
    return [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def last_file(path: Path) -> list[Path]:
    """The file of a volume, of a folder the one that is written last; none where there is none."""
    known = find_format(path)
    files = [path, *(path / mark for mark in (known.marks if known else ()))]
    return [file for file in files if file.is_file()][:1]


def _is_volume_folder(path: Path) -> bool:
    known = find_format(path)
    return known is not None and known.is_folder


def read_list(sources: Sequence[str], folder: str | os.PathLike[str]) -> list[Item]:
    """The tomograms that a list names.

    Args:
        sources: each a tomogram, a pattern such as ``'*.mrc'``, a text file with a tomogram a line (``.txt``), a
            RELION-5 ``tomograms.star``, or a folder, of which all OME-Zarr and MRC volumes in it and below are taken.
            Halves that are found (:func:`find_halves`) go with their tomogram. Results of ours are left out, unless a
            list in a file names them, and so is what a simulation left beside its tomogram; both is told.
        folder: that the results go to; not looked into where it lies in a folder of tomograms. Results are ``.zarr``
            for OME-Zarr, ``.nii.gz`` for NIfTI, else ``.mrc``.

    Raises:
        FileError: if a list or folder is missing or cannot be read, or nothing that is named is there.
        InputError: if nothing is named, two results would have one name, a name leads out of the folder, or a star
            file has no tomograms.
    """
    entries: list[_Named] = []
    paths: list[str] = []
    for source in sources:
        if source.lower().endswith(".star"):
            entries += _read_star(Path(source))
        else:
            named = _paths(source, Path(folder))
            paths += named if source.lower().endswith(_LISTS) else _without_results(named)
    if paths and not entries and not any(Path(path).exists() for path in paths):
        raise FileError(f"{paths[0]}: there is no such file or folder, check the path")
    entries += _with_halves(_without_truths(paths))
    if not entries:
        raise InputError(f"{', '.join(sources)}: names no tomogram, give files, a pattern, a text file or a star file")
    items: dict[str, Item] = {}
    # Workers may have another working directory.
    for path, name, even, odd in (
        (_absolute(path), name, _absolute(even), _absolute(odd)) for path, name, even, odd in entries
    ):
        assert path is not None
        stem, known = name or split_suffix(path)[0], find_format(path)
        if Path(stem).name != stem or stem == ".." or "\\" in stem:
            raise InputError(f"{path}: is named {stem} in its list, which leads out of {folder}: give it a plain name")
        kind = known.result_suffix if known else ".mrc"
        item = Item(stem, path, str(Path(folder).resolve() / f"{stem}{kind}"), even, odd)
        other = items.setdefault(stem, item)
        if other is not item:
            raise InputError(
                f"{path}: its result would have the name of {other.tomogram}'s, {stem}: make two batches of them"
            )
    return list(items.values())


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def find_halves(tomogram: str | os.PathLike[str]) -> tuple[str, str] | None:
    """The halves, even and odd, that AreTomo3, Warp or a simulation wrote with a tomogram; None where there are none.

    Args:
        tomogram: path. AreTomo3 names the halves of ``TS_Vol.mrc`` ``TS_EVN_Vol.mrc`` and ``TS_ODD_Vol.mrc``. Warp puts
            those of ``reconstruction/TS.mrc`` into ``reconstruction/even`` and ``reconstruction/odd``, under its name.
    """
    path = Path(tomogram)
    stem, suffix = split_suffix(path)
    choices = [tuple(path.parent / folder / path.name for folder in _WARP_HALVES)]
    if stem.endswith(_ARETOMO) and not stem.endswith(_ARETOMO_HALVES):
        series = stem.removesuffix(_ARETOMO)
        choices.append(tuple(path.with_name(f"{series}{half}{suffix}") for half in _ARETOMO_HALVES))
    simulated = simulation_files(path.parent)
    if path == simulated.get("tomogram"):
        choices.append((simulated["even"], simulated["odd"]))
    for even, odd in choices:
        if even.is_file() and odd.is_file():
            return str(even), str(odd)
    return None


def _without_results(paths: Sequence[str]) -> list[str]:
    """What of a list no run of ours wrote; the others are told."""
    results = [path for path in paths if Path(path).exists() and is_ours(path)]
    if results:
        logger.warning(
            "left out, as cryoshuffle wrote %s: %s; a text file may name them all the same",
            "it" if len(results) == 1 else "them", ", ".join(results),
        )  # fmt: skip
    return [path for path in paths if path not in results]


def _without_truths(paths: Sequence[str]) -> list[str]:
    """A list without what simulations left beside their tomograms, halves apart; that is told."""
    simulations = [
        files for path in paths if (files := simulation_files(Path(path).parent)).get("tomogram") == Path(path)
    ]
    others = {
        str(file) for files in simulations for name, file in files.items() if name not in {"tomogram", "even", "odd"}
    }
    dropped = [path for path in paths if path in others]
    if dropped:
        logger.warning("left out, as they belong to a simulated tomogram: %s", ", ".join(dropped))
    return [path for path in paths if path not in others]


def _with_halves(paths: Sequence[str]) -> list[_Named]:
    """Tomograms with their halves; a half whose tomogram is in the list too is no tomogram of its own."""
    halves = {path: find_halves(path) for path in paths}
    known = {os.path.realpath(half) for pair in halves.values() if pair for half in pair}
    return [(path, None, *(halves[path] or (None, None))) for path in paths if os.path.realpath(path) not in known]


def _paths(source: str, output: Path) -> list[str]:
    path = Path(source)
    if source.lower().endswith(_LISTS):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{path}: cannot be read as a list of tomograms, check the path") from error
        named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        return [str(path.parent / line) for line in named]
    if path.is_dir() and not _is_volume_folder(path):
        try:
            # A folder for results in the folder of the tomograms has none to denoise.
            return sorted(_volumes(path, {output.resolve()} - {path.resolve()}))
        except OSError as error:
            raise FileError(f"{path}: cannot be read as a folder ({error.strerror or error}), check it") from error
    if any(sign in source for sign in "*?[") and not path.exists():
        return sorted(glob.glob(source, recursive=True))
    return [source]


def _volumes(folder: Path, seen: set[Path]) -> Iterator[str]:
    """OME-Zarr and MRC volumes in a folder and below; what a Zarr or a run's folder holds is not looked into.

    Folders in ``seen`` are left out: links may lead back to one. A folder is taken by its own name before a link to it.
    """
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    for path in sorted(folder.iterdir(), key=lambda one: (one.is_symlink(), one.name)):
        if _is_volume_folder(path):
            yield str(path)
        elif path.is_dir():
            inside = _volumes(path, seen)
            if not _is_run(path):
                yield from inside
            elif next(inside, None) is not None:
                logger.warning(
                    "%s: left out, as a run of cryoshuffle wrote this folder: name it to denoise what is in it", path
                )
        elif split_suffix(path)[1] and not path.name.startswith("."):
            yield str(path)


def _is_run(path: Path) -> bool:
    """Whether a folder is that of a run, by its name and what lies in it."""
    return path.name.endswith("_run") and any((path / name).is_file() for name in _RUN_MARKS)


def _starfile() -> Any:
    try:
        import starfile
    except ImportError as error:
        raise InputError('star files need the package starfile: pip install "starfile>=0.5"') from error
    return starfile


def _star_blocks(path: Path) -> tuple[dict[str, Any], str]:
    """All blocks of a star file with their values as they stand there, and the name of the one with tomograms."""
    starfile = _starfile()
    try:
        first = starfile.read(path, always_dict=True)
        # Names of digits are names, and numbers keep all their decimals.
        names = [
            str(column) for block in first.values() for column in (block if isinstance(block, dict) else block.columns)
        ]
        blocks: dict[str, Any] = starfile.read(path, always_dict=True, parse_as_string=names)
    except FileNotFoundError as error:
        raise FileError(f"{path}: there is no such file, check the path") from error
    except Exception as error:
        raise InputError(f"{path}: is no star file that can be read ({error}), check it") from error
    for name, table in blocks.items():
        if "rlnTomoName" in getattr(table, "columns", ()):
            return blocks, name
    raise InputError(f"{path}: has no rlnTomoName in a table, give the tomograms.star of a Reconstruct job of RELION 5")


def _read_star(path: Path) -> list[_Named]:
    blocks, block = _star_blocks(path)
    table = blocks[block]
    if _STAR_TOMOGRAM not in table.columns:
        raise InputError(
            f"{path}: has no {_STAR_TOMOGRAM}, reconstruct the tomograms of all frames as well as the halves"
        )
    rows: list[_Named] = []
    for _, row in table.iterrows():
        given = [str(row[name]) if name in table.columns else "None" for name in _STAR_HALVES]
        even, odd = (None, None) if "None" in given else (_beside(path, half) for half in given)
        rows.append((_beside(path, row[_STAR_TOMOGRAM]), str(row["rlnTomoName"]), even, odd))
    return rows


def _beside(star: Path, name: Any) -> str:
    """A path of a star file: RELION counts them from the folder of the project, somewhere above the star file.

    Raises:
        InputError: if two folders above it have such a file.
    """
    path = Path(str(name))
    if path.is_absolute():
        return str(path)
    matches = {(folder / path).resolve() for folder in star.resolve().parents if (folder / path).exists()}
    if len(matches) > 1:
        raise InputError(
            f"{star}: {path} is there {len(matches)} times ({', '.join(map(str, sorted(matches)))}): name it whole"
        )
    return str(next(iter(matches), path))


def star_targets(sources: Sequence[str], folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Where a batch writes the star files that it was given, with the results in them.

    Args:
        sources: of :func:`read_list`.
        folder: of the results.

    Returns:
        paths by those of the sources, for the star files among them.

    Raises:
        FileError: if one would replace a source, or a file that no batch wrote.
        InputError: if two sources would have one path.
    """
    targets: dict[str, Path] = {}
    for source in (one for one in sources if one.lower().endswith(".star")):
        target = Path(folder) / Path(source).name
        other = next((one for one, path in targets.items() if path == target), None)
        if other is not None:
            raise InputError(f"{source}: would be written to {target}, and so would {other}: make two batches of them")
        if target.exists():
            if any(Path(one).exists() and target.samefile(one) for one in sources):
                raise FileError(f"{target}: is read by this batch, which would replace it: choose another folder")
            if not _is_our_star(target):
                raise FileError(f"{target}: exists and no batch wrote it, choose another folder")
        targets[source] = target
    return targets


def _is_our_star(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().strip() == _STAR_MARK
    except OSError:
        return False


def write_star(source: str, target: Path, results: Mapping[str, str]) -> None:
    """A RELION-5 ``tomograms.star`` with the results in its column for denoised tomograms; all else is as it was.

    Args:
        source: path of the star file that was read.
        target: path to write.
        results: paths by ``rlnTomoName``; the column is empty for others.

    Raises:
        FileError, InputError: if it cannot be read or written.
    """
    blocks, name = _star_blocks(Path(source))
    table = blocks[name]
    table[_STAR_DENOISED] = [results.get(str(tomogram), "None") for tomogram in table["rlnTomoName"]]
    with written_whole(target, ending=".star") as partial:
        _starfile().write(blocks, partial)
        partial.write_text(f"{_STAR_MARK}\n{partial.read_text(encoding='utf-8')}", encoding="utf-8")
