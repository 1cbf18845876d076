//! Files: their data read once, and let go of.

use std::num::NonZero;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, Advice, SeekFrom};
use rustix::io::{self, Errno};

use super::account::Account;
use super::files::{self, Unread};
use super::parallel;
use super::run::{Run, Tally};
use super::walk::{self, Directory};

/// Bytes that one thread reads in a row. A snapshot of EBS has blocks of this size: a thread waits for about one, and
/// others for those behind it, in a large file as in a directory of small ones.
const PART: u64 = 512 << 10;
/// The same of a file with holes, most of which may be such.
const PART_WITH_HOLES: u64 = 16 << 20;
/// Files of one directory that one thread reads in a row, however small.
const GROUP: usize = 64;
/// The smallest unit of memory that can be let go of.
const PAGE: u64 = 4096;

/// What becomes of the memory that was read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// It stays, as long as the kernel has no other use for it.
    Keep,
    /// What was not there before is let go of, so that it drives out nothing.
    Release,
}

/// What one thread reads in a row: files of a directory, or a part of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Work {
    directory: usize,
    files: Range<usize>,
    bytes: Range<u64>,
}

/// Cuts what is to be read into pieces, in order.
fn cut(directories: &[Directory]) -> Vec<Work> {
    let mut work: Vec<Work> = Vec::new();
    for (at, directory) in directories.iter().enumerate() {
        // Bytes of the group that the next file may join; none where there is none.
        let mut group = None;
        for (file, walk::File { size, stored, .. }) in directory.files.iter().enumerate() {
            let (files, size) = (file..file + 1, *size);
            if size > PART {
                let part = if *stored < size { PART_WITH_HOLES } else { PART };
                let parts = (0..size.div_ceil(part)).map(|number| number * part..(number + 1) * part);
                work.extend(parts.map(|bytes| Work { directory: at, files: files.clone(), bytes }));
                group = None;
                continue;
            }
            match (group, work.last_mut()) {
                (Some(bytes), Some(last)) if last.files.len() < GROUP && bytes + size <= PART => {
                    last.files.end += 1;
                    group = Some(bytes + size);
                }
                _ => {
                    work.push(Work { directory: at, files, bytes: 0..u64::MAX });
                    group = Some(size);
                }
            }
        }
    }
    work
}

/// What a thread has for itself.
struct Reader {
    account: Account,
    buffer: Vec<u8>,
}

/// Reads the data of all files in `directories`, in their order.
pub(super) fn read(run: &Run<'_>, directories: &[Directory], memory: Memory) {
    let begin = || Reader { account: Account::open(), buffer: vec![0; run.chunk()] };
    parallel::each(run.jobs(), &cut(directories), begin, |reader, work| {
        let mut tally = Tally::default();
        let go_on = read_work(run, reader, &directories[work.directory], work, memory, &mut tally);
        run.count(tally);
        go_on
    });
}

/// None when the run is to end.
fn read_work(
    run: &Run<'_>,
    reader: &mut Reader,
    directory: &Directory,
    work: &Work,
    memory: Memory,
    tally: &mut Tally,
) -> Option<()> {
    let parent = match files::open_directory(run.root(), &directory.path) {
        Ok(parent) => parent,
        Err(unread) => {
            tally.unread(&directory.path, unread);
            return Some(());
        }
    };
    for file in &directory.files[work.files.clone()] {
        run.may_begin(0)?;
        let name = Path::new(&file.name);
        let read = files::open_file(&parent, name).map(|(file, stat)| {
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            let stored = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512);
            let bytes = work.bytes.start..work.bytes.end.min(size);
            Opened { file, bytes, has_holes: stored < size }
        });
        let read = match read {
            Ok(opened) => read_file(run, reader, &opened, memory, tally)?,
            Err(unread) => Err(unread),
        };
        match read {
            Ok(()) if work.bytes.start == 0 => tally.files += 1,
            Ok(()) => {}
            Err(unread) => tally.unread(&directory.path.join(name), unread),
        }
    }
    Some(())
}

/// A file, and what of it is to be read.
struct Opened {
    file: OwnedFd,
    bytes: Range<u64>,
    has_holes: bool,
}

/// Reads a file, as far as it stands on the disk. None when the run is to end.
fn read_file(
    run: &Run<'_>,
    reader: &mut Reader,
    Opened { file, bytes, has_holes }: &Opened,
    memory: Memory,
    tally: &mut Tally,
) -> Option<Result<(), Unread>> {
    // Each read goes to the disk as one request, and nothing is read that was not paid for. Some file
    // systems know no such thing.
    let _ = fs::fadvise(file, 0, None, Advice::Random);
    if bytes.start == 0 {
        files::touch_xattrs(file);
    }
    let opened = reader.account.since_last().unwrap_or_default();
    run.settle(0, opened);
    tally.from_disk += opened;

    let mut at = bytes.start;
    while at < bytes.end {
        let rest = at..bytes.end;
        let Some(data) = (if *has_holes { next_data(file, rest) } else { Some(rest) }) else { break };
        at = data.start;
        while at < data.end {
            let wanted = (data.end - at).min(run.chunk() as u64);
            run.may_begin(wanted)?;
            let buffer = &mut reader.buffer[..usize::try_from(wanted).unwrap_or_default()];
            let read = match io::pread(file, buffer, at) {
                Ok(read) => read as u64,
                Err(Errno::INTR) => continue,
                Err(errno) => return Some(Err(errno.into())),
            };
            let fetched = reader.account.since_last();
            run.settle(wanted, fetched.unwrap_or(read));
            tally.from_disk += fetched.unwrap_or(read);
            if memory == Memory::Release && fetched != Some(0) {
                let whole = NonZero::new(read.next_multiple_of(PAGE));
                let _ = fs::fadvise(file, at, whole, Advice::DontNeed);
            }
            if read == 0 {
                // It is shorter by now.
                return Some(Ok(()));
            }
            run.has_read(read);
            tally.bytes += read;
            at += read;
        }
    }
    Some(Ok(()))
}

/// Where in `bytes` the next data is; none where there is only a hole.
fn next_data(file: &OwnedFd, bytes: Range<u64>) -> Option<Range<u64>> {
    let start = match fs::seek(file, SeekFrom::Data(bytes.start)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return None,
        // A file system without holes.
        Err(_) => return Some(bytes),
    };
    let end = fs::seek(file, SeekFrom::Hole(start)).unwrap_or(bytes.end);
    let data = start..end.min(bytes.end);
    (!data.is_empty()).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::super::walk::File;
    use super::*;

    fn directory(sizes: &[u64]) -> Directory {
        let file = |(at, &size): (usize, &u64)| File { name: at.to_string().into(), size, stored: size };
        Directory { path: "d".into(), files: sizes.iter().enumerate().map(file).collect() }
    }

    #[test]
    fn small_files_go_together_and_large_ones_in_parts() {
        let work = |directory, files, bytes| Work { directory, files, bytes };
        let all = 0..u64::MAX;
        let mut with_holes = directory(&[2 * PART_WITH_HOLES]);
        with_holes.files[0].stored = 1;
        let directories = [
            directory(&[1, PART - 1, PART + 1, 3, 4, PART]),
            directory(&[]),
            directory(&[1; GROUP + 1]),
            directory(&[2 * PART]),
            with_holes,
        ];
        let expected = [
            work(0, 0..2, all.clone()),
            work(0, 2..3, 0..PART),
            work(0, 2..3, PART..2 * PART),
            work(0, 3..5, all.clone()),
            work(0, 5..6, all.clone()),
            work(2, 0..GROUP, all.clone()),
            work(2, GROUP..GROUP + 1, all),
            work(3, 0..1, 0..PART),
            work(3, 0..1, PART..2 * PART),
            work(4, 0..1, 0..PART_WITH_HOLES),
            work(4, 0..1, PART_WITH_HOLES..2 * PART_WITH_HOLES),
        ];
        assert_eq!(cut(&directories), expected);
    }

    #[test]
    fn holes_are_passed_over() {
        let file = tempfile::tempfile().unwrap();
        let size = 64 << 20;
        file.set_len(size).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", 32 << 20).unwrap();
        let file = OwnedFd::from(file);
        let data = next_data(&file, 0..size).unwrap();
        assert!(data.contains(&(32 << 20)), "{data:?}");
        assert!(data.end - data.start <= 2 << 20, "a hole was taken for data: {data:?}");
        assert_eq!(next_data(&file, data.end..size), None);
        assert_eq!(next_data(&file, 32 << 20..(32 << 20) + 2), Some(32 << 20..(32 << 20) + 2));
    }
}
