#!/usr/bin/env bash
# Makes small real images as the fuzzer's first inputs, or what stands for them: seed.sh DIRECTORY. Silent when they are there already.
set -euo pipefail

directory=$1
[ -d "$directory" ] && [ -n "$(ls -A "$directory")" ] && exit 0
mkdir -p "$directory"
if [[ $directory == */luks_header ]]; then
    printf fuzz > "$directory/../key"
    for options in cipher-alg=aes-128 cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=sha512; do
        qemu-img create -q --object "secret,id=key,file=$directory/../key" -f luks \
            -o "key-secret=key,iter-time=1,$options" "$directory/$options" 1k
    done
    rm "$directory/../key"
    exit 0
fi
if [[ $directory == */sealed_slots ]]; then
    # The first byte says which slots get a checksum, the others what changes: nothing.
    { printf '\001'; head -c 4096 /dev/zero; } > "$directory/real"
    { printf '\377'; head -c 4096 /dev/zero; } > "$directory/checked"
    exit 0
fi
if [[ $directory == */authenticated_image ]]; then
    # The first byte says that checksums are made right, and twelve that follow what changes.
    printf '\000' > "$directory/real"
    printf '\000\000\001\000\000\000\000\000\001\000\000\000\000' > "$directory/size"
    printf '\000\002\211\000\001\000\000\000\000\000\000\000\011' > "$directory/entry"
    exit 0
fi
raw=$(mktemp)
trap 'rm -f "$raw"' EXIT
head -c 40000 /dev/zero | tr '\0' q > "$raw"
for options in cluster_size=512,refcount_bits=1 cluster_size=512,refcount_bits=64 cluster_size=1k,compat=v2 \
    cluster_size=4k,compression_type=zstd; do
    image=$directory/$options
    qemu-img convert -c -f raw -O qcow2 -o "$options" "$raw" "$image"
    qemu-io -f qcow2 -c 'write -P 7 5000 2000' -c 'write -z 12000 3000' "$image" >/dev/null
    # A count of one bit cannot count a snapshot.
    [[ $options == *refcount_bits=1 ]] || qemu-img snapshot -c one "$image"
done
