#!/usr/bin/env bash
# The monitor on real KVM, anywhere: QEMU's emulator is a host with AMD's virtualisation, on which a stock kernel loads
# kvm-amd, and our monitor with our daemon boots the same stock kernel as its guest, from a qcow2 disk.
#
#   nested-test.sh                  all scenarios of nested/scenarios
#   nested-test.sh SCENARIO...      these
#
# The guest with a disk does what the guest of guest-test.sh does. Its image comes back and is checked here.
set -euo pipefail
. "$(dirname "$0")/bed.sh"
. "$HERE/nested/bed.sh"
SCRATCH_SIZE=512M

main() {
    require_programs
    "$HERE/kernel.sh"
    # shellcheck disable=SC2119 # of a name that does not matter
    new_work
    mkdir -p "$WORK/host/guest"
    pack_small_guest "$WORK/small" "$WORK/host/guest/initramfs"
    "$HERE/initramfs.sh" "$WORK/host/guest/disk-initramfs" "${PROGRAMS[@]}"
    pack_host "$WORK/host" "$WORK/initramfs" "$HERE/nested/scenarios" \
        "$VMM" "$VHOST_BLK" "$QCOW" "$(command -v nc.openbsd)"
    truncate -s "$SCRATCH_SIZE" "$WORK/scratch"
    pack_images "$WORK/images"
    boot_host "$WORK/initramfs" "scenarios=$(IFS=,; echo "$*")" "$WORK/scratch" "$WORK/images.ext4"
    judge
}

# Images that are made outside: a whole Debian.
pack_images() {
    mkdir "$1"
    if [ "$(id -u)" -eq 0 ]; then
        "$HERE/debian-disk.sh"
        cp "$HERE/../build/debian/disk.qcow2" "$1/debian.qcow2"
    else
        echo "debian: skipped, because only root can make a Debian disk"
    fi
    mkfs.ext4 -q -F -d "$1" "$1.ext4" "$SCRATCH_SIZE" > /dev/null
}

judge() {
    grep -E '^SCENARIO|FAIL' "$CONSOLE" || true
    judge_host
    grep -q '^SCENARIO .* OK' "$CONSOLE" || fail "no scenario ran"
    check_image
    grep -E '^(small|debian): {.*"exits"' "$CONSOLE" || true
    echo "nested test: ok, $(grep -c '^SCENARIO .* OK' "$CONSOLE") scenarios, $SECONDS s"
}

# The image that the host has put onto its scratch disk, if it has.
check_image() {
    local size image=$WORK/disk.qcow2
    size=$(sed -n 's/^IMAGE //p' "$CONSOLE")
    [ -n "$size" ] || return 0
    head -c "$size" "$WORK/scratch" > "$image"
    check_clean "$image"
    check_content "$image"
}

main "$@"
