# shellcheck shell=bash
# Sourced by guest-test.sh and demo.sh: one disk image, the daemon that serves it, the guest that
# uses it, and the checks afterwards. Files go to $WORK, which survives a failure.
#
# Overrides, to tell faults of the bed from faults of ours (see qemu-daemon.sh):
#   BUILD      which build of our programs is used: release, or debug, in which tests are run
#   QCOW       the image tool (target/$BUILD/qcow)
#   VHOST_BLK  the daemon (target/$BUILD/vhost-blk)
export PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export BUILD=${BUILD:-release}
TARGET=${CARGO_TARGET_DIR:-$HERE/../target}/$BUILD
QCOW=${QCOW:-$TARGET/qcow}
VHOST_BLK=${VHOST_BLK:-$TARGET/vhost-blk}
DISK_SIZE=1G
PROGRAMS=("$TARGET/verifier" mkfs.ext4 blkdiscard)
START_SECONDS=20 # for the daemon to listen, and again for it to stop
daemon_pid='' guest_pid=''

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# new_work [DIRECTORY]: makes $WORK, a temporary directory unless one is named. The socket lies
# apart, in a short path, because its name is limited to 107 bytes.
new_work() {
    RUN=$(mktemp -d "${TMPDIR:-/tmp}/qcow-bed.XXXXXX")
    WORK=${1:-$RUN}
    mkdir -p "$WORK"
    SOCKET=$RUN/socket DAEMON_LOG=$WORK/daemon.log CONSOLE_LOG=$WORK/console.log
    trap 'end_work $?' EXIT
    trap 'exit 130' INT TERM
}

# On exit: no process stays behind; the directory stays when there is something to look at.
end_work() {
    [ -z "$guest_pid" ] || kill -TERM "$guest_pid" 2>/dev/null || true
    [ -z "$daemon_pid" ] || kill -KILL "$daemon_pid" 2>/dev/null || true
    if [ "$1" -eq 0 ]; then
        rm -rf "$RUN"
    else
        echo "The disk and the logs are in $WORK" >&2
    fi
}

require_programs() {
    local program
    for program in "$QCOW" "$VHOST_BLK" "$TARGET/verifier"; do
        command -v "$program" >/dev/null || fail "$program is not there: run 'cargo build --release' first"
    done
}

# make_disk IMAGE
make_disk() {
    "$QCOW" create -q -f qcow2 "$1" "$DISK_SIZE" || fail "cannot create $1"
}

# start_daemon IMAGE: returns when it listens.
start_daemon() {
    "$VHOST_BLK" --socket-path="$SOCKET" --blk-file="$1" --format=qcow2 --num-queues=2 \
        > "$DAEMON_LOG" 2>&1 </dev/null &
    daemon_pid=$!
    local deadline=$((SECONDS + START_SECONDS))
    until [ -S "$SOCKET" ]; do
        kill -0 "$daemon_pid" 2>/dev/null || fail "the daemon ended at once: $(last "$DAEMON_LOG")"
        [ $SECONDS -lt $deadline ] || fail "the daemon did not listen within $START_SECONDS s"
        sleep 0.05
    done
}

# boot_guest SCENARIO SEED: returns when the guest has powered off after doing all its steps.
boot_guest() {
    local code=0 ended
    start_guest "$@"
    wait -n -p ended "$guest_pid" "$daemon_pid" || code=$?
    [ "$ended" = "$guest_pid" ] || fail "the daemon ended while serving, code $code: $(last "$DAEMON_LOG")"
    judge_guest $code
}

# start_guest SCENARIO SEED [WORD=VALUE...]
start_guest() {
    local scenario=$1 seed=$2
    shift 2
    "$HERE/initramfs.sh" "$WORK/initramfs" "${PROGRAMS[@]}"
    "$HERE/boot.sh" "$WORK/initramfs" "$SOCKET" "scenario=$scenario" "seed=$seed" "$@" > "$CONSOLE_LOG" 2>&1 &
    guest_pid=$!
}

# judge_guest CODE: the guest has ended, and its monitor with this code.
judge_guest() {
    local code=$1
    guest_pid=''
    sed -i 's/\r$//' "$CONSOLE_LOG"
    ! grep -q '^STEP .* FAIL' "$CONSOLE_LOG" || fail "in the guest: $(grep '^STEP .* FAIL' "$CONSOLE_LOG")"
    [ $code -ne 124 ] || fail "the guest did not end in time; last: $(last "$CONSOLE_LOG")"
    grep -q '^GUEST-OK$' "$CONSOLE_LOG" ||
        fail "the guest did not finish (the monitor's exit code $code); last: $(last "$CONSOLE_LOG")"
}

# last LOG: its last words.
last() {
    tail -n 3 "$1"
}

# stop_daemon: it must still run, and end with exit code 0 on SIGTERM.
stop_daemon() {
    local pid=$daemon_pid code=0
    kill -TERM "$pid" 2>/dev/null || fail "the daemon died while serving: $(last "$DAEMON_LOG")"
    timeout "$START_SECONDS" tail --pid="$pid" -s 0.05 -f /dev/null || fail "the daemon did not stop on SIGTERM"
    daemon_pid=''
    wait "$pid" || code=$?
    [ $code -eq 0 ] || fail "the daemon ended with code $code: $(last "$DAEMON_LOG")"
}

# check_clean IMAGE: by our tool and by QEMU's; neither may find anything.
check_clean() {
    "$QCOW" check -q -f qcow2 "$1" || fail "qcow check is not content with $1"
    qemu-img check -q -f qcow2 "$1" || fail "qemu-img check is not content with $1"
}

# check_content IMAGE: our conversion and QEMU's say the same, and the file system in it is whole.
check_content() {
    "$QCOW" convert -f qcow2 -O raw "$1" "$WORK/ours.raw" || fail "qcow convert failed"
    qemu-img convert -f qcow2 -O raw "$1" "$WORK/theirs.raw" || fail "qemu-img convert failed"
    qemu-img compare -q -f raw -F raw "$WORK/ours.raw" "$WORK/theirs.raw" ||
        fail "qcow convert and qemu-img convert differ: $WORK/ours.raw $WORK/theirs.raw"
    e2fsck -fn "$WORK/ours.raw" > "$WORK/e2fsck.log" 2>&1 || fail "e2fsck: $(tail -n 1 "$WORK/e2fsck.log")"
    rm "$WORK/ours.raw" "$WORK/theirs.raw"
}
