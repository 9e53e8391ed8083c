#!/usr/bin/env bash
# Boots the guest in QEMU's emulator (no KVM) from a vhost-user-blk daemon that already listens.
#
#   boot.sh INITRAMFS SOCKET [KERNEL-ARGUMENT...]      the console goes to stdout
#
# Two virtual CPUs and two queues. Ends with QEMU's exit code, or 124 after BOOT_TIMEOUT seconds.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
MEMORY=384M

initramfs=$1 socket=$2
shift 2

# The daemon maps the guest's memory, so it must be shared.
exec timeout --kill-after=5 "${BOOT_TIMEOUT:-300}" qemu-system-x86_64 \
    -accel tcg,thread=multi -cpu max -smp 2 -m "$MEMORY" \
    -object "memory-backend-memfd,id=memory,size=$MEMORY,share=on" -machine q35,memory-backend=memory \
    -nodefaults -no-user-config -display none -serial stdio -no-reboot \
    -chardev "socket,id=daemon,path=$socket" -device vhost-user-blk-pci,chardev=daemon,num-queues=2 \
    -kernel "$HERE/../build/kernel/vmlinuz" -initrd "$initramfs" \
    -append "console=ttyS0 quiet panic=-1 $*" </dev/null
