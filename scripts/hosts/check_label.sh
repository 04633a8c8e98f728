#!/usr/bin/env bash
# Starts the real MONAI Label server with our app and the released bundle, asks it for volumes over HTTP, and compares
# them with what `cryoshuffle apply` writes. Builds an environment of its own, some GB, once. Ends with 0 and one line.
#   scripts/hosts/check_label.sh [FOLDER]     (default: .check/label)
set -euo pipefail
cd "$(dirname "$0")/../.."
work="$(realpath -m "${1:-.check/label}")"
port="${PORT:-8124}"
mkdir -p "$work"
./scripts/setup
if [ ! -f "$work/.installed" ]; then
    "${PYTHON:-python3}" -m venv "$work/venv"
    # MONAI Label 0.8.5 needs pydicom 2; torchvision has to be that of the torch that is there.
    torch="$(sed -n 's/^torch==//p' constraints.txt)"
    printf 'torch==%s\ntorchvision==%s\nmonai==1.6.1\n' "$torch" "${TORCHVISION:-0.28.0}" >"$work/constraints.txt"
    # What pip builds itself is built with the same torch, not with the newest for CUDA.
    export PIP_CONSTRAINT="$work/constraints.txt" PIP_BUILD_CONSTRAINT="$work/constraints.txt"
    "$work/venv/bin/pip" install --quiet --constraint "$work/constraints.txt" torch
    "$work/venv/bin/pip" install --quiet --constraint "$work/constraints.txt" monailabel==0.8.5 monai \
        'pydicom<3' 'dicomweb-client<0.60' 'pynetdicom<3' mrcfile nibabel pytorch-ignite fire pyyaml tqdm pillow
    if ! "$work/venv/bin/python" -c 'import torchvision' 2>"$work/torchvision.log"; then
        # A torchvision built for CUDA knows operators that a torch for CPUs lacks; nothing here uses them.
        cat >"$("$work/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/sitecustomize.py" <<'PY'
import torch.library

_register_fake = torch.library.register_fake


def register_fake(op, *args, **kwargs):
    if isinstance(op, str) and op.startswith("torchvision::"):
        return lambda function: function
    return _register_fake(op, *args, **kwargs)


torch.library.register_fake = register_fake
PY
    fi
    unset PIP_CONSTRAINT PIP_BUILD_CONSTRAINT
    touch "$work/.installed"
fi

rm -rf "$work/app" "$work/studies" "$work/results"
mkdir -p "$work/studies" "$work/results"
cp -r scripts/hosts/label_app "$work/app"
.venv/bin/python scripts/bundle/make_bundle.py "$work/dist" >"$work/bundle.log"
mkdir "$work/app/model"
cp -r "$work"/dist/cryoshuffle-*/ "$work/app/model/cryoshuffle"
cp tests/data/cylindra_13pf_MT.mrc "$work/studies/tomogram.mrc"
model="$work/app/model/cryoshuffle/models/model.pt"
.venv/bin/cryoshuffle apply "$model" "$work/studies/tomogram.mrc" "$work/results/expected.mrc" --quiet >"$work/apply.log"
.venv/bin/python - "$work" <<'PY'
import sys

from cryoshuffle.files import load_tomogram, save_tomogram

work = sys.argv[1]
save_tomogram(load_tomogram(f"{work}/studies/tomogram.mrc"), f"{work}/studies/volume.nii.gz", is_result=False)
PY

export PATH="$work/venv/bin:$PATH" MONAI_LABEL_DATASTORE_FILE_EXT='["*.nii.gz","*.nii","*.mrc"]'
(cd "$work" && exec monailabel start_server --app "$work/app" --studies "$work/studies" --conf sam2 false \
    --host 127.0.0.1 --port "$port") >"$work/server.log" 2>&1 &
server=$!
trap 'pkill -P $server 2>/dev/null || true; kill $server 2>/dev/null || true' EXIT
for _ in $(seq 120); do
    curl --silent --fail "127.0.0.1:$port/info/" >"$work/info.json" && break
    kill -0 $server 2>/dev/null || { echo "check_label: the server did not start, see $work/server.log" >&2; exit 1; }
    sleep 1
done

ask() { # model, what is asked for, parameters, result
    curl --silent --show-error --fail --request POST "127.0.0.1:$port/infer/$1?output=image$2" \
        --form "params=$3" ${5:+--form "file=@$5"} --output "$work/results/$4" ||
        { echo "check_label: no $4, see $work/server.log" >&2; exit 1; }
}
ask cryoshuffle '&image=tomogram' '{"device":"cpu"}' stored.mrc
ask cryoshuffle '&image=volume' '{"device":"cpu"}' stored.nii.gz
ask cryoshuffle '' '{"device":"cpu"}' sent.nii.gz "$work/studies/volume.nii.gz"
ask cryoshuffle_fit '&image=tomogram' '{"device":"cpu","effort":"fast"}' fitted.mrc
.venv/bin/python - "$work" <<'PY'
import io
import json
import sys
from pathlib import Path

import mrcfile
import numpy as np

from cryoshuffle.files import load_tomogram

work = Path(sys.argv[1])
info = json.loads((work / "info.json").read_text())
assert {model["type"] for model in info["models"].values()} == {"others"}, info
expected, noisy = load_tomogram(work / "results" / "expected.mrc"), load_tomogram(work / "studies" / "tomogram.mrc")
for name in ("stored.mrc", "stored.nii.gz", "sent.nii.gz"):
    found = load_tomogram(work / "results" / name)
    assert np.array_equal(found.numpy(), expected.numpy()), name
    assert np.allclose(found.affine, expected.affine), name
fitted = load_tomogram(work / "results" / "fitted.mrc")
assert fitted.shape == noisy.shape
assert 0 < float(fitted.std()) < float(noisy.std())
for name in ("stored.mrc", "fitted.mrc"):
    assert mrcfile.validate(work / "results" / name, print_file=io.StringIO()), name
print(
    "check_label: MRC and NIfTI over HTTP have the voxels, the type and the voxel size of `cryoshuffle apply`; "
    "a volume that was fitted to came back denoised"
)
PY
