//! What `convert` says about its arguments: word for word, with the same exit code, and of several things that are wrong the
//! same one first.

use crate::tool::{Pair, Tool, put};

const SETUP: &str = "
    img create -q -f qcow2 a.qcow2 1M
    io a.qcow2: write -P 1 0 64k
    img snapshot -c s1 a.qcow2
    img create -q -f raw a.raw 1M
    img create -q -f qcow2 small.qcow2 512k
    img create -q -f qcow2 there.qcow2 1M
    img create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2
    img bitmap --add a.qcow2 b0
";

const LINES: &str = "
    -r x a.raw x.raw
    -r -1 a.raw x.raw
    -r 8E a.raw x.raw
    -r 9223372036854775807 a.raw x.raw
    -r 0 a.raw x.raw
    -r 100M a.raw x.raw
    -r x -m 0 a.raw x.raw
    -m 0 -r x a.raw x.raw
    -m 0 -S 3 a.raw x.raw
    -S 3 -m 0 a.raw x.raw
    -S x -l snapshot.foo=x a.raw x.raw
    -l snapshot.foo=x -S x a.raw x.raw
    -o , -l snapshot.foo=x -S x a.raw x.raw
    -l snapshot.foo=x -o , -S x a.raw x.raw
    -m 1 -m 0 a.raw x.raw
    -m 0 -m 1 a.raw x.raw
    -m 0x10 a.raw x.raw
    -m 010 a.raw x.raw
    -m 020 a.raw x.raw
    -m 021 a.raw x.raw
    -m 1k a.raw x.raw
    -m 99999999999999999999 a.raw x.raw
    -m -99999999999999999999 a.raw x.raw
    -m -1 a.raw x.raw
    -m +1 a.raw x.raw
    -S -1 a.raw x.raw
    -S 16M a.raw x.raw
    -S 16385k a.raw x.raw
    -S 8E a.raw x.raw
    -S 17E a.raw x.raw
    -S 0 a.raw x.raw
    -C a.raw x.raw
    -C --salvage a.raw x.raw
    --salvage a.raw x.raw
    -C -c --salvage -S 4k a.raw x.raw
    -C -S 0 a.raw x.raw
    -C -S 4k --salvage a.raw x.raw
    --target-image-opts a.raw x.raw
    --target-image-opts -O qcow2 a.raw x.raw
    --target-image-opts -n -O qcow2 a.raw driver=qcow2,file.filename=there.qcow2
    --target-image-opts -n a.raw driver=qcow2,file.filename=there.qcow2
    --target-image-opts -n a.raw driver=qcow2,file.filename=missing.qcow2
    --target-image-opts -n a.raw driver=qcow2,file.filename=a.raw
    --target-image-opts -n a.raw driver=foo,file.filename=a.raw
    --target-image-opts -n a.raw there.qcow2
    --target-image-opts -n a.raw driver=qcow2,file.filename=small.qcow2
    --target-image-opts -n a.raw driver=qcow2,file.filename=there.qcow2,read-only=on
    --target-image-opts -n -o cluster_size=4k a.raw driver=qcow2,file.filename=there.qcow2
    --target-image-opts -n -o help a.raw driver=qcow2,file.filename=there.qcow2
    --target-image-opts -o help
    -o help a.raw
    -o help --target-is-zero
    -o help --target-is-zero a.raw x.raw
    -o help --skip-broken-bitmaps a.raw x.raw
    -O foo -o help
    -O dmg -o help
    -O bochs -o help
    -O qcow2 -o help -S x
    -n -O qcow2 -B a.raw -F raw a.raw there.qcow2
    -n -O raw -B a.raw -F raw a.raw x.raw
    -O qcow2 -B a.raw -F raw a.raw a.raw x.qcow2
    -O qcow2 -B a.raw a.raw a.raw x.qcow2
    -O qcow2 -o backing_file=a.raw a.raw a.raw x.qcow2
    -O qcow2 -o backing_file=a.raw a.raw x.qcow2
    -O qcow2 -o backing_file=a.raw,backing_fmt=foo a.raw x.qcow2
    -O qcow2 -o backing_file=a.raw,backing_fmt=raw -B over.qcow2 -F qcow2 a.raw x.qcow2
    -O qcow2 -F qcow2 a.raw x.qcow2
    -O raw -F qcow2 a.raw x.qcow2
    -O raw -B a.raw -F qcow2 a.raw x.qcow2
    -O raw -B a.raw -F qcow2 a.raw a.raw x.qcow2
    -O qcow2 -B a.raw -F foo a.raw x.qcow2
    -O qcow2 -B missing -F raw a.raw x.qcow2
    -O qcow2 -B missing -F raw missing2 x.qcow2
    -c -O raw -B a.raw -F raw a.raw x.raw
    -c -O raw a.raw x.raw
    -c -O raw -n a.raw a.raw
    -c -n -O qcow2 a.raw a.raw
    -c -O qcow2 -o preallocation=off a.raw x.qcow2
    -c -O qcow2 -o preallocation=full a.raw x.qcow2
    -c -O qcow2 -o preallocation=foo a.raw x.qcow2
    -c -O qcow2 -o encryption=on a.raw x.qcow2
    -c -O qcow2 -o encryption=on,preallocation=full a.raw x.qcow2
    -c -O qcow2 -o encrypt.format=luks a.raw x.qcow2
    -c -O qcow2 -o encrypt.format=luks a.raw missing/x.qcow2
    -l s1 a.qcow2 x.raw
    -l nope a.qcow2 x.raw
    -l s1 a.raw x.raw
    -l s1 a.qcow2 a.qcow2 x.raw
    -l snapshot.name=s1 a.qcow2 a.qcow2 x.raw
    -l snapshot.name=nope a.qcow2 a.qcow2 x.raw
    -l snapshot.id=1 a.qcow2 x.raw
    -l snapshot.id=1,snapshot.name=s2 a.qcow2 x.raw
    -l snapshot.id=1,snapshot.name=s1 a.qcow2 x.raw
    -l snapshot. a.qcow2 x.raw
    -l snapshot.foo a.qcow2 x.raw
    -l snapshot.name a.qcow2 x.raw
    -l snapshot.name= a.qcow2 x.raw
    -l s1 missing x.raw
    -l s1 -T foo missing x.raw
    -l s1 -t foo missing x.raw
    -t foo -O foo a.raw x.raw
    -t foo -O qcow2 a.raw x.qcow2
    -t foo -O qcow2 a.raw missing/x.qcow2
    -t foo -n -O qcow2 a.raw missing.qcow2
    -O foo missing x.raw
    -O dmg a.raw x.raw
    -O bochs a.raw x.raw
    -O qcow2 -o foo=bar missing x.raw
    -O qcow2 -o size=2M a.raw x.qcow2
    -O qcow2 -o size=x a.raw x.qcow2
    -O raw -o cluster_size=2M a.raw x.raw
    --bitmaps a.raw x.raw
    --bitmaps a.qcow2 a.qcow2 x.raw
    --bitmaps -O raw a.qcow2 x.raw
    --bitmaps -O qcow2 a.qcow2 x.qcow2
    --bitmaps -O qcow2 -o compat=v2 a.qcow2 x.qcow2
    --bitmaps -n -O qcow2 a.qcow2 there.qcow2
    --bitmaps -n -O qcow2 a.qcow2 there.qcow2
    --bitmaps --skip-broken-bitmaps -O qcow2 a.qcow2 x.qcow2
    --bitmaps -l s1 -O qcow2 a.qcow2 x.qcow2
    --image-opts driver=qcow2,file.filename=a.qcow2 x.raw
    --source-image-opts driver=qcow2,file.filename=a.qcow2 x.raw
    --image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2 x.raw
    --image-opts -f qcow2 -T foo driver=qcow2,file.filename=a.qcow2 x.raw
    --image-opts a.qcow2 x.raw
    --image-opts driver=foo,file.filename=a.qcow2 x.raw
    --image-opts driver=qcow2,file.filename=missing x.raw
    --image-opts -U driver=qcow2,file.filename=a.qcow2,force-share=off x.raw
    --image-opts driver=raw,file.filename=a.raw driver=qcow2,file.filename=a.qcow2 x.raw
    --object secret a.raw x.raw
    --object secret,id=s0 a.raw x.raw
    --object secret,id=s0,data=abc a.raw x.raw
    --object secret,id=s0,file=missing a.raw x.raw
    --object foo,id=s0,data=abc a.raw x.raw
    --object id=s0,data=abc a.raw x.raw
    -S x --object foo,id=s0,data=abc a.raw x.raw
    --object foo,id=s0,data=abc -S x a.raw x.raw
    -U a.raw x.raw
    -U -O qcow2 a.raw x.raw
    -q -p a.raw x.raw
    -p a.raw x.raw
    -n a.raw missing.raw
    -n -O qcow2 a.qcow2 a.raw
    -n a.raw there.qcow2
    -n a.qcow2 a.qcow2
    -n -O qcow2 a.qcow2 a.qcow2
    -n -O foo a.qcow2 there.qcow2
    -W -m 3 a.qcow2 x.raw
    foo:bar x.raw
    a.raw foo:bar
    a.raw file:x.raw
    a.raw json:{}
    -B a.raw -F raw -O qcow2 a.raw x.qcow2
    -f raw
    a.qcow2 -O qcow2 b.qcow2
    --foo a b
    -m
    -c -W -m 5 -O qcow2 a.qcow2 x.qcow2
    -t none -T none a.qcow2 x.raw
    -f qcow2 a.qcow2 over.qcow2 -O qcow2 x.qcow2
";

#[test]
fn both_judge_arguments_alike() {
    let pair = Pair::prepared(SETUP);
    let mut differences = Vec::new();
    for line in LINES.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let line = format!("convert {line}");
        let (ours, theirs) = pair.img(&line);
        if ours != theirs {
            differences.push(format!("qemu-img {line}\n  ours:   {ours:?}\n  theirs: {theirs:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn values_are_judged_as_they_are_typed() {
    let pair = Pair::prepared(SETUP);
    let lines: [&[&str]; 6] = [
        &["-m", " 3", "a.raw", "x.raw"],
        &["-m", "", "a.raw", "x.raw"],
        &["-l", "", "a.qcow2", "x.raw"],
        &["-f", "raw", "a.raw", ""],
        &["", "x.raw"],
        &[r#"json:{"driver":"raw","file.filename":"a.raw"}"#, "x.raw"],
    ];
    for words in lines {
        let words: Vec<&str> = std::iter::once("convert").chain(words.iter().copied()).collect();
        let ours = Tool::Ours.run("qemu-img", pair.ours(), &words);
        assert_eq!(ours, Tool::Theirs.run("qemu-img", pair.theirs(), &words), "{words:?}");
    }
}

/// QEMU says so and ends with exit code 0, as if the target held the source.
#[test]
fn a_target_that_is_not_written_is_no_success() {
    let pair = Pair::prepared(SETUP);
    let line = "convert --target-is-zero -n -O qcow2 -B a.raw -F raw a.raw there.qcow2";
    let (ours, theirs) = pair.img(line);
    assert_eq!(ours.stderr, theirs.stderr);
    assert_eq!(ours.code, Some(1));
}

#[test]
fn objects_are_judged_alike() {
    let pair = Pair::prepared(SETUP);
    put(&pair, "pw", b"secret");
    for definition in [
        "secret,id=x,file=pw",
        "secret,id=x,data=abc,format=raw",
        "secret,id=x,data=YWJj,format=base64,iv=k",
        "secret,id=x,data=abc,format=foo",
        "secret,id=x,data=abc,foo=1",
        "secret,id=x,data=a,file=b",
        "secret,id=1x,data=abc",
        "secret,id=x,file=.",
        "secret,id=x,data",
        "secret,id",
        "foo,id=x,data=y",
        ",",
        "{}",
        "{",
        "{'qom-type':'secret','id':'x','data':'y'}",
        "{'qom-type':'secret','id':'x'}",
    ] {
        for command in ["info", "convert -S x", "compare"] {
            pair.same_img(&format!("{command} --object {definition} a.qcow2 a.qcow2"));
        }
        pair.same_img(&format!("map --object {definition} a.qcow2"));
    }
}
