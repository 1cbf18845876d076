//! Extended headers, numbers, times, sparse files, and where an archive ends.

use super::{BLOCK, Corpus, Header, Tar, dir, entry, file, link, open, record, symlink, tar};

pub(super) fn add(corpus: &mut Corpus) {
    times(corpus);
    records(corpus);
    global(corpus);
    numbers(corpus);
    sparse(corpus);
    sparse_refused(corpus);
    ends(corpus);
}

fn times(corpus: &mut Corpus) {
    let times = [
        "1234567890.123456789",
        "1234567890.1",
        "1234567890.",
        "1234567890.0000000019",
        "+5",
        "0",
        "0.5",
        "-1",
        "-0.5",
        "-1234.75",
        "9223372036.854775807",
        "9223372036.854775808",
        "9223372037",
        "9223372036854775807",
        "-9223372036854775808",
        "-62135596801",
        "4294967296.25",
    ];
    corpus.valid(
        "times-by-record",
        &[tar(times.iter().enumerate().flat_map(|(i, time)| {
            [
                file(format!("f{i}"), "x").record("mtime", time),
                dir(format!("d{i}/")).record("mtime", time),
                symlink(format!("s{i}"), "x").record("mtime", time),
                file(format!("a{i}"), "x").record("atime", time).record("ctime", time),
            ]
        }))],
    );
    corpus.valid(
        "times-by-header",
        &[tar([
            file("zero", "x").mtime(0),
            file("largest", "x").mtime(0o77_777_777_777),
            file("negative", "x").base256(136, 12, -5),
            file("base256", "x").base256(136, 12, 1 << 33),
            file("huge", "x").base256(136, 12, i64::MAX),
            file("gnu-atime", "x").gnu().put(345, "15000000000\0").put(357, "15000000000\0"),
            file("record-empty", "x").record("mtime", ""),
        ])],
    );
}

fn records(corpus: &mut Corpus) {
    let extended = |text: &[u8]| entry(b'x', "PaxHeaders.0/x").data(text);
    corpus.valid(
        "records-count-once",
        &[tar([
            extended(&record("path", b"first")),
            extended(&[record("path", b"second"), record("uid", b"5")].concat()),
            file("third", "x"),
            file("plain", "x"),
            extended(&record("uid", b"7")),
            extended(b""),
            file("forgotten", "x"),
            extended(&[record("path", b"twice"), record("path", b"once")].concat()),
            file("none", "x"),
            extended(&[record("uid", b"7"), record("uid", b"")].concat()),
            file("last-is-empty", "x").owner(3, 3),
            extended(&[record("mtime", b"nonsense"), record("mtime", b"5")].concat()),
            file("last-is-valid", "x"),
        ])],
    );
    corpus.valid(
        "records-with-numbers",
        &[tar([
            file("ids", "x").record("uid", "3000000000").record("gid", "70000"),
            file("minus", "x").record("uid", "-1").record("gid", "-2").owner(5, 5),
            file("over", "x").record("uid", "4294967301").record("gid", "+8"),
            file("largest", "x").record("uid", "9223372036854775807"),
            file("size", "abc").size(0).record("size", "3"),
            file("names", "x").record("uname", "daemon").record("gname", "daemon"),
            file("unknown", "x")
                .record("VENDOR.key", "value")
                .record("comment", "c")
                .record("charset", "BINARY"),
            dir("sized/").record("size", "5000"),
            link("linked", "ids").record("size", "5000"),
        ])],
    );
    let invalid: [(&str, Vec<u8>); 17] = [
        ("length-short", b"8 path=a\n".to_vec()),
        ("length-long", b"11 path=a\n".to_vec()),
        ("length-beyond", b"99 path=a\n".to_vec()),
        ("length-missing", b" path=a\n".to_vec()),
        ("length-negative", b"-9 path=a\n".to_vec()),
        ("length-huge", b"99999999999999999999 path=a\n".to_vec()),
        ("no-equals", b"8 patha\n".to_vec()),
        ("no-key", b"6 =ab\n".to_vec()),
        ("no-newline", b"9 path=ab".to_vec()),
        ("nul-in-key", record("pa\0th", b"a")),
        ("nul-in-uname", record("uname", b"a\0")),
        ("junk-after", [record("path", b"a"), b"\0\0\0".to_vec()].concat()),
        ("uid", record("uid", b"five")),
        ("uid-overflow", record("uid", b"9223372036854775808")),
        ("mtime", record("mtime", b"1.5x")),
        ("ctime", record("ctime", b".5")),
        ("size", record("size", b"0x10")),
    ];
    for (name, text) in invalid {
        corpus.refused(&format!("record-invalid-{name}"), &[tar([extended(&text), file("f", "x")])]);
    }
    corpus.refused("record-negative-size", &[tar([file("f", "x").record("size", "-1")])]);
    let comment = |n: usize| record("comment", &vec![b'c'; n]);
    let fits = (1 << 20) - (comment(1 << 20).len() - (1 << 20));
    corpus.valid("records-of-1-mib", &[tar([extended(&comment(fits)), file("f", "x")])]);
    corpus.refused("records-over-1-mib", &[tar([extended(&comment(fits + 1)), file("f", "x")])]);
    corpus.refused(
        "gnu-name-over-1-mib",
        &[tar([entry(b'L', "././@LongLink").gnu().data(vec![b'n'; (1 << 20) + 1]), file("f", "x")])],
    );
}

fn global(corpus: &mut Corpus) {
    let global = |name: &str, text: &[u8]| entry(b'g', name).data(text);
    corpus.valid(
        "global-headers",
        &[tar([
            global("pax_global_header", &record("comment", b"c")),
            global("other", &[record("uid", b"7"), record("mtime", b"5")].concat()),
            file("not-affected", "x"),
            file("removed", "x"),
            global("removed", &record("comment", b"c")),
            file("removed-dir/x/f", "x"),
            global("removed-by-record", &record("path", b"removed-dir")),
            global("makes/parents/GlobalHead.1", &record("comment", b"c")),
            entry(b'x', "x").data(record("path", b"lost")),
            global("between", &record("comment", b"c")),
            file("not-lost", "x"),
            entry(b'L', "L").gnu().data("lost\0"),
            global("between", &record("comment", b"c")),
            file("not-lost-either", "x"),
            global("invalid-value", &record("ctime", b"nonsense")),
            file("after", "x"),
        ])],
    );
    corpus.refused("global-header-malformed", &[tar([global("g", b"nonsense"), file("f", "x")])]);
}

fn numbers(corpus: &mut Corpus) {
    corpus.valid(
        "numbers-spelled-oddly",
        &[tar([
            file("spaces", "x").put(100, "   644 \0").put(108, " 12\0    "),
            file("no-end", "x").put(100, "00000644").put(108, "00000017"),
            file("empty", "x").put(100, [0; 8]).put(136, [0; 12]),
            file("leading-nul", "x").put(100, b"\0\x30\x30\x36\x34\x34\0\0"),
            file("nul-inside", "x").put(108, b"12\x00999\0\0"),
            file("size-base256", "abc").base256(124, 12, 3).keep_size(),
        ])],
    );
    for (name, at, field) in [
        ("mode", 100, "0000648\0"),
        ("uid", 108, "-000001\0"),
        ("gid", 116, "00000x1\0"),
        ("mtime", 136, "1600000000.5"),
        ("major", 329, "nonsense"),
        ("size", 124, "0000000000x\0"),
    ] {
        corpus.refused(&format!("number-invalid-{name}"), &[tar([file("f", "").put(at, field).keep_size()])]);
    }
    corpus.refused("size-negative", &[tar([file("f", "").base256(124, 12, -1).keep_size()])]);
    corpus.refused("size-overflow", &[tar([file("f", "").put(124, [0xbf; 12]).keep_size()])]);
    let damage = |at: usize| {
        let mut tar = tar([file("f", "x")]);
        tar.0[at] ^= 1;
        tar
    };
    corpus.refused("checksum-wrong", &[damage(0)]);
    corpus.refused(
        "checksum-no-number",
        &[{
            let mut tar = tar([file("f", "x")]);
            tar.0[148..156].copy_from_slice(b"nonsense");
            tar
        }],
    );
    corpus.valid(
        "checksum-of-signed-bytes",
        &[{
            let mut tar = tar([file(b"\xff\xfe", "x")]);
            tar.0[148..156].fill(b' ');
            let sum: i32 = tar.0[..BLOCK].iter().map(|&b| i32::from(b.cast_signed())).sum();
            tar.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            tar
        }],
    );
}

fn sparse_0_1(name: &str, map: &str, count: &str, size: &str, data: &[u8]) -> Header {
    file(name, data)
        .record("GNU.sparse.size", size)
        .record("GNU.sparse.numblocks", count)
        .record("GNU.sparse.map", map)
}

fn sparse_1_0(name: &str, map: &str, size: &str, data: &[u8]) -> Header {
    let mut content = map.as_bytes().to_vec();
    content.resize(content.len().next_multiple_of(BLOCK), 0);
    content.extend(data);
    file("GNUSparseFile.0/ignored", content)
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0")
        .record("GNU.sparse.name", name)
        .record("GNU.sparse.realsize", size)
}

fn sparse(corpus: &mut Corpus) {
    let mut entries = vec![
        sparse_0_1("0.1", "512,3,2000,2", "2", "3000000", b"abcde"),
        sparse_0_1("whole", "0,5", "1", "5", b"abcde"),
        sparse_0_1("only-hole", "0,0", "1", "70000", b""),
        sparse_0_1("to-the-end", "9,1", "1", "10", b"z"),
        sparse_0_1("empty-pieces", "0,0,3,1,5,0,7,1,10,0", "5", "10", b"ab"),
        sparse_1_0("1.0", "2\n512\n3\n2000\n2\n", "300000", b"abcde"),
        sparse_1_0("1.0-empty-map", "0\n", "100", b""),
        sparse_1_0("d/1.0-long-map", &long_map(200), "400000", &[b'x'; 200]),
        file("0.0", "abc")
            .record("GNU.sparse.size", "100")
            .record("GNU.sparse.numblocks", "2")
            .record("GNU.sparse.offset", "10")
            .record("GNU.sparse.numbytes", "2")
            .record("GNU.sparse.offset", "50")
            .record("GNU.sparse.numbytes", "1"),
        file("unknown-version", "abc").record("GNU.sparse.major", "2").record("GNU.sparse.minor", "0"),
        file("no-map", "abc").record("GNU.sparse.size", "100"),
        file("after", "x"),
    ];
    entries.push(
        sparse_0_1("attributes", "1,1", "1", "3", b"y")
            .mode(0o4750)
            .owner(6, 7)
            .xattr("user.s", "x")
            .record("mtime", "9.25"),
    );
    corpus.valid("sparse-files", &[tar(entries)]);
}

fn long_map(count: usize) -> String {
    (0..count).fold(format!("{count}\n"), |map, i| map + &format!("{}\n1\n", i * 2000))
}

fn old_sparse(size: u64) -> Header {
    let octal = |n: u64| format!("{n:011o}\0");
    entry(b'S', "s").gnu().data("abc").put(386, octal(2)).put(398, octal(3)).put(483, octal(size))
}

fn sparse_refused(corpus: &mut Corpus) {
    for (name, map, count, size, data) in [
        ("data-missing", "1,2,7,1", "2", "10", "ab"),
        ("data-unreferenced", "1,2,7,1", "2", "10", "abcd"),
        ("count-wrong", "1,2,7,1", "3", "10", "abc"),
        ("count-missing", "1,2,7,1", "", "10", "abc"),
        ("map-odd", "1,2,7", "2", "10", "abc"),
        ("overlapping", "1,2,2,1", "2", "10", "abc"),
        ("out-of-order", "7,1,1,2", "2", "10", "abc"),
        ("beyond-size", "1,2,9,2", "2", "10", "abcd"),
        ("negative", "1,-2", "1", "10", "abc"),
        ("overflow", "1,9223372036854775807", "1", "10", "abc"),
        ("size-negative", "0,0", "1", "-10", ""),
        ("size-nonsense", "0,0", "1", "ten", ""),
    ] {
        corpus
            .refused(&format!("sparse-{name}"), &[tar([sparse_0_1("s", map, count, size, data.as_bytes())])]);
    }
    corpus.refused("sparse-1.0-map-nonsense", &[tar([sparse_1_0("s", "two\n", "10", b"ab")])]);
    corpus.refused("sparse-1.0-map-truncated", &[tar([sparse_1_0("s", "3\n1\n1\n", "10", b"")])]);
    corpus.refused(
        "sparse-directory",
        &[tar([dir("d/").record("GNU.sparse.numblocks", "1").record("GNU.sparse.map", "0,0")])],
    );
    corpus.refused(
        "sparse-0.0-out-of-turn",
        &[tar([file("s", "a").record("GNU.sparse.numbytes", "1").record("GNU.sparse.offset", "0")])],
    );
    corpus.refused("sparse-old-gnu", &[tar([old_sparse(10)])]);
    corpus.refused("sparse-old-in-ustar", &[tar([old_sparse(10).put(257, b"ustar\x0000")])]);
    let skipped = Tar::default().add(old_sparse(10).put(0, ".\0").put(482, [1])).raw([0; BLOCK]);
    // The extension block stands between header and data, where the writer put the data.
    let mut blocks = skipped.0;
    let data = blocks[BLOCK..2 * BLOCK].to_vec();
    blocks[BLOCK..2 * BLOCK].fill(0);
    blocks[2 * BLOCK..3 * BLOCK].copy_from_slice(&data);
    corpus.valid("sparse-old-gnu-extended-and-skipped", &[Tar(blocks).add(file("after", "x")).end()]);
}

fn ends(corpus: &mut Corpus) {
    let one = || open([file("f", "x")]);
    corpus.valid("end-missing", &[one()]);
    corpus.valid("end-of-one-block", &[one().raw([0; BLOCK])]);
    corpus.valid("end-in-padding", &[one().cut(100)]);
    corpus.valid("end-after-content", &[one().cut(BLOCK - 1)]);
    corpus.valid("end-with-junk-after", &[one().end().raw(b"junk that counts for the diff ID")]);
    corpus.valid("end-with-archive-after", &[one().end().add(file("never", "x")).end()]);
    corpus.valid("end-with-many-zeros", &[one().raw(vec![0; 300_000])]);
    corpus.valid("end-after-records", &[open([file("f", "x"), entry(b'x', "x").data(record("path", b"a"))])]);
    corpus.valid("empty-of-0-bytes", &[Tar::default()]);
    corpus.valid("empty-of-two-blocks", &[Tar::default().end()]);
    corpus.refused("truncated-in-content", &[one().cut(BLOCK)]);
    corpus.refused("truncated-in-header", &[one().raw([b'a'; 100])]);
    corpus.refused("truncated-in-records", &[open([entry(b'x', "x").data([b'1'; 600])]).cut(BLOCK)]);
    corpus.refused("truncated-in-zero-block", &[one().raw([0; BLOCK + 10])]);
    corpus.refused("zero-block-then-entry", &[one().raw([0; BLOCK]).add(file("g", "x")).end()]);
    corpus.refused("junk-then-nothing", &[one().raw([7; BLOCK])]);
}
