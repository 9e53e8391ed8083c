#!/bin/bash
# How long internal snapshots take: qemu-img and qcow in turns, on an image all of whose clusters are mapped; medians.
# Usage: benches/snapshots.sh QCOW [ROUNDS=5] [SIZE=256G] [DIRECTORY=/tmp]
set -eu
qcow=$1 rounds=${2:-5} size=${3:-256G} directory=$(mktemp -d -p "${4:-/tmp}"); image=$directory/disk.qcow2
trap 'rm -rf "$directory"' EXIT
qemu-img create -q -f qcow2 -o preallocation=metadata "$image" "$size"
"$qcow" snapshot -c warm "$image"; "$qcow" snapshot -d warm "$image"
for round in $(seq "$rounds"); do
  for program in qemu-img "$qcow"; do
    for verb in -c -a -d; do
      start=$(date +%s%N)
      "$program" snapshot $verb one "$image"
      echo "$(basename "$program") $verb $((($(date +%s%N) - start) / 1000))"
    done
  done
done > "$directory/times"
qemu-img check -q "$image"
for verb in -c -a -d; do
  median() { grep "^$1 $verb " "$directory/times" | cut -d' ' -f3 | sort -n | sed -n "$(((rounds + 1) / 2))p"; }
  theirs=$(median qemu-img) ours=$(median "$(basename "$qcow")")
  echo "snapshot $verb: qemu-img $((theirs / 1000)) ms, qcow $((ours / 1000)) ms, ratio 1/$((theirs / ours))"
done
