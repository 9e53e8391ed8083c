//! Images for tests, made by the real `qemu-img`, with their bytes in memory to be patched.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::header::Header;
use crate::error::Result;

/// An image file in a directory of its own.
pub(crate) struct TestImage {
    directory: TempDir,
}

impl TestImage {
    /// `qemu-img create -f qcow2 OPTIONS image SIZE`.
    pub(crate) fn create(options: &[&str], size: &str) -> Self {
        let image = Self { directory: TempDir::new().unwrap() };
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        args.extend(options);
        args.push("image");
        args.push(size);
        image.qemu_img(&args);
        image
    }

    /// Runs `qemu-img` next to the image, which must succeed.
    pub(crate) fn qemu_img(&self, args: &[&str]) -> String {
        let output = self.try_qemu_img(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `qemu-img` next to the image.
    pub(crate) fn try_qemu_img(&self, args: &[&str]) -> Output {
        let mut command = Command::new("qemu-img");
        command.args(args).current_dir(self.directory.path());
        command.output().expect("these tests need qemu-img: install qemu-utils")
    }

    /// What `qemu-img info` has to say against the image; empty if nothing.
    pub(crate) fn qemu_complaint(&self) -> String {
        let output = self.try_qemu_img(&["info", "-f", "qcow2", "image"]);
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    pub(crate) fn header(&self) -> Header {
        parse_image(&self.bytes()).unwrap()
    }
}

/// The header of an image that is wholly in memory, read as an engine reads it from a file.
pub(crate) fn parse_image(image: &[u8]) -> Result<Header> {
    let cluster_bits = Header::cluster_bits_of(&image[..image.len().min(512)])?;
    let mut cluster0 = image[..image.len().min(1 << cluster_bits)].to_vec();
    cluster0.resize(1 << cluster_bits, 0);
    Header::parse(&cluster0, image.len() as u64)
}
