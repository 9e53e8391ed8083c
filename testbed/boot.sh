#!/usr/bin/env bash
# Boots the guest from a vhost-user-blk daemon that already listens: in QEMU's emulator (no KVM), or with MONITOR=vmm in our
# own monitor.
#
#   boot.sh INITRAMFS SOCKET [KERNEL-ARGUMENT...]      the console goes to stdout
#
# With RECONNECT=1 QEMU connects again when the daemon is gone, once a second; our monitor always does. Two virtual CPUs and two
# queues. Ends with the monitor's exit code, or 124 after BOOT_TIMEOUT seconds.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
MEMORY=384M

initramfs=$1 socket=$2
shift 2

if [ "${MONITOR:-qemu}" = vmm ]; then
    exec timeout --kill-after=5 "${BOOT_TIMEOUT:-300}" "${VMM:-${CARGO_TARGET_DIR:-$HERE/../target}/${BUILD:-release}/vmm}" \
        --cpus 2 --memory "$MEMORY" --vhost-user "$socket,queues=2" \
        --kernel "$HERE/../build/kernel/vmlinuz" --initramfs "$initramfs" \
        --cmdline "console=ttyS0 quiet panic=-1 $*" </dev/null
fi

# The daemon maps the guest's memory, so it must be shared.
exec timeout --kill-after=5 "${BOOT_TIMEOUT:-300}" qemu-system-x86_64 \
    -accel tcg,thread=multi -cpu max -smp 2 -m "$MEMORY" \
    -object "memory-backend-memfd,id=memory,size=$MEMORY,share=on" -machine q35,memory-backend=memory \
    -nodefaults -no-user-config -display none -serial stdio -no-reboot \
    -chardev "socket,id=daemon,path=$socket${RECONNECT:+,reconnect=1}" -device vhost-user-blk-pci,chardev=daemon,num-queues=2 \
    -kernel "$HERE/../build/kernel/vmlinuz" -initrd "$initramfs" \
    -append "console=ttyS0 quiet panic=-1 $*" </dev/null
