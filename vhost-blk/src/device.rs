//! The virtio-blk device as the guest sees it: what all queues and the protocol share.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use qcow::sync::lock;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::log::RateLimit;

/// Bytes of a virtio-blk sector.
pub const SECTOR: u64 = 512;
/// Bytes of the answer to GET_ID.
pub const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Most sectors of one discard or write-zeroes range: 1 GiB, a multiple of every cluster size.
pub const RANGE_SECTORS_MAX: u32 = (1 << 30) / SECTOR as u32;
/// Most ranges of one discard or write-zeroes request.
pub const RANGE_COUNT_MAX: u32 = 32;

/// What the image and the user's options make of the device.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size of the disk in bytes, a multiple of a sector.
    pub bytes: u64,
    /// Cluster size of the image in bytes, where it has clusters.
    pub cluster: Option<u64>,
    pub writable: bool,
    /// Whether discards free space.
    pub discard: bool,
    pub queue_count: u16,
    /// Most entries of a queue, a power of two.
    pub queue_size: u16,
    /// Whether the guest's memory is to be pinned.
    pub pin_memory: bool,
}

/// One disk, as seen from all its queues.
#[derive(Debug)]
pub struct Device {
    shape: Shape,
    name: String,
    serial: [u8; ID_LEN],
    driver: Mutex<Driver>,
    /// [`Driver::is_write_back`], for the queues.
    write_back: AtomicBool,
    /// Set once the image takes no more writes.
    lost: AtomicBool,
    reports: RateLimit,
}

/// What the driver has chosen.
#[derive(Debug)]
struct Driver {
    /// Features that it has accepted, one bit each; `None` until it has.
    features: Option<u64>,
    /// The configuration's cache mode, which lasts from one frontend to the next.
    write_back: bool,
}

impl Driver {
    fn has(&self, bit: u32) -> bool {
        self.features.is_some_and(|features| features & 1 << bit != 0)
    }

    /// A driver that cannot flush gets no write-back cache. One that can has it, unless it knows of the configuration and
    /// has switched it off there.
    fn is_write_back(&self) -> bool {
        self.has(VIRTIO_BLK_F_FLUSH) && (!self.has(VIRTIO_BLK_F_CONFIG_WCE) || self.write_back)
    }
}

impl Device {
    /// The device of `shape` for the image at `path`.
    pub fn new(shape: Shape, path: &Path) -> Self {
        Self {
            shape,
            name: path.display().to_string(),
            serial: serial(path),
            driver: Mutex::new(Driver { features: None, write_back: true }),
            write_back: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            reports: RateLimit::default(),
        }
    }

    /// What people call it: the image's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Size of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.shape.bytes
    }

    pub fn is_writable(&self) -> bool {
        self.shape.writable
    }

    /// Whether DISCARD is offered: only where it does something.
    pub fn offers_discard(&self) -> bool {
        self.shape.writable && self.shape.discard
    }

    /// The serial number: from the image's file name.
    pub fn serial(&self) -> &[u8; ID_LEN] {
        &self.serial
    }

    /// The virtio features that this device has, one bit each.
    pub fn features_offered(&self) -> u64 {
        let always = [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_MQ,
        ];
        let all = always.iter().fold(0, |bits, bit| bits | 1 << bit);
        all | u64::from(!self.shape.writable) << VIRTIO_BLK_F_RO
            | u64::from(self.shape.writable) << VIRTIO_BLK_F_WRITE_ZEROES
            | u64::from(self.offers_discard()) << VIRTIO_BLK_F_DISCARD
    }

    /// Takes over the features that the driver has accepted.
    pub fn accept_features(&self, features: u64) {
        self.negotiate(Some(features));
    }

    /// Forgets what the driver has accepted: the next one starts anew.
    pub fn forget_features(&self) {
        self.negotiate(None);
    }

    fn negotiate(&self, features: Option<u64>) {
        let mut driver = lock(&self.driver);
        driver.features = features;
        self.write_back.store(driver.is_write_back(), Ordering::Relaxed);
    }

    /// Whether the driver has accepted the feature with this bit number.
    pub fn has_feature(&self, bit: u32) -> bool {
        lock(&self.driver).has(bit)
    }

    /// What the configuration says about the cache: whether it is write-back.
    pub fn is_write_back_configured(&self) -> bool {
        let driver = lock(&self.driver);
        // A monitor reads it before the driver has accepted anything, and shows that to the driver later.
        if driver.features.is_some() { driver.is_write_back() } else { driver.write_back }
    }

    /// Changes what the configuration says about the cache.
    pub fn configure_write_back(&self, write_back: bool) {
        let mut driver = lock(&self.driver);
        driver.write_back = write_back;
        self.write_back.store(driver.is_write_back(), Ordering::Relaxed);
    }

    /// Whether the driver flushes what it wants durable. Otherwise every change is durable when it is acknowledged.
    pub fn is_write_back(&self) -> bool {
        self.write_back.load(Ordering::Relaxed)
    }

    /// Whether the image takes no more writes.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Notes whether the image still takes writes.
    pub fn note_health(&self, health: qcow::Result<()>) {
        let Err(error) = health else { return };
        if self.shape.writable && !self.lost.swap(true, Ordering::Relaxed) {
            tracing::error!("{}: the image takes no more writes: {}", self.name, error.message());
        }
    }

    /// Logs something that a guest may cause again and again.
    pub fn report(&self, what: fmt::Arguments<'_>) {
        if let Some(suppressed) = self.reports.allow() {
            let more = if suppressed > 0 {
                format!(" ({suppressed} like it not shown)")
            } else {
                String::new()
            };
            tracing::warn!("{}: {what}{more}", self.name);
        }
    }
}

/// The file's name as a serial number: as many bytes as fit, graphic ASCII only, zero-padded.
fn serial(path: &Path) -> [u8; ID_LEN] {
    let mut serial = [0; ID_LEN];
    let name = path.file_name().unwrap_or(OsStr::new("disk")).as_bytes();
    for (to, from) in serial.iter_mut().zip(name) {
        *to = if from.is_ascii_graphic() { *from } else { b'_' };
    }
    serial
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        let shape = Shape {
            bytes: SECTOR,
            cluster: None,
            writable: true,
            discard: true,
            queue_count: 1,
            queue_size: 4,
            pin_memory: false,
        };
        Device::new(shape, Path::new("disk"))
    }

    #[test]
    fn who_has_a_write_back_cache() {
        let device = device();
        let (flush, configurable) = (1 << VIRTIO_BLK_F_FLUSH, 1 << VIRTIO_BLK_F_CONFIG_WCE);
        let accept = |features| {
            device.accept_features(features);
            (device.is_write_back(), device.is_write_back_configured())
        };
        assert!(device.is_write_back_configured() && !device.is_write_back());
        assert_eq!(accept(flush | configurable), (true, true));
        assert_eq!(accept(flush), (true, true));
        assert_eq!(accept(configurable), (false, false));
        assert_eq!(accept(0), (false, false));
        device.configure_write_back(false);
        assert_eq!(accept(flush | configurable), (false, false));
        assert_eq!(accept(flush), (true, true));
        device.forget_features();
        assert!(!device.is_write_back_configured() && !device.is_write_back());
    }

    #[test]
    fn a_serial_fits_and_is_graphic() {
        assert_eq!(&serial(Path::new("/x/a disk.qcow2"))[..12], b"a_disk.qcow2");
        assert_eq!(&serial(Path::new("/x/0123456789012345678901234")), b"01234567890123456789");
    }
}
