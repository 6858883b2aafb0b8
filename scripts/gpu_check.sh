#!/bin/sh
# Everything that is read on a GPU, in one command of at most eight minutes: tests with device rows cuda, a training of the bundled model,
# bench_step for the goals of docs/cuda.md, compute-sanitizer over the operations' tests, a profile. A part that fails does not stop the others.
# One JSON of results: gpu-check.json in --output, else in $OUT, else here; the texts of the parts lie in gpu-check.logs beside it.
#   gpu_check.sh [--build FOLDER] [--output FOLDER] [--seconds 480] [--device cuda|cpu]
# From an unpacked bundle (bin/gpu-check) it takes the bundle; --build names a build folder of the sources.
# --device cpu is a rehearsal of this script on small shapes: it needs no GPU and proves nothing about one.
# Exit code: 0 all passed and all goals reached; 1 a part failed; 2 no GPU, nothing measured; 3 all passed, but a goal was not reached.
set -u
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '/^set /d'; }

build= output=${OUT:-.} seconds=480 device=cuda
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2 ;;
    --output) output=$2 ;;
    --seconds) seconds=$2 ;;
    --device) device=$2 ;;
    *) usage; [ "$1" = --help ] && exit 0 || exit 64 ;;
  esac
  shift 2 || exit 64
done

here=$(cd "$(dirname "$0")/.." && pwd)
if [ -n "$build" ]; then
  program=$build/tessera step=$build/bench/step mpiexec=$(command -v mpiexec.hydra) shapes=$here/bench/shapes
  test_program() { for f in "$build/$1" "$build/tests/$1" "$build/bench/$1"; do [ ! -x "$f" ] || echo "$f"; done | head -n 1; }
else
  program=$here/bin/tessera step=$here/bin/bench_step mpiexec=$here/bin/mpiexec.hydra shapes=$here/shapes
  test_program() { [ ! -x "$here/tests/$1" ] || echo "$here/tests/$1"; }
fi
[ -x "$program" ] || { echo "gpu-check: $program is not there; --build FOLDER, or bin/gpu-check of an unpacked bundle" >&2; exit 64; }
# An older glibc with a compiler's library as new as ours (Ubuntu 22.04): README.md of the bundle.
if [ -z "$build" ] && "$program" env 2>&1 | grep -q 'GLIBC_.* not found'; then
  mkdir -p "$here/not_used" && mv "$here/lib/libstdc++.so.6" "$here/lib/libgcc_s.so.1" "$here/not_used/"
fi
export TESSERA_PROGRAM="$program" TESSERA_MPIEXEC="$mpiexec" TESSERA_SHAPES="$shapes"
[ ! -d /usr/local/cuda/lib64 ] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/cuda/lib64"

logs=$output/gpu-check.logs
json=$output/gpu-check.json
mkdir -p "$logs" || exit 64
began=$(date +%s)
end=$((began + seconds))
failed=0 missed=0

quoted() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | sed 's/[\\"]/\\&/g')"; }
say() { printf '%s\n' "$*"; }

# limited SECONDS LOG COMMAND...: sets code and took; code is 124 or 137 when the time was over, 125 when none was left to begin.
limited() {
  most=$1 log=$2
  shift 2
  left=$((end - $(date +%s)))
  [ "$most" -le "$left" ] || most=$left
  took=0 code=125
  if [ "$most" -lt 3 ]; then
    echo "no time left" >"$log"
    return
  fi
  start=$(date +%s)
  timeout -k 5 "$most" "$@" >"$log" 2>&1
  code=$?
  took=$(($(date +%s) - start))
}

# --- the GPU ----------------------------------------------------------------------------------------------------------------------------
gpu= driver= limit_tflops=0 limit_tbs=0
find_gpu() {
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
  else
    gpu=$(sed -n 's/^Model:[ \t]*//p' /proc/driver/nvidia/gpus/*/information 2>/dev/null | head -n 1)
    driver=$(sed -n 's/.*Kernel Module[^0-9]*\([0-9.]*\).*/\1/p' /proc/driver/nvidia/version 2>/dev/null | head -n 1)
  fi
}
find_gpu
# Dense bf16 products and memory; the H200's were measured, the others are of data sheets.
case $gpu in
  *H200*) limit_tflops=790 limit_tbs=4.3 ;;
  *H100*) limit_tflops=790 limit_tbs=3.0 ;;
  *A100*) limit_tflops=312 limit_tbs=2.0 ;;
  *3090*) limit_tflops=71 limit_tbs=0.936 ;;
  *4090*) limit_tflops=165 limit_tbs=1.008 ;;
esac

write_json() {
  {
    printf '{"date": "%s", "machine": %s, "device": "%s", ' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(quoted "$(uname -sr)")" "$device"
    [ -n "$gpu" ] && printf '"gpu": %s, "driver": %s, ' "$(quoted "$gpu")" "$(quoted "$driver")" || printf '"gpu": null, "driver": null, '
    printf '"limit_tflops": %s, "limit_tbs": %s, "version": %s, ' "$limit_tflops" "$limit_tbs" \
      "$(quoted "$("$program" env 2>/dev/null | awk '/^(tessera|commit) /{printf "%s ", $2}')")"
    printf '"gpu_constant": %s, ' "$(quoted "$("$program" env 2>/dev/null | sed -n 's/^gpu constant *//p')")"
    printf '"seconds": %s, "exit_code": %s,\n' "$(($(date +%s) - began))" "$1"
    printf ' "tests": [%s],\n "training": %s,\n "steps": [%s],\n "sanitizer": [%s],\n "profile": %s}\n' \
      "$tests_json" "$training_json" "$steps_json" "$sanitizer_json" "$profile_json"
  } >"$json"
}
tests_json= training_json=null steps_json= sanitizer_json= profile_json=null
append() { [ -n "$1" ] && printf '%s,\n  %s' "$1" "$2" || printf '\n  %s' "$2"; }

if [ "$device" = cuda ] && [ -z "$gpu" ]; then
  write_json 2
  say "no GPU: nothing measured ($json)"
  exit 2
fi

# --- tests ------------------------------------------------------------------------------------------------------------------------------
# The tests of this device, by their names or by the parameters that GoogleTest lists: a filter, and how many they are.
select_tests() {
  rows=$("$1" --gtest_list_tests 2>/dev/null | awk -v device="$device" '
    /^[^ ]/ { suite = $1; next }
    device == "cuda" && /cuda_host/ { next }
    $0 ~ device || (device == "cuda" && suite ~ /Cuda|Nccl/ && suite !~ /Host/) { printf "%s%s:", suite, $1 }')
  selected=$(printf '%s' "$rows" | tr -cd ':' | wc -c)
}
count() { grep -c "$1" "$2" || true; }

# Of a GoogleTest text: sets passed, skipped, faults, unfinished, names.
read_tests() {
  passed=$(count '^\[       OK \] ' "$1") skipped=$(count '^\[  SKIPPED \] .* ms)$' "$1") faults=$(count '^\[  FAILED  \] .* ms)$' "$1")
  unfinished=$(($(count '^\[ RUN      \] ' "$1") - passed - skipped - faults))
  names=$(sed -n 's/^\[  FAILED  \] \([^ ,]*\).* ms)$/\1/p' "$1" | head -n 20 | tr '\n' ' ')
  [ "$unfinished" -le 0 ] || names="$names$(sed -n 's/^\[ RUN      \] //p' "$1" | tail -n 1) (ended the program)"
}

run_tests() {
  name=$1 most=$2
  tests=$(test_program "$name")
  if [ -z "$tests" ]; then
    failed=1
    tests_json=$(append "$tests_json" "{\"name\": \"$name\", \"error\": \"not in this bundle\"}")
    say "tests    $name: not in this bundle"
    return
  fi
  select_tests "$tests"
  limited "$most" "$logs/$name.txt" "$tests" "--gtest_filter=${rows:-none}" --gtest_color=no
  read_tests "$logs/$name.txt"
  [ "$code" = 0 ] && [ "$passed" -gt 0 ] && [ "$faults" = 0 ] || failed=1
  tests_json=$(append "$tests_json" "{\"name\": \"$name\", \"selected\": $selected, \"passed\": $passed, \"failed\": $faults, \
\"skipped\": $skipped, \"unfinished\": $unfinished, \"exit_code\": $code, \"seconds\": $took, \"failed_names\": $(quoted "$names")}")
  say "tests    $name: $passed of $selected passed, $faults failed, $skipped skipped, $unfinished unfinished, exit code $code, $took s"
}

# --- the program: the bundled model on this device and on the CPU -----------------------------------------------------------------------
loss_at() { awk -v step="$2" 'NR == step { match($0, "\"loss\":[^,}]*"); print substr($0, RSTART + 7, RLENGTH - 7) }' "$1" 2>/dev/null; }

train_tiny() {
  for on in "$device" cpu; do
    rm -rf "$logs/tiny-$on"
    limited 40 "$logs/tiny-$on.txt" "$program" train --model "$here/examples/tiny" --dataset "$here/examples/tiny/tasks.json" \
      --output_dir "$logs/tiny-$on" --batch_size 4 --lr 1e-3 --max_steps 20 --device "$on"
    [ "$on" != "$device" ] || device_code=$code
  done
  first=$(loss_at "$logs/tiny-$device/train.jsonl" 1) last=$(loss_at "$logs/tiny-$device/train.jsonl" 20)
  cpu_last=$(loss_at "$logs/tiny-cpu/train.jsonl" 20)
  # Rounding differs between devices: twenty steps drift apart by much less than this.
  close=$(awk -v a="${last:-0}" -v b="${cpu_last:-1}" 'BEGIN { d = a - b; if (d < 0) d = -d; print ((a > 0 && d <= 0.03 * b) ? "true" : "false") }')
  [ "$device_code" = 0 ] && [ "$close" = true ] || failed=1
  training_json="{\"exit_code\": $device_code, \"first_loss\": ${first:-null}, \"last_loss\": ${last:-null}, \"last_loss_cpu\": ${cpu_last:-null}, \"close\": $close}"
  say "training exit code $device_code, loss ${first:-?} to ${last:-?} in 20 steps (on the CPU ${cpu_last:-?})"
}

# --- steps ------------------------------------------------------------------------------------------------------------------------------
# run_step NAME GOAL SECONDS OPTIONS...
run_step() {
  name=$1 goal=$2 most=$3
  shift 3
  [ "$device" = cuda ] || goal=0
  limited "$most" "$logs/step-$name.txt" "$step" "$@" --device "$device" --limit_tflops "$limit_tflops" --limit_tbs "$limit_tbs" --json
  line=$(grep '^{' "$logs/step-$name.txt" | tail -n 1)
  number() { printf '%s' "$line" | sed -n "s/.*\"$1\": *\([0-9.e+]*\).*/\1/p"; }
  rate=$(number tokens_per_second)
  # What was held, allocations and CUDA's own, is no more than was planned.
  within=$(awk -v peak="$(number peak_device_mb)" -v own="$(number gpu_constant_mb)" -v planned="$(number planned_device_mb)" \
    'BEGIN { print (planned > 0 && own > 0 ? (peak + own <= planned + 0 ? "true" : "false") : "null") }')
  met=$(awk -v r="${rate:-0}" -v g="$goal" 'BEGIN { print ((r > 0 && r >= g) ? "true" : "false") }')
  [ "$code" = 0 ] && [ -n "$line" ] || failed=1
  [ "$met" = true ] && [ "$within" != false ] || missed=1
  steps_json=$(append "$steps_json" "{\"name\": \"$name\", \"goal\": $goal, \"met\": $met, \"within_plan\": $within, \"exit_code\": $code, \"seconds\": $took, \
\"command\": $(quoted "bench_step $*"), \"result\": ${line:-null}}")
  [ "$within" != false ] || say "step     $name: more memory was held than planned"
  say "step     $name: ${rate:-no} tokens/s, goal $goal, exit code $code, $took s"
}

run_steps() {
  if [ "$device" = cpu ]; then
    run_step 15m-qlora 0 30 --model "$shapes/15m" --train_type qlora --context_length 64 --batch_size 1 --gradient_checkpointing true --steps 2
    return
  fi
  common="--context_length 2048 --batch_size 4 --lora_rank 16"
  run_step 8b-qlora 12900 60 --model "$shapes/8b" --train_type qlora $common --gradient_checkpointing true --steps 8
  run_step 0.6b-lora 100000 30 --model "$shapes/0.6b" --train_type lora $common --gradient_checkpointing false --steps 20
  run_step 8b-lora-keep 18800 60 --model "$shapes/8b" --train_type lora $common --gradient_checkpointing false --steps 8
  run_step 70b-qlora 1400 130 --model "$shapes/70b" --train_type qlora $common --gradient_checkpointing true --steps 3
}

# --- compute-sanitizer over the operations' tests ---------------------------------------------------------------------------------------
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda/compute-sanitizer/compute-sanitizer 2>/dev/null | head -n 1)

run_sanitizer() {
  tool=$1 most=$2
  if [ -z "$sanitizer" ] || [ "$device" != cuda ]; then
    sanitizer_json=$(append "$sanitizer_json" "{\"tool\": \"$tool\", \"absent\": true}")
    say "$tool compute-sanitizer is not on this machine: not run"
    return
  fi
  select_tests "$(test_program ops_test)"
  limited "$most" "$logs/$tool.txt" "$sanitizer" --tool "$tool" --error-exitcode 86 "$(test_program ops_test)" "--gtest_filter=$rows" --gtest_color=no
  read_tests "$logs/$tool.txt"
  summary=$(sed -n 's/^========= \(.*SUMMARY.*\)/\1/p' "$logs/$tool.txt" | tail -n 1)
  findings=$(grep -cE '^========= (Invalid|Error|Race|Warning|Program hit|Uninit)' "$logs/$tool.txt")
  over=false
  case $code in 124 | 137) over=true ;; esac
  # What was not reached in time is no failure; a finding is.
  [ "$findings" = 0 ] && { [ "$code" = 0 ] || [ "$over" = true ]; } || failed=1
  sanitizer_json=$(append "$sanitizer_json" "{\"tool\": \"$tool\", \"findings\": $findings, \"summary\": $(quoted "$summary"), \"tests_passed\": $passed, \
\"tests_failed\": $faults, \"time_over\": $over, \"exit_code\": $code, \"seconds\": $took}")
  say "$tool $findings findings in $passed tests${summary:+ ($summary)}, exit code $code, $took s"
}

# --- a profile: which kernels the time goes to --------------------------------------------------------------------------------------------
run_profile() {
  nsys=$(command -v nsys || ls /usr/local/cuda/bin/nsys 2>/dev/null)
  if [ -z "$nsys" ] || [ "$device" != cuda ]; then
    profile_json='{"absent": true}'
    say "profile  nsys is not on this machine: not run"
    return
  fi
  limited 60 "$logs/profile.txt" "$nsys" profile --force-overwrite true --output "$logs/profile" --stats true --trace cuda "$step" \
    --model "$shapes/8b" --train_type qlora --context_length 2048 --batch_size 4 --lora_rank 16 --gradient_checkpointing true --steps 2 --device cuda
  profile_json="{\"exit_code\": $code, \"file\": $(quoted "$logs/profile.txt"), \"seconds\": $took}"
  say "profile  exit code $code, $logs/profile.txt"
}

say "gpu-check on ${gpu:-the CPU}${driver:+, driver $driver}, at most $seconds s"
run_tests ops_test 60
run_tests quant_test 30
run_tests nn_test 40
run_tests backend_test 30
run_tests optim_test 20
run_tests fsdp_test 30
run_tests train_test 60
train_tiny
run_steps
left=$((end - $(date +%s)))
run_sanitizer memcheck $((left / 2 > 90 ? 90 : left / 2))
run_sanitizer racecheck 90
run_profile

code=0
[ "$missed" = 0 ] || code=3
[ "$failed" = 0 ] || code=1
write_json "$code"
say "results  $json, exit code $code, $(($(date +%s) - began)) s"
exit "$code"
