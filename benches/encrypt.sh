#!/bin/bash
# How long `convert` takes into and out of LUKS, inside of qcow2 and as a file of its own: qemu-img and qcow in turns, on a disk
# of noise, which leaves neither zeros nor patterns out; medians of the time that passes and of the time that the processors
# work. With -n the target is there already, so that no key is made. DIRECTORY in memory (/dev/shm) leaves the disk out of it.
# Usage: benches/encrypt.sh QCOW [ROUNDS=5] [DIRECTORY=/dev/shm] [MIB=1024]
set -eu
here=$(dirname "$(realpath "$0")")
qcow=$(realpath "$1") rounds=${2:-5} directory=$(mktemp -d -p "${3:-/dev/shm}") mib=${4:-1024}
trap 'rm -rf "$directory"' EXIT
cd "$directory"
printf secret > key
head -c "$((mib << 20))" /dev/urandom > disk.raw
secret="--object secret,id=k,file=key"
for round in $(seq "$rounds"); do
  for format in luks qcow2; do
    prefix=; [ "$format" = luks ] || prefix=encrypt.
    options=${prefix}key-secret=k,${prefix}iter-time=10
    opened=driver=$format,${prefix}key-secret=k,file.filename=out
    [ "$format" = luks ] || options=encrypt.format=luks,$options
    for program in qemu-img "$qcow"; do
      name=$(basename "$program")
      rm -f out out.raw
      TIMEFORMAT="$name raw-$format %R %U %S"
      time "$program" convert $secret -f raw -O "$format" -o "$options" disk.raw out
      TIMEFORMAT="$name raw-$format-n %R %U %S"
      time "$program" convert -n $secret -f raw --target-image-opts disk.raw "$opened"
      TIMEFORMAT="$name $format-raw %R %U %S"
      time "$program" convert $secret --image-opts -O raw "$opened" out.raw
      cmp disk.raw out.raw
    done
  done
done 2> times
awk -v ours="$(basename "$qcow")" -v ways="raw-luks raw-luks-n luks-raw raw-qcow2 raw-qcow2-n qcow2-raw" -f "$here/ratios.awk" times
