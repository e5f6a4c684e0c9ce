//! Files on their way to and from the guest.

use bytes::Bytes;
use wire::{FileStat, ReadSummary, Reply};

use crate::channel::{Handle, Input};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::unexpected;
use crate::stream::Told;

/// A file, or a part of one, being read. Dropped before its end, the reading is cancelled.
#[derive(Debug)]
pub struct FileReader {
    handle: Handle,
    stat: FileStat,
    received_bytes: u64,
    summary: Option<ReadSummary>,
}

impl FileReader {
    /// Waits for what the agent says about the file.
    pub(crate) async fn begin(mut handle: Handle) -> Result<Self> {
        match handle.next().await? {
            Told::Meta(stat) => Ok(Self { handle, stat, received_bytes: 0, summary: None }),
            Told::Failed(failure) => Err(Error::refused(handle.op(), &failure)),
            _ => Err(unexpected(handle.op())),
        }
    }

    /// The file's attributes when it was opened.
    #[must_use]
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// The next bytes, at most 256 KiB; `None` at the end. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// `Refused` when reading fails on the way; `Closed` or `Protocol` when the channel breaks.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.summary.is_some() {
            return Ok(None);
        }
        match self.handle.next().await? {
            Told::Stdout(data) => {
                self.received_bytes += data.len() as u64;
                Ok(Some(data))
            }
            Told::Reply(Reply::Read(summary)) if summary.sent_bytes == self.received_bytes => {
                self.summary = Some(summary);
                Ok(None)
            }
            Told::Reply(_) => {
                let why = format!("{} bytes arrived, not as many as it says it sent", self.received_bytes);
                Err(Error::because(ErrorKind::Protocol, self.handle.op(), why))
            }
            Told::Failed(failure) => Err(Error::refused(self.handle.op(), &failure)),
            _ => Err(unexpected(self.handle.op())),
        }
    }

    /// How the read ended, once [`FileReader::next`] has given `None`.
    #[must_use]
    pub fn summary(&self) -> Option<ReadSummary> {
        self.summary
    }
}

/// A file being written. Until [`FileWriter::finish`] the old one is untouched; dropped before that, it stays.
#[derive(Debug)]
pub struct FileWriter {
    handle: Handle,
    input: Input,
}

impl FileWriter {
    pub(crate) fn new(handle: Handle) -> Self {
        let input = handle.input();
        Self { handle, input }
    }

    /// Sends all of `data`, waiting while the guest's disk is busy.
    ///
    /// # Errors
    /// `Refused` as soon as the agent has given up (disk full, no such directory); `Closed` or `Protocol` when the
    /// channel breaks.
    pub async fn send(&mut self, data: Bytes) -> Result<()> {
        match self.input.send(&data).await {
            Err(error) if error.kind() == ErrorKind::Ended => Err(self.failure(error).await),
            sent => sent,
        }
    }

    /// Why the agent ended the stream before our data did.
    async fn failure(&mut self, error: Error) -> Error {
        match self.handle.next().await {
            Ok(Told::Failed(failure)) => Error::refused(self.handle.op(), &failure),
            Ok(_) => error,
            Err(error) => error,
        }
    }

    /// Ends the data and waits until the file is durably in its place. Dropped on the way, it may be there or not.
    ///
    /// # Errors
    /// `Refused` when the agent could not; `Closed` or `Protocol` when the channel breaks: then it is not known.
    pub async fn finish(mut self) -> Result<FileStat> {
        self.input.eof()?;
        match self.handle.next().await? {
            Told::Reply(Reply::Stat(stat)) => Ok(stat),
            Told::Failed(failure) => Err(Error::refused(self.handle.op(), &failure)),
            _ => Err(unexpected(self.handle.op())),
        }
    }
}
