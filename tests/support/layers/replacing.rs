//! Entries of one layer that meet at one path, and whiteouts in a base layer.

use super::{Corpus, Header, dir, entry, file, link, symlink, tar};

pub(super) fn add(corpus: &mut Corpus) {
    pairs(corpus);
    directories(corpus);
    base_whiteouts(corpus);
}

/// A type of entry and how one is made.
type Make = (&'static str, fn(&str) -> Header);

/// Every type after every other at the same path.
fn pairs(corpus: &mut Corpus) {
    let kinds: [Make; 7] = [
        ("file", |name| file(name, "new").mode(0o640).mtime(1_500_000_000)),
        ("dir", |name| dir(name).mode(0o750).mtime(1_500_000_001)),
        ("symlink", |name| symlink(name, "elsewhere").mtime(1_500_000_002)),
        ("fifo", |name| entry(b'6', name).mtime(1_500_000_003)),
        ("char", |name| entry(b'3', name).device(1, 3).mtime(1_500_000_004)),
        ("block", |name| entry(b'4', name).device(7, 1).mtime(1_500_000_005)),
        ("link", |name| link(name, "target").mtime(1_500_000_006)),
    ];
    for (second, make_second) in kinds {
        let mut entries = vec![dir("elsewhere/"), file("elsewhere/kept", "x"), file("target", "t")];
        for (first, make_first) in kinds {
            // A directory replaced by anything else is in `directories`: its time is set once more at the end.
            if (first, second) == ("dir", "symlink") {
                continue;
            }
            let name = format!("{first}-then-{second}");
            entries.push(make_first(&name));
            entries.push(make_second(&name));
        }
        corpus.valid(&format!("replaced-by-{second}"), &[tar(entries)]);
    }
}

fn directories(corpus: &mut Corpus) {
    corpus.valid(
        "directory-described-twice",
        &[tar([
            dir("d/")
                .mode(0o700)
                .owner(1, 1)
                .xattr("user.first", "1")
                .xattr("user.both", "1")
                .mtime(1_000_000_000),
            file("d/f", "x"),
            dir("d/")
                .mode(0o1777)
                .owner(2, 2)
                .xattr("user.second", "2")
                .xattr("user.both", "2")
                .mtime(1_100_000_000),
            file("d/g", "x"),
        ])],
    );
    corpus.valid(
        "directory-described-after-its-content",
        &[tar([
            file("d/e/f", "x"),
            dir("d/").mode(0o700).owner(1, 1).mtime(1_000_000_000),
            dir("d/e/").mode(0o710).owner(2, 2).mtime(1_100_000_000),
        ])],
    );
    corpus.valid(
        "directory-tree-replaced",
        &[tar([
            dir("d/"),
            file("d/e/f/g", "x"),
            file("d/e/f/h/i", "x"),
            symlink("d/e/up", "/etc"),
            file("d/implied/h", "x"),
            // Its entry's time goes to the file in the end.
            file("d", "now a file").mtime(1_200_000_000),
        ])],
    );
    corpus.refused(
        "directory-tree-with-described-directories-replaced",
        &[tar([dir("d/"), dir("d/e/"), file("d", "now a file")])],
    );
    corpus.valid(
        "directory-becomes-symlink",
        &[tar([
            dir("target/").mtime(1_000_000_000),
            file("target/a", "x"),
            dir("d/").mtime(1_100_000_000),
            file("d/gone", "x"),
            symlink("d", "target").mtime(1_200_000_000),
            file("d/b", "x"),
        ])],
    );
    corpus.refused(
        "directory-becomes-dangling-symlink",
        &[tar([dir("d/").mtime(1_100_000_000), symlink("d", "nowhere").mtime(1_200_000_000)])],
    );
    corpus.valid(
        "symlink-becomes-directory",
        &[tar([
            dir("target/").mtime(1_000_000_000),
            symlink("d", "target"),
            file("d/through", "x"),
            dir("d/").mtime(1_100_000_000),
            file("d/inside", "x"),
            dir("d/sub/").mtime(1_200_000_000),
        ])],
    );
    moved_directories(corpus);
}

fn moved_directories(corpus: &mut Corpus) {
    corpus.valid(
        "symlink-is-turned-round",
        &[tar([
            dir("a/"),
            dir("b/"),
            symlink("l", "a"),
            file("l/1", "x"),
            dir("l/sub/").mtime(1_000_000_000),
            symlink("l", "b"),
            file("l/2", "x"),
            dir("l/sub/").mtime(1_100_000_000),
        ])],
    );
    corpus.valid(
        "directory-replaced-and-made-again",
        &[tar([
            dir("d/").mode(0o700).mtime(1_000_000_000),
            file("d/f", "x"),
            file("d", "file"),
            dir("d/").mode(0o711).mtime(1_100_000_000),
            file("d/g", "x"),
        ])],
    );
    corpus.valid(
        "implied-directory-replaced",
        &[tar([
            file("d/e/f", "x"),
            symlink("d/e", "../t"),
            file("d/e/g", "x"),
            file("h/i/j", "x"),
            file("h", "x"),
        ])],
    );
    corpus.valid(
        "hard-linked-file-replaced",
        &[tar([file("a", "one"), link("b", "a"), file("a", "two"), link("c", "a"), file("b", "three")])],
    );
}

fn base_whiteouts(corpus: &mut Corpus) {
    let white = |name: &str| file(name, "").owner(5, 6);
    corpus.valid(
        "base-whiteouts",
        &[tar([
            file("gone", "x"),
            file("kept", "x"),
            white(".wh.gone"),
            white(".wh.never-there"),
            file("d/gone", "x"),
            file("d/kept", "x"),
            white("d/.wh.gone"),
            white("made/for/.wh.nothing"),
            file("tree/a/b/c", "x"),
            white(".wh.tree"),
            file("tree/new", "x"),
            file("back", "1"),
            white(".wh.back"),
            file("back", "2"),
            symlink("link", "kept"),
            white(".wh.link"),
            dir("type/"),
            dir("type/.wh.x/"),
            symlink("type/.wh.y", "z"),
            white(".wh..wh.aufs"),
        ])],
    );
    corpus.refused("base-whiteout-of-a-described-directory", &[tar([dir("d/"), white(".wh.d")])]);
    corpus.valid(
        "base-whiteout-of-a-directory-made-again",
        &[tar([
            dir("d/").mtime(1_000_000_000),
            file("d/f", "x"),
            white(".wh.d"),
            dir("d/").mtime(1_100_000_000),
        ])],
    );
    corpus.valid(
        "base-opaque",
        &[tar([
            dir("d/"),
            file("d/file", "x"),
            dir("d/described/"),
            file("d/implied/file", "x"),
            file("d/implied/deep/file", "x"),
            file("d/implied-x/file", "x"),
            file("d/late/file", "x"),
            dir("d/late/").mtime(1_000_000_000),
            file("d/described/implied/file", "x"),
            white("d/.wh..wh..opq"),
            file("d/again/file", "x"),
            white("d/.wh..wh..opq"),
            file("d/after", "x"),
            white("new/dir/.wh..wh..opq"),
        ])],
    );
    corpus.valid(
        "base-opaque-at-root",
        &[tar([
            file("implied/file", "x"),
            dir("described/"),
            file("described/implied/f", "x"),
            file("file", "x"),
            white(".wh..wh..opq"),
        ])],
    );
    corpus.valid(
        "base-opaque-remembers",
        &[tar([
            file("d/x", "a file first"),
            white("d/.wh.x"),
            file("d/x/below", "now an implied directory"),
            entry(b'g', "d/y").data(super::record("comment", b"c")),
            file("d/y/below", "x"),
            file("d/z/below", "x"),
            white("d/.wh..wh..opq"),
        ])],
    );
    for (name, whiteout) in
        [("nothing", ".wh."), ("itself", ".wh.."), ("its-parent", ".wh..."), ("its-parent-below", "d/.wh...")]
    {
        corpus.refused(&format!("base-whiteout-of-{name}"), &[tar([dir("d/"), white(whiteout)])]);
    }
}
