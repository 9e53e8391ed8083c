#!/usr/bin/env bash
# QEMU's own daemon behind vhost-blk's options, to tell a fault of the bed from one of ours:
#
#   VHOST_BLK=testbed/qemu-daemon.sh QCOW=qemu-img testbed/guest-test.sh
set -euo pipefail

for argument in "$@"; do
    case $argument in
        --socket-path=*) socket=${argument#*=} ;;
        --blk-file=*) file=${argument#*=} ;;
    esac
done
exec qemu-storage-daemon \
    --blockdev "driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.discard=unmap,file.filename=$file" \
    --export "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path=$socket"
