#!/usr/bin/env bash
# Makes .venv and installs tandem into it, with the extras named as arguments (demo, dev).
# TORCH=auto|cpu|cuda chooses the build of PyTorch; auto takes the CPU build unless an NVIDIA driver is found.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
extras=${1:-demo}
choice=${TORCH:-auto}
stamp=.venv/.installed-$extras
wanted="$(cat pyproject.toml constraints.txt) $choice $extras"

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "tandem needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
  exit 1
fi
if [ "$choice" = auto ]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then choice=cuda; else choice=cpu; fi
fi

"$python" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check --quiet --quiet"
$pip install --upgrade 'pip>=24' 'setuptools>=77'

torch=$(grep -m1 '^torch==' constraints.txt)
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  echo "Installing PyTorch ($choice build) ..."
  case $choice in
    # The CPU build has a local version label; where the configured indexes lack it, uv knows where it is kept.
    cpu) $pip install "$torch+cpu" 2>/dev/null \
      || { $pip install uv && .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend=cpu "$torch"; } \
      || { echo "The CPU build of PyTorch is out of reach; installing the default build." >&2; $pip install "$torch"; } ;;
    cuda) $pip install "$torch" ;;
    *) echo "TORCH=$choice is not one of auto, cpu, cuda." >&2; exit 2 ;;
  esac
fi

echo "Installing tandem [$extras] ..."
$pip install --constraint constraints.txt --editable ".[$extras]"
echo "$wanted" > "$stamp"
