//! Nothing that our tools say has a passphrase or a master key in it, whatever goes wrong.

use crate::tool::{Pair, Tool, put};

#[path = "../../../qcow/tests/common/master_key.rs"]
mod master_key;

const PASSPHRASES: [&str; 2] = ["correct horse battery", "staple, and so on"];
const OPTIONS: &str = "iter-time=10";
const LUKS: &str = "driver=luks,key-secret=s,file.filename=a.luks";
const QCOW2: &str = "driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2";
const SECRETS: &str = "--object secret,id=s,file=pw --object secret,id=t,file=pw2 \
                       --object secret,id=b,file=pw3,format=base64";

#[test]
fn no_output_has_a_secret() {
    let pair = Pair::new();
    let ours = pair.ours();
    put(&pair, "pw", PASSPHRASES[0].as_bytes());
    put(&pair, "pw2", PASSPHRASES[1].as_bytes());
    put(&pair, "pw3", b"c3RhcGxlLCBhbmQgc28gb24=");
    put(&pair, "nul", b"correct horse battery\0staple, and so on");
    put(&pair, "plain.raw", &[7; 1 << 20]);
    let mut said = String::new();
    let mut run = |line: &str| {
        let line = line.replace("$S", SECRETS).replace("@l", LUKS).replace("@q", QCOW2);
        let told = Tool::Ours.run("qcow", ours, line.split_whitespace());
        said += &format!("{line}\n{}{}", told.stdout, told.stderr);
    };
    for line in [
        "convert -p --verify --checksum $S -f raw -O luks -o key-secret=s,$O plain.raw a.luks",
        "convert -p $S -f raw -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.$O plain.raw a.qcow2",
        "create $S -f luks -o key-secret=b,$O b.luks 1M",
        "create $S -f luks -o key-secret=s,cipher-alg=no b.luks 1M",
        "create --object secret,id=s,file=nul -f luks -o key-secret=s b.luks 1M",
        "create --object secret,id=s,file=pw,format=base64 -f luks -o key-secret=s b.luks 1M",
        "create --object secret,id=s,file=pw,format=no -f luks -o key-secret=s b.luks 1M",
        "amend $S --image-opts @l -o state=active,new-secret=t,$O",
        "amend $S --image-opts @q -o encrypt.state=active,encrypt.new-secret=t,encrypt.$O",
        "amend $S --image-opts @q -o encrypt.state=inactive,encrypt.keyslot=1",
        "info --output=json a.luks",
        "info a.qcow2",
        "check $S --image-opts @q",
        "compact $S --image-opts @q",
        "compact --object secret,id=s,file=pw3 --image-opts @q",
        "map --output=json $S --image-opts @l",
        "map --object secret,id=s,file=pw3 --image-opts @l",
        "compare $S --image-opts @l @q",
        "measure $S -O luks -o key-secret=s --image-opts @q",
        "resize $S --image-opts @l 2M",
        "io $S --image-opts @l -c info",
        "io --object secret,id=s,file=pw3 --image-opts @l -c info",
        "tree a.qcow2",
    ] {
        run(&line.replace("$O", OPTIONS));
    }
    let [luks, qcow2] =
        ["a.luks", "a.qcow2"].map(|name| std::fs::read(ours.join(name)).expect("it"));
    put(&pair, "a.luks", &[&luks[..4096], &[0; 512], &luks[4608..]].concat());
    run("map $S --image-opts @l");

    let keys = [luks, qcow2].map(|file| master_key::master_key(&file, PASSPHRASES[0].as_bytes()));
    let said = said.to_lowercase();
    for passphrase in PASSPHRASES {
        assert!(!said.contains(passphrase), "{said}");
    }
    for key in &keys {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let list = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
        for part in key.chunks(8) {
            assert!(!said.contains(&hex(part)) && !said.contains(&list(part)), "{said}");
        }
    }
    assert!(said.matches("invalid password").count() >= 3, "{said}");
}
