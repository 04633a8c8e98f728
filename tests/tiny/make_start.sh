#!/usr/bin/env bash
# Makes the starting network of the tests, start.pt beside this file: the training of configs/start.yaml with the tiny
# network on the package's own molecules. Takes some minutes on two cores. It is for tests of plumbing: its quality
# proves nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
PYTHONPATH=tests .venv/bin/python -c "import sizes, pathlib, sys; sizes.write_tiny_configs(pathlib.Path(sys.argv[1]))" "$work/configs"
.venv/bin/python -m monai.bundle run --config_file "$work/configs/start.yaml" --output_dir "$work/run" \
    --templates bundle/cryoshuffle/simulation/templates --only "['1bxn','3cf3','3j9i','4v4r']" \
    --steps 1000 --window "[32,32,32]" --shape "[40,64,64]"
cp "$work/run/start.pt" tests/tiny/start.pt
