#!/usr/bin/env bash
# Runs our MONAI Deploy application with the real SDK on an MRC and a NIfTI, and compares what it writes with
# `cryoshuffle apply`. Builds an environment of its own, some GB, once; needs no GPU. Ends with 0 and one line.
#   scripts/hosts/check_deploy.sh [FOLDER]     (default: .check/deploy)
set -euo pipefail
cd "$(dirname "$0")/../.."
work="$(realpath -m "${1:-.check/deploy}")"
mkdir -p "$work"
./scripts/setup
if [ ! -f "$work/.installed" ]; then
    "${PYTHON:-python3}" -m venv "$work/venv"
    (cat constraints.txt; echo monai==1.6.1) >"$work/constraints.txt"
    install=("$work/venv/bin/pip" install --quiet --constraint "$work/constraints.txt")
    "${install[@]}" torch
    # The SDK imports what it does not declare. MONAI comes last: both live in one folder.
    "${install[@]}" monai-deploy-app-sdk==4.0.0 'pydicom>=3' highdicom
    "${install[@]}" .
    touch "$work/.installed"
fi
# The package as it is now, whatever was installed with the environment.
"$work/venv/bin/pip" install --quiet --no-deps --force-reinstall .

rm -rf "$work/in" "$work/out" "$work/expected"
mkdir "$work/in" "$work/expected"
model=bundle/cryoshuffle/start.pt
cp tests/data/cylindra_13pf_MT.mrc "$work/in/tomogram.mrc"
.venv/bin/cryoshuffle apply "$model" "$work/in/tomogram.mrc" "$work/expected/mrc.mrc" --quiet >"$work/apply.log"
.venv/bin/cryoshuffle apply "$model" "$work/in/tomogram.mrc" "$work/in/volume.nii.gz" --quiet >>"$work/apply.log"
.venv/bin/cryoshuffle apply "$model" "$work/in/volume.nii.gz" "$work/expected/nifti.nii.gz" --quiet >>"$work/apply.log"
rm -rf "$work"/in/*_run
"$work/venv/bin/python" scripts/hosts/deploy_app/app.py -i "$work/in" -o "$work/out" -m "$model" >"$work/app.log" 2>&1 ||
    { echo "check_deploy: the application failed, see $work/app.log" >&2; exit 1; }
.venv/bin/python - "$work" <<'PY'
import io
import sys
from pathlib import Path

import mrcfile
import nibabel
import numpy as np

from cryoshuffle.files import load_tomogram

work = Path(sys.argv[1])
pairs = {"tomogram_denoised.mrc": "mrc.mrc", "volume_denoised.nii.gz": "nifti.nii.gz"}
assert {path.name for path in (work / "out").iterdir()} == set(pairs)
for name, other in pairs.items():
    found, expected = load_tomogram(work / "out" / name), load_tomogram(work / "expected" / other)
    assert np.array_equal(found.numpy(), expected.numpy()), name
    assert np.allclose(found.affine, expected.affine), name
assert mrcfile.validate(work / "out" / "tomogram_denoised.mrc", print_file=io.StringIO())
assert nibabel.load(work / "out" / "volume_denoised.nii.gz").get_data_dtype() == np.float32
print("check_deploy: MRC and NIfTI from the application have the voxels, float32, and the scale of `cryoshuffle apply`")
PY
