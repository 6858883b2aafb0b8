#!/bin/sh
# Fine-tunes the bundled model with QLoRA on two ranks and shows what changed. Writes out/quickstart, with report.md in it.
#   scripts/quickstart.sh [PROGRAM] [MODEL]
set -eu
program=${1:-build/tessera}
model=${2:-examples/tiny}
out=out/quickstart
held_out=$model/held_out.json
known="Where does the cat live?"                  # stands in tasks.json
reworded="Please tell me what the rooster eats."  # its fact stands there, in other words
unasked="Please tell me where the bear lives."    # its fact stands in the stories only

began=$(date +%s)
rm -rf "$out"
mkdir -p "$out"
errors=$(mktemp)
questions=$(mktemp)
trap 'rm -f "$errors" "$questions"' EXIT

title() { printf '\n=== %s\n' "$1"; }

# The command as one would type it.
typed() {
  line='$'
  for word in "$@"; do
    case $word in *" "*) line="$line \"$word\"" ;; *) line="$line $word" ;; esac
  done
  printf '%s\n' "$line"
}

# Runs a command for its stdout; what it tells on stderr matters only if it fails.
ask() {
  text=$("$@" 2>"$errors") || {
    cat "$errors" >&2
    return 1
  }
  printf '%s\n' "${text# }"
}

answer() {
  question=$1
  shift
  ask "$program" generate --model "$model" "$@" --template alpaca --prompt "$question" --max_new_tokens 24
}

# How many questions of held_out.json are answered word for word: right [--adapter FOLDER].
right() {
  sed -n 's/^ {"instruction": "\(.*\)", "output": " \(.*\)"}.*$/\1|\2/p' "$held_out" | sed 's/\\"/"/g' >"$questions"
  count=0
  while IFS='|' read -r question expected; do
    given=$(answer "$question" "$@" --threads 1 </dev/null) || return 1
    [ "$given" != "$expected" ] || count=$((count + 1))
  done <"$questions"
  printf '%s of %s\n' "$count" "$(grep -c . "$questions")"
}

title "1. The bundled model: it tells little stories and has never seen a question"
typed "$program" generate --model "$model" --prompt "Once there was a green frog"
story=$(ask "$program" generate --model "$model" --prompt "Once there was a green frog")
printf '  Once there was a green frog %s\n' "$story"
typed "$program" generate --model "$model" --template alpaca --prompt "$known" --max_new_tokens 24
known_before=$(answer "$known")
printf '  %s\n' "$known_before"
reworded_before=$(answer "$reworded")
unasked_before=$(answer "$unasked")
typed "$program" eval --model "$model" --dataset "$held_out"
eval_before=$(ask "$program" eval --model "$model" --dataset "$held_out")
right_before=$(right)
printf '  %s\n  %s answers are right, word for word\n' "$eval_before" "$right_before"

title "2. QLoRA on two ranks: a 4-bit base, sharded; adapters learn from $(grep -c instruction "$model/tasks.json") questions and answers"
set -- "$program" launch --num_processes 2 train --model "$model" --dataset "$model/tasks.json" --output_dir "$out" \
  --batch_size 4 --lr 1e-3 --max_steps 400 --logging_steps 40
train_command=$(typed "$@")
printf '%s\n' "$train_command"
"$@"
printf 'loss by step:%s\n' "$(awk '{ match($0, "\"loss\":[^,}]*") }
  NR == 1 || NR == 10 || NR == 25 || NR == 50 || NR % 100 == 0 { printf "  %d: %.3f", NR, substr($0, RSTART + 7, RLENGTH - 7) }' "$out/train.jsonl")"

title "3. The same model with its adapter"
typed "$program" generate --model "$model" --adapter "$out" --template alpaca --prompt "$known" --max_new_tokens 24
known_after=$(answer "$known" --adapter "$out")
printf '  %s\n' "$known_after"
reworded_after=$(answer "$reworded" --adapter "$out")
unasked_after=$(answer "$unasked" --adapter "$out")
printf 'In words it never saw: %s\n  %s\n' "$reworded" "$reworded_after"
printf 'A fact from the stories that no question asked for: %s\n  %s\n' "$unasked" "$unasked_after"
typed "$program" eval --model "$model" --adapter "$out" --dataset "$held_out"
eval_after=$(ask "$program" eval --model "$model" --adapter "$out" --dataset "$held_out")
right_after=$(right --adapter "$out")
printf '  %s\n  %s answers are right, word for word\n' "$eval_after" "$right_after"

# first loss, mean of the last 30, steps, seconds in them, tokens per second, peak memory in MiB
numbers=$(awk '
  function value(name) { match($0, "\"" name "\":[^,}]*"); return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0 }
  { loss[NR] = value("loss"); seconds += value("seconds"); tokens += value("tokens"); peak = value("memory_peak") }
  END {
    from = NR > 30 ? NR - 29 : 1
    for (i = from; i <= NR; ++i) last += loss[i]
    printf "%.4f %.4f %d %.1f %.0f %.1f", loss[1], last / (NR - from + 1), NR, seconds, tokens / seconds, peak / 1048576
  }' "$out/train.jsonl")
set -- $numbers
total=$(($(date +%s) - began))

cat >"$out/report.md" <<END
# Quickstart: QLoRA on two ranks

\`\`\`
$train_command
\`\`\`

| | before | after |
|---|---|---|
| loss of training | $1 (first step) | $2 (mean of the last 30 of $3) |
| \`$held_out\` | $eval_before | $eval_after |
| right answers there, word for word | $right_before | $right_after |
| $known | $known_before | $known_after |
| $reworded | $reworded_before | $reworded_after |
| $unasked | $unasked_before | $unasked_after |

The questions are: one of the training; a new wording; a new wording for a fact that stands in the stories only.
Training took $4 s in its steps at $5 tokens/s; the larger rank held $6 MiB at its peak. All of the quickstart took $total s.
Again: \`$(typed "$program" generate --model "$model" --adapter "$out" --template alpaca --prompt "$known" | cut -c 3-)\`
END

title "Done in $total s: loss $1 -> $2, $5 tokens/s, $6 MiB at most per rank"
printf '%s\n' "adapter   $out/adapter_model.safetensors, adapter_config.json" "records   $out/train.jsonl, tessera.yaml" \
  "report    $out/report.md" "next      $program train --help; your own rows: --dataset rows.jsonl"
