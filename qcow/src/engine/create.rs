//! Making a new, empty qcow2 image.
//!
//! ```text
//! cluster 0      header, extensions, backing file name
//! then           refcount table | refcount blocks | LUKS header, if encrypted so | L1 table
//! preallocated   L2 tables | data, in guest order
//! ```
//!
//! With an external data file, the data lies there, each byte at its guest offset, and the file is as long as the disk.

use super::layout::Layout;
use super::options::{CreateOptions, NewEncryption, Preallocation};
use super::sealed::create::create_sealed;
use crate::addr::HostOffset;
use crate::crypt::luks;
use crate::disk::{Buffer, Disk, Payload};
use crate::error::{Error, Result};
use crate::seeded_bugs::Bug;

/// Zeros that one write carries.
const ZERO_WRITE_LEN: u64 = 4 << 20;

/// Makes `disk`, which is empty, a qcow2 image.
///
/// # Errors
/// The options contradict each other or exceed a limit, or the host failed.
pub async fn create<D: Disk>(disk: &D, options: &CreateOptions) -> Result<()> {
    if options.data_file.is_some() {
        return Err(Error::invalid("the external data file has to be opened first"));
    }
    create_in(disk, None, options).await
}

/// As [`create`], with `data`, which is empty, as the external data file that the options name.
///
/// # Errors
/// As [`create`].
pub async fn create_with_data<D: Disk>(disk: &D, data: &D, options: &CreateOptions) -> Result<()> {
    if options.data_file.is_none() {
        return Err(Error::invalid("no external data file is named"));
    }
    if disk.identity() == data.identity() {
        return Err(Error::invalid("an image cannot be its own external data file"));
    }
    create_in(disk, Some(data), options).await
}

async fn create_in<D: Disk>(disk: &D, data: Option<&D>, options: &CreateOptions) -> Result<()> {
    options.check()?;
    if let Some(integrity) = &options.integrity {
        return create_sealed(disk, options, integrity).await;
    }
    let layout = Layout::plan(options)?;
    let geometry = layout.geometry;
    write(disk, geometry.host_start(layout.refcount_table()), &layout.refcount_table_bytes())
        .await?;
    for index in 0..layout.block_count {
        let at = geometry.host_start(layout.block(index));
        write(disk, at, &layout.block_bytes(index)).await?;
    }
    write_encryption_header(disk, &layout, options).await?;
    write(disk, geometry.host_start(layout.l1()), &layout.l1_bytes()).await?;
    write_l2_tables(disk, &layout).await?;
    match data {
        Some(data) => lay_out_data_file(data, &layout, options.preallocation).await?,
        None => preallocate(disk, &layout, options.preallocation).await?,
    }
    // The header last: until then nobody can take it for a whole image.
    if !Bug::NoBarrierBeforeNewHeader.is_seeded() {
        disk.sync().await.map_err(|e| Error::io("flush the new image", &e))?;
    }
    write(disk, HostOffset::new(0), &layout.header(options).encode()?).await?;
    disk.sync().await.map_err(|e| Error::io("flush the new image", &e))
}

/// Makes a master key, and writes the header that keeps it.
async fn write_encryption_header<D: Disk>(
    disk: &D,
    layout: &Layout,
    options: &CreateOptions,
) -> Result<()> {
    let Some((NewEncryption::Luks(new, passphrase), place)) =
        options.encryption.as_ref().zip(layout.encryption())
    else {
        return Ok(());
    };
    let (change, _) = luks::create(new, passphrase);
    // Slots without a key are room for others; the file reaches the end of the last one.
    let geometry = layout.geometry;
    let len = geometry.bytes(geometry.clusters_for(place.length));
    let zeroed = disk.write_zeroes(place.offset, len).await;
    zeroed.map_err(|e| Error::io("Could not write encryption header", &e))?;
    write(disk, place.offset, &change.header.encode()).await?;
    write(disk, place.offset.plus(change.material_at), &change.material).await
}

async fn write_l2_tables<D: Disk>(disk: &D, layout: &Layout) -> Result<()> {
    for index in 0..layout.l2_count {
        write(disk, layout.geometry.host_start(layout.l2(index)), &layout.l2_bytes(index)).await?;
    }
    Ok(())
}

/// Makes the external data file as long as the disk, and durable.
async fn lay_out_data_file<D: Disk>(data: &D, layout: &Layout, how: Preallocation) -> Result<()> {
    let (start, len) = (HostOffset::new(0), layout.size());
    data.set_len(len).await.map_err(|e| Error::io("Could not resize the data file", &e))?;
    let done = match how {
        _ if len == 0 => Ok(()),
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => data.allocate(start, len).await,
        Preallocation::Full => write_zeros(data, start, len).await,
    };
    done.map_err(|e| Error::io("Could not preallocate data", &e))?;
    data.sync().await.map_err(|e| Error::io("flush the new data file", &e))
}

async fn preallocate<D: Disk>(disk: &D, layout: &Layout, how: Preallocation) -> Result<()> {
    let start = layout.geometry.host_start(layout.data(0));
    let len = layout.geometry.bytes(layout.data_count);
    let done = match how {
        _ if len == 0 => return Ok(()),
        Preallocation::Off => return Ok(()),
        Preallocation::Metadata => disk.set_len(start.get() + len).await,
        Preallocation::Falloc => disk.allocate(start, len).await,
        Preallocation::Full => write_zeros(disk, start, len).await,
    };
    done.map_err(|e| Error::io("Could not preallocate data", &e))
}

async fn write<D: Disk>(disk: &D, at: HostOffset, bytes: &[u8]) -> Result<()> {
    let written = disk.write(at, &Buffer::from_bytes(bytes).payload()).await;
    written.map_err(|e| Error::io(format!("write at {at}"), &e))
}

/// Writes zeros as bytes, so that the host has to store them.
async fn write_zeros<D: Disk>(disk: &D, at: HostOffset, len: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(ZERO_WRITE_LEN);
        disk.write(at.plus(done), &Payload::zeros(piece)).await?;
        done += piece;
    }
    Ok(())
}
