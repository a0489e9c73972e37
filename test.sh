#!/usr/bin/env bash
# Builds everything and runs the tests: ./test.sh [arguments of ctest], as in ./test.sh -R optim. GIMLI_PRESET=asan or
# tsan ./test.sh runs them under a sanitizer.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cmake/build.sh"

preset=${GIMLI_PRESET:-release}
build "$preset" all
cd "$root"
exec ctest --preset "$preset" "$@"
