//! How a layer is compressed, and what stands around the compressed streams.

use std::io::Write as _;

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};

use super::{Corpus, GZIP, Layer, PLAIN, Tar, ZSTD, dir, file, tar};

/// Packs as one gzip member.
pub fn gzip(tar: &[u8]) -> Layer {
    Layer { tar: tar.to_vec(), blob: member(tar), media_type: GZIP }
}

/// Packs as one zstd frame.
pub fn zstd(tar: &[u8]) -> Layer {
    Layer { tar: tar.to_vec(), blob: frame(tar), media_type: ZSTD }
}

fn member(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    [&0x184d_2a53_u32.to_le_bytes()[..], &length.to_le_bytes(), bytes].concat()
}

/// What a case makes of the sample's decompressed bytes: the blob and its media type.
type Pack = fn(&[u8]) -> (Vec<u8>, &'static str);

pub(super) fn add(corpus: &mut Corpus) {
    let valid: [(&str, Pack); 14] = [
        ("gzip-members", |tar| ([member(&tar[..700]), member(&tar[700..])].concat(), GZIP)),
        ("gzip-empty-members", |tar| ([member(b""), member(tar), member(b"")].concat(), GZIP)),
        ("gzip-member-for-each-block", |tar| (tar.chunks(512).flat_map(member).collect(), GZIP)),
        ("gzip-all-fields", |tar| (all_fields(tar), GZIP)),
        ("gzip-named-but-plain", |tar| (tar.to_vec(), GZIP)),
        ("gzip-named-but-zstd", |tar| (frame(tar), GZIP)),
        ("zstd-named-but-gzip", |tar| (member(tar), ZSTD)),
        ("zstd-named-but-plain", |tar| (tar.to_vec(), ZSTD)),
        ("zstd-frames", |tar| ([frame(&tar[..700]), frame(&tar[700..])].concat(), ZSTD)),
        ("zstd-skippable-frames", |tar| {
            let frames = [skippable(b"first"), frame(&tar[..700]), skippable(b""), frame(&tar[700..])];
            ([frames.concat(), skippable(&[7; 1000])].concat(), ZSTD)
        }),
        ("zstd-window-of-128-mib", |tar| (wide(tar), ZSTD)),
        ("docker-gzip", |tar| (member(tar), "application/vnd.docker.image.rootfs.diff.tar.gzip")),
        ("docker-plain-but-gzip", |tar| (member(tar), "application/vnd.docker.image.rootfs.diff.tar")),
        ("docker-zstd", |tar| (frame(tar), "application/vnd.docker.image.rootfs.diff.tar.zstd")),
    ];
    let refused: [(&str, Pack); 20] = [
        ("gzip-then-zeros", |tar| ([member(tar), vec![0; 512]].concat(), GZIP)),
        ("gzip-then-one-zero", |tar| ([member(tar), vec![0]].concat(), GZIP)),
        ("gzip-then-junk", |tar| ([&member(tar)[..], b"this is no gzip member"].concat(), GZIP)),
        ("gzip-then-half-a-header", |tar| ([&member(tar), &member(tar)[..5]].concat(), GZIP)),
        ("gzip-then-half-a-member", |tar| ([member(tar), half(member(tar))].concat(), GZIP)),
        ("gzip-truncated", |tar| (half(member(tar)), GZIP)),
        ("gzip-truncated-in-trailer", |tar| (cut(member(tar), 3), GZIP)),
        ("gzip-without-trailer", |tar| (cut(member(tar), 8), GZIP)),
        ("gzip-wrong-checksum", |tar| (flip(member(tar), 7), GZIP)),
        ("gzip-wrong-length", |tar| (flip(member(tar), 3), GZIP)),
        ("gzip-damaged", |tar| (flip(member(tar), 5000), GZIP)),
        ("gzip-reserved-flags", |tar| {
            let mut blob = member(tar);
            blob[3] = 0x20;
            (blob, GZIP)
        }),
        ("plain-named-but-gzip", |tar| (member(tar), PLAIN)),
        ("plain-named-but-zstd", |tar| (frame(tar), PLAIN)),
        ("zstd-then-zeros", |tar| ([frame(tar), vec![0; 512]].concat(), ZSTD)),
        ("zstd-then-junk", |tar| ([&frame(tar)[..], b"this is no zstd frame"].concat(), ZSTD)),
        ("zstd-then-three-bytes", |tar| ([&frame(tar), &frame(tar)[..3]].concat(), ZSTD)),
        ("zstd-truncated", |tar| (half(frame(tar)), ZSTD)),
        ("zstd-wrong-checksum", |tar| (flip(frame(tar), 2), ZSTD)),
        ("zstd-truncated-skippable", |tar| ([&frame(tar), &skippable(b"0123456789")[..12]].concat(), ZSTD)),
    ];
    for (cases, is_valid) in [(&valid[..], true), (&refused[..], false)] {
        for (name, pack) in cases {
            // Each case has bytes of its own, so that no two are one snapshot.
            let tar = sample(name).0;
            let (blob, media_type) = pack(&tar);
            corpus.add_packed(name, is_valid, vec![Layer { tar, blob, media_type }]);
        }
    }
}

fn all_fields(tar: &[u8]) -> Vec<u8> {
    let builder = GzBuilder::new().filename("layer.tar").comment("comment").extra(vec![1, 2, 3, 4]).mtime(5);
    let mut encoder = builder.write(Vec::new(), Compression::best());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn wide(tar: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn half(blob: Vec<u8>) -> Vec<u8> {
    let by = blob.len() / 2;
    cut(blob, by)
}

fn cut(mut blob: Vec<u8>, by: usize) -> Vec<u8> {
    blob.truncate(blob.len() - by);
    blob
}

fn flip(mut blob: Vec<u8>, from_end: usize) -> Vec<u8> {
    let at = blob.len() - from_end;
    blob[at] ^= 0x55;
    blob
}

fn sample(name: &str) -> Tar {
    let mut state = 1_u32;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    let noise: Vec<u8> = std::iter::repeat_with(&mut noise).take(20_000).collect();
    tar([dir("d/"), file("d/noise", noise), file("d/text", "text ".repeat(5000)), file("last", name)])
}
