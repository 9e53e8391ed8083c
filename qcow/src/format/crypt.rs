//! How an image's guest data is encrypted (header field `crypt_method`).

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CryptMethod {
    /// Not at all; on disk 0.
    #[default]
    None,
    /// AES-CBC, the legacy way; on disk 1.
    Aes,
    /// LUKS; on disk 2. The extensions say where the LUKS header lies.
    Luks,
}
