//! The file verbs, and those for volumes, as run by a worker: a process of their own, so that a slow disk holds up nothing else.
//!
//! Content comes in on stdin and goes out on stdout; [`Note`]s go out on stderr, one line of JSON each, and a note is
//! written before the content that it announces.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use wire::{
    ErrorCode, Failure, FileKind, FileRead, FileStat, FileWrite, ReadSummary, Reply, StatRequest,
    VolumeGrowth, VolumeMount,
};

use crate::failure::{failure, failure_io};
use crate::lines::{copy_bytes, copy_lines};
use crate::listeners;
use crate::replace::replace;
use crate::volumes;

const BUFFER: usize = 64 * 1024;

/// What a worker tells of its work.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// The file whose content follows.
    Meta(Box<FileStat>),
    /// It is done.
    Reply(Box<Reply>),
    /// It could not be done.
    Failed(Failure),
}

/// What a worker does.
#[derive(Debug)]
pub enum Job {
    /// Send a file, or a part of it.
    Read(FileRead),
    /// Replace a file.
    Write(FileWrite),
    /// Tell a file's attributes.
    Stat(StatRequest),
    /// Send a directory's entries.
    List(String),
    /// Write all that is cached to the disks.
    Sync,
    /// Mount a volume.
    Mount(VolumeMount),
    /// Unmount one.
    Unmount(VolumeMount),
    /// Let one grow to its disk.
    Grow(VolumeGrowth),
    /// Tell what listens.
    Ports,
    /// Play back the journal of one.
    Settle(VolumeMount),
}

/// Does the job and gives the worker's exit status.
pub fn run(job: &Job) -> u8 {
    let note = match work(job) {
        Ok(reply) => Note::Reply(Box::new(reply)),
        Err(failed) => Note::Failed(failed),
    };
    match tell(&note) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// A standard stream without the library's buffer, which a worker's way out would not flush.
fn raw(stream: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(stream.try_clone_to_owned()?))
}

fn tell(note: &Note) -> io::Result<()> {
    let mut line = serde_json::to_vec(note)?;
    line.push(b'\n');
    io::stderr().write_all(&line)
}

fn work(job: &Job) -> Result<Reply, Failure> {
    match job {
        Job::Read(read) => send_file(read).map(Reply::Read),
        Job::Write(write) => {
            let mut content = raw(rustix::stdio::stdin()).map_err(|error| failure_io(&write.path, &error))?;
            let target = replace(&write.path, write.mode, write.mkdirs, &mut content)?;
            stat(&target, true).map(Reply::Stat)
        }
        Job::Stat(request) => stat(absolute(&request.path)?, request.follow).map(Reply::Stat),
        Job::List(path) => send_list(path).map(Reply::Listed),
        Job::Sync => {
            rustix::fs::sync();
            Ok(Reply::Done)
        }
        Job::Mount(volume) => volumes::mount(volume).map(|()| Reply::Done),
        Job::Unmount(volume) => volumes::unmount(volume).map(|()| Reply::Done),
        Job::Grow(growth) => volumes::grow(growth).map(|()| Reply::Done),
        Job::Ports => Ok(Reply::Ports(listeners::list())),
        Job::Settle(volume) => volumes::settle(volume).map(|()| Reply::Done),
    }
}

fn absolute(path: &str) -> Result<&Path, Failure> {
    if path.starts_with('/') {
        Ok(Path::new(path))
    } else {
        Err(failure(ErrorCode::BadRequest, path, "is not an absolute path"))
    }
}

fn send_file(request: &FileRead) -> Result<ReadSummary, Failure> {
    let path = absolute(&request.path)?;
    let io_failure = |error: io::Error| failure_io(&request.path, &error);
    // Not to wait for the other end of a named pipe.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io_failure)?;
    let metadata = file.metadata().map_err(io_failure)?;
    if metadata.is_dir() {
        return Err(failure(ErrorCode::IsDirectory, &request.path, "is a directory"));
    }
    if metadata.file_type().is_fifo() || metadata.file_type().is_socket() {
        return Err(failure(ErrorCode::BadRequest, &request.path, "is not a file"));
    }
    tell(&Note::Meta(Box::new(describe(path, &metadata)))).map_err(io_failure)?;
    let mut out = raw(rustix::stdio::stdout()).map_err(io_failure)?;
    let reader = BufReader::with_capacity(BUFFER, &file);
    let sent = match request.lines {
        Some(range) => {
            let mut out = BufWriter::with_capacity(BUFFER, out);
            copy_lines(reader, &mut out, range, request.max_bytes).and_then(|sent| out.flush().map(|()| sent))
        }
        None => skip(&file, request.offset)
            .and_then(|()| copy_bytes(reader, &mut out, request.limit, request.max_bytes)),
    };
    sent.map_err(io_failure)
}

/// Skips to `offset`; what cannot seek (files in /proc that refuse, devices) is read up to there.
fn skip(mut file: &File, offset: u64) -> io::Result<()> {
    if offset > 0 && file.seek(SeekFrom::Start(offset)).is_err() {
        io::copy(&mut file.take(offset), &mut io::sink())?;
    }
    Ok(())
}

fn send_list(path: &str) -> Result<u64, Failure> {
    let io_failure = |error: io::Error| failure_io(path, &error);
    let entries = fs::read_dir(absolute(path)?).map_err(io_failure)?;
    let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    let mut out = BufWriter::with_capacity(BUFFER, raw(rustix::stdio::stdout()).map_err(io_failure)?);
    let mut count = 0;
    for name in names {
        // What has gone since is not in the directory.
        let Ok(entry) = stat(&Path::new(path).join(name), false) else { continue };
        serde_json::to_writer(&mut out, &entry).map_err(|error| io_failure(error.into()))?;
        out.write_all(b"\n").map_err(io_failure)?;
        count += 1;
    }
    out.flush().map_err(io_failure)?;
    Ok(count)
}

fn stat(path: &Path, follow: bool) -> Result<FileStat, Failure> {
    let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    match metadata {
        Ok(metadata) => Ok(describe(path, &metadata)),
        Err(error) => Err(failure_io(path.display(), &error)),
    }
}

fn describe(path: &Path, metadata: &Metadata) -> FileStat {
    let kind = match metadata.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let modified_ms = metadata.mtime().checked_mul(1000).map(|ms| ms + metadata.mtime_nsec() / 1_000_000);
    let target = if metadata.is_symlink() { fs::read_link(path).ok() } else { None };
    FileStat {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        kind,
        size_bytes: metadata.len(),
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_unix_ms: modified_ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0),
        target: target.map(|target| target.to_string_lossy().into_owned()),
    }
}
