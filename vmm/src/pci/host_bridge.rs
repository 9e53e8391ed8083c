//! The bridge between processors and bus: a function that does nothing, but is looked for.

use super::bus::Function;
use super::config_space::ConfigSpace;

/// Numbers by which firmware knows machines of this kind.
const VENDOR: u16 = 0x8086;
const DEVICE: u16 = 0x0d57;
/// A bridge, of the host.
const CLASS: [u8; 3] = [6, 0, 0];

/// See the module.
#[derive(Debug)]
pub struct HostBridge(ConfigSpace);

impl HostBridge {
    /// The one there is.
    pub fn new() -> Self {
        Self(ConfigSpace::new(VENDOR, DEVICE, CLASS))
    }
}

impl Function for HostBridge {
    fn read_config(&self, at: usize, data: &mut [u8]) {
        self.0.read(at, data);
    }

    fn write_config(&self, _at: usize, _data: &[u8]) {}

    fn registers(&self) -> Option<std::ops::Range<u64>> {
        None
    }

    fn read(&self, _at: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _at: u64, _data: &[u8]) {}
}
