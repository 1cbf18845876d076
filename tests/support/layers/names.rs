//! Names and where they lead.

use super::{Corpus, Header, dir, entry, file, link, open, symlink, tar};

pub(super) fn add(corpus: &mut Corpus) {
    spellings(corpus);
    long(corpus);
    through_links(corpus);
    hostile(corpus);
}

fn spellings(corpus: &mut Corpus) {
    corpus.valid(
        "names-spelled-oddly",
        &[tar([
            dir("./"),
            dir("./a/"),
            file("./a/f", "x"),
            file("/absolute", "x"),
            file("//a///g", "x"),
            file("a/./b/../h", "x"),
            dir("e//"),
            file("...", "x"),
            file("..a", "x"),
            file("a/ ", "x"),
            file("back\\slash", "x"),
            file("new\nline", "x"),
            file("quote\"'", "x"),
            file("-dash", "x"),
            file("\x01\x7f", "x"),
        ])],
    );
    corpus.valid(
        "names-in-utf-8-and-not",
        &[tar([
            file("grüße", "x"),
            file("世界/文", "x"),
            file("e\u{301} is not \u{e9}", "x"),
            file(b"latin\xfc", "x"),
            file(b"broken\xff\xfe\x80", "x"),
            dir(b"\xc3\x28/"),
            file(b"\xc3\x28/f", "x"),
            file("short", "x").record("path", b"by-record-\xff\xfe"),
            symlink("s", b"\xff\xfe"),
            link("l", b"latin\xfc"),
        ])],
    );
    corpus.valid(
        "root-entries-are-skipped",
        &[tar([
            dir(".").mode(0o700).owner(9, 9).xattr("user.root", "x"),
            dir("./").mode(0o711),
            dir("/").mode(0o711),
            dir("..").mode(0o711),
            dir("../..").mode(0o711),
            dir("a/..").mode(0o711),
            file(".", "content"),
            file("", "no name"),
            symlink("/", "etc"),
            link("./", "nothing"),
            entry(b'3', "../").device(1, 3),
            file("after", "x"),
        ])],
    );
}

fn long(corpus: &mut Corpus) {
    let part = |n: usize| "p".repeat(n);
    let deep = |n: usize| vec!["deep-directory-name"; n].join("/");
    corpus.valid(
        "names-by-record",
        &[tar([
            file("short", "x").record("path", format!("{}/{}", deep(20), part(255))),
            dir("short/").record("path", format!("{}/dir/", deep(21))),
            symlink("s", "short").record("linkpath", deep(40)),
            link("l", "short").record("linkpath", format!("{}/{}", deep(20), part(255))),
            file("kept", "x").record("path", ""),
        ])],
    );
    let gnu = |flag, text: &str| entry(flag, "././@LongLink").gnu().data(format!("{text}\0"));
    corpus.valid(
        "names-by-gnu-headers",
        &[tar([
            gnu(b'L', &format!("{}/{}", deep(20), part(200))),
            file("truncated", "x").gnu(),
            gnu(b'K', &deep(30)),
            symlink("s", "truncated").gnu(),
            gnu(b'L', &deep(22)),
            gnu(b'K', &format!("{}/{}", deep(20), part(200))),
            link("truncated", "truncated").gnu(),
            gnu(b'L', "first"),
            gnu(b'L', "second\0garbage"),
            file("third", "x").gnu(),
            gnu(b'L', "gnu-over-record"),
            file("neither", "x").record("path", "record"),
            gnu(b'L', ""),
            file("empty-is-none", "x").gnu(),
            gnu(b'L', "a-directory/"),
            entry(0, "old").gnu(),
        ])],
    );
    corpus.valid(
        "names-with-prefix",
        &[tar([
            file("name", "x").put(345, "prefix"),
            file("full", "x").put(345, "p/".repeat(77)),
            file("n".repeat(100), "x").put(345, "pre/fix/"),
            file("not-in-gnu", "x").gnu().put(345, "14000000000"),
            file("old-go", "x").gnu().put(345, "prefix/by/old/go"),
            file("star", "x")
                .put(345, "star-prefix")
                .put(476, "14000000000\0")
                .put(488, "14000000000\0")
                .put(508, "tar\0"),
            file("v7", "x").put(257, [0; 8]).put(345, "no-prefix"),
            file("v7-device", "x").put(257, [0; 8]).put(329, "nonsense"),
        ])],
    );
    corpus.valid("name-part-of-255", &[tar([file("s", "x").record("path", part(255))])]);
    corpus.refused("name-part-of-256", &[tar([file("s", "x").record("path", part(256))])]);
    corpus.refused("name-of-5000", &[tar([file("s", "x").record("path", deep(250))])]);
    let nested =
        (1..=150).map(|n| dir("s").record("path", vec!["n"; n].join("/")).mtime(1_000_000_000 + n as u64));
    corpus.valid("nested-150-deep", &[tar(nested)]);
    corpus.valid("implied-300-deep", &[tar([file("s", "x").record("path", vec!["n"; 300].join("/"))])]);
}

fn through_links(corpus: &mut Corpus) {
    corpus.valid(
        "parents-that-are-symlinks",
        &[tar([
            dir("real/").mtime(1_000_000_000),
            dir("real/deep/"),
            symlink("relative", "real"),
            symlink("absolute", "/real/deep"),
            symlink("upward", "../../../../real"),
            symlink("chain", "relative"),
            symlink("real/back", "../other"),
            file("relative/a", "x"),
            file("absolute/b", "x"),
            file("upward/c", "x"),
            file("chain/d", "x"),
            dir("chain/new/").mtime(1_100_000_000),
            file("chain/new/e", "x"),
            file("real/back/f", "x"),
            file("relative/deep/g", "x"),
            symlink("relative/h", "x"),
            entry(b'6', "upward/p"),
        ])],
    );
    corpus.valid(
        "parents-that-are-dangling-symlinks",
        &[tar([
            symlink("dangling", "made/here"),
            file("dangling/f", "x"),
            symlink("out", "/made/absolute"),
            file("out/deep/f", "x"),
            symlink("up", "../../../made/upward"),
            dir("up/d/").mtime(1_000_000_000),
            symlink("host", "/proc/self/root/etc"),
            file("host/f", "x"),
            symlink("host2", "/proc/self/cwd"),
            file("host2/f", "x"),
        ])],
    );
    corpus.valid(
        "parents-with-dots-in-links",
        &[tar([
            dir("a/b/c/"),
            symlink("s", "a/b/c"),
            symlink("plain", "s/.."),
            file("plain/f", "x"),
            dir("d/"),
            symlink("d/s", "../a/b/c"),
            symlink("d/nested", "s/.."),
            file("d/nested/g", "x"),
            symlink("missing", "no/../such"),
            file("missing/h", "x"),
            symlink("d/missing", "no/../such"),
            file("d/missing/i", "x"),
        ])],
    );
    let chain = |n: usize| {
        let mut entries: Vec<Header> =
            (0..n).map(|i| symlink(format!("l{i}"), format!("l{}", i + 1))).collect();
        entries.push(dir(format!("l{n}/")));
        entries.push(file("l0/f", "x"));
        tar(entries)
    };
    corpus.valid("parent-behind-60-symlinks", &[chain(60)]);
    corpus.refused("parent-behind-300-symlinks", &[chain(300)]);
    corpus.refused("parent-is-a-loop", &[tar([symlink("a", "b"), symlink("b", "a"), file("a/f", "x")])]);
    corpus.refused("parent-is-itself", &[tar([symlink("a", "a"), file("a/f", "x")])]);
    corpus.refused("parent-is-a-file", &[tar([file("a", "x"), file("a/f", "x")])]);
    corpus.refused("parent-of-parent-is-a-file", &[tar([file("a", "x"), file("a/b/f", "x")])]);
    corpus.refused("parent-is-a-fifo", &[tar([entry(b'6', "a"), file("a/f", "x")])]);
    corpus.refused("parent-links-to-a-file", &[tar([file("a", "x"), symlink("l", "a"), file("l/f", "x")])]);
}

fn hostile(corpus: &mut Corpus) {
    corpus.valid(
        "names-that-lead-upwards",
        &[tar([
            file("../escape", "x"),
            file("../../../../../../../../tmp/warmkit-escape", "x"),
            file("a/../../../escape2", "x"),
            dir("../d/"),
            symlink("l", ".."),
            file("l/escape3", "x"),
            symlink("m", "../../../.."),
            file("m/tmp/warmkit-escape2", "x"),
            symlink("n", "/"),
            file("n/escape4", "x"),
            dir("n/e/"),
        ])],
    );
    corpus.valid(
        "link-then-file-of-the-same-name",
        &[tar([
            symlink("passwd", "/etc/passwd"),
            file("passwd", "ours"),
            symlink("d", "/tmp"),
            dir("d/"),
            file("d/f", "x"),
        ])],
    );
    corpus.refused("name-with-nul-by-record", &[tar([file("s", "x").record("path", "a\0b")])]);
    corpus.refused(
        "name-with-nul-by-sparse-record",
        &[tar([file("s", "x")
            .record("GNU.sparse.major", "0")
            .record("GNU.sparse.minor", "1")
            .record("GNU.sparse.name", "a\0b")
            .record("GNU.sparse.size", "1")
            .record("GNU.sparse.numblocks", "1")
            .record("GNU.sparse.map", "0,1")])],
    );
    corpus.refused("size-beyond-the-stream", &[open([file("a", "x").put(124, "77777777777\0").keep_size()])]);
}
