"""``copick process cryoshuffle``, which copick finds by the entry point ``copick.process.commands``.

copick and click, which comes with it, are imported when the command is asked for, so that this module can be without
them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from cryoshuffle.commands.batch import command_of, run_item
from cryoshuffle.commands.cli import build_parser
from cryoshuffle.commands.lists import Item
from cryoshuffle.commands.options import DenoiseCommand
from cryoshuffle.errors import InputError, UserError
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.volumes import affine_of
from cryoshuffle.signals import readers_may_go


def __getattr__(name: str) -> Any:
    if name == "process_command":
        return process_command_of_click()
    raise AttributeError(f"module 'cryoshuffle.commands.copick' has no attribute '{name}'")


@cache
def process_command_of_click() -> Any:
    """The command as click has it.

    Raises:
        ImportError: if click is not installed.
    """
    import click

    @click.command("cryoshuffle", context_settings={"ignore_unknown_options": True})
    @click.option("-c", "--config", required=True, envvar="COPICK_CONFIG", metavar="PATH", help="Of the project.")
    @click.option("-r", "--run-names", multiple=True, metavar="NAME", help="Run, may be repeated (default: all).")
    @click.option("--tomo-type", default="wbp", show_default=True, help="Of the tomograms to denoise.")
    @click.option("--output-type", default="denoised", show_default=True, help="Of the denoised tomograms.")
    @click.option("--voxel-size", type=float, metavar="Å", help="Of the tomograms to denoise (default: all).")
    @click.option("--overwrite", is_flag=True, help="Denoise those again that are denoised.")
    @click.argument("options", nargs=-1, type=click.UNPROCESSED)
    def process_command(options: tuple[str, ...], **named: Any) -> None:
        """Denoise tomograms, each from itself alone.

        OPTIONS are those of `cryoshuffle denoise`, --effort fast for instance.
        """
        try:
            with readers_may_go():
                failed = denoise_project(words=options, **named)
        except UserError as mistake:
            raise click.ClickException(str(mistake)) from mistake
        sys.exit(2 if failed else 0)

    return process_command


def denoise_project(
    config: str,
    run_names: Sequence[str] = (),
    tomo_type: str = "wbp",
    output_type: str = "denoised",
    voxel_size: float | None = None,
    overwrite: bool = False,
    words: Sequence[str] = (),
) -> int:
    """Denoise tomograms of a copick project into new tomograms of it; what is finished is skipped.

    Args:
        config: path of the project's configuration.
        run_names: of the runs; empty for all.
        tomo_type: of the tomograms to denoise.
        output_type: of the results, which have the voxel size of their tomogram.
        voxel_size: of the tomograms, Å; None for all.
        overwrite: denoise those again that are denoised.
        words: options of ``cryoshuffle denoise``, without those of one tomogram, a mask for instance.

    Returns:
        how many could not be denoised; each is told.

    Raises:
        UsageError: if an option is none of ``cryoshuffle denoise``.
        InputError: if there is no such tomogram in the project, the results would replace the tomograms, or an option
            goes with one tomogram.
    """
    _check_words(words)
    if tomo_type == output_type:
        raise InputError(f"{output_type}: is the type of the tomograms to denoise, choose another --output-type")
    import copick

    tomograms = list(_tomograms(copick.from_file(config), run_names, tomo_type, voxel_size))
    if not tomograms:
        raise InputError(f"{config}: has no tomogram of type {tomo_type} there, see copick browse")
    failed = 0
    for number, tomogram in enumerate(tomograms, 1):
        spacing = tomogram.voxel_spacing
        status = "skipped"
        if overwrite or not any(_is_finished(one) for one in spacing.get_tomograms(output_type)):
            words_of_failure = _denoise(tomogram, output_type, words)
            status = f"failed: {words_of_failure}" if words_of_failure else "done"
            failed += bool(words_of_failure)
        print(f"[{number}/{len(tomograms)}] {spacing.run.name}, {spacing.voxel_size} Å: {status}", flush=True)
    return failed


def _check_words(words: Sequence[str]) -> None:
    """Refuse what ``cryoshuffle denoise`` does not know, and what only one tomogram can have."""
    given = build_parser().parse_args(["denoise", *words, "--", "in.mrc", "out.mrc"])
    for name, one in DenoiseCommand.options().items():
        if one.one_tomogram and getattr(given, name, one.default) != one.default:
            raise InputError(f"{one.flag} goes with one tomogram, and a project has many: leave it out")


def _tomograms(root: Any, run_names: Sequence[str], tomo_type: str, voxel_size: float | None) -> Iterator[Any]:
    runs = list(root.runs)
    missing = sorted(set(run_names) - {run.name for run in runs})
    if missing:
        raise InputError(f"{missing[0]}: the project has no such run, see copick browse")
    for run in runs:
        if not run_names or run.name in run_names:
            for spacing in run.voxel_spacings:
                if voxel_size is None or abs(spacing.voxel_size - voxel_size) < 1e-3:
                    yield from spacing.get_tomograms(tomo_type)


def _is_finished(tomogram: Any) -> bool:
    """Whether a tomogram was written to its end: what describes its arrays is written last."""
    import zarr

    return "multiscales" in zarr.open(tomogram.zarr(), mode="r").attrs


def _denoise(tomogram: Any, output_type: str, words: Sequence[str]) -> str:
    """Denoise one tomogram into another of the same voxel size.

    Returns:
        the sentence it failed with; empty if it did not.
    """
    spacing = tomogram.voxel_spacing
    with tempfile.TemporaryDirectory(prefix="cryoshuffle_") as folder:
        item = Item("tomogram", str(Path(folder) / "noisy.mrc"), str(Path(folder) / "tomogram.mrc"))
        affine = affine_of([spacing.voxel_size] * 3, [0.0] * 3)
        volume = torch.from_numpy(tomogram.numpy()).float()
        save_tomogram(MetaTensor(volume[None], affine=torch.from_numpy(affine)), item.tomogram, is_result=False)
        outcome = run_item(vars(item), command_of(item, words))
        if not outcome.is_done:
            return outcome.words
        denoised = load_tomogram(item.output).as_tensor()[0].numpy()
    for one in spacing.get_tomograms(output_type):
        one.delete()
    spacing.refresh_tomograms()
    spacing.new_tomogram(output_type).from_numpy(denoised)
    return ""
