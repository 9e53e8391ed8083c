//! What the guest is told of the machine through ACPI 6.5, in its hardware-reduced form: processors, interrupt controllers,
//! the PCI bus, the serial line, and how to power off and reset.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace as Window, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed,
    Method, Name, Notify, Package, Path, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::ram::GuestMemory;

const OEM: [u8; 6] = *b"LEANVM";
const OEM_TABLE: [u8; 8] = *b"LEANVMM ";
const OEM_REVISION: u32 = 1;
/// ACPI's revision of the DSDT from which on integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// Bytes of the header of a table.
const HEADER_LEN: u32 = 36;

/// The sleep type of soft off, as `_S5` tells and as it is written to the sleep control register.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// What a button's notification says.
const BUTTON_PRESSED: u8 = 0x80;
/// What is written to the reset register.
pub const RESET_VALUE: u8 = 6;

/// Boot flags of the FADT (`IAPC_BOOT_ARCH`): there is no VGA and no CMOS clock to look for, nor, by a bit that is not set, a
/// keyboard controller.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// Writes the tables for `cpus` processors to where the guest looks for them; the address of the RSDP.
pub fn write(memory: &GuestMemory, cpus: u8) -> Result<u64> {
    let mut tables =
        Tables { memory, at: layout::ACPI + (Rsdp::len() as u64).next_multiple_of(64) };
    let dsdt = tables.put(&dsdt())?;
    let fadt = tables.put(&fadt(dsdt))?;
    let madt = tables.put(&madt(cpus))?;
    let mcfg = tables.put(&mcfg())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    [fadt, madt, mcfg].into_iter().for_each(|table| xsdt.add_entry(table));
    let xsdt = tables.put(&xsdt)?;
    Tables { memory, at: layout::ACPI }.put(&Rsdp::new(OEM, xsdt))
}

/// Puts tables behind each other.
struct Tables<'a> {
    memory: &'a GuestMemory,
    at: u64,
}

impl Tables<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<u64> {
        let bytes = bytes(table);
        let at = self.at;
        self.at += (bytes.len() as u64).next_multiple_of(64);
        ensure!(self.at <= layout::RESET_VECTOR, "too many processors for the ACPI tables");
        self.memory.write_slice(&bytes, GuestAddress(at)).context("cannot write ACPI tables")?;
        Ok(at)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LEN, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let off = Package::new(vec![&SLEEP_TYPE_OFF]);
    dsdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &off)));
    dsdt.append_slice(&serial_line());
    dsdt.append_slice(&pci_bus());
    dsdt.append_slice(&pci_configuration());
    dsdt.append_slice(&power_button());
    dsdt
}

/// The AML of a power button, and of the device through which its interrupt becomes a notification (ACPI 6.5, 5.6.9).
fn power_button() -> Vec<u8> {
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"));
    let mut aml = bytes(&Device::new(Path::new("_SB_.PWRB"), vec![&id]));
    let interrupt = Interrupt::new(true, true, false, false, layout::POWER_BUTTON_LINE);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let button = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&notify]);
    let id = Name::new(Path::new("_HID"), &"ACPI0013");
    let unique = Name::new(Path::new("_UID"), &0_u8);
    let resources = Name::new(Path::new("_CRS"), &resources);
    aml.extend(bytes(&Device::new(Path::new("_SB_.GED_"), vec![&id, &unique, &resources, &event])));
    aml
}

/// The AML of the PCI bus: its number, its ports, and where registers of functions may lie.
fn pci_bus() -> Vec<u8> {
    let number = Window::new_bus_number(0_u16, 0);
    let ports = IO::new(layout::PCI_ADDRESS_PORT, layout::PCI_ADDRESS_PORT, 1, 8);
    let end = layout::PCI_WINDOW + layout::PCI_WINDOW_LEN - 1;
    let registers = Window::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI_WINDOW as u32,
        end as u32,
        None,
    );
    let resources = ResourceTemplate::new(vec![&number, &ports, &registers]);
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0A08"));
    let compatible = Name::new(Path::new("_CID"), &EISAName::new("PNP0A03"));
    let segment = Name::new(Path::new("_SEG"), &0_u8);
    let base = Name::new(Path::new("_BBN"), &0_u8);
    let unique = Name::new(Path::new("_UID"), &0_u8);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let parts: Vec<&dyn Aml> = vec![&id, &compatible, &segment, &base, &unique, &resources];
    bytes(&Device::new(Path::new("_SB_.PCI0"), parts))
}

/// The AML that keeps everybody away from the configuration of PCI functions.
fn pci_configuration() -> Vec<u8> {
    let place = Memory32Fixed::new(true, layout::ECAM as u32, layout::ECAM_LEN as u32);
    let resources = ResourceTemplate::new(vec![&place]);
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0C02"));
    let unique = Name::new(Path::new("_UID"), &1_u8);
    let resources = Name::new(Path::new("_CRS"), &resources);
    bytes(&Device::new(Path::new("_SB_.ECAM"), vec![&id, &unique, &resources]))
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM, 0, 0, 0);
    mcfg
}

/// The AML of a 16550 with its interrupt and its ports.
fn serial_line() -> Vec<u8> {
    let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_LINE);
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
    let resources = ResourceTemplate::new(vec![&interrupt, &ports]);
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let number = Name::new(Path::new("_UID"), &0_u8);
    let resources = Name::new(Path::new("_CRS"), &resources);
    bytes(&Device::new(Path::new("_SB_.COM1"), vec![&id, &number, &resources]))
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_PORT + 1);
    fadt.finalize()
}

fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(number))
}

fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(cpus, layout::IO_APIC, 0));
    madt
}
