//! Sectors on their way between a file and memory.

use crate::addr::HostOffset;
use crate::crypt::SectorCipher;
use crate::crypt::cipher::SECTOR_LEN;
use crate::crypt::payload::{self, decrypt_into, encrypted_copy, is_whole};
use crate::disk::{Buffer, Payload};
use crate::error::Result;
use crate::exec::try_join_all;
use crate::limits::IN_FLIGHT_MAX;
use crate::sync::Exclusive;

/// Bytes of a request that go through one buffer: as many as a buffer has that is kept for the next one.
const PIECE_LEN: u64 = 64 << 10;
/// Bytes of a sector.
const SECTOR: u64 = SECTOR_LEN as u64;

/// A file with encrypted data, as it is.
pub trait Stored {
    /// Fills `into` with what the file has at `at`.
    fn read_stored(&self, at: HostOffset, into: &Payload) -> impl Future<Output = Result<()>>;

    /// Writes `from` to the file at `at`.
    fn write_stored(&self, at: HostOffset, from: &Payload) -> impl Future<Output = Result<()>>;
}

/// What encrypts and decrypts an image's data.
#[derive(Debug)]
pub struct Cryptor {
    cipher: SectorCipher,
    /// Sectors are numbered by their place on the disk, and not in the file.
    by_guest: bool,
    /// Held by whoever changes a part of a sector.
    edges: Exclusive,
}

/// Where data lies: in the file, and on the disk.
#[derive(Clone, Copy, Debug)]
pub struct DataPlace {
    /// In the file.
    pub host: HostOffset,
    /// On the disk.
    pub guest: u64,
}

impl Cryptor {
    /// Encrypts sectors numbered by their place in the file.
    pub fn by_host(cipher: SectorCipher) -> Self {
        Self { cipher, by_guest: false, edges: Exclusive::default() }
    }

    /// Encrypts sectors numbered by their place on the disk.
    pub fn by_guest(cipher: SectorCipher) -> Self {
        Self { by_guest: true, ..Self::by_host(cipher) }
    }

    /// The number of the sector at `place`.
    fn sector(&self, place: DataPlace) -> u64 {
        match self.by_guest {
            true => place.guest / SECTOR,
            false => place.host.get() / SECTOR,
        }
    }

    /// Fills `into` with the data at `place`.
    pub(super) async fn read<S: Stored>(
        &self,
        stored: &S,
        place: DataPlace,
        into: &Payload,
    ) -> Result<()> {
        if !is_whole(place.host.get(), into.len()) {
            let (start, skip, len) = around(place, into.len());
            let whole = Buffer::scratch(len as usize).payload();
            Box::pin(self.read(stored, start, &whole)).await?;
            into.copy_from_payload(&whole.slice(skip, into.len()));
            return Ok(());
        }
        if into.len() <= PIECE_LEN {
            return self.read_piece(stored, place, into).await;
        }
        let reads = pieces(place, into)
            .map(|(place, into)| async move { self.read_piece(stored, place, &into).await });
        Box::pin(try_join_all(IN_FLIGHT_MAX, reads)).await
    }

    async fn read_piece<S: Stored>(
        &self,
        stored: &S,
        place: DataPlace,
        into: &Payload,
    ) -> Result<()> {
        let mut buffer = Buffer::scratch(into.len() as usize);
        stored.read_stored(place.host, &buffer.payload()).await?;
        decrypt_into(&self.cipher, self.sector(place), buffer.make_mut(), into);
        Ok(())
    }

    /// Writes `from` as the data at `place`.
    pub(super) async fn write<S: Stored>(
        &self,
        stored: &S,
        place: DataPlace,
        from: &Payload,
    ) -> Result<()> {
        if !is_whole(place.host.get(), from.len()) {
            return Box::pin(self.write_parts(stored, place, from)).await;
        }
        if from.len() <= PIECE_LEN {
            return self.write_piece(stored, place, from).await;
        }
        let writes = pieces(place, from)
            .map(|(place, from)| async move { self.write_piece(stored, place, &from).await });
        Box::pin(try_join_all(IN_FLIGHT_MAX, writes)).await
    }

    async fn write_piece<S: Stored>(
        &self,
        stored: &S,
        place: DataPlace,
        from: &Payload,
    ) -> Result<()> {
        let encrypted = encrypted_copy(&self.cipher, self.sector(place), from);
        stored.write_stored(place.host, &encrypted).await
    }

    /// Writes data that is not whole sectors: what lies in them beside it is read and written again. Programs do that, guests
    /// never; two that change parts of one sector at the same time both succeed.
    async fn write_parts<S: Stored>(
        &self,
        stored: &S,
        place: DataPlace,
        from: &Payload,
    ) -> Result<()> {
        let _alone = self.edges.acquire().await;
        let (start, skip, len) = around(place, from.len());
        let whole = Buffer::scratch(len as usize).payload();
        self.read(stored, start, &whole).await?;
        whole.slice(skip, from.len()).copy_from_payload(from);
        self.write(stored, start, &whole).await
    }
}

/// The pieces of `payload`, which is data at `place`.
fn pieces(place: DataPlace, payload: &Payload) -> impl Iterator<Item = (DataPlace, Payload)> {
    let starts = (0..payload.len()).step_by(PIECE_LEN as usize);
    starts.map(move |at| {
        let place = DataPlace { host: place.host.plus(at), guest: place.guest + at };
        (place, payload.slice(at, PIECE_LEN.min(payload.len() - at)))
    })
}

/// The whole sectors that `len` bytes at `place` touch: where they start, how far in front of `place` that is, and their length.
fn around(place: DataPlace, len: u64) -> (DataPlace, u64, u64) {
    let (skip, len) = payload::around(place.host.get(), len);
    let host = HostOffset::new(place.host.get() - skip);
    (DataPlace { host, guest: place.guest - skip }, skip, len)
}
