# shellcheck shell=bash
# Sourced by run.sh and test.sh.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# build PRESET TARGET: sets up, configures where there is a reason to, and builds in build/PRESET. Says nothing but where
# it stands, unless it fails; all of it is in build/PRESET/build.log.
build() {
  local directory=$root/build/$1 target=$2
  local environment=$root/build/environment.sh configured=$root/build/$1/environment.sh log=$root/build/$1/build.log
  "$root/setup.sh"
  # shellcheck source=/dev/null
  source "$environment"

  mkdir -p "$directory"
  if ! cmp -s "$environment" "$configured" || [[ $root/CMakePresets.json -nt $configured ]]; then
    cmake --fresh -S "$root" --preset "$1" &>"$log" || fail "$log"
    cp "$environment" "$configured"
  fi
  cmake --build "$directory" --target "$target" --parallel "$(compile_jobs)" 2>&1 | show_progress "$log" || fail "$log"
}

# Each compilation takes up to 1 GB; two at once, unless CMAKE_BUILD_PARALLEL_LEVEL says otherwise.
compile_jobs() {
  local jobs memory
  jobs=$(nproc 2>/dev/null || echo 1)
  memory=$(awk '/^MemAvailable/ { print int($2 / (2 * 1024 * 1024)) }' /proc/meminfo 2>/dev/null || echo 1)
  ((jobs <= memory)) || jobs=$memory
  ((jobs <= 2)) || jobs=2
  ((jobs >= 1)) || jobs=1
  echo "${CMAKE_BUILD_PARALLEL_LEVEL:-$jobs}"
}

# Copies its input to a log; of ninja's "[12/60] ..." it shows one moving line on a terminal, and elsewhere one line
# every half minute.
show_progress() {
  local line shown=$SECONDS
  while IFS= read -r line; do
    printf '%s\n' "$line"
    if [[ $line != \[* ]]; then
      continue
    elif [[ -t 2 ]]; then
      printf '\r\033[K%.*s' "$(($(tput cols 2>/dev/null || echo 80) - 1))" "$line" >&2
    elif ((SECONDS - shown >= 30)); then
      printf 'building gimli: %s\n' "${line%%]*}]" >&2
      shown=$SECONDS
    fi
  done >"$1"
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

fail() {
  grep -v '^\[[0-9]*/[0-9]*\]' "$1" >&2 || true
  printf 'gimli could not be built; what was said is above and in %s\n' "$1" >&2
  exit 1
}
