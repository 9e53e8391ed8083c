#!/usr/bin/env bash
# The tests with a real guest: a stock kernel uses a disk served by vhost-blk, under QEMU's emulator.
#
#   guest-test.sh                    all scenarios
#   guest-test.sh SCENARIO [SEED]    one; SEED repeats the verifying load of an earlier run
#
# exercise: formats, writes, syncs, verifies on two queues, discards; then the image must be clean.
# no-space: the host's file system fills up under the guest.
# killed: the daemon is killed again and again under the guest, which must not notice.
set -euo pipefail
. "$(dirname "$0")/bed.sh"
KILLS=${KILLS:-5}

main() {
    local seed=${2:-$RANDOM}
    require_programs
    "$HERE/kernel.sh"
    case ${1:-all} in
        all) all ;;
        exercise) exercise "$seed" ;;
        no-space) in_mount_namespace "$0" no-space-here "$seed" ;;
        no-space-here) no_space "$seed" ;;
        killed) killed "$seed" ;;
        *) fail "no scenario is called $1: exercise, no-space, killed" ;;
    esac
}

all() {
    echo "guest tests: $(qemu-system-x86_64 --version | head -n 1), kernel $(cat "$HERE/../build/kernel/release")"
    apart "$0" exercise
    apart "$0" no-space
    apart "$0" killed
}

# apart COMMAND...: as a process of its own, which ends when this one is told to.
apart() {
    "$@" &
    local child=$!
    # shellcheck disable=SC2064 # the child of now
    trap "kill -TERM $child; wait $child; exit 130" INT TERM
    wait "$child"
}

exercise() {
    echo "exercise: start; repeat it with: testbed/guest-test.sh exercise $1"
    new_work
    local image=$WORK/disk.qcow2
    make_disk "$image"
    start_daemon "$image"
    boot_guest exercise "$1"
    stop_daemon
    check_clean "$image"
    check_content "$image"
    echo "exercise: ok, $(grep -c '^STEP .* OK' "$CONSOLE_LOG") steps, $SECONDS s"
}

# Mounting needs root, real or of a user namespace; the mount goes away with the namespace.
in_mount_namespace() {
    local enter=(unshare --mount)
    [ "$(id -u)" -eq 0 ] || enter=(unshare --mount --map-root-user)
    if "${enter[@]}" mount -t tmpfs none /mnt 2>/dev/null; then
        exec "${enter[@]}" "$@"
    else
        echo "no-space: skipped, because a small file system cannot be mounted here (needs root or user namespaces)"
    fi
}

no_space() {
    new_work
    mkdir "$WORK/small"
    mount -t tmpfs -o size=40m none "$WORK/small"
    local image=$WORK/small/disk.qcow2 code=0
    make_disk "$image"
    start_daemon "$image"
    boot_guest no-space "$1"
    stop_daemon
    cp "$image" "$WORK/disk.qcow2" # outlives the namespace, should the check fail
    # 3: clusters that are claimed but unused. Anything else is damage.
    qemu-img check -q -f qcow2 "$image" || code=$?
    [ $code -eq 0 ] || [ $code -eq 3 ] || fail "qemu-img check found damage (code $code) in $image"
    umount "$WORK/small"
    echo "no-space: ok, $(sed -n 's/^STEP fill OK [^ ]* //p' "$CONSOLE_LOG")"
}

killed() {
    echo "killed: start; repeat it with: testbed/guest-test.sh killed $1"
    new_work
    local image=$WORK/disk.qcow2 kills=0 code=0
    make_disk "$image"
    start_daemon "$image"
    RECONNECT=1 start_guest killed "$1" "parts=$((KILLS + 1))"
    while [ $kills -lt "$KILLS" ]; do
        kills=$((kills + 1))
        await_part $kills
        kill -KILL "$daemon_pid"
        wait "$daemon_pid" 2>/dev/null || true
        start_daemon "$image"
    done
    wait "$guest_pid" || code=$?
    judge_guest $code
    stop_daemon
    check_clean "$image"
    echo "killed: ok, the daemon $kills times, $SECONDS s"
}

# await_part K: returns when the guest's load is that far, whatever time it takes.
await_part() {
    until grep -q "^PART $1\b" "$CONSOLE_LOG"; do
        kill -0 "$guest_pid" 2>/dev/null || fail "the guest ended before part $1 of its load; last: $(last "$CONSOLE_LOG")"
        sleep 0.05
    done
}

main "$@"
