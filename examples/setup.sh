# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# What examples/run and tests/run share: packages, LibTorch, the build. Sourced, never run.

pardl_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pardl_build=${PARDL_BUILD_DIR:-$pardl_root/build}
pardl_torch_version=${PARDL_TORCH_VERSION:-2.15.0}
# The build type and extra arguments of a developer or of CI go to CMake as they are.
read -r -a pardl_cmake_args <<<"${PARDL_CMAKE_ARGS:-}"

export CCACHE_SLOPPINESS=${CCACHE_SLOPPINESS:-pch_defines,time_macros,include_file_mtime,include_file_ctime}

# What every build of ours needs.
# shellcheck disable=SC2034  # read by the scripts that source this
pardl_base=(g++ cmake ninja-build ccache libgloo-dev zlib1g-dev libcurl4-openssl-dev libssl-dev libcli11-dev
  nlohmann-json3-dev libyaml-cpp-dev)

pardl_say() { printf '%s\n' "pardl: $*" >&2; }
pardl_die() { pardl_say "$*"; exit 1; }

# pardl_packages PACKAGE…: installs the Debian packages that are missing when root, else says the one line to type.
pardl_packages() {
  local missing=() package
  if ! command -v dpkg-query >/dev/null; then
    pardl_say "this is no Debian or Ubuntu; going on, and expecting to find: $*"
    return 0
  fi
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" != 0 ]; then
    pardl_die "packages are missing; type: sudo apt-get install -y --no-install-recommends ${missing[*]}"
  fi
  pardl_say "installing ${missing[*]}"
  local log=$pardl_build/apt.log
  mkdir -p "$pardl_build"
  if ! { apt-get install -y --no-install-recommends "${missing[@]}" || {
      apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; }; } \
      </dev/null >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    pardl_die "apt-get could not install ${missing[*]}; see $log"
  fi
}

# True where CMake will find a LibTorch without our help; the CMake code looks in the same places in the same order.
pardl_torch_is_there() {
  local argument
  for argument in "${pardl_cmake_args[@]}"; do
    case $argument in -DTorch_DIR=* | -DCMAKE_PREFIX_PATH=*) return 0 ;; esac
  done
  [ -n "${Torch_DIR:-}${CMAKE_PREFIX_PATH:-}" ] && return 0
  python3 - <<'PY' 2>/dev/null
import importlib.util, pathlib, re, sys
spec = importlib.util.find_spec("torch")
text = pathlib.Path(spec.submodule_search_locations[0], "version.py").read_text()
major, minor = map(int, re.search(r"__version__ = '(\d+)\.(\d+)", text).groups())
sys.exit(0 if (2, 11) <= (major, minor) <= (2, 15) else 1)
PY
}

# pardl_torch: leaves -DTorch_DIR=… in pardl_torch_args where a wheel had to be installed into the build folder, and the
# Python that holds torch in pardl_python (empty where LibTorch has none).
pardl_torch() {
  pardl_torch_args=()
  if [ -z "${PARDL_TORCH_VERSION:-}" ] && pardl_torch_is_there; then
    pardl_python=$(command -v python3 || true)
    python3 -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' 2>/dev/null || pardl_python=
    # As arguments, so that a tree configured for another LibTorch is configured again.
    [ -z "${Torch_DIR:-}" ] || pardl_torch_args+=("-DTorch_DIR=$Torch_DIR")
    [ -z "${CMAKE_PREFIX_PATH:-}" ] || pardl_torch_args+=("-DCMAKE_PREFIX_PATH=${CMAKE_PREFIX_PATH//:/;}")
    return 0
  fi
  local venv=$pardl_build/torch-$pardl_torch_version
  if [ ! -e "$venv/.complete" ]; then
    python3 -c 'import venv, ensurepip' 2>/dev/null || pardl_packages python3 python3-venv
    pardl_say "installing LibTorch $pardl_torch_version (the wheel torch, 5 GB with CUDA's libraries) into $venv"
    rm -rf "$venv"
    mkdir -p "$pardl_build"
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --no-input --disable-pip-version-check \
        "torch==$pardl_torch_version"; } </dev/null >"$venv.log" 2>&1; then
      tail -n 5 "$venv.log" >&2
      pardl_die "the wheel torch==$pardl_torch_version could not be installed; see $venv.log, or set Torch_DIR to a LibTorch of 2.11 to 2.15"
    fi
    touch "$venv/.complete"
  fi
  pardl_python=$venv/bin/python
  local site
  site=$("$pardl_python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
  pardl_torch_args=("-DTorch_DIR=$site/torch/share/cmake/Torch")
}

# pardl_configure FOLDER CMAKE-ARGUMENT…: runs CMake only when the folder is new or its arguments have changed.
pardl_configure() {
  local folder=$1 arguments log
  shift
  arguments="$* ${pardl_torch_args[*]} ${pardl_cmake_args[*]}"
  if [ -e "$folder/build.ninja" ] && [ "$(cat "$folder/.arguments" 2>/dev/null)" = "$arguments" ]; then return 0; fi
  mkdir -p "$folder"
  log=$folder/configure.log
  if ! cmake -S "$pardl_root" -B "$folder" -G Ninja "$@" "${pardl_torch_args[@]}" "${pardl_cmake_args[@]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    pardl_die "CMake failed; see $log"
  fi
  printf '%s\n' "$arguments" >"$folder/.arguments"
}

# pardl_make FOLDER TARGET…: quiet unless it fails; one job for each core and 2 GiB of memory, which a LibTorch unit takes.
pardl_make() {
  local folder=$1 jobs memory log
  shift
  jobs=$(nproc)
  memory=$(awk '/MemAvailable/ { print int($2 / 2097152) }' /proc/meminfo 2>/dev/null || echo "$jobs")
  [ "$memory" -lt "$jobs" ] && jobs=$memory
  [ "$jobs" -lt 1 ] && jobs=1
  log=$folder/build.log
  # Said once it turns out to take a while.
  (sleep 2 >/dev/null 2>&1 && pardl_say "building $* (the first time takes some minutes; log in $log)") &
  local teller=$!
  if ! cmake --build "$folder" -j "$jobs" --target "$@" >"$log" 2>&1; then
    kill $teller 2>/dev/null || true
    grep -E -A6 'error|FAILED' "$log" | head -n 60 >&2
    pardl_die "the build failed; see $log"
  fi
  kill $teller 2>/dev/null || true
}
