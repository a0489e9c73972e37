#!/usr/bin/env bash
# Builds the command gimli where needed, and runs it: ./run.sh [arguments of gimli]; ./run.sh --help lists them. Without
# arguments it trains MAML on sinusoids.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cmake/build.sh"

build release gimli_command
(($#)) || set -- train maml
exec "$root/build/release/app/gimli" "$@"
