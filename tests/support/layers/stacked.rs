//! Layers on layers: whiteouts, opaque marks, inherited attributes.

use super::{Corpus, Tar, dir, entry, file, link, symlink, tar};

pub(super) fn add(corpus: &mut Corpus) {
    whiteouts(corpus);
    inherited(corpus);
}

fn lower() -> Tar {
    tar([
        dir("a/")
            .mode(0o2750)
            .owner(10, 20)
            .mtime(1_000_000_000)
            .xattr("user.a", "lower")
            .record("mtime", "1000000000.5"),
        dir("a/b/").mode(0o700).owner(11, 21).xattr("user.b", "lower").xattr("user.empty", ""),
        dir("a/b/c/").mode(0o1777),
        file("a/b/c/file", "x"),
        symlink("link", "a/b"),
        symlink("absolute", "/a/b/c"),
        symlink("out", "../../../a"),
        symlink("dangling", "no/such"),
        symlink("loop", "loop"),
        file("file", "x"),
        dir("plain/"),
        entry(b'6', "fifo"),
    ])
}

fn whiteouts(corpus: &mut Corpus) {
    let white = |name: &str| file(name, "").owner(5, 6).mode(0o777).mtime(1_222_222_222);
    corpus.valid(
        "whiteouts",
        &[
            lower(),
            tar([
                white(".wh.file"),
                white("a/b/.wh.c"),
                white(".wh.never-there"),
                white("plain/.wh.x"),
                white("new/.wh.x"),
                dir("d/.wh.as-directory/"),
                symlink("d/.wh.as-symlink", "x").owner(7, 8),
                file("d/.wh.with-content", "content").xattr("user.ignored", "x"),
                entry(b'3', "d/.wh.as-device").device(1, 3),
                white(".wh..wh.aufs"),
                white(".wh..wh.plnk/.wh.x"),
                white("d/.wh..wh.orph"),
                white("d/.wh.wide").base256(108, 8, -1),
                entry(b'g', "d/.wh.as-global-header").owner(7, 8).data(super::record("comment", b"c")),
            ]),
        ],
    );
    corpus.valid(
        "opaque-marks",
        &[
            lower(),
            tar([
                dir("a/").mode(0o711),
                white("a/.wh..wh..opq"),
                file("a/new", "x"),
                white("implied/.wh..wh..opq"),
                white("link/.wh..wh..opq"),
                file("before", "x"),
                white(".wh..wh..opq"),
                white("a/.wh..wh..opq"),
            ]),
        ],
    );
    corpus.valid(
        "whiteout-then-entry",
        &[
            lower(),
            tar([
                white(".wh.a"),
                dir("a/").mode(0o700),
                file("a/new", "x"),
                white(".wh.file"),
                file("file", "new"),
                white(".wh.link"),
                symlink("link", "elsewhere"),
            ]),
        ],
    );
    corpus.refused("entry-then-whiteout", &[lower(), tar([file("x", "1"), white(".wh.x")])]);
    corpus.refused("directory-then-whiteout", &[lower(), tar([dir("x/"), white(".wh.x")])]);
    corpus.refused("whiteout-twice", &[lower(), tar([white(".wh.x"), white(".wh.x")])]);
    corpus.refused("below-a-whiteout", &[lower(), tar([white(".wh.a"), file("a/x", "1")])]);
    for (name, whiteout) in [("nothing", ".wh."), ("itself", ".wh.."), ("its-parent", ".wh...")] {
        corpus.refused(&format!("whiteout-of-{name}"), &[lower(), tar([white(whiteout)])]);
    }
    corpus.valid(
        "device-that-is-a-whiteout",
        &[
            lower(),
            tar([entry(b'3', "file").device(0, 0).mode(0o600).owner(1, 1), dir("a/"), white("a/.wh.b")]),
        ],
    );
    corpus.valid("empty-layer-on-top", &[lower(), Tar::default().end()]);
}

fn inherited(corpus: &mut Corpus) {
    corpus.valid(
        "implied-directories",
        &[
            lower(),
            tar([
                file("a/b/c/new", "x"),
                file("a/b/unknown/new", "x"),
                file("a/other/deep/new", "x"),
                file("nowhere/deep/new", "x"),
                dir("plain/described/").mode(0o711),
                link("plain/linked", "a/b/c/new"),
            ]),
        ],
    );
    corpus.valid(
        "implied-directories-of-the-nearest-layer",
        &[
            lower(),
            tar([dir("a/").mode(0o701).owner(30, 40), file("a/b/c/second", "x"), dir("second/").mode(0o750)]),
            tar([file("a/b/c/third", "x"), file("second/third", "x"), dir("third/").owner(1, 1)]),
            tar([
                file("a/b/c/fourth", "x"),
                file("second/fourth", "x"),
                file("third/fourth", "x"),
                file("a/b/fifth/x", "x"),
            ]),
        ],
    );
    corpus.valid(
        "implied-directory-through-a-lower-link",
        &[
            lower(),
            tar([
                // In this layer these are no links: only the lower layer is asked, and it follows its own.
                file("link/new", "x"),
                file("absolute/new", "x"),
                file("out/new", "x"),
                file("out/b/new", "x"),
                file("dangling/new", "x"),
            ]),
        ],
    );
    corpus.valid(
        "implied-directory-through-a-link-of-its-own",
        &[
            lower(),
            tar([
                symlink("mine", "a/b"),
                file("mine/new", "x"),
                symlink("far", "/a/b/c/d"),
                file("far/new", "x"),
            ]),
        ],
    );
    inherited_oddly(corpus);
}

fn inherited_oddly(corpus: &mut Corpus) {
    corpus.valid(
        "implied-directory-over-a-lower-file",
        &[lower(), tar([file("file/new", "x"), file("fifo/new", "x")])],
    );
    corpus.refused("implied-directories-over-a-lower-file", &[lower(), tar([file("file/deep/new", "x")])]);
    corpus.refused("implied-directory-over-a-lower-loop", &[lower(), tar([file("loop/new", "x")])]);
    let white = |name: &str| file(name, "");
    corpus.refused(
        "implied-directories-over-a-whiteout",
        &[lower(), tar([white(".wh.a")]), tar([file("a/b/new", "x")])],
    );
    corpus.valid(
        "implied-directory-where-a-whiteout-was",
        &[
            lower(),
            tar([white(".wh.a"), white("plain/.wh..wh..opq")]),
            tar([file("a/new", "x"), file("plain/new", "x")]),
        ],
    );
    corpus.valid(
        "implied-directory-described-late",
        &[
            lower(),
            tar([
                file("a/b/new", "x"),
                dir("a/b/").mode(0o755).owner(0, 0).xattr("user.b", "upper").mtime(1_300_000_000),
                dir("a/").mode(0o755).mtime(1_400_000_000),
            ]),
        ],
    );
    corpus.valid(
        "implied-directory-below-setgid",
        &[
            lower(),
            tar([
                file("a/unknown/new", "x"),
                file("a/unknown/deeper/new", "x"),
                dir("a/described/"),
                file("a/described/new", "x"),
            ]),
        ],
    );
    corpus.valid(
        "implied-directory-below-setgid-described-late",
        &[
            lower(),
            tar([
                file("a/unknown/new", "x"),
                dir("a/").mode(0o755).owner(1, 1),
                file("a/after/new", "x"),
                dir("a/").mode(0o2755).owner(1, 9),
                file("a/again/new", "x"),
            ]),
        ],
    );
    corpus.refused(
        "implied-directory-removed-over-a-lower-file",
        &[lower(), tar([file("file/deep/new", "x"), file("file", "x")])],
    );
    corpus.valid(
        "implied-directory-removed-again",
        &[
            lower(),
            tar([file("a/b/new", "x"), file("a", "a file"), file("plain/x/y", "1"), symlink("plain/x", "z")]),
        ],
    );
    corpus.refused("hard-link-into-a-lower-layer", &[lower(), tar([link("a/b/c/hard", "a/b/c/file")])]);
    corpus.valid(
        "root-of-an-upper-layer",
        &[
            tar([dir("./").mode(0o700).owner(4, 4), file("f", "x")]),
            tar([dir("./").mode(0o711).owner(5, 5), file("g", "x")]),
        ],
    );
}
