#!/bin/bash
# What encryption and authentication cost: our daemon on a plain image, one with LUKS, and authenticated ones with checksums and
# with a key, in turns, under the same loads; medians of throughput and of processor time per request, as ratios to the plain
# image. DIRECTORY in memory (/dev/shm) leaves the disk out of it.
# Usage: benches/integrity.sh PROGRAMS [ROUNDS=5] [DIRECTORY=/dev/shm] [MIB=1024], with qcow, vhost-blk and blkload in PROGRAMS
set -eu
programs=$(realpath "$1") rounds=${2:-5} directory=$(mktemp -d -p "${3:-/dev/shm}") mib=${4:-1024}
daemon=
trap 'if [ -n "$daemon" ]; then kill "$daemon" 2> kill.log || true; fi; rm -rf "$directory"' EXIT
cd "$directory"
printf secret > key
declare -A options=(
  [plain]=cluster_size=64k
  [luks]=encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10
  [crc32c]=integrity=crc32c${INTEGRITY_OPTIONS:-}
  [aes-256-gcm]=integrity=aes-256-gcm,encrypt.key-secret=k,encrypt.iter-time=10${INTEGRITY_OPTIONS:-}
)
kinds="plain luks crc32c aes-256-gcm"
# name, then blkload's options; the first one fills the image
loads="first-1m   --pattern write --access sequential --block-size 1m --depth 8 --requests $mib
write-1m   --pattern write --access sequential --block-size 1m --depth 8 --requests $mib
read-1m    --pattern read  --access sequential --block-size 1m --depth 8 --seconds 1
read-4k    --pattern read  --access random --block-size 4k --depth 32 --seconds 1
write-4k   --pattern write --access random --block-size 4k --depth 32 --seconds 1"
run() {
  local kind=$1 name arguments
  rm -f disk.qcow2 socket
  "$programs/qcow" create -q --object secret,id=k,file=key -f qcow2 -o "${options[$kind]}" disk.qcow2 "${mib}M"
  "$programs/vhost-blk" --socket-path=socket --blk-file=disk.qcow2 --format=qcow2 --encrypt-key-file=key > log 2>&1 &
  daemon=$!
  until [ -S socket ]; do kill -0 "$daemon"; sleep 0.05; done
  while read -r name arguments; do
    # shellcheck disable=SC2086
    "$programs/blkload" --socket socket $arguments --json > result
    python3 -c 'import json,sys; r=json.load(open("result")); print(*sys.argv[1:], r["mib_per_second"], r["server_cpu_us_per_request"])' "$name" "$kind" >> results
  done <<< "$loads"
  kill "$daemon"
  wait "$daemon" || true
  daemon=
}
for round in $(seq "$rounds"); do
  # In another order each time.
  for kind in $(echo $kinds | tr ' ' '\n' | awk -v r="$round" '{ list[NR] = $0 } END { for (i = 0; i < NR; i++) print list[(i + r) % NR + 1] }'); do
    run "$kind"
  done
done
python3 - results <<'PYTHON'
import collections, statistics, sys
found = collections.defaultdict(lambda: ([], []))
for line in open(sys.argv[1]):
    load, kind, speed, cpu = line.split()
    found[load, kind][0].append(float(speed))
    found[load, kind][1].append(float(cpu))
middle = {key: [statistics.median(values) for values in lists] for key, lists in found.items()}
print(f"{'':10} {'':12} time per byte  processor time per request   (plain = 1)")
for load, kind in middle:
    speed, cpu = middle[load, kind]
    plain = middle[load, "plain"]
    print(f"{load:10} {kind:12} {plain[0] / speed:13.2f} {cpu / plain[1]:27.2f}")
PYTHON
