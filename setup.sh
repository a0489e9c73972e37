#!/usr/bin/env bash
# Finds or installs what gimli is built with, and writes what it found to build/environment.sh, which the other scripts
# source. Called again it only looks. Everything that comes from outside is named in the next lines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

torch=2.13.0  # installed by pip into .venv, when neither CMAKE_PREFIX_PATH nor the active Python leads to a libtorch
oldest_torch=2.6
oldest_cmake=3.25
required=(libarchive-dev libjpeg-dev libpng-dev zlib1g-dev
          libgtest-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libfmt-dev)
commands=("${CXX:-c++}:g++" cmake:cmake ninja:ninja-build)  # a command (or file), and the package that has it
optional=(ccache:ccache mold:mold gnuplot:gnuplot-nox       # faster builds; plots; benchmarks; data
          /usr/include/benchmark/benchmark.h:libbenchmark-dev
          /usr/share/datasets/fashion-mnist:dataset-fashion-mnist)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
at_least() { [[ $(printf '%s\n' "$@" | sort -V | head -n 1) == "$1" ]]; }  # at_least 3.25 3.30

# ---- libtorch: sets torch_dir, the folder of its TorchConfig.cmake ---------------------------------------------------

notes=()  # why something that was found is not taken
torch_dir=

take_torch() {  # take_torch FOLDER
  [[ -f $1/TorchConfig.cmake ]] || return 1
  local version lib=$1/../../../lib
  version=$(sed -n 's/^set(PACKAGE_VERSION "\([0-9.]*\).*/\1/p' "$1/TorchConfigVersion.cmake")
  if ! at_least "$oldest_torch" "$version"; then
    notes+=("passing over libtorch $version in $1: gimli needs $oldest_torch or newer")
  elif [[ -e $lib/libtorch_cuda.so && ! -d ${CUDA_HOME:-/usr/local/cuda} ]] && ! command -v nvcc >/dev/null; then
    notes+=("passing over libtorch in $1: it is built for CUDA, and linking with it takes the CUDA toolkit (CUDA_HOME)")
  else
    torch_dir=$(cd "$1" && pwd)
  fi
  [[ $torch_dir ]]
}

find_torch() {
  local prefix prefixes folder
  if [[ ${Torch_DIR:-} ]]; then
    take_torch "$Torch_DIR" || die "Torch_DIR=$Torch_DIR has no TorchConfig.cmake that gimli can use. ${notes[*]}"
    return
  fi
  IFS=':;' read -r -a prefixes <<< "${CMAKE_PREFIX_PATH:-}"
  for prefix in "${prefixes[@]}"; do
    for folder in "$prefix"/{,share/cmake/,lib/cmake/}Torch; do
      take_torch "$folder" && return
    done
  done
  prefix=$(python3 -c '
from importlib.util import find_spec  # importing torch would take seconds
torch = find_spec("torch")
print(torch.submodule_search_locations[0] if torch else "")' 2>/dev/null) || prefix=
  take_torch "$prefix/share/cmake/Torch" || find_own_torch
}

find_own_torch() {
  local folder
  for folder in .venv/lib/python3*/site-packages/torch/share/cmake/Torch; do
    take_torch "$folder" && return
  done
}

# ---- programs and packages -------------------------------------------------------------------------------------------

has_cmake() {
  command -v cmake >/dev/null && at_least "$oldest_cmake" "$(cmake --version | sed -n 's/^cmake version //p')"
}

has_venv() { python3 -c 'import ensurepip, venv' &>/dev/null; }

add_missing() {  # to the array missing, the packages of COMMAND:PACKAGE... whose command is not there
  local pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || [[ $pair == /* && -e ${pair%%:*} ]] || missing+=("${pair#*:}")
  done
}

as_root() { if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi; }
may_install() { command -v apt-get >/dev/null && as_root true 2>/dev/null; }

install_packages() {  # the package lists are fetched anew only when those at hand do not do
  local command=(env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "$@")
  say "installing Debian packages: $*"
  as_root "${command[@]}" &>build/setup.log </dev/null ||
    { as_root apt-get update -qq && as_root "${command[@]}"; } &>build/setup.log </dev/null ||
    { cat build/setup.log >&2; return 1; }
}

install_each() {  # what can be had of packages that do not come together
  local package
  for package in "$@"; do
    install_packages "$package" || say "going on without $package"
  done
}

pip_install() {  # into .venv, which is made when there is none
  local quiet=(--quiet)
  [[ -t 2 ]] && quiet=()
  .venv/bin/python -m pip --version &>/dev/null || python3 -m venv --clear .venv >&2 ||
    die "could not make the virtual environment .venv with $(command -v python3)."
  say "installing into .venv: $*"
  .venv/bin/python -m pip install "${quiet[@]}" --disable-pip-version-check "$@" >&2 </dev/null ||
    die "pip could not install $*; with network try again, or name an unpacked libtorch by CMAKE_PREFIX_PATH."
}

pip_has() {  # whether all these packages can come from pip instead
  local package
  for package in "$@"; do
    [[ $package == cmake || $package == ninja-build ]] || return 1
  done
  (($# == 0)) || has_venv
}

# ---- what is there, what is missing ----------------------------------------------------------------------------------

mkdir -p build
[[ -e build/environment.sh ]] && first_time=false || first_time=true
path=$PATH
if [[ -x .venv/bin/cmake || -x .venv/bin/ninja ]] && ! { has_cmake && command -v ninja >/dev/null; }; then
  PATH=$PWD/.venv/bin:$PATH
fi
find_torch || true

missing=()
if command -v dpkg-query >/dev/null; then
  # shellcheck disable=SC2016 # the ${...} are dpkg-query's
  installed=$(dpkg-query --show --showformat '${Package} ${db:Status-Status}\n' "${required[@]}" 2>/dev/null) || true
  for package in "${required[@]}"; do
    [[ $'\n'$installed$'\n' == *$'\n'"$package installed"$'\n'* ]] || missing+=("$package")
  done
  add_missing "${commands[@]}"
  [[ $torch_dir ]] || has_venv || missing+=(python3-venv)

  if ((${#missing[@]} == 0)) && ! $first_time; then
    :
  elif may_install; then
    ((${#missing[@]} == 0)) || install_packages "${missing[@]}" || die "apt-get could not install ${missing[*]}."
    missing=()
    add_missing "${optional[@]}"
    ((${#missing[@]} == 0)) || install_packages "${missing[@]}" || install_each "${missing[@]}"
  elif ! pip_has "${missing[@]}"; then
    add_missing "${optional[@]}"
    say "Debian packages are missing, and installing them takes root:"
    printf 'apt-get install %s\n' "${missing[*]}" >&2
    exit 2
  fi
elif $first_time; then
  say "this is not a Debian system: ${required[*]} under their names here are left to you"
fi

if [[ ! $torch_dir ]]; then
  pip_install "torch==$torch"
  find_own_torch || die "the libtorch that pip installed does not do. ${notes[*]}"
fi
if ! has_cmake; then
  PATH=$PWD/.venv/bin:$path
  pip_install "cmake>=$oldest_cmake"
fi
if ! command -v ninja >/dev/null; then
  PATH=$PWD/.venv/bin:$path
  pip_install ninja
fi

environment="# Written by setup.sh: what gimli is built with. Source it before calling cmake by hand."
environment+=$(printf '\nexport Torch_DIR=%q' "$torch_dir")
for name in CMAKE_PREFIX_PATH CXX; do
  [[ ! ${!name:-} ]] || environment+=$(printf '\nexport %s=%q' "$name" "${!name}")
done
[[ $PATH == "$path" ]] || environment+=$(printf "\nexport PATH=%q:\$PATH" "$PWD/.venv/bin")

if [[ $(cat build/environment.sh 2>/dev/null) != "$environment" ]]; then
  for note in "${notes[@]}"; do say "$note"; done
  say "building with the libtorch in $torch_dir"
  printf '%s\n' "$environment" >build/environment.sh
fi
