#!/bin/bash
# How long `convert` takes: qemu-img and qcow in turns, on a disk half of which is mapped, with data of several kinds; medians
# of the time that passes and of the time that the processors work. DIRECTORY in memory (/dev/shm) leaves the disk out of it.
# Usage: benches/convert.sh QCOW [ROUNDS=5] [DIRECTORY=/dev/shm] [MIB=2048]
set -eu
here=$(dirname "$(realpath "$0")")
qcow=$(realpath "$1") rounds=${2:-5} directory=$(mktemp -d -p "${3:-/dev/shm}") mib=${4:-2048}
trap 'rm -rf "$directory"' EXIT
cd "$directory"
# In turns: noise, a hole, text, a hole, one block of data in four, a hole.
python3 - "$mib" <<'PYTHON'
import os, sys
mib, piece = int(sys.argv[1]), 1 << 20
noise, text = os.urandom(piece), (b"line of text that repeats\n" * 50000)[:piece]
blocks = (noise[:4096] + bytes(12288)) * 64
with open("disk.raw", "wb") as disk:
    disk.truncate(mib << 20)
    for number in range(0, mib, 2):
        disk.seek(number << 20)
        disk.write((noise, text, blocks)[number // 2 % 3])
PYTHON
qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
for round in $(seq "$rounds"); do
  for way in "qcow2 raw" "raw qcow2" "qcow2 qcow2" "qcow2 raw -W" "raw qcow2 -W" "qcow2 qcow2 -W"; do
    read -r from to order <<< "$way"
    for program in qemu-img "$qcow"; do
      rm -f out
      TIMEFORMAT="$(basename "$program") $from-$to$order %R %U %S"
      time "$program" convert $order -f "$from" -O "$to" "disk.$from" out
    done
  done
done 2> times
qemu-img compare -q -f raw -F "$to" disk.raw out
awk -v ours="$(basename "$qcow")" -v ways="qcow2-raw raw-qcow2 qcow2-qcow2 qcow2-raw-W raw-qcow2-W qcow2-qcow2-W" -f "$here/ratios.awk" times
