//! Archives of images: what `docker save` writes, old and new, and OCI layouts, as tar files.
//!
//! The archive is a file, so that its parts can be read in the order in which they are needed, whatever their order in
//! it, and nothing of it is kept in memory but where its parts are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tar::{Archive, EntryType};
use types::Arch;

use crate::digest::Sha256Digest;
use crate::flatten::{FlatImage, Flatten};
use crate::layer::{Compression, Limits};
use crate::oci::{Manifest, OciConfig};
use crate::{Build, Error, Result};

const OP: &str = "use";
/// No manifest or configuration is longer.
const JSON_MAX: u64 = 8 << 20;
/// An image has a few parts for each layer.
const PARTS_MAX: usize = 100_000;
/// What may stand between two parts.
const HEADERS_MAX: u64 = 2 << 20;
const LINKS_MAX: usize = 8;

/// Makes an image of the archive in `archive` into the file `out`, which may exist. Not synced.
///
/// # Errors
/// `Input` for what is no image, is cut short or damaged, is for another machine, or leads outside itself; `TooLarge`,
/// `NoSpace`, `Cancelled`.
pub fn import_archive(
    build: &Build<'_>,
    archive: &Path,
    limits: Limits,
    arch: Arch,
    out: &Path,
) -> Result<FlatImage> {
    let file = File::open(archive).map_err(|error| Error::io("read", archive, error))?;
    let (file, _plain) = uncompressed(build, file, limits)?;
    let parts = Parts::read(&file)?;
    let (config, layers) = parts.image(arch)?;
    let layers: Vec<Section<'_>> = layers.iter().map(|name| parts.find(name)).collect::<Result<_>>()?;
    let total = layers.iter().map(|layer| layer.end - layer.at).sum();
    let mut flatten = Flatten::begin(build, limits, total)?;
    let count = layers.len();
    for (number, mut layer) in layers.into_iter().enumerate() {
        let compression = layer.compression()?;
        flatten.layer(&config, number, layer, compression)?;
    }
    flatten.finish(&config, count, out)
}

fn refused(why: impl Into<String>) -> Error {
    Error::input(OP, Path::new("the archive"), why)
}

fn unknown_compression() -> Error {
    refused("it is compressed in a way that is not read here; gzip and zstd are")
        .way_out("unpack it with the program that packed it, and import the tar file")
}

/// The archive as a tar file: itself, or a file beside it that holds it unpacked.
fn uncompressed(build: &Build<'_>, mut file: File, limits: Limits) -> Result<(File, Option<File>)> {
    let mut start = [0; 8];
    let length =
        file.read_at(&mut start, 0).map_err(|error| refused(format!("it cannot be read: {error}")))?;
    let compression = Compression::sniff(&start[..length]).ok_or_else(unknown_compression)?;
    if compression == Compression::None {
        return Ok((file, None));
    }
    let io = |error| Error::io("unpack the archive into", build.work_dir, error);
    file.rewind().map_err(io)?;
    let mut plain = tempfile::tempfile_in(build.work_dir).map_err(io)?;
    let mut reader = compression.reader(&file).map_err(io)?;
    let (mut buffer, mut written) = (vec![0; 256 << 10], 0u64);
    build.at("unpacking the archive", 0, 0);
    loop {
        if build.cancel.is_cancelled() {
            return Err(Error::cancelled("unpack the archive"));
        }
        let read = reader
            .read(&mut buffer)
            .map_err(|error| refused(format!("it is cut short or damaged: {error}")))?;
        if read == 0 {
            break;
        }
        written += u64::try_from(read).unwrap_or(0);
        if written > limits.bytes.0 {
            let why = format!("it unpacks to more than {}", limits.bytes);
            return Err(Error::too_large(OP, Path::new("the archive"), why));
        }
        plain.write_all(&buffer[..read]).map_err(io)?;
    }
    drop(reader);
    let again = plain.try_clone().map_err(io)?;
    Ok((again, Some(plain)))
}

#[derive(Debug, Clone)]
enum Part {
    File { at: u64, size: u64 },
    Link(String),
}

struct Parts<'a> {
    file: &'a File,
    parts: HashMap<String, Part>,
}

/// A stretch of a file.
#[derive(Debug)]
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += u64::try_from(read).unwrap_or(0);
        Ok(read)
    }
}

impl Section<'_> {
    fn compression(&mut self) -> Result<Compression> {
        let mut start = [0; 8];
        let most = start.len().min(usize::try_from(self.end - self.at).unwrap_or(0));
        self.file
            .read_exact_at(&mut start[..most], self.at)
            .map_err(|error| refused(format!("it is cut short: {error}")))?;
        Compression::sniff(&start[..most]).ok_or_else(unknown_compression)
    }

    fn json(self) -> Result<Vec<u8>> {
        if self.end - self.at > JSON_MAX {
            return Err(refused("a manifest or configuration in it has more than 8 MiB"));
        }
        let mut bytes = Vec::new();
        let mut section = self;
        section.read_to_end(&mut bytes).map_err(|error| refused(format!("it is cut short: {error}")))?;
        Ok(bytes)
    }
}

/// Reads headers; what it skips it seeks over.
struct Headers<'a> {
    file: &'a File,
    at: u64,
    allowed: u64,
}

impl Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        let length = u64::try_from(read).unwrap_or(0);
        self.at += length;
        self.allowed = self
            .allowed
            .checked_sub(length)
            .ok_or_else(|| io::Error::other("what stands before a part is longer than 2 MiB"))?;
        Ok(read)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        // A seek is the step from one part to the next.
        self.allowed = HEADERS_MAX;
        Ok(self.at)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl<'a> Parts<'a> {
    fn read(file: &'a File) -> Result<Self> {
        let length = file.metadata().map_err(|error| refused(format!("it cannot be read: {error}")))?.len();
        let damaged =
            |error: io::Error| refused(format!("it is no tar archive, or it is cut short: {error}"));
        let mut archive = Archive::new(Headers { file, at: 0, allowed: HEADERS_MAX });
        let mut parts = HashMap::new();
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            let Some(name) = clean(Path::new(""), &entry.path_bytes()) else { continue };
            let part = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let (at, size) = (entry.raw_file_position(), entry.size());
                    if at.checked_add(size).is_none_or(|end| end > length) {
                        return Err(refused(format!("it is cut short: {name} ends after its end")));
                    }
                    Part::File { at, size }
                }
                // An older `docker save` writes a layer that is there twice as a link to the first.
                EntryType::Symlink => {
                    let here = Path::new(&name).parent().unwrap_or(Path::new("")).to_owned();
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let Some(target) = clean(&here, &target) else { continue };
                    Part::Link(target)
                }
                EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let Some(target) = clean(Path::new(""), &target) else { continue };
                    Part::Link(target)
                }
                _ => continue,
            };
            parts.insert(name, part);
            if parts.len() > PARTS_MAX {
                return Err(refused("it is no image: it has more than 100000 files"));
            }
        }
        Ok(Self { file, parts })
    }

    fn find(&self, name: &str) -> Result<Section<'a>> {
        let mut at = clean(Path::new(""), name.as_bytes());
        for _ in 0..LINKS_MAX {
            match at.and_then(|name| self.parts.get(&name)) {
                Some(Part::File { at, size }) => {
                    return Ok(Section { file: self.file, at: *at, end: at + size });
                }
                Some(Part::Link(target)) => at = Some(target.clone()),
                None => break,
            }
        }
        let shown: String = name.chars().take(120).collect();
        Err(refused(format!("{shown} is not in it, which its manifest names; perhaps it is cut short")))
    }

    /// A blob of an OCI layout that is JSON, compared with its digest.
    fn blob(&self, digest: &Sha256Digest) -> Result<Vec<u8>> {
        let bytes = self.find(&blob_name(digest))?.json()?;
        let found = Sha256Digest::of(&bytes);
        if found == *digest {
            return Ok(bytes);
        }
        Err(refused(format!("a part of it is damaged: it is {found} and not {digest}")))
    }

    /// The one image in it: its configuration, and the names of its layers.
    fn image(&self, arch: Arch) -> Result<(OciConfig, Vec<String>)> {
        if self.parts.contains_key("manifest.json") {
            return self.docker_save(arch);
        }
        if !self.parts.contains_key("index.json") {
            return Err(refused(
                "it is no image: it has neither a manifest.json (docker save) nor an index.json (OCI layout)",
            ));
        }
        let mut manifest = Manifest::parse(&self.find("index.json")?.json()?, arch)?;
        for _ in 0..LINKS_MAX {
            match manifest {
                Manifest::Index(digest) => manifest = Manifest::parse(&self.blob(&digest)?, arch)?,
                Manifest::Image(image) => {
                    let config = OciConfig::parse(&self.blob(&image.config.digest)?, arch)?;
                    let layers = image.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
                    return Ok((config, layers));
                }
            }
        }
        Err(refused("its indexes lead from one to another without end"))
    }

    fn docker_save(&self, arch: Arch) -> Result<(OciConfig, Vec<String>)> {
        let saved: Vec<Saved> = serde_json::from_slice(&self.find("manifest.json")?.json()?)
            .map_err(|error| refused(format!("its manifest.json makes no sense: {error}")))?;
        let [saved] = <[Saved; 1]>::try_from(saved).map_err(|several| {
            let names: Vec<String> =
                several.iter().filter_map(|saved| saved.repo_tags.clone()).flatten().take(10).collect();
            refused(format!("it holds {} images ({}), and one is needed", several.len(), names.join(", ")))
        })?;
        let bytes = self.find(&saved.config)?.json()?;
        // Configurations are named by their digest: `<hex>.json`, or a blob of an OCI layout.
        let stem = Path::new(&saved.config).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Ok(wanted) = format!("sha256:{stem}").parse::<Sha256Digest>()
            && wanted != Sha256Digest::of(&bytes)
        {
            return Err(refused("its configuration is damaged: its digest is not that of its name"));
        }
        Ok((OciConfig::parse(&bytes, arch)?, saved.layers))
    }
}

fn blob_name(digest: &Sha256Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A name in the archive, cleaned; `None` for one that leads out of it or is no text.
fn clean(here: &Path, name: &[u8]) -> Option<String> {
    let mut at: PathBuf = here.to_owned();
    for part in std::str::from_utf8(name).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if !at.pop() {
                    return None;
                }
            }
            part => at.push(part),
        }
    }
    at.to_str().map(str::to_owned).filter(|name| !name.is_empty())
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
