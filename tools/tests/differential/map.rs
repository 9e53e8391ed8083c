//! `map` over chains, for people and as JSON.

use crate::tool::{Pair, Tool};

const SETUP: &str = "
    img create -q -f raw base.raw 3M
    io -f raw base.raw: write -P 1 0 1M; write -P 1 2M 64k
    img create -q -f qcow2 -b base.raw -F raw middle.qcow2 4M
    io middle.qcow2: write -P 2 512k 1M; write -z 2M 64k; write -P 2 3500k 64k
    img create -q -f qcow2 -o cluster_size=4k -b middle.qcow2 -F qcow2 top.qcow2 6M
    io top.qcow2: write -P 3 600k 64k; write -zu 700k 64k; discard 800k 100k; write -P 3 5M 8k
    img create -q -f qcow2 compressed.qcow2 1M
    io compressed.qcow2: write 0 64k; write -c 64k 64k; write 128k 64k
    img create -q -f qcow2 -o preallocation=metadata flat.qcow2 1M
    img create -q -f qcow2 -o compat=v2 old.qcow2 1M
    io old.qcow2: write 64k 64k; discard 64k 64k
";

#[test]
fn maps_are_the_same() {
    let pair = Pair::prepared(SETUP);
    for name in ["base.raw", "middle.qcow2", "top.qcow2", "compressed.qcow2", "old.qcow2"] {
        for bounds in [
            "",
            "--max-length=3M",
            "--start-offset=1M --max-length=2M",
            "--max-length=100k",
            "--start-offset=600k --max-length=1M",
        ] {
            pair.same_json(&format!("map --output=json {bounds} {name}"));
            pair.same_img(&format!("map {bounds} {name}"));
        }
    }
}

#[test]
fn the_end_of_the_last_sector_is_a_hole() {
    let pair = Pair::new();
    crate::tool::put(&pair, "odd.raw", &[1; 65537]);
    pair.same_json("map --output=json -f raw odd.raw");
    pair.same_img("convert -f raw -O qcow2 odd.raw odd.qcow2");
    pair.same_json("map --output=json odd.qcow2");
    pair.same_clean_image("odd.qcow2");
}

#[test]
fn preallocated_clusters_are_data() {
    let pair = Pair::prepared(SETUP);
    let map = Tool::Ours.img(pair.ours(), "map --output=json flat.qcow2").expect_success().json();
    assert_eq!(map[0]["data"], true, "{map}");
    assert_eq!(map[0]["length"], 1 << 20, "{map}");
}

#[test]
fn holes_inside_of_preallocated_clusters_read_as_zeros() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 -o preallocation=metadata flat.qcow2 4M
         io flat.qcow2: write -P 7 300k 4k; write -P 8 2M 256k",
    );
    pair.same_json("map --output=json flat.qcow2");
    pair.same_img("map flat.qcow2");
    pair.same_img("measure -O qcow2 flat.qcow2");
    pair.same_img("convert -O qcow2 flat.qcow2 out.qcow2");
    pair.same_json("map --output=json out.qcow2");
    pair.same_img("compare flat.qcow2 out.qcow2");
}
