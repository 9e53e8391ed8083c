#!/bin/bash
# How long a check takes: qemu-img and qcow in turns, on an image with all of its metadata, without and with an internal
# snapshot; medians, and the most memory that either held.
# Usage: benches/check.sh QCOW [ROUNDS=5] [SIZE=1T] [DIRECTORY=/tmp]
set -eu
qcow=$1 rounds=${2:-5} size=${3:-1T} directory=$(mktemp -d -p "${4:-/tmp}"); image=$directory/disk.qcow2
trap 'rm -rf "$directory"' EXIT
compare() {
  for round in $(seq "$rounds"); do
    for program in qemu-img "$qcow"; do
      command time -f "$(basename "$program") %e %U %S %M" -a -o "$directory/times" "$program" check -q "$image"
    done
  done
  # Of each program: wall time, processor time (in s), memory (in KiB).
  median() { grep "^$1 " "$directory/times" | awk "{print $2}" | sort -n | sed -n "$(((rounds + 1) / 2))p"; }
  ours=$(basename "$qcow")
  for figure in 'wall time (s):$2' 'processor time (s):$3 + $4' 'memory (KiB):$5'; do
    median qemu-img "${figure#*:}" > "$directory/theirs"; median "$ours" "${figure#*:}" > "$directory/ours"
    paste "$directory/theirs" "$directory/ours" |
      awk -v name="check, $1, ${figure%%:*}" '{printf "%s: qemu-img %s, qcow %s, ratio 1/%.1f\n", name, $1, $2, $1 / $2}'
  done
  rm "$directory/times"
}
qemu-img create -q -f qcow2 -o preallocation=metadata "$image" "$size"
compare "no snapshot"
qemu-img snapshot -c one "$image"
compare "one snapshot"
