#!/usr/bin/env bash
# All that a machine with one GPU can tell, in ten minutes: parity, tests, steps, evaluations, 38 epochs.
#
#   bash benchmarks/gpu.sh > gpu.md          # needs requirements.txt and pytest, pytest-xdist; torch 2.11 to 2.13
#   bash benchmarks/gpu.sh cpu > cpu.md      # the same with small sizes, to see that it runs
#
# A part that fails or takes too long is named, with its last lines, and the next one runs. Exit status 1 if any failed.
set -uo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda}
failed=0

part() { # part NAME SECONDS COMMAND...: run it, print what it says
  local name=$1 limit=$2 start=$SECONDS log
  shift 2
  log=$(mktemp)
  timeout "$limit" "$@" >"$log" 2>&1
  local status=$? last=60
  if [ $status -ne 0 ]; then
    failed=1
    last=30
  fi
  printf '\n## %s: %s, %d s\n\n' "$name" "$([ $status -eq 0 ] && echo done || echo "FAILED (status $status)")" $((SECONDS - start))
  grep -v -e '^$' -e Warning -e warnings.warn "$log" | tail -n $last
  rm -f "$log"
}

if [ "$device" = cpu ]; then
  step=(--seconds 0.1 --datasets mosi --layouts aligned --bert no --batch-sizes 2)
  more=("${step[@]}")
  compiled=()
  epochs=(--epochs 2 --utterances 16 8 8)
  tests="gpu and not slow"
else
  step=(--seconds 1 --datasets mosi --batch-sizes 16)
  more=(--seconds 1 --datasets mosi --layouts aligned --batch-sizes 16)
  compiled=(--paths plain fast compiled "bf16 compiled")
  epochs=(--epochs 38 --seconds 75)
  tests=gpu
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi
python -c 'import sys, torch, transformers; print("Python", sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)'

# In single precision the tolerances are those of the CPU; where one does not hold, the message has the difference.
part "Parity with the release" 90 python -m pytest -n 0 --device "$device" -m "not slow" tests/parity
part "Training, precisions, resume, prediction" 150 python -m pytest -n 0 --device "$device" -m "$tests" \
  tests/test_gpu.py tests/parity/test_other_paths.py # the compiled one, which takes longest, last
part "Steps and evaluations" 140 python -m benchmarks.step --device "$device" "${step[@]}" --paths plain fast bf16
part "38 epochs of MOSI's shapes with BERT, with checkpoints" 110 \
  python -m benchmarks.epoch --device "$device" --bert --paths fast "${epochs[@]}"
part "Compiled steps" 110 python -m benchmarks.step --device "$device" "${more[@]}" --bert no --modes train "${compiled[@]}"
exit $failed
