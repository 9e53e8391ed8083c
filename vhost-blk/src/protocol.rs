//! The vhost-user messages of a frontend, turned into changes of the rings and the device.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};

use crate::config_space;
use crate::device::Device;
use crate::inflight::Region;
use crate::memory::{MemoryTable, REGION_COUNT_MAX, RegionError, RegionPlace};
use crate::ring_set::RingSet;
use crate::ring_settings::{Kick, RingSettings};
use crate::virtqueue::RingAddresses;

/// The backend's side of one conversation.
#[derive(Debug)]
pub struct Protocol<'a> {
    device: &'a Device,
    rings: RingSet<'a>,
}

impl<'a> Protocol<'a> {
    /// The start of a conversation about `rings` of `device`.
    pub fn new(device: &'a Device, rings: RingSet<'a>) -> Self {
        Self { device, rings }
    }

    /// Ends the conversation: every request in flight is finished, and the guest's memory let go.
    pub fn end(&mut self) {
        self.rings.stop_all();
    }

    /// Ends the conversation with an error.
    fn fatal(&self, error: &dyn std::error::Error) -> Error {
        tracing::warn!("{}: frontend cut off: {error}", self.device.name());
        Error::InvalidParam
    }

    /// Refuses a message; the conversation goes on.
    fn refuse(&self, error: &dyn std::error::Error) -> Error {
        tracing::warn!("{}: {error}", self.device.name());
        Error::ReqHandlerError(io::ErrorKind::InvalidInput.into())
    }

    fn change(&mut self, index: usize, change: impl FnOnce(&mut RingSettings)) -> Result<()> {
        self.rings.change(index, change).map_err(|e| self.fatal(&e))
    }
}

/// A file that is only ever written to: an eventfd of the frontend, which must not block us when it is full.
fn eventfd(file: Option<File>) -> Result<Option<Arc<File>>> {
    let Some(file) = file else { return Ok(None) };
    fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|e| Error::ReqHandlerError(e.into()))?;
    Ok(Some(Arc::new(file)))
}

impl VhostUserBackendReqHandlerMut for Protocol<'_> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.rings.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.rings.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.features_offered() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_features()? != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.rings.accept_features(features);
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.rings.enable_all();
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let table =
            regions.iter().zip(files).try_fold(MemoryTable::default(), |table, (r, file)| {
                table.with(place(r), file, r.mmap_offset)
            });
        let table = table.map_err(|e: RegionError| self.fatal(&e))?;
        self.rings.set_memory(table);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let max = self.device.shape().queue_size;
        let size = u16::try_from(num).ok().filter(|n| n.is_power_of_two() && *n <= max);
        let Some(size) = size else {
            let name = self.device.name();
            tracing::warn!(
                "{name}: the frontend wants a queue of {num} entries; powers of two up to {max} are served \
                 (--queue-size)"
            );
            return Err(Error::InvalidParam);
        };
        self.change(index as usize, |ring| ring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = RingAddresses { descriptors, available, used };
        self.change(index as usize, |ring| ring.addresses = Some(addresses))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.change(index as usize, |ring| ring.base = base)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.change(index as usize, |ring| ring.kick = Kick::Unknown)?;
        let base = self.rings.get(index as usize).map_err(|e| self.fatal(&e))?.base;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let kick = file.map_or(Kick::Polled, |file| Kick::Event(Arc::new(file.into())));
        self.change(index.into(), |ring| ring.kick = kick)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let call = eventfd(file)?;
        self.rings.set_call(index.into(), call).map_err(|e| self.fatal(&e))
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let error = eventfd(file)?;
        self.change(index.into(), |ring| ring.error = error)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        // The messages that a feature brings are checked where they arrive, in crate `vhost`.
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.device.shape().queue_count.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.change(index as usize, |ring| ring.enabled = enable)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let space = config_space::read(self.device);
        let start = offset as usize;
        let end = start.checked_add(size as usize).ok_or(Error::InvalidParam)?;
        space.get(start..end).map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        if config_space::write(self.device, offset as usize, bytes) {
            return Ok(());
        }
        let what = format!("a write of {} bytes to the configuration at {offset}", bytes.len());
        Err(self.refuse(&io::Error::new(io::ErrorKind::InvalidInput, what)))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no GPU socket"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("a disk shares no objects"))
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        let (file, len) = Region::make(queues, size).map_err(|e| self.fatal(&e))?;
        Ok((VhostUserInflight::new(len, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, what: &VhostUserInflight, file: File) -> Result<()> {
        let VhostUserInflight { mmap_size, mmap_offset, num_queues, queue_size } = *what;
        let region = Region::map(file, mmap_offset, mmap_size, num_queues, queue_size);
        let region = region.map_err(|e| self.fatal(&e))?;
        // Without it something would be forgotten, and not every frontend looks at our answer.
        self.rings.set_inflight(region).map_err(|e| self.fatal(&e))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGION_COUNT_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let table = self.rings.memory().with(place(region), file, region.mmap_offset);
        let table = table.map_err(|e| self.refuse(&e))?;
        self.rings.set_memory(table);
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let table = self.rings.memory().without(place(region));
        let table = table.map_err(|e| self.refuse(&e))?;
        self.rings.set_memory(table);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("state transfer is not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("state transfer is not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("shared memory is not offered"))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("dirty logging is not offered"))
    }
}

fn place(region: &VhostUserMemoryRegion) -> RegionPlace {
    RegionPlace { guest: region.guest_phys_addr, user: region.user_addr, len: region.memory_size }
}
