//! Image formats other than qcow2.

pub mod luks;
pub mod raw;
