# shellcheck shell=bash
# Sourced by nested-test.sh and compare-monitors.sh, after bed.sh: a host in QEMU's emulator, on which a stock kernel loads
# kvm-amd. It runs one script, whose guests have the same stock kernel, and ends. What it says goes to $CONSOLE.
KERNEL=$HERE/../build/kernel
VMM=${VMM:-$TARGET/vmm}
SECONDS_MAX=${SECONDS_MAX:-600}

# pack_small_guest ROOT ARCHIVE: the guest without a disk: busybox and a script that says what it sees.
pack_small_guest() {
    mkdir -p "$1/bin"
    cp "$(command -v busybox)" "$1/bin/busybox"
    cp "$HERE/nested/guest-init" "$1/init"
    pack "$1" "$2"
}

# pack_host ROOT ARCHIVE SCRIPT PROGRAM...: ROOT may hold more that the script needs.
pack_host() {
    local root=$1 archive=$2 script=$3 program
    shift 3
    mkdir -p "$root/"{bin,guest,programs,modules}
    cp "$(command -v busybox)" "$root/bin/busybox"
    cp "$HERE/nested/host-init" "$root/init"
    cp "$script" "$root/script"
    cp "$KERNEL/vmlinuz" "$root/guest/vmlinuz"
    for program in "$@"; do
        copy_program "$program" "$root"
    done
    copy_modules "$root/modules"
    pack "$root" "$archive"
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
# boot_host ARCHIVE WORDS DISK...: the words are for the script; it may fail, which shows in what the host has said.
boot_host() {
    local archive=$1 words=$2 disk disks=()
    shift 2
    for disk in "$@"; do
        disks+=(-drive "file=$disk,format=raw,if=virtio,cache=unsafe")
    done
    CONSOLE=$WORK/console
    timeout "$SECONDS_MAX" qemu-system-x86_64 -accel tcg -cpu EPYC,+svm,+npt -smp 1 -m 3072 -M q35 \
        -nodefaults -no-user-config -display none -serial stdio -no-reboot "${disks[@]}" \
        -kernel "$KERNEL/vmlinuz" -initrd "$archive" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off $words" < /dev/null > "$CONSOLE" 2>&1 || true
    sed -i 's/\r$//' "$CONSOLE"
}

# The host has done all that its script says.
judge_host() {
    grep -q '^HOST DONE$' "$CONSOLE" || fail "the host did not end; last: $(last "$CONSOLE")"
    ! grep -q 'FAIL' "$CONSOLE" || fail "see above"
}
