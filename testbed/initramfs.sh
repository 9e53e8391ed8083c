#!/usr/bin/env bash
# Packs the guest: busybox, the virtio modules of the unpacked kernel, and programs of the host.
#
#   initramfs.sh OUT PROGRAM...
#
# OUT becomes the archive. guest/* goes to its root (guest/init is process 1); every PROGRAM (a name
# or a path) goes to /programs, with the libraries that ldd names for it.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "$0")" && pwd)
KERNEL=$HERE/../build/kernel
MODULES=(virtio_pci virtio_blk)

main() {
    local out=$1 program
    shift
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mkdir -p "$root"/{bin,dev,proc,sys,mnt,tmp,modules,programs}
    copy_program busybox "$root/bin/busybox"
    for program in "$@"; do
        copy_program "$program" "$root/programs/$(basename "$program")"
    done
    copy_modules "$root/modules"
    cp "$HERE"/guest/* "$root/"
    (cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 > "$out"
}

# copy_program NAME TARGET: with its libraries, which go under the same names as here.
copy_program() {
    local path library
    path=$(realpath "$(command -v "$1")")
    cp "$path" "$2"
    for library in $(ldd "$path" 2>/dev/null | grep -o '/[^ ]*'); do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
}

# Copies the modules unpacked, numbered in the order in which they must be loaded.
copy_modules() {
    local number=10 release name module
    release=$(cat "$KERNEL/release")
    for name in "${MODULES[@]}"; do
        modprobe -d "$KERNEL/root" -S "$release" --show-depends "$name"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
        unpack_module "$module" > "$1/$number-$(basename "${module%.ko*}").ko"
        number=$((number + 1))
    done
}

unpack_module() {
    case $1 in
        *.xz) xz -dc "$1" ;;
        *.zst) zstd -dcq "$1" ;;
        *.gz) gzip -dc "$1" ;;
        *) cat "$1" ;;
    esac
}

main "$@"
