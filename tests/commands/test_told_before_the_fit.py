"""What is odd about the inputs is told in one sentence before the fit, or read right."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from phantoms import write_mrc
from sizes import suite_configs

import cryoshuffle
from cryoshuffle import api
from cryoshuffle.commands.batch import job_script
from cryoshuffle.commands.cli import main
from cryoshuffle.commands.lists import read_list
from cryoshuffle.commands.preflight import check_halves, check_inputs
from cryoshuffle.errors import FileError, InputError, SettingError, UserError, tell_last
from cryoshuffle.files.formats import is_ours, load_tomogram, save_tomogram
from cryoshuffle.files.intensity import StandardiseIntensity
from cryoshuffle.files.masks import load_mask, mask_weights
from cryoshuffle.files.mrc import read_header
from cryoshuffle.files.nifti import in_unit, length_unit
from cryoshuffle.files.volumes import refuse_no_file
from cryoshuffle.fit.sampling import FitRegiond
from cryoshuffle.noise.volumes import load_halves
from cryoshuffle.scores.evaluation import evaluate_files

SHAPE = (16, 21, 24)
VOLUME = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
MASK = np.zeros(SHAPE, np.uint8)
MASK[:, :9, 13:] = 1


def itk_nifti(path, volume, translation=(0.0, 0.0, 0.0), size=10.0):
    """As ITK writes an MRC: voxels (X, Y, Z), x and y against it."""
    affine = np.diag([-size, -size, size, 1.0])
    affine[:3, 3] = translation
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(volume.T), affine), path)
    return str(path)


@pytest.fixture
def raw(tmp_path):
    return str(write_mrc(tmp_path / "raw.mrc", VOLUME))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_that_itk_made_of_the_tomogram_is_not_mirrored(tmp_path, raw, suffix):
    """For the noise and for the windows of a fit; voxels are taken index by index, and that is told."""
    path = itk_nifti(tmp_path / f"mask{suffix}", MASK)
    with pytest.warns(UserWarning, match="x and y run against .*raw.mrc.* index by index"):
        mask = load_mask(path, tomogram=raw)
    assert np.array_equal(mask.numpy(), MASK)
    assert not np.array_equal(load_mask(path).numpy(), MASK)
    plain = str(write_mrc(tmp_path / "mask.mrc", MASK.astype(np.int8)))
    with pytest.warns(UserWarning, match="index by index"):
        weights = mask_weights(path, tomogram=raw)
    assert torch.equal(weights, mask_weights(plain))
    image = {"image": load_tomogram(raw)}
    with pytest.warns(UserWarning, match="index by index"):
        cropped = FitRegiond("image", path)(image)
    expected = FitRegiond("image", plain)(image)
    assert torch.equal(cropped["image"], expected["image"])
    assert torch.equal(cropped["weights"], expected["weights"])


def test_a_mask_whose_affine_agrees_is_followed_without_a_word(tmp_path, raw):
    """Mirrored in the file and at the same places; and both mirrored, whatever the origin."""
    translation = (10.0 * (SHAPE[2] - 1), 10.0 * (SHAPE[1] - 1), 0.0)
    mirrored = itk_nifti(tmp_path / "same.nii", MASK[:, ::-1, ::-1], translation)
    assert np.array_equal(load_mask(mirrored, tomogram=raw).numpy(), MASK)
    tomogram = itk_nifti(tmp_path / "tomogram.nii", VOLUME)
    both = load_mask(itk_nifti(tmp_path / "both.nii", MASK, (70.0, 0.0, 0.0)), tomogram=tomogram)
    assert np.array_equal(both.numpy(), MASK[:, ::-1, ::-1])
    assert np.array_equal(load_tomogram(tomogram).numpy()[0], VOLUME[:, ::-1, ::-1])


def test_an_mrc_mask_of_a_nifti_tomogram_is_turned_with_it(tmp_path):
    """The other way round."""
    tomogram = itk_nifti(tmp_path / "tomogram.nii", VOLUME)
    mask = str(write_mrc(tmp_path / "mask.mrc", MASK.astype(np.int8)))
    with pytest.warns(UserWarning, match="index by index"):
        assert np.array_equal(load_mask(mask, tomogram=tomogram).numpy(), MASK[:, ::-1, ::-1])


def test_one_axis_alone_is_told_and_a_crop_is_the_same(tmp_path, raw):
    """Also where the middle is not the same from both sides."""
    affine = np.diag([10.0, -10.0, 10.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(VOLUME.T), affine), tmp_path / "half.nii")
    with pytest.warns(UserWarning, match=": y runs against"):
        image = load_tomogram(tmp_path / "half.nii", largest=12, beside=raw)
    assert np.array_equal(image.numpy()[0], VOLUME)


def test_halves_and_truth_that_itk_made_are_not_mirrored(tmp_path, raw):
    """The halves of a tomogram, halves alone, and what a result is scored against."""
    second = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    even, odd = (itk_nifti(tmp_path / f"{n}.nii", v) for n, v in (("even", VOLUME), ("odd", second)))
    with pytest.warns(UserWarning, match="index by index"):
        first, other = load_halves((even, odd), tomogram=raw)
    for found, given in ((first, VOLUME), (other, second)):
        assert np.allclose(found.numpy(), (given - given.mean()) / given.std(), atol=1e-5)
    mixed = str(write_mrc(tmp_path / "odd.mrc", second))
    with pytest.warns(UserWarning, match="index by index"):
        _, other = load_halves((raw, itk_nifti(tmp_path / "odd2.nii", second)))
    assert torch.equal(other, load_halves((raw, mixed))[1])
    with pytest.warns(UserWarning, match="index by index"):
        report = evaluate_files(raw, truth=even)
    assert report["truth"]["correlation"] == pytest.approx(1)


def test_the_noise_in_an_empty_region_is_that_of_the_region(tmp_path, capsys):
    """By the command: a mask as MRC and as ITK's NIfTI say the same."""
    shape = (24, 48, 48)
    tomogram = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    empty = np.zeros(shape, np.int8)
    empty[:, :, :24] = 1
    tomogram[:, :, 24:] = 9 * np.repeat(tomogram[:, :, 24::4], 4, axis=2)
    path = str(write_mrc(tmp_path / "tomogram.mrc", tomogram))
    said = []
    for mask in (str(write_mrc(tmp_path / "empty.mrc", empty)), itk_nifti(tmp_path / "empty.nii", empty)):
        (tmp_path / "noise").mkdir(exist_ok=True)
        assert main(["noise", path, "--noise-mask", mask, "--report", str(tmp_path / "noise"), "--overwrite"]) == 0
        out, err = capsys.readouterr()
        said.append(out)
        assert ("index by index" in err) == mask.endswith(".nii")
    assert said[0] == said[1]
    assert "--blind voxel" in said[0]


def test_the_affine_of_an_mrc_is_told_by_its_header(tmp_path, raw):
    """As the reader has it."""
    assert np.array_equal(read_header(raw).affine, np.asarray(load_tomogram(raw, axcodes=None).affine))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("name", "harm", "words"), [
    ("cut.nii", cut, "is cut short"), ("cut.nii.gz", cut, "is cut short or damaged"),
    ("bit.nii.gz", flip_a_bit, "is cut short or damaged"),
])  # fmt: skip
def test_a_damaged_nifti_is_refused_in_one_sentence(tmp_path, raw, capsys, name, harm, words):
    """As tomogram, as mask and as half; a whole one is not (control)."""
    path = Path(itk_nifti(tmp_path / name, VOLUME))
    assert load_tomogram(path).shape[1:] == SHAPE
    harm(path)
    for arguments in (
        ["noise", str(path)],
        ["noise", raw, "--noise-mask", str(path)],
        ["noise", "--even", raw, "--odd", str(path)],
    ):
        assert main([*arguments, "--report", str(tmp_path)]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"cryoshuffle: {path}: {words}")
        assert said.endswith("copy it again")


@pytest.mark.parametrize("name", ["dicom", "x.mrc", "x.nii.gz"])
def test_a_folder_is_told_to_be_one(tmp_path, capsys, name):
    """Whatever its name is like."""
    (tmp_path / name).mkdir()
    with pytest.raises(FileError, match="is a folder"):
        refuse_no_file(tmp_path / name)
    for words in (["noise"], ["denoise"]):
        arguments = [*words, str(tmp_path / name), *([str(tmp_path / "out.mrc")] if words == ["denoise"] else [])]
        assert main(arguments) == 2
        assert f"{name}: is a folder" in capsys.readouterr().err


def test_links_that_lead_back_are_followed_once(tmp_path):
    """A link to the folder itself, to one above, to one beside and to nothing."""
    session = tmp_path / "session"
    (session / "b").mkdir(parents=True)
    for name in ("a.mrc", "b/c.mrc"):
        write_mrc(session / name, VOLUME)
    for link, target in (("again", session), ("b/up", tmp_path), ("0", session / "b"), ("self", session / "self")):
        os.symlink(target, session / link)
    items = read_list([str(session)], tmp_path / "out")
    assert [item.tomogram for item in items] == [str(session / "a.mrc"), str(session / "b" / "c.mrc")]


def slurm(path, *lines):
    path.write_text("\n".join(["jobs: 2", "cores: 2", *lines]))
    return str(path)


def test_slurm_is_told_what_the_file_says(tmp_path):
    """Not what YAML makes of it: a time of day is no number of seconds, and a leading 0 no octal."""
    pytest.importorskip("dask_jobqueue")
    lines = ("memory: 4GB", "walltime: 12:00:00", "account: 0123", "queue: 1e5", "job_extra_directives: --gres=gpu:1")
    script = job_script(slurm(tmp_path / "slurm.yaml", *lines))
    for line in ("-t 12:00:00", "-A 0123", "-p 1e5", "--gres=gpu:1"):
        assert f"#SBATCH {line}\n" in script


@pytest.mark.parametrize(
    ("line", "words"), [("interface: ib0", "ib0' is not a valid network interface"), ("memory: 4", "write 4GB")]
)
def test_slurm_settings_that_cannot_be_are_one_sentence(tmp_path, line, words):
    """The file and the value are named."""
    pytest.importorskip("dask_jobqueue")
    path = slurm(tmp_path / "slurm.yaml", *{"memory: 4GB", line} if "memory" not in line else [line])
    with pytest.raises(InputError, match=words) as caught:
        job_script(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def copies(monkeypatch):
    """The Python interface with a run that copies the tomogram; what the run was given, in turn."""
    given = []

    def run(options):
        given.append({name: value and load_tomogram(value) for name, value in vars(options).items() if name in files})
        save_tomogram(given[-1]["tomogram"], options.output)

    files = {"tomogram", "mask", "even", "odd", "empty"}
    monkeypatch.setattr(api, "run_denoise", run)
    return given


@pytest.mark.parametrize(("volume", "words"), [
    (VOLUME.tolist(), "give a NumPy array"), (None, "give a NumPy array"), (3.0, "give a NumPy array"),
    (np.zeros((0, 4, 4)), "has no voxels"), (torch.zeros(4, 4, 0), "has no voxels"),
    (np.zeros((2, 4, 4, 3)), "is not one volume"),
])  # fmt: skip
def test_what_is_no_array_of_a_volume_is_told_before_the_fit(copies, volume, words):
    """As tomogram, and as mask."""
    with pytest.raises(InputError, match=words):
        cryoshuffle.denoise(volume)
    if volume is not None:
        with pytest.raises(InputError, match=words):
            cryoshuffle.denoise(VOLUME, mask=volume)
    assert not copies


def test_tensors_of_any_kind_of_number_are_taken(copies):
    """Also of 16 bits, and ones that want a gradient."""
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int16):
        given = torch.from_numpy(VOLUME * 50).to(dtype)
        found = cryoshuffle.denoise(given)
        assert found.dtype == torch.float32
        assert torch.equal(found, given.float())
    assert torch.equal(cryoshuffle.denoise(torch.from_numpy(VOLUME).requires_grad_()), torch.from_numpy(VOLUME))


def test_a_channel_may_be_first_or_last(copies):
    """The result is of the same shape; of an image that tells its axes too."""
    for shape in ((1, *SHAPE), (*SHAPE, 1)):
        assert np.array_equal(cryoshuffle.denoise(VOLUME.reshape(shape)), VOLUME.reshape(shape))
        assert np.array_equal(copies[-1]["tomogram"].numpy()[0], VOLUME)
    turned = np.ascontiguousarray(VOLUME.T)
    for shape in (turned.shape, (1, *turned.shape), (*turned.shape, 1)):
        image = MetaTensor(torch.from_numpy(turned.reshape(shape)), affine=torch.diag(torch.tensor([8.0, 8, 8, 1])))
        found = cryoshuffle.denoise(image)
        assert np.array_equal(found.numpy(), turned.reshape(shape))
        assert torch.equal(found.affine, image.affine)
        assert np.array_equal(copies[-1]["tomogram"].numpy()[0], VOLUME)


def test_a_volume_in_memory_is_none_of_ours(copies, monkeypatch):
    """So the run does not say that it was denoised before."""
    seen = []
    monkeypatch.setattr(api, "run_denoise", lambda options: seen.append(is_ours(options.tomogram)) or 1 / 0)
    for volume in (VOLUME, MetaTensor(torch.from_numpy(VOLUME)[None], affine=torch.diag(torch.tensor([8.0, 8, 8, 1])))):
        with pytest.raises(ZeroDivisionError):
            cryoshuffle.denoise(volume)
    assert seen == [False, False]


def test_an_image_as_mask_keeps_which_way_its_axes_run(copies, tmp_path, monkeypatch):
    """It was read from what ITK made of the tomogram: beside the tomogram it is not mirrored."""
    found = []
    monkeypatch.setattr(
        api, "run_denoise", lambda options: found.append(load_mask(options.mask, tomogram=options.tomogram)) or 1 / 0
    )
    mask = load_tomogram(itk_nifti(tmp_path / "mask.nii", MASK), axcodes=None)
    with pytest.warns(UserWarning, match="index by index"), pytest.raises(ZeroDivisionError):
        cryoshuffle.denoise(VOLUME, mask=mask)
    assert np.array_equal(found[0].numpy(), MASK)


def old_header(path):
    """Without the MAP stamp, as before MRC2014."""
    with path.open("r+b") as file:
        file.seek(208)
        file.write(b"\0\0\0\0")


def other_file(path):
    path.write_bytes(b"no MRC at all " * 1000)


def unknown_mode(path):
    with path.open("r+b") as file:
        file.seek(12)
        file.write((99).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("harm", "helps"), [(old_header, True), (other_file, False), (unknown_mode, False), (cut, False)]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_permissive_is_advised_where_it_helps(tmp_path, harm, helps):
    """Where it is, the file can be read with it; where it is not, it cannot."""
    path = write_mrc(tmp_path / "in.mrc", VOLUME)
    harm(path)
    with pytest.raises(InputError) as caught:
        load_tomogram(path)
    assert ("add --permissive" in str(caught.value)) == helps
    if helps:
        assert np.array_equal(load_tomogram(path, permissive=True).numpy()[0], VOLUME)
    else:
        with pytest.raises(InputError):
            load_tomogram(path, permissive=True)


@pytest.mark.parametrize(("said", "expected"), [
    ("{tomogram}: 3 voxels are NaN: add --fill-nan to", "the array: 3 voxels are NaN: add fill_nan=True to"),
    ("{mask}: is of (2, 2) voxels, {tomogram} is not", "the array mask: is of (2, 2) voxels, the array is not"),
    ("{output}: needs 3 MiB in {folder} and", "the result: needs 3 MiB in the temporary folder and"),
    ("{folder}/run: add --resume or --overwrite", "the folder of the run: add resume=True or overwrite=True"),
    ("too little noise: add --no-refine", "too little noise: add refine=False"),
    ("no cuda: use --device cpu or a --window", 'no cuda: use device="cpu" or a window'),
    ("give --tilt-axis, or bin", "give tilt_axis, or bin"), ("--blind voxel measures", 'blind="voxel" measures'),
    ("name both with --even and --odd", "name both with even and odd"), ("see --checkpoint", "see --checkpoint"),
    ("in.mrc: is missing", "in.mrc: is missing"),
])  # fmt: skip
@pytest.mark.parametrize("kind", [InputError, FileError, SettingError])
def test_sentences_are_in_the_words_of_python(monkeypatch, said, expected, kind):
    """Keywords for options, and no file that only the run had."""

    def run(options):
        names = {name: value for name, value in vars(options).items() if name in {"tomogram", "mask", "output"}}
        raise kind(said.format(folder=Path(options.output).parent, **names))

    monkeypatch.setattr(api, "run_denoise", run)
    with pytest.raises(kind) as caught:
        cryoshuffle.denoise(VOLUME, mask=MASK)
    assert str(caught.value) == expected


@pytest.mark.parametrize(("options", "words"), [
    ({"effort": "quick"}, "effort: invalid choice: 'quick'"), ({"speed": 3}, "speed: cryoshuffle.denoise has no such"),
    ({"even": VOLUME}, "name both with even and odd"),
    ({"warm_start": "a.pt", "refine": False}, "warm_start is for the second network, and refine=False leaves it out"),
])  # fmt: skip
def test_options_that_cannot_be_are_named_as_keywords(options, words):
    """By the run itself; nothing of the parser's own is left."""
    with pytest.raises(UserError, match=words) as caught:
        cryoshuffle.denoise(VOLUME, **options)
    assert "--" not in str(caught.value)


def test_an_array_with_voxels_that_are_no_numbers_is_told_in_the_words_of_python():
    """By the run itself."""
    volume = VOLUME.copy()
    volume[3, 4, 5] = np.nan
    with pytest.raises(InputError, match=r"^the array: 1 voxels are NaN or Inf.*\(3, 4, 5\): add fill_nan=True"):
        cryoshuffle.denoise(volume, effort="fast")


def test_the_last_line_of_monai_s_command_line_is_the_sentence(tmp_path):
    """Below MONAI's traceback, which stays."""
    words = ["--config_file", str(suite_configs() / "train.json"), "--tomogram", "gone.mrc", "--blind", "voxel"]
    ran = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *words, "--output_dir", "run"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "cryoshuffle: gone.mrc: there is no such file, check the path"


def test_other_programs_keep_their_own_way_to_show_errors():
    """This one, for instance."""
    before = sys.excepthook
    tell_last()
    assert sys.excepthook is before


@pytest.mark.parametrize(("unit", "size", "angstrom"), [
    ("mm", 10.0, 10.0), ("mm", 0.5, 0.5), ("mm", 1e-6, 10.0), ("micron", 1e-3, 10.0), ("meter", 1e-9, 10.0),
    ("unknown", 7.0, 7.0), ("micron", 2.0, 20000.0),
])  # fmt: skip
@pytest.mark.parametrize("origin", [0.0, 100.0])
def test_units_of_nifti_convert_and_come_back(tmp_path, caplog, unit, size, angstrom, origin):
    """Å in memory and in an MRC; the unit and the numbers of the file in a NIfTI. Only an unknown one is told."""
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = origin * size
    image = nibabel.Nifti1Image(np.ascontiguousarray(VOLUME.T), affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "in.nii")
    assert length_unit(image) == (unit, pytest.approx(angstrom / size))
    volume = load_tomogram(tmp_path / "in.nii")
    assert np.array_equal(volume.numpy()[0], VOLUME)
    assert volume.pixdim.tolist() == pytest.approx([angstrom] * 3)
    assert volume.affine[:3, 3].tolist() == pytest.approx([origin * angstrom] * 3)
    for name in ("out.mrc", "out.nii.gz"):
        save_tomogram(volume, tmp_path / name)
        again = load_tomogram(tmp_path / name)
        assert np.array_equal(again.numpy(), volume.numpy())
        assert np.allclose(again.affine, volume.affine, rtol=1e-6)
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.header.get_xyzt_units()[0] == unit
    assert np.linalg.norm(written.affine[:3, :3], axis=0).tolist() == pytest.approx([size] * 3)
    check_inputs([str(tmp_path / "in.nii")], (1, 2, 1))
    assert ("names no unit of length, its voxels are taken for 7 Å" in caplog.text) == (unit == "unknown")


def test_a_result_of_an_mrc_is_a_nifti_of_millimetres(tmp_path, raw):
    """Number by number, as ITK and 3D Slicer have it, and so it is read again."""
    volume = load_tomogram(raw)
    save_tomogram(volume, tmp_path / "out.nii")
    header = nibabel.load(tmp_path / "out.nii").header
    assert header.get_xyzt_units()[0] == "mm"
    assert header.get_zooms() == (10.0, 10.0, 10.0)
    assert np.array_equal(load_tomogram(tmp_path / "out.nii").affine, volume.affine)


def test_an_affine_in_another_unit_has_all_its_lengths_scaled():
    """Rotation, spacing and origin; not what makes it an affine."""
    affine = np.arange(16.0).reshape(4, 4)
    affine[3] = 0, 0, 0, 1
    assert np.array_equal(in_unit(affine, 4)[:3], 4 * affine[:3])
    assert np.array_equal(in_unit(affine, 4)[3], affine[3])


def test_a_mask_in_another_unit_lies_where_its_tomogram_does(tmp_path, raw):
    """Mirrored in the file, in micrometres, at the same places: followed without a word."""
    affine = np.diag([-1e-3, -1e-3, 1e-3, 1.0])
    affine[:2, 3] = 1e-3 * (SHAPE[2] - 1), 1e-3 * (SHAPE[1] - 1)
    image = nibabel.Nifti1Image(np.ascontiguousarray(MASK[:, ::-1, ::-1].T), affine)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "mask.nii")
    assert np.array_equal(load_mask(str(tmp_path / "mask.nii"), tomogram=raw).numpy(), MASK)


@pytest.mark.parametrize(("place", "value"), [(0, -5), (0, 0), (12, 99)])
@pytest.mark.parametrize("permissive", [False, True])
def test_a_packed_file_whose_header_cannot_be_is_refused_without_unpacking_it(tmp_path, place, value, permissive):
    """A side below 1, a mode that there is not."""
    content = bytearray(write_mrc(tmp_path / "in.mrc", VOLUME).read_bytes())
    content[place : place + 4] = value.to_bytes(4, "little", signed=True)
    (tmp_path / "in.mrc.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(InputError, match=r"in\.mrc\.gz: is not"):
        read_header(tmp_path / "in.mrc.gz", permissive)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_image_again_and_again_is_told_before_the_fit(tmp_path, capsys, axis):
    """Along any axis; a volume of which one plane differs is taken (control)."""
    volume = np.repeat(VOLUME.take([5], axis), SHAPE[axis], axis)
    path = str(write_mrc(tmp_path / "in.mrc", volume))
    for words in (
        ["noise", path],
        ["denoise", path, str(tmp_path / "out.mrc"), "--effort", "fast", "--blind", "voxel"],
    ):
        assert main([*words, "--report", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"cryoshuffle: {path}: all its planes across {'zyx'[axis]} are equal")
    assert not (tmp_path / "out.mrc").exists()
    volume[-1, -1, -1] += 1
    StandardiseIntensity()(volume[None])


def test_a_constant_volume_is_told_before_the_fit(tmp_path, capsys):
    """As one."""
    path = str(write_mrc(tmp_path / "in.mrc", np.full(SHAPE, 3, np.float32)))
    assert main(["denoise", path, str(tmp_path / "out.mrc"), "--report", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"cryoshuffle: {path}: all voxels are 3")


def smooth(volume):
    """Neighbours averaged along each axis."""
    for axis in range(3):
        volume = (np.roll(volume, 1, axis) + 2 * volume + np.roll(volume, -1, axis)) / 4
    return volume.astype(np.float32)


def test_halves_of_another_tomogram_are_told_before_the_fit(tmp_path, raw, capsys):
    """With the number; the tomogram's own, whatever the grey scale or a filter, are taken (control)."""
    random = np.random.default_rng(3)
    noise = random.normal(size=SHAPE).astype(np.float32)
    own = [str(write_mrc(tmp_path / f"own{i}.mrc", VOLUME + sign * noise)) for i, sign in enumerate((1, -1))]
    other = [str(write_mrc(tmp_path / f"other{i}.mrc", random.normal(size=SHAPE).astype(np.float32))) for i in (0, 1)]
    check_halves(own, raw)
    for name, values in (("scaled", 1000 + 7 * VOLUME), ("filtered", smooth(VOLUME))):
        check_halves(own, str(write_mrc(tmp_path / f"{name}.mrc", values.astype(np.float32))))
    with pytest.raises(InputError, match=r"by -1\.00, halves do by more than 0\.3"):
        check_halves(own, str(write_mrc(tmp_path / "inverted.mrc", -VOLUME)))
    out = tmp_path / "out.mrc"
    command = ["denoise", raw, str(out), "--even", other[0], "--odd", other[1], "--blind", "plane", "--tilt-axis", "y"]
    assert main(command) == 2
    mean = (np.float64(load_tomogram(other[0])[0]) + load_tomogram(other[1])[0].numpy()) / 2
    number = np.corrcoef(mean.ravel(), VOLUME.ravel())[0, 1]
    assert f"correlates with {raw} by {number:.2f}, halves do by more than 0.3" in capsys.readouterr().err
    assert not out.exists()


def test_halves_that_itk_made_belong_to_their_tomogram(tmp_path, raw):
    """Mirrored by their headers, not by their voxels."""
    halves = [itk_nifti(tmp_path / f"{name}.nii", VOLUME * scale) for name, scale in (("even", 1), ("odd", 2))]
    with pytest.warns(UserWarning, match="index by index"):
        check_halves(halves, raw)
