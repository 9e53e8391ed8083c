//! Creation: new images with any options.

use crate::random::Random;
use crate::script::Step;
use crate::sizes;
use crate::world::{Known, World};

/// Disks up to this size are laid out in advance.
const LAID_OUT_MAX: u64 = 16 << 20;

/// The options of a new image.
#[derive(Debug, Default)]
pub struct Options {
    pub list: Vec<String>,
    pub cluster: u64,
    /// Its disk lies in a file of its own.
    external: Option<String>,
}

impl Options {
    /// Options for the qcow2 image `name`, which may have a disk of `size`.
    pub fn qcow2(random: &mut Random, name: &str, size: u64) -> Self {
        let mut options = Self { list: Vec::new(), cluster: 65536, external: None };
        let extended = random.chance(15);
        options.choose(random, 20, "compat", &["0.10", "1.1", "v2", "v3", "1.1", "v3"]);
        options.cluster_size(random, extended);
        options.choose(random, 20, "refcount_bits", &["1", "2", "4", "8", "16", "32", "64", "64"]);
        if extended {
            options.list.push("extended_l2=on".to_owned());
        }
        options.choose(random, 15, "lazy_refcounts", &["on", "off", "on"]);
        options.choose(random, 25, "compression_type", &["zlib", "zstd", "zstd"]);
        if size <= LAID_OUT_MAX {
            let modes = ["off", "metadata", "falloc", "full"];
            options.choose(random, 20, "preallocation", &modes);
        }
        if !extended && random.chance(8) {
            let external = format!("{name}.data");
            options.list.push(format!("data_file={external}"));
            options.choose(random, 50, "data_file_raw", &["on", "off", "on"]);
            options.external = Some(external);
        }
        options
    }

    /// Options for a raw image.
    pub fn raw(random: &mut Random, size: u64) -> Self {
        let mut options = Self { list: Vec::new(), cluster: 65536, external: None };
        if size <= LAID_OUT_MAX {
            options.choose(random, 20, "preallocation", &["off", "falloc", "full", "metadata"]);
        }
        options
    }

    fn cluster_size(&mut self, random: &mut Random, extended: bool) {
        let power = match random.below(10) {
            0..3 => return,
            3 => random.below(13),
            _ => *random.pick(&[0, 1, 3, 3, 5, 5, 6, 7, 7, 10, 12]),
        };
        let power = if extended && !random.chance(5) { power.max(5) } else { power };
        self.cluster = 512 << power;
        self.list.push(format!("cluster_size={}", sizes::typed(random, self.cluster)));
    }

    fn choose(&mut self, random: &mut Random, percent: u64, name: &str, values: &[&str]) {
        let value = random.pick(values);
        if random.chance(percent) {
            self.list.push(format!("{name}={value}"));
        }
    }

    /// Adds `-o` with the options, if there are any.
    pub fn add_to(&self, random: &mut Random, step: &mut Step) {
        match &self.list[..] {
            [] => {}
            [first, rest @ ..] if !rest.is_empty() && random.chance(10) => {
                step.add(&["-o", first, "-o", &rest.join(",")]);
            }
            list => {
                step.add(&["-o", &list.join(",")]);
            }
        }
        if let Some(external) = &self.external {
            step.changes(external);
        }
    }
}

/// Makes a new image without a backing file.
pub fn create(random: &mut Random, world: &mut World) -> Vec<Step> {
    let raw = random.chance(20);
    let Some(name) = world.free_name(random, &[]) else { return Vec::new() };
    create_named(random, world, &name, if raw { "raw" } else { "qcow2" })
}

/// Makes the image `name`.
pub fn create_named(
    random: &mut Random,
    world: &mut World,
    name: &str,
    format: &'static str,
) -> Vec<Step> {
    let size = sizes::disk(random, 65536);
    let options = match format {
        "raw" => Options::raw(random, size),
        _ => Options::qcow2(random, name, size),
    };
    // Tables of small clusters do not cover large disks.
    let size = if options.cluster < 4096 { size.min(64 << 20) } else { size };
    let mut step = Step::img("create");
    step.maybe(random, 50, &["-q"]).add(&["-f", format]);
    options.add_to(random, &mut step);
    let typed = sizes::typed(random, size);
    step.add(&[name, &typed]).changes(name);
    world.put(Known {
        name: name.to_owned(),
        format,
        size,
        cluster: options.cluster,
        backing: None,
        snapshots: Vec::new(),
        bitmaps: Vec::new(),
    });
    vec![step]
}

/// Makes an overlay.
pub fn overlay(random: &mut Random, world: &mut World) -> Vec<Step> {
    let below = world.any(random);
    let Some(name) = world.free_name(random, &[&below.name]) else { return Vec::new() };
    let options = Options::qcow2(random, &name, below.size);
    let mut step = Step::img("create");
    step.maybe(random, 50, &["-q"]).add(&["-f", "qcow2", "-b", &below.name]);
    step.maybe(random, 98, &["-F", below.format]);
    let unsafely = random.chance(10);
    if unsafely {
        step.add(&["-u"]);
    }
    options.add_to(random, &mut step);
    step.add(&[&name]).changes(&name);
    let mut size = below.size;
    if unsafely || random.chance(30) {
        size = match random.below(3) {
            0 => sizes::disk(random, options.cluster),
            1 => size + 512 * random.below(5000),
            _ => random.below(size) / 512 * 512,
        };
        step.add(&[&sizes::typed(random, size)]);
    }
    world.put(Known {
        name,
        format: "qcow2",
        size,
        cluster: options.cluster,
        backing: Some(below.name),
        snapshots: Vec::new(),
        bitmaps: Vec::new(),
    });
    vec![step]
}
