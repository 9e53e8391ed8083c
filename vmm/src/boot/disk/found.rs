//! What a boot menu names.

/// What is to be booted, by paths in one file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What people know it by.
    pub title: String,
    /// The name by which a menu or its environment may choose it.
    pub id: String,
    /// Where the kernel is.
    pub kernel: String,
    /// Where the parts of the initramfs are.
    pub initramfs: Vec<String>,
    /// For the kernel.
    pub command_line: String,
}
