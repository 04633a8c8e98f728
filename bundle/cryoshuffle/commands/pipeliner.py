"""A job of the CCP-EM pipeliner, which finds it by the entry point ``ccpem_pipeliner.jobs``.

The pipeliner is imported when the job is asked for, so that this module can be without it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cryoshuffle.commands.options import DenoiseCommand

JOB_TYPE = "cryoshuffle.denoise.tomogram"
RESULT_NAME = "denoised.mrc"
_AUTO = "auto"
# Options of the command that the job asks for.
_ASKED = ("tomogram", "even", "odd", "effort", "tilt_axis")
_TITLE = "J-Invariant Volume Shuffle for Self-Supervised Cryo-Electron Tomogram Denoising on Single Noisy Volume"


def __getattr__(name: str) -> Any:
    if name == "DenoiseJob":
        return denoise_job()
    raise AttributeError(f"module 'cryoshuffle.commands.pipeliner' has no attribute '{name}'")


@cache
def denoise_job() -> type[Any]:
    """The class of the job: one tomogram, with its halves if there are any, to one denoised tomogram.

    Raises:
        ImportError: if the pipeliner is not installed.
    """
    from pipeliner.external_program_utils import ExternalProgram
    from pipeliner.nodes import NODE_TOMOGRAM
    from pipeliner.pipeliner_job import PipelinerCommand, PipelinerJob, Ref

    class DenoiseJob(PipelinerJob):  # type: ignore[misc]
        """``cryoshuffle denoise`` as a job of the CCP-EM pipeliner."""

        PROCESS_NAME = JOB_TYPE
        OUT_DIR = "Cryoshuffle"
        CATEGORY_LABEL = "Denoise"

        def __init__(self) -> None:
            super().__init__()
            self.is_tomo = True
            self.jobinfo.display_name = "cryoshuffle"
            self.jobinfo.job_author = "the cryoshuffle developers"
            self.jobinfo.short_desc = "Denoise a tomogram from itself"
            self.jobinfo.long_desc = "Denoise one tomogram from that tomogram alone, without training data."
            self.jobinfo.programs = [ExternalProgram("cryoshuffle", vers_com=["cryoshuffle", "--version"])]
            self.jobinfo.references = [
                Ref(
                    authors=["Liu", "Kassab", "Xu", "Ho"],
                    title=_TITLE,
                    year="2024",
                    journal="arXiv 2411.15248",
                )
            ]
            self.joboptions.update(_job_options())
            self.get_runtab_options(addtl_args=True)

        def create_output_nodes(self) -> None:
            """Tell the pipeliner of the denoised tomogram."""
            self.add_output_node(RESULT_NAME, NODE_TOMOGRAM, ["cryoshuffle", "denoised"])

        def get_commands(self) -> list[Any]:
            """The command that the pipeliner runs in the folder of the project."""
            given = {name: self.joboptions[name].get_string() for name in _ASKED}
            tomogram = given.pop("tomogram")
            words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value not in ("", _AUTO)]
            more = [str(word) for word in self.parse_additional_args()]
            files = ["--", tomogram, f"{self.output_dir}{RESULT_NAME}"]
            return [PipelinerCommand(["cryoshuffle", "denoise", *words, "--quiet", *more, *files])]

    return DenoiseJob


def _job_options() -> dict[str, Any]:
    """What the job asks for, by name."""
    from pipeliner.job_options import EXT_MRC_MAP, FileDescription, InputNodeJobOption, MultipleChoiceJobOption
    from pipeliner.nodes import NODE_TOMOGRAM

    ours = DenoiseCommand.options()
    labels = {"tomogram": "Tomogram", "even": "Even half (optional)", "odd": "Odd half (optional)"}
    options = {
        name: InputNodeJobOption(
            label=label,
            node_type=NODE_TOMOGRAM,
            pattern=FileDescription("Tomogram", EXT_MRC_MAP),
            help_text=ours[name].help,
            is_required=name == "tomogram",
        )
        for name, label in labels.items()
    }
    for name, label, more in (("effort", "Effort", ()), ("tilt_axis", "Tilt axis", (_AUTO,))):
        options[name] = MultipleChoiceJobOption(
            label=label,
            choices=[*more, *ours[name].choices],
            default_value=ours[name].default or _AUTO,
            help_text=ours[name].help,
        )
    return options
