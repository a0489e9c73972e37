#!/usr/bin/env bash
# gimli beside its peers from PyPI on the same works, in one run: benchmarks/peers/run.sh [options of compare.py], as in
# benchmarks/peers/run.sh --works a --match "5 steps"; README.md has more. Makes a Python environment with the peers of
# requirements.txt in build/peers.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../cmake/build.sh"

build benchmark gimli_peer
here=$root/benchmarks/peers environment=$root/build/peers
if ! cmp -s "$here/requirements.txt" "$environment/installed.txt"; then
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$environment/installed.txt"
fi
exec "$environment/bin/python" "$here/compare.py" "$root/build/benchmark/benchmarks/gimli_peer" "$@"
