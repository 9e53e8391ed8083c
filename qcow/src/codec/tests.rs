//! Clusters compressed by flate2, by zstd and by QEMU; and what is no such thing.

use flate2::{Compress, Compression, FlushCompress, Status};
use proptest::prelude::*;

use super::*;
use crate::addr::Geometry;
use crate::format::entry::{L2Entry, Mapping};
use crate::format::test_images::TestImage;

const CLUSTER: usize = 64 << 10;

/// Half noise, half text, so that both codecs have something to do.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let byte = |at: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if (at / 1000).is_multiple_of(2) { (state >> 24) as u8 } else { b"qcow2 cluster "[at % 14] }
    };
    (0..len).map(byte).collect()
}

fn deflate(data: &[u8], window_bits: u8) -> Vec<u8> {
    let level = Compression::default();
    let mut encoder = Compress::new_with_window_bits(level, false, window_bits);
    let mut out = Vec::with_capacity(data.len() * 2 + 100);
    let status = encoder.compress_vec(data, &mut out, FlushCompress::Finish).unwrap();
    assert_eq!(status, Status::StreamEnd);
    out
}

fn zstd(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; zstd_safe::compress_bound(data.len())];
    let len = zstd_safe::compress(&mut out[..], data, 3).unwrap();
    out.truncate(len);
    out
}

fn decompress(compression: CompressionType, src: &[u8], len: usize) -> Result<Vec<u8>> {
    let mut dst = vec![0; len];
    Decompressor::new().decompress(compression, src, &mut dst)?;
    Ok(dst)
}

fn followed_by(mut data: Vec<u8>, junk: &[u8]) -> Vec<u8> {
    data.extend_from_slice(junk);
    data
}

#[test]
fn whole_clusters_come_back_whatever_follows_them() {
    let data = sample(CLUSTER);
    let junk = sample(700);
    for src in [deflate(&data, 12), deflate(&data, 15)] {
        let src = followed_by(src, &junk);
        assert_eq!(decompress(CompressionType::Deflate, &src, CLUSTER).unwrap(), data);
    }
    let src = followed_by(zstd(&data), &junk);
    assert_eq!(decompress(CompressionType::Zstd, &src, CLUSTER).unwrap(), data);
}

#[test]
fn a_deflate_stream_may_go_on_but_not_end_early() {
    let longer = deflate(&sample(CLUSTER + 1000), 12);
    assert_eq!(decompress(CompressionType::Deflate, &longer, CLUSTER).unwrap(), sample(CLUSTER));
    let shorter = deflate(&sample(CLUSTER - 1), 12);
    let error = decompress(CompressionType::Deflate, &shorter, CLUSTER).unwrap_err();
    assert_eq!(error.message(), "the deflate data ends after 65535 of 65536 bytes");
}

#[test]
fn zstd_frames_fill_the_cluster_together_and_exactly() {
    let data = sample(CLUSTER);
    let (start, end) = data.split_at(1000);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
    let src = [&zstd(start), &skippable[..], &zstd(&[]), &zstd(end)].concat();
    assert_eq!(decompress(CompressionType::Zstd, &src, CLUSTER).unwrap(), data);

    assert!(decompress(CompressionType::Zstd, &zstd(&sample(CLUSTER + 1)), CLUSTER).is_err());
    let error = decompress(CompressionType::Zstd, &zstd(start), CLUSTER).unwrap_err();
    assert_eq!(error.message(), "the zstd data ends after 1000 of 65536 bytes");
    let error = decompress(CompressionType::Zstd, &[], CLUSTER).unwrap_err();
    assert_eq!(error.message(), "the zstd data ends after 0 of 65536 bytes");
}

#[test]
fn a_zstd_frame_with_a_huge_window_costs_no_memory() {
    // Magic; descriptor without content size; a window of 2^31 bytes; one last raw block of 4 bytes.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 0x21, 0, 0, b'd', b'a', b't', b'a'];
    assert_eq!(decompress(CompressionType::Zstd, &frame, 4).unwrap(), b"data");
}

#[test]
fn truncated_clusters_are_refused() {
    let data = sample(CLUSTER);
    for (compression, src) in
        [(CompressionType::Deflate, deflate(&data, 12)), (CompressionType::Zstd, zstd(&data))]
    {
        for len in (0..src.len() - 8).step_by(97) {
            assert!(decompress(compression, &src[..len], CLUSTER).is_err(), "{len} bytes");
        }
    }
}

#[test]
fn one_decompressor_recovers_from_errors_and_changes_of_type() {
    let data = sample(CLUSTER);
    let (deflated, zstded) = (deflate(&data, 12), zstd(&data));
    let mut decompressor = Decompressor::new();
    for _ in 0..3 {
        for (compression, src) in
            [(CompressionType::Deflate, &deflated), (CompressionType::Zstd, &zstded)]
        {
            let mut dst = vec![0; CLUSTER];
            decompressor.decompress(compression, &src[..src.len() / 2], &mut dst).unwrap_err();
            decompressor.decompress(compression, src, &mut dst).unwrap();
            assert_eq!(dst, data);
        }
    }
}

#[test]
fn clusters_compressed_by_qemu_come_back() {
    for compression in [CompressionType::Deflate, CompressionType::Zstd] {
        for cluster_bits in [9, 12, 16, 21] {
            check_image_of_qemu(compression, cluster_bits);
        }
    }
}

/// Compresses data with QEMU and finds all of it again through the L1 and L2 entries.
fn check_image_of_qemu(compression: CompressionType, cluster_bits: u32) {
    // Not a whole number of clusters, so that the last one is padded with zeros.
    let mut data = sample(5 << 20);
    data.truncate((5 << 20) - 512);
    let options =
        format!("compression_type={},cluster_size={}", compression.name(), 1 << cluster_bits);
    let image = TestImage::create(&["-o", &options], "5M");
    std::fs::write(image.directory().join("raw"), &data).unwrap();
    image.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, "raw", "image"]);
    let (bytes, header) = (image.bytes(), image.header());
    assert_eq!(header.compression, compression);

    let geometry = header.geometry();
    let mut decompressor = Decompressor::new();
    let mut compressed = 0;
    for (index, expected) in data.chunks(1 << cluster_bits).enumerate() {
        let Mapping::Compressed(extent) =
            mapping(&bytes, header.l1_table_offset.get(), geometry, index as u64)
        else {
            continue;
        };
        let start = extent.offset.get() as usize;
        let end = bytes.len().min(start + extent.len as usize);
        let mut cluster = vec![0xee; 1 << cluster_bits];
        decompressor.decompress(compression, &bytes[start..end], &mut cluster).unwrap();
        let (filled, padding) = cluster.split_at(expected.len());
        assert!(filled == expected && padding.iter().all(|&b| b == 0), "cluster {index}");
        compressed += 1;
    }
    assert!(compressed > 0, "QEMU compressed nothing");
}

fn mapping(image: &[u8], l1: u64, geometry: Geometry, index: u64) -> Mapping {
    let word = |at: u64| u64::from_be_bytes(image[at as usize..][..8].try_into().unwrap());
    let per_table = geometry.l2_entries();
    let table = word(l1 + index / per_table * 8) & 0x00ff_ffff_ffff_fe00;
    L2Entry(word(table + index % per_table * 8)).parse(geometry, true).unwrap()
}

/// As a reader that keeps no more than the last 4 KiB: it fails where a stream reaches back further.
fn inflate_strictly(src: &[u8], len: usize) -> Vec<u8> {
    let mut decoder = flate2::Decompress::new_with_window_bits(false, 12);
    let (mut out, mut piece) = (Vec::new(), [0; 512]);
    while out.len() < len {
        let (read, written) = (decoder.total_in() as usize, decoder.total_out());
        decoder.decompress(&src[read..], &mut piece, flate2::FlushDecompress::None).unwrap();
        let produced = (decoder.total_out() - written) as usize;
        assert!(produced > 0, "the stream ends early");
        out.extend_from_slice(&piece[..produced]);
    }
    out
}

#[test]
fn what_is_compressed_comes_back_at_every_level() {
    for len in [512, 4 << 10, CLUSTER, 2 << 20] {
        let data = sample(len);
        for compression in [CompressionType::Deflate, CompressionType::Zstd] {
            for level in [None, Some(1), Some(9)] {
                let level = level.map_or(Level::default_of(compression), |level| {
                    Level::new(compression, level).unwrap()
                });
                let mut out = b"before".to_vec();
                let smaller =
                    Compressor::new().compress(compression, level, &data, &mut out).unwrap();
                assert_eq!(smaller, out.len() > 6);
                if !smaller {
                    assert_eq!(len, 512, "this is half text");
                    continue;
                }
                assert!(out.starts_with(b"before") && out.len() - 6 < len);
                assert!(decompress(compression, &out[6..], len).unwrap() == data);
                if compression == CompressionType::Deflate {
                    assert!(inflate_strictly(&out[6..], len) == data, "a window of 4 KiB");
                }
            }
        }
    }
}

#[test]
fn noise_is_not_compressed() {
    let noise: Vec<u8> = {
        let mut random = crate::disk::sim::Random::new(1);
        (0..CLUSTER / 8).flat_map(|_| random.draw().to_le_bytes()).collect()
    };
    let mut compressor = Compressor::new();
    for compression in [CompressionType::Deflate, CompressionType::Zstd] {
        let mut out = vec![1, 2, 3];
        let level = Level::default_of(compression);
        assert!(!compressor.compress(compression, level, &noise, &mut out).unwrap());
        assert_eq!(out, [1, 2, 3]);
    }
    assert_eq!(Level::new(CompressionType::Deflate, 10), None);
    assert_eq!(Level::new(CompressionType::Zstd, 0), None);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, zstd_magic: bool, len in 0_usize..2000) {
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd][..], &bytes].concat();
        let src = if zstd_magic { &frame } else { &bytes };
        let _ = decompress(CompressionType::Zstd, src, len);
        let _ = decompress(CompressionType::Deflate, src, len);
    }

    #[test]
    fn damaged_clusters_never_panic(at in 0_usize..20_000, value: u8) {
        let data = sample(CLUSTER);
        for (compression, mut src) in
            [(CompressionType::Deflate, deflate(&data, 12)), (CompressionType::Zstd, zstd(&data))]
        {
            let at = at % src.len();
            src[at] = value;
            let _ = decompress(compression, &src, CLUSTER);
        }
    }
}
