use super::*;

/// A ustar header with a right checksum.
fn block(name: &str, flag: u8, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sign(block)
}

fn sign(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn member(name: &str, flag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = block(name, flag, content.len()).to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<(String, Kind, Vec<u8>)>> {
    let mut reader = Reader::new(bytes);
    let mut found = Vec::new();
    while reader.next()? {
        let (entry, mut content) = reader.parts();
        let mut bytes = Vec::new();
        loop {
            match content.segment()? {
                Segment::Data(data) => bytes.extend_from_slice(data),
                Segment::Hole(length) => bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0),
                Segment::End => break,
            }
        }
        found.push((String::from_utf8_lossy(entry.name()).into_owned(), entry.kind, bytes));
    }
    Ok(found)
}

fn fault(bytes: &[u8]) -> ArchiveFault {
    match read(bytes) {
        Err(super::super::Error::Archive { fault, .. }) => fault,
        other => panic!("expected a fault, got {other:?}"),
    }
}

#[test]
fn ends() {
    let file = member("a", b'0', b"x");
    let zeros = [0; BLOCK];
    let valid: [Vec<u8>; 8] = [
        vec![],
        zeros.to_vec(),
        [zeros, zeros].concat(),
        file.clone(),
        file[..=BLOCK].to_vec(),
        file[..BLOCK + 100].to_vec(),
        [&file[..], &zeros].concat(),
        [&file[..], &zeros, &zeros, b"junk"].concat(),
    ];
    for bytes in valid {
        let files = usize::from(bytes.iter().any(|&b| b != 0));
        assert_eq!(read(&bytes).unwrap().len(), files, "{} bytes", bytes.len());
    }
    let invalid: [(Vec<u8>, ArchiveFault); 5] = [
        (file[..BLOCK].to_vec(), ArchiveFault::Truncated),
        (file[..BLOCK - 1].to_vec(), ArchiveFault::Truncated),
        ([&zeros[..], &file].concat(), ArchiveFault::ZeroBlock),
        ([&zeros[..], &zeros[..5]].concat(), ArchiveFault::Truncated),
        ([1; BLOCK].to_vec(), ArchiveFault::Checksum),
    ];
    for (bytes, expected) in invalid {
        assert_eq!(fault(&bytes), expected, "{} bytes", bytes.len());
    }
}

#[test]
fn extended_headers_count_for_the_next_entry() {
    let bytes = [
        member("x", b'x', b"13 path=long\n"),
        member("short", b'0', b"1"),
        member("plain", b'0', b"2"),
        member("L", b'L', b"from gnu\0"),
        member("x", b'x', b"13 path=long\n"),
        member("short", b'0', b"3"),
        member("x", b'x', b"13 path=lost\n"),
        member("g", b'g', b"14 path=global\n"),
    ]
    .concat();
    assert_eq!(fault(&bytes), ArchiveFault::Pax);
    let bytes = [
        &bytes[..bytes.len() - 2 * BLOCK],
        &member("g", b'g', b"15 path=global\n"),
        &member("after", b'0', b"4"),
    ]
    .concat();
    let names: Vec<_> = read(&bytes).unwrap().into_iter().map(|(name, kind, _)| (name, kind)).collect();
    let expected = [
        ("long", Kind::File),
        ("plain", Kind::File),
        ("from gnu", Kind::File),
        ("global", Kind::Global),
        ("after", Kind::File),
    ];
    assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
}

#[test]
fn sizes() {
    // A link has no content, whatever its size says; an extended size wins; a directory may come without its type.
    let bytes = [
        block("link", b'1', 1000).to_vec(),
        member("x", b'x', b"10 size=3\n"),
        block("file", b'0', 0).to_vec(),
        [&b"abc"[..], &[0; BLOCK - 3]].concat(),
        block("dir/", 0, 0).to_vec(),
        block("not/", b'0', 0).to_vec(),
    ]
    .concat();
    let expected = [
        ("link", Kind::HardLink, &b""[..]),
        ("file", Kind::File, b"abc"),
        ("dir/", Kind::Directory, b""),
        ("not/", Kind::File, b""),
    ];
    assert_eq!(read(&bytes).unwrap(), expected.map(|(n, k, c)| (n.to_owned(), k, c.to_vec())));
    let mut negative = block("a", b'0', 0);
    negative[124..136].fill(0xff);
    assert_eq!(fault(&sign(negative)), ArchiveFault::NegativeSize);
    assert_eq!(fault(&block("x", b'x', SPECIAL + 1)), ArchiveFault::TooLong);
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length += 1;
        }
        text.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
    }
    member("x", b'x', &text)
}

#[test]
fn sparse_files() {
    let whole = b"\0\0ab\0\0\0c\0\0".to_vec();
    let zero_zero = [
        ("GNU.sparse.size", "10"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "2"),
        ("GNU.sparse.numbytes", "2"),
        ("GNU.sparse.offset", "7"),
        ("GNU.sparse.numbytes", "1"),
    ];
    let zero_one = [
        ("GNU.sparse.size", "10"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.map", "2,2,7,1"),
        ("GNU.sparse.name", "s"),
    ];
    let one_zero = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.realsize", "10"),
        ("GNU.sparse.name", "s"),
    ];
    let mut map = b"2\n2\n2\n7\n1\n".to_vec();
    map.resize(BLOCK, 0);
    map.extend_from_slice(b"abc");
    let mut old = block("s", b'S', 3);
    old[257..265].copy_from_slice(b"ustar  \0");
    for (at, number) in [(386, 2), (398, 2), (410, 7), (422, 1), (483, 10)] {
        old[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
    }
    let data = [&b"abc"[..], &[0; BLOCK - 3]].concat();
    let cases = [
        ([pax(&zero_zero), member("s", b'0', b"abc")].concat(), Kind::File),
        ([pax(&zero_one), member("ignored", b'0', b"abc")].concat(), Kind::File),
        ([pax(&one_zero), member("ignored", b'0', &map)].concat(), Kind::File),
        ([&sign(old)[..], &data].concat(), Kind::Other(b'S')),
    ];
    for (bytes, kind) in cases {
        assert_eq!(read(&bytes).unwrap(), [("s".to_owned(), kind, whole.clone())]);
    }
    let bad = [
        ("1,2,7,1", "2", "10", &b"ab"[..], ArchiveFault::SparseData),
        ("1,2,7,1", "2", "10", b"abcd", ArchiveFault::SparseData),
        ("1,2,7,1", "3", "10", b"abc", ArchiveFault::SparseMap),
        ("1,2,7,1,1", "2", "10", b"abc", ArchiveFault::SparseMap),
        ("1,2,2,1", "2", "10", b"abc", ArchiveFault::SparseMap),
        ("1,2,7,4", "2", "10", b"abc", ArchiveFault::SparseMap),
        ("1,2,7,-1", "2", "10", b"abc", ArchiveFault::SparseMap),
        ("1,2,7,9223372036854775807", "2", "10", b"abc", ArchiveFault::SparseMap),
        ("1,2,7,1", "2", "-10", b"abc", ArchiveFault::SparseMap),
    ];
    for (map, count, size, data, expected) in bad {
        let records = [("GNU.sparse.map", map), ("GNU.sparse.numblocks", count), ("GNU.sparse.size", size)];
        let bytes = [pax(&records), member("s", b'0', data)].concat();
        assert_eq!(fault(&bytes), expected, "{map} {count} {size}");
    }
}
