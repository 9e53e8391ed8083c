//! `--salvage`: reads that fail count as zeros, and are told sector by sector.

use qcow::disk::Payload;
use qcow::engine::MapExtent;

use crate::failure;
use crate::image::{self, HostImage};

const SECTOR_LEN: u64 = 512;

/// How a conversion goes on after failed reads.
#[derive(Clone, Copy, Debug)]
pub struct Salvage {
    /// Nothing is told.
    pub quiet: bool,
}

impl Salvage {
    /// What `image` holds at `at`, for at most `len` bytes; where nobody can tell, as the error, how many bytes are to be
    /// read nevertheless.
    pub async fn map(self, image: &HostImage, at: u64, len: u64) -> Result<MapExtent, u64> {
        let mut len = len;
        loop {
            match image.map(at, len).await {
                Ok(extent) => return Ok(extent),
                Err(error) if len <= SECTOR_LEN => {
                    self.tell(&format!("error while reading block status at offset {at}"), &error);
                    return Err(len);
                }
                // A shorter stretch may lie before the damage.
                Err(_) => len = len.div_ceil(SECTOR_LEN).div_ceil(4) * SECTOR_LEN,
            }
        }
    }

    /// Fills `into` with what can be read of `image` at `at`.
    pub async fn read(self, image: &HostImage, at: u64, into: &Payload) {
        if image.read(at, into).await.is_ok() {
            return;
        }
        let mut done = 0;
        while done < into.len() {
            let sector = into.slice(done, SECTOR_LEN.min(into.len() - done));
            if let Err(error) = image.read(at + done, &sector).await {
                self.tell(&format!("error while reading offset {}", at + done), &error);
                sector.zero(0, sector.len());
            }
            done += sector.len();
        }
    }

    fn tell(self, what: &str, error: &qcow::Error) {
        if !self.quiet {
            failure::tell(&format!("warning: {what}: {}", image::short_reason_of(error)));
        }
    }
}
