#!/bin/sh
# A loop in autoresearch's manner, driven by a list of ideas instead of an agent.
#
#     cd ~/nanogpt && RUN='sealrun run -- python3 train.py' sh .../examples/loop.sh ideas.tsv
#
# Each line of the list is one idea: a description, a tab, and a sed expression that edits train.py.
# For each: edit, commit, run, read the number, write a row of results.tsv, keep the commit if
# val_bpb fell, else reset to the one before. RUN is the command; without it the loop runs bare.
# Everything that sealrun needs of a loop is in this script: the command.
set -u

ideas=${1:?usage: loop.sh IDEAS}
run=${RUN:-python3 train.py}
tab=$(printf '\t')
best=

[ -s results.tsv ] ||
  printf 'commit\tval_bpb\tmemory_gb\tstatus\tdescription\n' >results.tsv

while IFS="$tab" read -r description edit <&3; do
  [ -n "$description" ] || continue
  sed "$edit" train.py >train.py.new && cat train.py.new >train.py
  rm -f train.py.new
  git commit -q -a -m "$description" || continue
  commit=$(git rev-parse --short HEAD)

  sh -c "$run" >run.log 2>&1 </dev/null
  score=$(grep '^val_bpb:' run.log | tail -n 1 | awk '{ print $2 }')
  memory=$(grep '^peak_vram_mb:' run.log | tail -n 1 | awk '{ printf "%.1f", $2 / 1024 }')

  if [ -z "$score" ]; then
    status=crash
    tail -n 50 run.log >&2
    git reset -q --hard HEAD~1
  elif [ -z "$best" ] || awk "BEGIN { exit !($score < $best) }"; then
    status=keep
    best=$score
  else
    status=discard
    git reset -q --hard HEAD~1
  fi
  printf '%s\t%s\t%s\t%s\t%s\n' \
    "$commit" "${score:-0.000000}" "${memory:-0.0}" "$status" "$description" >>results.tsv
  printf '%s %s %s: %s\n' "$commit" "${score:-0.000000}" "$status" "$description"
done 3<"$ideas"
