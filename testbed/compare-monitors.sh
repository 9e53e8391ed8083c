#!/usr/bin/env bash
# Our monitor beside Firecracker: the same guest on the same host, in turn, measured from outside by the host's kernel.
#
#   compare-monitors.sh FIRECRACKER [SOURCE]
#
# FIRECRACKER is the program, built by `cargo build --release -p firecracker` in its repository. With its source, lines of code
# are counted too. The bed is that of nested-test.sh, without a disk to boot from; what is compared is in nested/comparison.
# Ends with a table of medians of ROUNDS (5) rounds for docs/SPECIFICATION.md. Times are in QEMU's emulator: only their ratio to
# the median of our monitor without a disk is shown, with the least and the greatest.
set -euo pipefail
. "$(dirname "$0")/bed.sh"
SECONDS_MAX=${SECONDS_MAX:-1200}
. "$HERE/nested/bed.sh"
ROUNDS=${ROUNDS:-5}
COLUMNS_SHOWN=(vmm firecracker firecracker-pci vmm-disk firecracker-disk firecracker-pci-disk)
# The crates of each program that are its own; of those only src/, with the tests that are in it.
OURS=(vmm qcow)
THEIRS=(firecracker vmm utils acpi-tables)

main() {
    [ $# -ge 1 ] || fail "no FIRECRACKER: build it ('cargo build --release -p firecracker' in its repository) and say where it is"
    [ -x "$1" ] || fail "$1 is no program: say where Firecracker's is"
    require_programs
    "$HERE/kernel.sh"
    # shellcheck disable=SC2119 # of a name that does not matter
    new_work
    mkdir -p "$WORK/host/guest"
    cp "$1" "$WORK/firecracker"
    pack_small_guest "$WORK/small" "$WORK/host/guest/initramfs"
    pack_host "$WORK/host" "$WORK/initramfs" "$HERE/nested/comparison" \
        "$VMM" "$VHOST_BLK" "$QCOW" "$WORK/firecracker"
    boot_host "$WORK/initramfs" "rounds=$ROUNDS"
    grep -E '^HOST FAIL|^console:' "$CONSOLE" || true
    judge_host
    "$1" --version | head -n 1
    show_table
    show_program "$VMM" "$HERE/.." "${OURS[@]}"
    show_program "$WORK/firecracker" "${2:+$2/src}" "${THEIRS[@]}"
}

# One line for each thing measured, one column for each monitor.
show_table() {
    echo "| | vmm | Firecracker | with \`--enable-pci\` | vmm, a disk | Firecracker, a disk | with \`--enable-pci\` |"
    echo "|---|---|---|---|---|---|---|"
    row returns count "returns to the monitor"
    row returns-port count "- for ports"
    row returns-mmio count "- for registers of devices"
    row exits count "exits from the guest, but for the host's interrupts"
    row exits-page count "- for pages that it did not have yet"
    row memory-own MiB "memory beside the guest's"
    row memory-guest MiB "memory of the guest in use"
    row threads count "threads"
    row until-entry ratio "time to the first instruction of the guest"
    row until-init ratio "time to the guest's init"
}

# row NAME UNIT TITLE
row() {
    local monitor base cells=()
    base=$(values vmm "$1" | median)
    for monitor in "${COLUMNS_SHOWN[@]}"; do
        cells+=("$(values "$monitor" "$1" | shown "$2" "$base")")
    done
    printf '| %s |' "$3"
    printf ' %s |' "${cells[@]}"
    echo
}

# values MONITOR NAME: sorted.
values() {
    sed -n "s/^MEASURED $1 $2 //p" "$CONSOLE" | sort -n
}

median() {
    awk '{ values[NR] = $1 } END { print values[int((NR + 1) / 2)] }'
}

# shown UNIT BASE: memory is measured in KiB.
shown() {
    case $1 in
        count) median ;;
        MiB) median | awk '{ printf "%.1f MiB", $1 / 1024 }' ;;
        ratio)
            awk -v "base=$2" '{ ratios[NR] = $1 / base }
                END { printf "%.2f (%.2f to %.2f)", ratios[int((NR + 1) / 2)], ratios[1], ratios[NR] }'
            ;;
    esac
}

# show_program PROGRAM SOURCE CRATE...: how large it is, stripped, and of how many lines of Rust its crates are made.
show_program() {
    local program=$1 source=$2 crate
    shift 2
    strip -o "$WORK/stripped" "$program"
    echo "$(basename "$program"): $(stat -c %s "$WORK/stripped") bytes, stripped"
    [ -n "$source" ] || return 0
    for crate in "$@"; do
        echo "$(basename "$program"): crate $crate, $(lines "$source/$crate/src") lines"
    done
}

# lines DIRECTORY
lines() {
    find "$1" -name '*.rs' -exec cat {} + | wc -l
}

main "$@"
