#!/usr/bin/env bash
# The monitor on real KVM, anywhere: QEMU's emulator is a host with AMD's virtualisation, on which a stock kernel loads
# kvm-amd and our monitor boots the same stock kernel as its guest.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "$0")" && pwd)
KERNEL=$HERE/../build/kernel
VMM=${VMM:-${CARGO_TARGET_DIR:-$HERE/../target}/release/vmm}
SECONDS_MAX=400

main() {
    "$HERE/kernel.sh"
    work=$(mktemp -d "${TMPDIR:-/tmp}/nested.XXXXXX")
    trap 'end_work $?' EXIT
    mkdir -p "$work/guest/bin" "$work/host/"{bin,guest,programs,modules}
    pack_guest "$work/guest" "$work/host/guest/initramfs"
    pack_host "$work/host" "$work/initramfs"
    boot_host "$work/initramfs" > "$work/console" 2>&1 || true
    sed -i 's/\r$//' "$work/console"
    judge "$work/console"
}

end_work() {
    if [ "$1" -eq 0 ]; then rm -rf "$work"; else echo "The console is in $work/console" >&2; fi
}

pack_guest() {
    cp "$(command -v busybox)" "$1/bin/busybox"
    cp "$HERE/nested/guest-init" "$1/init"
    pack "$1" "$2"
}

pack_host() {
    cp "$(command -v busybox)" "$1/bin/busybox"
    cp "$HERE/nested/host-init" "$1/init"
    cp "$HERE/nested/scenarios" "$1/scenarios"
    cp "$KERNEL/vmlinuz" "$1/guest/vmlinuz"
    copy_program "$VMM" "$1"
    copy_modules "$1/modules"
    pack "$1" "$2"
}

# copy_program PATH ROOT: with its libraries, which go under the same names as here.
copy_program() {
    local library
    cp "$1" "$2/programs/"
    for library in $(ldd "$1" | grep -o '/[^ ]*'); do
        mkdir -p "$2$(dirname "$library")"
        cp -L "$library" "$2$library"
    done
}

copy_modules() {
    local number=10 module
    modprobe -d "$KERNEL/root" -S "$(cat "$KERNEL/release")" --show-depends kvm-amd |
        awk '$1 == "insmod" { print $2 }' | while read -r module; do
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

# No machine check and no other exception is missing from EPYC's model; `-cpu max` has more than the emulator does right.
boot_host() {
    timeout "$SECONDS_MAX" qemu-system-x86_64 -accel tcg,thread=multi -cpu EPYC,+svm,+npt -smp 2 -m 2048 -M q35 \
        -nodefaults -no-user-config -display none -serial stdio -no-reboot \
        -kernel "$KERNEL/vmlinuz" -initrd "$1" -append "console=ttyS0 quiet panic=-1 mitigations=off" < /dev/null
}

judge() {
    grep -E '^SCENARIO|FAIL' "$1" || true
    grep -q '^HOST DONE$' "$1" || { echo "FAILED: the host did not end; last: $(tail -n 1 "$1")" >&2; exit 1; }
    ! grep -q 'FAIL' "$1" || exit 1
    grep -q '^one-cpu: GUEST cpus 1$' "$1" && grep -q '^two-cpus: GUEST cpus 2$' "$1" ||
        { echo "FAILED: a guest does not see its processors" >&2; exit 1; }
    echo "nested test: ok, $(grep -c '^SCENARIO .* OK$' "$1") scenarios, $SECONDS s"
}

main "$@"
