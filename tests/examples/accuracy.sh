#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# With PARDL_NIGHTLY: the default run on two ranks learns Fashion-MNIST to 0.89 in three epochs. Minutes, so not daily.
set -euo pipefail
[ -n "${PARDL_NIGHTLY:-}" ] || { echo "skipped: PARDL_NIGHTLY is not set"; exit 77; }
[ -e /usr/share/datasets/fashion-mnist ] || { echo "skipped: no Fashion-MNIST (apt-get install dataset-fashion-mnist)"; exit 77; }
unset OMP_NUM_THREADS
folder=$(mktemp -d "${TMPDIR:-/tmp}/pardl-test-accuracy-XXXXXX")
trap 'rm -rf "$folder"' EXIT
"$1" --nproc 2 --data fashion-mnist --data-dir "$folder" --summary "$folder/summary.json"
python3 - "$folder/summary.json" <<'PYTHON'
import json, sys
epochs = json.load(open(sys.argv[1]))["epochs"]
accuracy = epochs[-1]["accuracy"]
if len(epochs) != 3 or accuracy < 0.89:
    sys.exit(f"FAILED: accuracy {accuracy} after {len(epochs)} epochs, not 0.89 after 3")
print(f"accuracy {accuracy}")
PYTHON
