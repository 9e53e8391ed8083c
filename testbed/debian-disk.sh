#!/usr/bin/env bash
# Makes a Debian disk as an installer would: GPT, an ext4 root, kernel, initramfs, GRUB's menu, systemd, a login on ttyS0.
#
#   debian-disk.sh        afterwards: build/debian/disk.qcow2
#
# Nothing is started from it here. A second run finds it and does nothing; remove the directory to get a newer one.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/.."

SUITE=bookworm
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
PACKAGES=linux-image-cloud-amd64,systemd-sysv,udev,dbus,login
DIRECTORY=build/debian
START_MIB=1 # of the partition
ROOT_MIB=900
UUID=5b6a3c1e-0d5c-4b0e-9c55-6d6f0c2f7a11

main() {
    [ -e "$DIRECTORY/disk.qcow2" ] && return
    [ "$(id -u)" -eq 0 ] || fail "only root can make a Debian disk here"
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: run testbed/install.sh"
    mkdir -p build
    work=$(mktemp -d build/debian.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    mmdebstrap --quiet --mode=root --variant=minbase --include="$PACKAGES" \
        --dpkgopt=path-exclude='/usr/share/doc/*' --dpkgopt=path-exclude='/usr/share/locale/*' \
        --dpkgopt=path-exclude='/usr/share/man/*' --aptopt='Acquire::Languages "none"' \
        "$SUITE" "$work/root" "$MIRROR"
    configure "$work/root"
    write_menu "$work/root"
    rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/*
    pack "$work"
    mkdir -p "$DIRECTORY"
    mv "$work/disk.qcow2" "$DIRECTORY/disk.qcow2"
}

fail() {
    echo "debian-disk.sh: $*" >&2
    exit 1
}

configure() {
    echo debian > "$1/etc/hostname"
    echo "UUID=$UUID / ext4 errors=remount-ro 0 1" > "$1/etc/fstab"
    sed -i 's/^root:[^:]*:/root::/' "$1/etc/shadow"
}

# What update-grub writes, in short.
write_menu() {
    local version
    version=$(basename "$1"/boot/vmlinuz-* | sed 's/^vmlinuz-//')
    mkdir -p "$1/boot/grub"
    cat > "$1/boot/grub/grub.cfg" <<MENU
if [ -s \$prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "\${next_entry}" ] ; then
   set default="\${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux \$menuentry_id_option 'gnulinux-simple-$UUID' {
	load_video
	insmod gzio
	insmod part_gpt
	insmod ext2
	search --no-floppy --fs-uuid --set=root $UUID
	echo	'Loading Linux $version ...'
	linux	/boot/vmlinuz-$version root=UUID=$UUID ro  quiet
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-$version
}
MENU
}

pack() {
    local image=$1/disk.raw
    truncate -s "$((START_MIB + ROOT_MIB + 1))M" "$image"
    echo "start=${START_MIB}MiB, size=${ROOT_MIB}MiB" | sfdisk -q --label gpt "$image"
    mkfs.ext4 -q -F -U "$UUID" -E "offset=$((START_MIB << 20))" -d "$1/root" "$image" "${ROOT_MIB}M"
    qemu-img convert -c -O qcow2 -o compression_type=zstd "$image" "$1/disk.qcow2"
}

main "$@"
