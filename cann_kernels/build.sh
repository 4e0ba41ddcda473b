#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds libascend_dsv4_kernels.so on a machine with a CANN toolkit; see README.md.
#
#   ./build.sh [--way A|B] [--soc Ascend910B1] [--torch] [--build-dir DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

way=auto soc=Ascend910B1 torch=OFF build=build
while (($#)); do
  case "$1" in
    --torch) torch=ON; shift ;;
    --way | --soc | --build-dir)
      (($# > 1)) || { echo "build.sh: $1 needs a value" >&2; exit 2; }
      case "$1" in
        --way) way=$2 ;;
        --soc) soc=$2 ;;
        --build-dir) build=$2 ;;
      esac
      shift 2 ;;
    *) echo "build.sh: got $1, expected --way A|B, --soc NAME, --torch or --build-dir DIR" >&2; exit 2 ;;
  esac
done
case "$way" in
  auto | A | B) ;;
  *) echo "build.sh: --way $way, expected A (CANN 8.5 and later) or B (any CANN 8)" >&2; exit 2 ;;
esac

missing=()
cann=${ASCEND_HOME_PATH:-}
if [[ -z $cann ]]; then
  missing+=("ASCEND_HOME_PATH: not set; source the toolkit's set_env.sh, which sets it")
elif [[ ! -d $cann ]]; then
  missing+=("ASCEND_HOME_PATH: $cann is not a folder; source the set_env.sh of an installed toolkit")
elif ! command -v bisheng > /dev/null && [[ ! -x $cann/bin/bisheng && ! -x $cann/compiler/ccec_compiler/bin/bisheng ]]; then
  missing+=("bisheng: neither on PATH nor in $cann; install the toolkit with its compiler")
fi
command -v cmake > /dev/null || missing+=("cmake: not on PATH; 3.16 or later is needed")
if [[ $torch == ON ]]; then
  for module in torch torch_npu; do
    python3 -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" ||
      missing+=("$module: not installed for $(command -v python3), and --torch was given")
  done
fi
if ((${#missing[@]})); then
  echo "build.sh: cannot build the kernels for a device; missing:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  echo "Without a device, the twin runs them on this machine: ascend-dsv4 generate --ops ascendc-twin" >&2
  exit 1
fi

cmake -S . -B "$build" -DWAY="$way" -DSOC_VERSION="$soc" -DTORCH="$torch"
cmake --build "$build" --parallel
echo "built: $(find "$build" -name 'libascend_dsv4_*.so' | tr '\n' ' ')"
