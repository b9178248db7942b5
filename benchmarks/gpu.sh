#!/usr/bin/env bash
# All checks that need a GPU, within ten minutes: parity, tests, steps, a training of 38 epochs.
#
#   bash benchmarks/gpu.sh > gpu.md        # needs requirements.txt and requirements-dev.txt
#   bash benchmarks/gpu.sh cpu > cpu.md    # the same with small sizes, to try the script
#
# If a part fails or exceeds its time, its last lines are printed and the next part runs.
# The exit status is 1 if any part failed.
set -uo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda}
failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

part() { # part NAME SECONDS COMMAND...: run a command with a time limit and print its output
  local name=$1 limit=$2 start=$SECONDS log=$work/output
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
  local status=$? outcome=done
  if [ $status -ne 0 ]; then
    outcome="FAILED (status $status)"
    failed=1
  fi
  printf '\n## %s: %s, %d s\n\n' "$name" "$outcome" $((SECONDS - start))
  grep -v -e '^$' -e Warning -e warnings.warn "$log" | tail -n 40
}

if [ "$device" = cpu ]; then
  tests="gpu and not slow"
  epochs=2
  small=(--cases aligned --batch-size 2 --seconds 0)
  variants=(plain fast bf16)
  compiled=(--variants plain fast)
else
  tests=gpu
  epochs=38
  small=()
  variants=(plain fast bf16)
  compiled=(--variants plain compiled)
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi

# The tolerances are those of the CPU; a message of a failed test has the difference.
part "Parity with the release" 85 \
  python -m pytest -n 0 --device "$device" -m "not slow" tests/parity
part "Precisions, resume, prediction" 130 \
  python -m pytest -n 0 --device "$device" -m "$tests" tests/test_gpu.py tests/parity
part "Training steps and evaluations" 100 \
  python -m benchmarks.step --device "$device" --seconds 2 --variants "${variants[@]}" "${small[@]}"
part "Training of $epochs epochs on the synthetic data, with checkpoints" 160 \
  python run.py -d synthetic --device "$device" --epochs "$epochs" --set early_stop="$epochs" \
  --no-figures --model-save-dir "$work/pt" --res-save-dir "$work/result" --log-dir "$work/log"
part "Compiled training step" 115 \
  python -m benchmarks.step --device "$device" --seconds 2 --cases aligned --modes train \
  "${compiled[@]}" "${small[@]}"
exit $failed
