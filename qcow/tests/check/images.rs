//! Sound images of many kinds, made by `qemu-img` and `qemu-io`.

use std::path::Path;

use crate::qemu::{KEY, qemu_img, qemu_io};

/// How an image is made.
pub struct Recipe {
    /// Its name in messages.
    pub name: &'static str,
    /// Options of `qemu-img create`, besides the size.
    create: &'static [&'static str],
    /// Size of the virtual disk.
    size: &'static str,
    /// What happens to it then.
    steps: &'static [Step],
}

enum Step {
    /// Commands of `qemu-io`.
    Io(&'static [&'static str]),
    /// `qemu-img snapshot -c NAME`.
    Snapshot(&'static str),
    /// `qemu-img bitmap ARGUMENTS image NAME`.
    Bitmap(&'static [&'static str], &'static str),
}

use Step::{Bitmap, Io, Snapshot};

const SCATTERED: Step = Io(&[
    "write -P 1 0 300k",
    "write -P 2 1M 64k",
    "write -P 3 700k 5k",
    "write -P 4 3M 200k",
    "write -z 100k 64k",
    "write -z -u 1M 8k",
    "discard 3100k 32k",
    "write -P 5 512k 20k",
]);
const COMPRESSED: Step = Io(&[
    "write -c -P 1 0 64k",
    "write -c -P 2 64k 64k",
    "write -P 3 128k 64k",
    "write -c -P 4 192k 64k",
    "write -c -P 5 1M 64k",
    "write -P 6 1M 4k",
]);
const REWRITTEN: Step = Io(&["write -P 7 30k 90k", "write -P 8 2M 40k", "write -z 600k 100k"]);

/// All kinds of image.
pub const RECIPES: &[Recipe] = &[
    recipe("plain", &[], "8M", &[SCATTERED]),
    recipe("empty", &[], "8M", &[]),
    recipe(
        "version 2",
        &["-o", "compat=0.10,cluster_size=4k"],
        "8M",
        &[Io(&["write -P 1 0 300k", "write -P 2 3M 200k", "write -P 3 700k 5k"])],
    ),
    recipe("512-byte clusters", &["-o", "cluster_size=512"], "4M", &[SCATTERED]),
    recipe("2 MiB clusters", &["-o", "cluster_size=2M"], "64M", &[SCATTERED]),
    recipe(
        "snapshots",
        &["-o", "cluster_size=4k"],
        "8M",
        &[
            SCATTERED,
            Snapshot("one"),
            REWRITTEN,
            Snapshot("two"),
            Snapshot("three"),
            Io(&["write -P 9 0 10k"]),
        ],
    ),
    recipe("compressed", &[], "8M", &[COMPRESSED]),
    recipe(
        "compressed with snapshots",
        &["-o", "cluster_size=64k,refcount_bits=8"],
        "8M",
        &[COMPRESSED, Snapshot("one"), REWRITTEN],
    ),
    recipe("1-bit counts", &["-o", "refcount_bits=1,cluster_size=4k"], "8M", &[SCATTERED]),
    recipe(
        "2-bit counts",
        &["-o", "refcount_bits=2,cluster_size=1k"],
        "8M",
        &[SCATTERED, Snapshot("one"), REWRITTEN],
    ),
    recipe("4-bit counts", &["-o", "refcount_bits=4,cluster_size=2k"], "8M", &[SCATTERED]),
    recipe("8-bit counts", &["-o", "refcount_bits=8,cluster_size=512"], "8M", &[SCATTERED]),
    recipe(
        "32-bit counts",
        &["-o", "refcount_bits=32,cluster_size=4k"],
        "8M",
        &[SCATTERED, Snapshot("one"), REWRITTEN],
    ),
    recipe("64-bit counts", &["-o", "refcount_bits=64,cluster_size=1k"], "8M", &[SCATTERED]),
    recipe(
        "a long refcount table",
        &["-o", "refcount_bits=64,cluster_size=512"],
        "8M",
        &[Io(&["write -P 1 0 3M", "write -P 2 4M 100k"]), Snapshot("one"), REWRITTEN],
    ),
    recipe("preallocated", &["-o", "preallocation=metadata,cluster_size=8k"], "8M", &[REWRITTEN]),
    recipe(
        "bitmaps",
        &["-o", "cluster_size=4k"],
        "8M",
        &[
            Bitmap(&["--add", "-g", "64k"], "first"),
            SCATTERED,
            Bitmap(&["--add", "--disable"], "second"),
        ],
    ),
    recipe("LUKS", LUKS, "2M", &[Io(&["write -P 1 0 300k", "write -P 2 1M 40k"])]),
];

const LUKS: &[&str] = &[
    "--object",
    KEY,
    "-o",
    "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10,cluster_size=16k",
];

const fn recipe(
    name: &'static str,
    create: &'static [&'static str],
    size: &'static str,
    steps: &'static [Step],
) -> Recipe {
    Recipe { name, create, size, steps }
}

impl Recipe {
    /// The image's bytes; `path` is where it may be made.
    pub fn make(&self, path: &Path) -> Vec<u8> {
        let image = path.to_str().unwrap();
        let _ = std::fs::remove_file(path);
        let mut create = vec!["create", "-q", "-f", "qcow2"];
        create.extend(self.create);
        create.extend([image, self.size]);
        qemu_img(&create);
        for step in self.steps {
            match step {
                Io(commands) => qemu_io(path, commands),
                Snapshot(name) => qemu_img(&["snapshot", "-c", name, image]),
                Bitmap(arguments, name) => {
                    let mut all = vec!["bitmap", "-f", "qcow2"];
                    all.extend(*arguments);
                    all.extend([image, *name]);
                    qemu_img(&all);
                }
            }
        }
        std::fs::read(path).unwrap()
    }
}
