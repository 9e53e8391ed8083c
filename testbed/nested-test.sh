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
KERNEL=$HERE/../build/kernel
VMM=${VMM:-$TARGET/vmm}
SECONDS_MAX=${SECONDS_MAX:-600}
SCRATCH_SIZE=512M

main() {
    require_programs
    "$HERE/kernel.sh"
    new_work
    CONSOLE=$WORK/console
    mkdir -p "$WORK/small/bin" "$WORK/host/"{bin,guest,programs,modules}
    pack_small_guest "$WORK/small" "$WORK/host/guest/initramfs"
    "$HERE/initramfs.sh" "$WORK/host/guest/disk-initramfs" "${PROGRAMS[@]}"
    pack_host "$WORK/host" "$WORK/initramfs"
    truncate -s "$SCRATCH_SIZE" "$WORK/scratch"
    pack_images "$WORK/images"
    boot_host "$*" > "$CONSOLE" 2>&1 || true
    sed -i 's/\r$//' "$CONSOLE"
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

# The guest without a disk: busybox and a script that says what it sees.
pack_small_guest() {
    cp "$(command -v busybox)" "$1/bin/busybox"
    cp "$HERE/nested/guest-init" "$1/init"
    pack "$1" "$2"
}

pack_host() {
    cp "$(command -v busybox)" "$1/bin/busybox"
    cp "$HERE/nested/host-init" "$1/init"
    cp "$HERE/nested/scenarios" "$1/scenarios"
    cp "$KERNEL/vmlinuz" "$1/guest/vmlinuz"
    local program
    for program in "$VMM" "$VHOST_BLK" "$QCOW" "$(command -v nc.openbsd)"; do
        copy_program "$program" "$1"
    done
    copy_modules "$1/modules"
    pack "$1" "$2"
}

# copy_program PATH ROOT: with its libraries, which go under the same names as here, and without what only debuggers read.
copy_program() {
    local library
    strip -o "$2/programs/$(basename "$1")" "$1"
    for library in $(ldd "$1" | grep -o '/[^ ]*'); do
        mkdir -p "$2$(dirname "$library")"
        cp -L "$library" "$2$library"
    done
}

copy_modules() {
    local number=10 module name
    for name in kvm-amd virtio_pci virtio_blk; do
        modprobe -d "$KERNEL/root" -S "$(cat "$KERNEL/release")" --show-depends "$name"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
        case $module in
            *.xz) xz -dc "$module" ;;
            *.zst) zstd -dcq "$module" ;;
            *) cat "$module" ;;
        esac > "$1/$number-$(basename "${module%.ko*}").ko"
        number=$((number + 1))
    done
}

pack() {
    (cd "$1" && find . | cpio -o -H newc --quiet) | gzip -1 > "$2"
}

# EPYC: `-cpu max` has more than the emulator does right. One processor: with two, that run guests at the same time, the
# emulator gives a guest with two processors a triple fault sooner or later.
# boot_host SCENARIOS
boot_host() {
    timeout "$SECONDS_MAX" qemu-system-x86_64 -accel tcg -cpu EPYC,+svm,+npt -smp 1 -m 3072 -M q35 \
        -nodefaults -no-user-config -display none -serial stdio -no-reboot \
        -drive "file=$WORK/scratch,format=raw,if=virtio,cache=unsafe" \
        -drive "file=$WORK/images.ext4,format=raw,if=virtio,cache=unsafe" \
        -kernel "$KERNEL/vmlinuz" -initrd "$WORK/initramfs" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off scenarios=${1// /,}" < /dev/null
}

judge() {
    grep -E '^SCENARIO|FAIL' "$CONSOLE" || true
    grep -q '^HOST DONE$' "$CONSOLE" || fail "the host did not end; last: $(last "$CONSOLE")"
    ! grep -q 'FAIL' "$CONSOLE" || fail "see above"
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
