//! What is said about wrong usage and wrong files: word for word, with the same exit code.

use crate::tool::Pair;

const SETUP: &str = "
    img create -q -f qcow2 a.qcow2 1M
    img create -q -f raw a.raw 1M
    img create -q -f qcow2 small.qcow2 512k
";

const LINES: &str = "
    frobnicate
    create
    create -f qcow2
    create -Q
    create -f
    create --format
    create --frobnicate
    create -f qcow2 x.qcow2
    create -f qcow2 x.qcow2 1M extra
    create -f qcow2 x.qcow2 1X
    create -f qcow2 x.qcow2 -1
    create -f qcow2 x.qcow2 16E
    create -f qcow2 x.qcow2 7E
    create -f nothing x.qcow2 1M
    create -f qcow2 -b a.qcow2 x.qcow2
    create -f qcow2 -b missing -F qcow2 x.qcow2
    create -f qcow2 -u -b missing -F qcow2 x.qcow2
    create -f qcow2 -b a.qcow2 -F nothing x.qcow2
    create -f qcow2 -b x.qcow2 -F qcow2 x.qcow2
    create -f qcow2 -b a.raw -F raw -o preallocation=full x.qcow2 2M
    create -f raw -b a.raw -F raw x.raw 1M
    create -f raw -o cluster_size=1M x.raw 1M
    create -f raw -o preallocation=metadata x.raw 1M
    create -f qcow2 -o size=2M x.qcow2 1M
    create -f qcow2 -o backing_file=a.qcow2 x.qcow2
    create -f qcow2 -o cluster_size=3k x.qcow2 1M
    create -f qcow2 -o cluster_size=4M x.qcow2 1M
    create -f qcow2 -o cluster_size=foo x.qcow2 1M
    create -f qcow2 -o cluster_size=-1 x.qcow2 1M
    create -f qcow2 -o refcount_bits=3 x.qcow2 1M
    create -f qcow2 -o refcount_bits=128 x.qcow2 1M
    create -f qcow2 -o refcount_bits=x x.qcow2 1M
    create -f qcow2 -o refcount_bits=1,compat=0.10 x.qcow2 1M
    create -f qcow2 -o compat=0.11 x.qcow2 1M
    create -f qcow2 -o compat=0.10,lazy_refcounts=on x.qcow2 1M
    create -f qcow2 -o compat=0.10,lazy_refcounts=on,refcount_bits=8 x.qcow2 1M
    create -f qcow2 -o compat=0.10,lazy_refcounts=on,data_file_raw=on x.qcow2 1M
    create -f qcow2 -o compat=0.10,refcount_bits=8,data_file_raw=on x.qcow2 1M
    create -f qcow2 -o compat=0.10,data_file_raw=on,compression_type=zstd x.qcow2 1M
    create -f qcow2 -o compat=0.10,data_file=y,lazy_refcounts=on x.qcow2 1M
    create -f qcow2 -o compat=0.10,compression_type=zstd x.qcow2 1M
    create -f qcow2 -o compression_type=lz4 x.qcow2 1M
    create -f qcow2 -o preallocation=foo x.qcow2 1M
    create -f qcow2 -o lazy_refcounts=maybe x.qcow2 1M
    create -f qcow2 -o foo=bar x.qcow2 1M
    create -f qcow2 -o foo x.qcow2 1M
    create -f qcow2 -o nofoo x.qcow2 1M
    create -f qcow2 -o no x.qcow2 1M
    create -f qcow2 -o nosize x.qcow2 1M
    create -f qcow2 -o size x.qcow2 1M
    create -f qcow2 -o refcount_bits x.qcow2 1M
    create -f qcow2 -o compat x.qcow2 1M
    create -f qcow2 -o ,cluster_size=4k x.qcow2 1M
    create -f qcow2 -o cluster_size=4k, x.qcow2 1M
    create -f qcow2 missing/x.qcow2 1M
    create -f qcow2 /tmp 1M
    create -f qcow2 -o help
    create -f qcow2 -o help x.qcow2
    create -f raw -o help
    create -f raw -o help x.raw
    info
    info a.qcow2 a.raw
    info missing
    info /tmp
    info --output=foo a.qcow2
    info --frobnicate a.qcow2
    info -f foo a.qcow2
    info -f qcow2 a.raw
    check
    check missing
    check a.raw
    check -f qcow2 a.raw
    check -r leaks a.raw
    check -r all -f raw a.raw
    check -r foo a.qcow2
    check -r all -U a.qcow2
    check -T foo a.qcow2
    check a.qcow2
    check -q a.qcow2
    check -r leaks a.qcow2
    check -r all a.qcow2
    map
    map missing
    map --start-offset=1X a.qcow2
    map --start-offset=2M a.qcow2
    map --start-offset=2M --output=json a.qcow2
    map --max-length=1k --output=json a.qcow2
    map a.qcow2
    map a.raw
    compare a.raw
    compare a.raw a.qcow2
    compare -q a.raw a.qcow2
    compare a.raw missing
    compare -f qcow2 a.raw a.qcow2
    compare a.qcow2 small.qcow2
    compare -s a.qcow2 small.qcow2
    compare -p a.raw a.qcow2
    convert
    convert a.raw
    convert missing x.raw
    convert -f foo a.raw x.raw
    convert -f qcow2 a.raw x.raw
    convert -O foo a.raw x.raw
    convert -n a.raw absent.raw
    convert -n -O qcow2 a.raw small.qcow2
    convert --target-is-zero a.raw x.raw
    convert --skip-broken-bitmaps a.raw x.raw
    convert -m 0 a.raw x.raw
    convert -m 17 a.raw x.raw
    convert -m x a.raw x.raw
    convert -S 3 a.raw x.raw
    convert -S x a.raw x.raw
    convert -C -S 4k a.raw x.raw
    convert -C -c a.raw x.raw
    convert -t foo a.raw x.raw
    convert -T foo a.raw x.raw
    convert -n -o cluster_size=4k -O qcow2 a.raw small.qcow2
    convert -B a.raw a.raw x.raw
    convert -B a.raw -O qcow2 a.raw x.qcow2
    convert -O qcow2 -o foo=bar a.raw x.qcow2
    convert -O qcow2 -o cluster_size=3k a.raw x.qcow2
    convert -O qcow2 -o help
    convert -O qcow2 a.raw missing/x.qcow2
    convert -O qcow2 a.raw /tmp
    convert -O qcow2 a.raw a.raw
    convert -O raw a.raw a.raw
";

#[test]
fn both_say_the_same_to_each_line() {
    let pair = Pair::prepared(SETUP);
    let mut differences = Vec::new();
    for line in LINES.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (ours, theirs) = pair.img(line);
        if ours != theirs {
            differences.push(format!("qemu-img {line}\n  ours:   {ours:?}\n  theirs: {theirs:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_failed_command_leaves_no_file_behind() {
    let pair = Pair::prepared(SETUP);
    for line in LINES.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let said = crate::tool::Tool::Ours.img(pair.ours(), line);
        for name in ["x.raw", "x.qcow2"] {
            let left = pair.ours().join(name).exists();
            assert!(said.code == Some(0) || !left, "qemu-img {line} leaves {name}");
        }
    }
}
