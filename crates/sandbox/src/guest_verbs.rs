//! The verbs that work inside a guest: each wakes the sandbox and holds a lease for as long as its stream lives.

use guest::{ExecStream, FileReader, FileWriter};
use types::Owner;

use crate::actor::Command;
use crate::error::Result;
use crate::host::Host;
use crate::lease::Leased;

impl Host {
    /// Runs a command.
    ///
    /// # Errors
    /// Those of waking, and `StreamBroken`. That the command could not run is told by the stream.
    pub async fn exec(&self, owner: &Owner, which: &str, exec: wire::Exec) -> Result<Leased<ExecStream>> {
        let (guest, lease) = self.lease(owner, which).await?;
        Ok(Leased::new(guest.exec(exec).await?, lease))
    }

    /// Attaches to a session, or begins one.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub async fn session(
        &self,
        owner: &Owner,
        which: &str,
        session: wire::Session,
    ) -> Result<Leased<ExecStream>> {
        let (guest, lease) = self.lease(owner, which).await?;
        Ok(Leased::new(guest.session(session).await?, lease))
    }

    /// The sessions of a sandbox. One that is paused is not asked: they are as they were when it was paused.
    ///
    /// # Errors
    /// Those of waking, and `StreamBroken`.
    pub async fn sessions(&self, owner: &Owner, which: &str) -> Result<Vec<wire::SessionInfo>> {
        self.ask(owner, which, Command::Sessions).await
    }

    /// Reads a file; its attributes first.
    ///
    /// # Errors
    /// `GuestNotFound`, `GuestRefused` for a directory.
    pub async fn file_read(
        &self,
        owner: &Owner,
        which: &str,
        read: wire::FileRead,
    ) -> Result<Leased<FileReader>> {
        types::check_guest_path(&read.path)?;
        let (guest, lease) = self.lease(owner, which).await?;
        Ok(Leased::new(guest.file_read(read).await?, lease))
    }

    /// Replaces a file by what is sent, once it is finished.
    ///
    /// # Errors
    /// `GuestNotFound` for a missing directory, `GuestNoSpace`, `GuestRefused`.
    pub async fn file_write(
        &self,
        owner: &Owner,
        which: &str,
        write: wire::FileWrite,
    ) -> Result<Leased<FileWriter>> {
        types::check_guest_path(&write.path)?;
        let (guest, lease) = self.lease(owner, which).await?;
        Ok(Leased::new(guest.file_write(write).await?, lease))
    }

    /// Looks at a file or directory.
    ///
    /// # Errors
    /// `GuestNotFound`.
    pub async fn file_stat(
        &self,
        owner: &Owner,
        which: &str,
        stat: wire::StatRequest,
    ) -> Result<wire::FileStat> {
        let (guest, _lease) = self.lease(owner, which).await?;
        Ok(guest.file_stat(stat).await?)
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// `GuestNotFound`, `GuestRefused` for a file.
    pub async fn file_list(&self, owner: &Owner, which: &str, path: &str) -> Result<Vec<wire::FileStat>> {
        let (guest, _lease) = self.lease(owner, which).await?;
        Ok(guest.file_list(wire::FileList { path: path.to_owned() }).await?)
    }
}
