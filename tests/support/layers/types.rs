//! Types of entries, modes, owners, attributes.

use super::{BLOCK, Corpus, dir, entry, file, link, symlink, tar};

/// `cap_net_bind_service=ep` as the kernel keeps it: `struct vfs_cap_data`, revision 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An access list: owner rw, user 1000 r, group r, mask r, others none.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16,
    0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

pub(super) fn add(corpus: &mut Corpus) {
    modes(corpus);
    devices(corpus);
    links(corpus);
    attributes(corpus);
    sizes(corpus);
}

fn modes(corpus: &mut Corpus) {
    corpus.valid(
        "modes",
        &[tar([0, 0o1, 0o200, 0o600, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6755, 0o7777]
            .into_iter()
            .flat_map(|mode| {
                [
                    file(format!("f{mode:o}"), "x").mode(mode),
                    dir(format!("d{mode:o}/")).mode(mode),
                    file(format!("o{mode:o}"), "x").mode(mode).owner(1000, 2000),
                    dir(format!("e{mode:o}/")).mode(mode).owner(1000, 2000),
                ]
            }))],
    );
    corpus.valid(
        "modes-with-type-bits",
        &[tar([
            file("f", "x").mode(0o100_644),
            dir("d/").mode(0o040_711),
            file("contradicts", "x").mode(0o040_600),
            file("beyond", "x").base256(100, 8, 0o7_777_777_755),
            file("negative", "x").base256(100, 8, -1),
        ])],
    );
    corpus.valid(
        "owners",
        &[tar([
            file("f", "x").owner(1000, 1000),
            file("large", "x").owner(0o777_7777, 0o777_7776),
            file("base256", "x").base256(108, 8, 3_000_000_000).base256(116, 8, 4_000_000_000),
            file("minus-one", "x").base256(108, 8, -1).base256(116, 8, -1),
            file("minus-two", "x").base256(108, 8, -2).base256(116, 8, -2),
            file("over-32-bits", "x").base256(108, 8, (1 << 32) + 7).base256(116, 8, (5 << 32) + 9),
            symlink("s", "f").owner(7, 8),
            entry(b'6', "p").owner(9, 10),
        ])],
    );
    corpus.valid(
        "setgid-directory-is-not-inherited",
        &[tar([
            dir("d/").mode(0o2775).owner(0, 50),
            file("d/f", "x"),
            dir("d/e/"),
            file("d/implied/f", "x"),
            entry(b'6', "d/p"),
        ])],
    );
    corpus.valid(
        "directory-times-last",
        &[tar([
            dir("d/").mtime(1_000_000_000),
            dir("d/e/").mtime(1_100_000_000),
            file("d/e/f", "x"),
            file("d/g", "x"),
            dir("d/e/h/").mtime(1_200_000_000),
            link("d/e/h/i", "d/g").mtime(1_300_000_000),
        ])],
    );
}

fn devices(corpus: &mut Corpus) {
    corpus.valid(
        "devices",
        &[tar([
            entry(b'3', "null").device(1, 3).mode(0o666),
            entry(b'4', "loop").device(7, 0).mode(0o660).owner(0, 6),
            entry(b'3', "largest").device(0o7777, 0o377_7777).mode(0o600),
            entry(b'3', "zero").device(0, 0).mode(0o600),
            entry(b'3', "over-12-bits").base256(329, 8, 0x12345).base256(337, 8, 0x1234_5678),
            entry(b'3', "setuid").device(1, 5).mode(0o6755).owner(1, 1),
            entry(b'6', "fifo").mode(0o622).owner(3, 4).mtime(1_234_567_890),
            entry(b'6', "fifo-with-device").device(1, 3),
        ])],
    );
    corpus.refused("device-major-out-of-range", &[tar([entry(b'3', "d").base256(329, 8, 1 << 32)])]);
    corpus.refused("device-minor-negative", &[tar([entry(b'4', "d").base256(337, 8, -1)])]);
    corpus.refused("fifo-device-out-of-range", &[tar([entry(b'6', "p").base256(337, 8, 1 << 32)])]);
    for (name, flag) in [("contiguous", b'7'), ("volume", b'V'), ("dumpdir", b'D'), ("solaris-acl", b'A')] {
        corpus.refused(&format!("type-{name}"), &[tar([entry(flag, "a")])]);
    }
    corpus.valid(
        "unknown-types-where-nothing-is-unpacked",
        &[tar([entry(b'V', ".").data("skipped"), entry(b'7', ".wh.a").data("b"), file("after", "x")])],
    );
    corpus.valid(
        "old-type-flags",
        &[tar([entry(0, "file").data("x"), entry(0, "dir/"), file("file-with-slash/", "x")])],
    );
}

fn links(corpus: &mut Corpus) {
    corpus.valid(
        "hard-links",
        &[tar([
            dir("d/"),
            file("d/a", "content").mode(0o600).owner(1, 2),
            link("b", "d/a").mode(0o640).owner(3, 4).mtime(1_111_111_111),
            link("c", "b").mode(0o4711).owner(5, 6).mtime(1_222_222_222),
            link("d/e", "./d//a").mode(0o644),
            file("x", "alone"),
        ])],
    );
    corpus.valid(
        "hard-links-to-anything",
        &[tar([
            symlink("s", "nowhere"),
            link("to-symlink", "s").owner(7, 7).mtime(1_333_333_333),
            entry(b'6', "p"),
            link("to-fifo", "p").mode(0o600),
            entry(b'3', "c").device(1, 3),
            link("to-device", "c").mode(0o666).xattr("user.ignored", "x"),
            file("f", "x"),
            link("with-xattr", "f").xattr("user.kept", "y"),
            link("symlink-xattr", "s").xattr("user.ignored", "x"),
        ])],
    );
    corpus.valid(
        "hard-link-targets-are-resolved-inside",
        &[tar([
            dir("etc/"),
            file("etc/passwd", "ours"),
            link("absolute", "/etc/passwd"),
            link("upward", "../../../../etc/passwd"),
            link("dots", "etc/../etc/./passwd"),
            symlink("l", "etc"),
            symlink("out", "/etc"),
            symlink("up", "../../etc"),
            link("through-link", "l/passwd"),
            link("through-out", "out/passwd"),
            link("through-up", "up/passwd"),
        ])],
    );
    let refused: [(&str, Vec<super::Header>); 10] = [
        ("to-nothing", vec![link("a", "b")]),
        ("to-host", vec![link("a", "/etc/hostname")]),
        ("to-host-upward", vec![link("a", "../../../../../../../../../../../etc/hostname")]),
        ("to-directory", vec![dir("d/"), link("a", "d")]),
        ("to-directory-slash", vec![dir("d/"), link("a", "d/")]),
        ("to-root", vec![link("a", "")]),
        ("to-parent", vec![dir("d/"), link("a", "d/..")]),
        ("to-itself", vec![file("a", "x"), link("a", "a")]),
        ("below-what-it-replaces", vec![dir("d/"), file("d/f", "x"), link("d", "d/f")]),
        ("through-file", vec![file("f", "x"), link("a", "f/g")]),
    ];
    for (name, entries) in refused {
        corpus.refused(&format!("hard-link-{name}"), &[tar(entries)]);
    }
    corpus.valid(
        "symlinks",
        &[tar([
            symlink("relative", "d/f"),
            symlink("absolute", "/etc/passwd"),
            symlink("upward", "../../../../../etc/passwd"),
            symlink("dangling", "no/such/place").mtime(1_444_444_444).owner(11, 12),
            symlink("self", "self"),
            symlink("odd", "a//b/./..\\\n ").mode(0),
            symlink("hundred", "t".repeat(100)),
        ])],
    );
    corpus.refused("symlink-to-nothing", &[tar([symlink("s", "")])]);
    corpus.valid("symlink-of-4095-bytes", &[tar([symlink("s", "").record("linkpath", "l".repeat(4095))])]);
    corpus.refused("symlink-of-4096-bytes", &[tar([symlink("s", "").record("linkpath", "l".repeat(4096))])]);
}

fn attributes(corpus: &mut Corpus) {
    corpus.valid(
        "xattrs",
        &[tar([
            file("binary", "x").xattr("user.b", b"\0\x01\n9 path=evil\n\xff="),
            file("empty", "x").xattr("user.e", ""),
            file("several", "x").xattr("user.a", "1").xattr("user.b", "2").xattr("user.a", "3"),
            file("read-only", "x").mode(0o400).xattr("user.a", "1"),
            dir("d/").xattr("user.d", "on a directory"),
            file("capable", "x").mode(0o755).owner(5, 5).xattr("security.capability", CAPABILITY),
            file("capable-setuid", "x").mode(0o4755).owner(5, 5).xattr("security.capability", CAPABILITY),
            file("unknown", "x").xattr("nonsense.a", "1").xattr("LIBARCHIVE.xattr.user.a", "1"),
            file("other-vendor", "x")
                .record("LIBARCHIVE.xattr.user.a", "MQ")
                .record("RHT.security.selinux", "l"),
        ])],
    );
    corpus.valid(
        "xattrs-that-are-ignored",
        &[tar([
            file("trusted", "x").xattr("trusted.overlay.opaque", "y").xattr("trusted.other", "z"),
            dir("trusted-dir/")
                .xattr("trusted.overlay.opaque", "y")
                .xattr("trusted.overlay.redirect", "/etc"),
            symlink("s", "t").xattr("user.a", "1").xattr("trusted.b", "2"),
            entry(b'6', "p").xattr("user.a", "1"),
            entry(b'3', "c").device(1, 3).xattr("user.a", "1"),
        ])],
    );
    corpus.valid(
        "access-lists",
        &[tar([
            file("f", "x").mode(0o640).xattr("system.posix_acl_access", ACL),
            dir("d/").mode(0o755).xattr("system.posix_acl_default", ACL),
            file("d/inherits", "x").mode(0o666),
            dir("d/too/").mode(0o777),
            entry(b'6', "d/p").mode(0o666),
        ])],
    );
    corpus.refused(
        "xattr-invalid-capability",
        &[tar([file("f", "x").xattr("security.capability", "nonsense")])],
    );
    corpus.refused("xattr-without-name", &[tar([file("f", "x").xattr("", "v")])]);
    corpus.refused(
        "xattr-name-too-long",
        &[tar([file("f", "x").xattr(&format!("user.{}", "n".repeat(300)), "v")])],
    );
    corpus.refused("xattr-too-large", &[tar([file("f", "x").xattr("user.a", vec![b'v'; 70_000])])]);
    corpus.refused(
        "xattr-invalid-access-list",
        &[tar([file("f", "x").xattr("system.posix_acl_access", "no")])],
    );
    corpus.add(
        "xattr-security-on-symlink",
        true,
        &[tar([symlink("s", "t").xattr("security.odd", "1"), dir("d/").xattr("security.odd", "2")])],
    );
}

fn sizes(corpus: &mut Corpus) {
    let bytes = |n: usize| (0..n).map(|i| ((i * 31 + i / 251) % 256).to_le_bytes()[0]).collect::<Vec<_>>();
    corpus.valid(
        "sizes-around-blocks-and-buffers",
        &[tar([0, 1, 511, 512, 513, 1024, 262_143, 262_144, 262_145, 1_000_000, 5_000_000]
            .map(|n| file(format!("f{n}"), bytes(n))))],
    );
    corpus.valid(
        "sizes-of-what-has-no-content",
        &[tar([
            file("f", "x"),
            dir("d/").size(1000),
            symlink("s", "f").size(1000),
            link("l", "f").size(1000),
            entry(b'6', "p").size(1000),
            entry(b'3', "c").device(1, 3).size(1000),
        ])],
    );
    corpus.valid(
        "many-files",
        &[tar((0..1500).map(|i| match i % 50 {
            0 => dir(format!("d{}/", i / 50)),
            _ => file(format!("d{}/f{i}", i / 50), format!("{i}")).mode(0o600 + i % 64).owner(i, i * 2),
        }))],
    );
    corpus.valid(
        "files-in-turns-between-directories",
        &[tar((0..200).map(|i| file(format!("a{}/b{}/c{}/f{i}", i % 2, i % 3, i % 5), [0; BLOCK])))],
    );
}
