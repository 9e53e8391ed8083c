#!/usr/bin/env bash
# `make demo`: a stock Linux kernel on a thin qcow2 disk behind our own daemon, shown step by step.
# The disk and the logs stay in build/demo. Exit 0, or a reason and the place of the logs.
set -euo pipefail
. "$(dirname "$0")/bed.sh"

DIRECTORY=$(realpath "$HERE/..")/build/demo
IMAGE=$DIRECTORY/disk.qcow2

main() {
    require_programs
    choose_monitor
    "$HERE/kernel.sh"
    rm -rf "$DIRECTORY"
    new_work "$DIRECTORY"
    introduce
    phase "create a thin $DISK_SIZE disk" make_disk "$IMAGE"
    phase "start vhost-blk on it" start_daemon "$IMAGE"
    phase "boot the guest; it writes, flushes, verifies" boot_guest exercise "$RANDOM"
    guest_steps
    phase "stop the daemon with SIGTERM" stop_daemon
    phase "qcow check and qemu-img check" check_clean "$IMAGE"
    phase "convert, compare with qemu-img, e2fsck" check_content "$IMAGE"
    rm -f "$DIRECTORY/initramfs"
    summary
}

# Our own monitor, where KVM can run a stock kernel.
choose_monitor() {
    export MONITOR=qemu
    if ! { : < /dev/kvm; } 2>/dev/null || ! [ -w /dev/kvm ]; then
        machine="QEMU's emulator, as there is no KVM here that this user may use"
    elif ! grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo; then
        machine="QEMU's emulator, as the KVM of this host only emulates"
    else
        MONITOR=vmm
        machine="our own monitor (vmm) on KVM"
    fi
}

introduce() {
    cat <<TEXT

A virtual machine on a qcow2 disk that our own daemon serves.
The machine is $machine.
Its kernel is the stock $(cat "$HERE/../build/kernel/release"). Live snapshots come later. This takes about a minute.

TEXT
}

# phase TEXT COMMAND...: runs it and prints how long it took.
phase() {
    local text=$1 start=$EPOCHREALTIME
    shift
    printf '  %-52s' "$text"
    "$@"
    awk -v from="$start" -v to="$EPOCHREALTIME" 'BEGIN { printf "%7.2f s\n", to - from }'
}

# Prints the guest's steps with the time each took, from the uptimes in the console log.
guest_steps() {
    awk '$1 == "STEP" { printf "    %-50s%7.2f s\n", "guest: " $2, $4 - last; last = $4 }' "$CONSOLE_LOG"
}

summary() {
    cat <<TEXT

  verifying load       $(console_detail verify | sed 's/^VERIFY-OK //')
  interrupts           $(console_detail both-queues)
  disk                 $DISK_SIZE to the guest, $(du -h "$IMAGE" | cut -f1) on the host
  checks               qcow check: clean; qemu-img check ($(qemu_version)): clean
                       converted by both: identical; the guest's file system: clean
  left for you         ${IMAGE#"$PWD"/} and $(basename "$CONSOLE_LOG") beside it

The demo passed.
TEXT
}

console_detail() {
    sed -n "s/^STEP $1 OK [^ ]* //p" "$CONSOLE_LOG" | sed 's/ *$//'
}

qemu_version() {
    qemu-img --version | sed -n '1s/^qemu-img version \([0-9.]*\).*/\1/p'
}

main
