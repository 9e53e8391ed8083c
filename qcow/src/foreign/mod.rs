//! Image formats other than qcow2.

pub mod raw;
