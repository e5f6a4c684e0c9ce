//! Images: where they come from, and what becomes of their names.
//!
//! # Crash order
//! An image is made in a staging file and a scratch directory, both of which the next daemon removes. What a name means
//! changes with one rename when the new content is durable (see `storage`): whatever fails before leaves the old image.

use std::path::PathBuf;
use std::sync::Arc;

use image::{BackingFormat, Build, FlatImage, LayerFile, Limits, Registry, RootChain};
use serde_json::{Value, json};
use storage::{GcKind, ImageRecord, LayerFormat, NameRemoval, StagedImage};
use tokio::sync::mpsc;
use types::{Arch, Bytes, Counted, ImageConfig, ImageName, Owner, StorageLayout};

use crate::actor::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Host, send};
use crate::quota::Places;
use crate::services::{Services, blocking};
use crate::tasks::{TaskRecord, Work};

/// What an image needs to be begun.
const ROOM_FOR_AN_IMAGE: Bytes = Bytes(64 << 20);
/// What must stay free for machines that run, whatever an image wants.
const RESERVE: u64 = 256 << 20;

/// An image to be fetched from a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct PullWish {
    /// Its name there.
    pub reference: String,
    /// Its name here.
    pub name: ImageName,
    /// `USER:TOKEN`.
    pub auth: Option<String>,
}

impl std::fmt::Debug for PullWish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Credentials are not for logs.
        f.debug_struct("PullWish")
            .field("reference", &self.reference)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// An archive on its way in. Dropped before [`Host::image_import`] it leaves nothing.
#[derive(Debug)]
pub struct Upload {
    chunks: mpsc::Sender<bytes::Bytes>,
    writer: tokio::task::JoinHandle<Result<storage::Spool>>,
    places: Places,
}

impl Upload {
    /// Adds what came in; waits while the disk is slower.
    ///
    /// # Errors
    /// `NoSpace`, and what else the disk says.
    pub async fn send(&mut self, chunk: bytes::Bytes) -> Result<()> {
        if self.chunks.send(chunk).await.is_ok() {
            return Ok(());
        }
        // The writer ended, which it does early only with an error.
        match (&mut self.writer).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Err(Error::new(ErrorKind::Internal, "the upload ended by itself")),
        }
    }
}

impl Host {
    /// The images that sandboxes of `owner` may be made from, or everybody's.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn images(&self, owner: Option<&Owner>) -> Result<Vec<ImageRecord>> {
        let (store, owner) = (self.inner.services.store.clone(), owner.cloned());
        let seen = move |record: &ImageRecord| owner.as_ref().is_none_or(|owner| record.is_for(owner));
        blocking(move || Ok(store.images().list()?.into_iter().filter(seen).collect())).await
    }

    /// What `owner` calls by that name, for this host's architecture.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn image(&self, owner: &Owner, name: &ImageName) -> Result<ImageRecord> {
        let (store, owner, name) = (self.inner.services.store.clone(), owner.clone(), name.clone());
        blocking(move || Ok(store.images().resolve_for(&owner, &name, Arch::host())?)).await
    }

    /// Places for an image, which may take that of one of its name.
    async fn place_for_image(&self, owner: &Owner, name: &ImageName) -> Result<Places> {
        let known = self.image(owner, name).await.is_ok_and(|record| record.owner.as_ref() == Some(owner));
        self.places(owner, &[(Counted::Images, u64::from(!known)), (Counted::Disk, 0)]).await
    }

    /// Fetches an image: only the layers that are not here yet.
    ///
    /// # Errors
    /// `BadRequest` when the reference or the credentials are none; what fails later is the task's.
    pub async fn image_pull(&self, owner: &Owner, wish: PullWish) -> Result<TaskRecord> {
        let registry = Arc::new(Registry::new(&wish.reference, wish.auth.as_deref())?);
        let (places, whose) = (self.place_for_image(owner, &wish.name).await?, whose(owner));
        let services = Arc::clone(&self.inner.services);
        self.begin(owner, "image.pull", wish.name.to_string(), move |work| async move {
            let _places = places;
            services.require_space(ROOM_FOR_AN_IMAGE, "an image")?;
            // What waits for a network is dropped; what computes looks whether it is still wanted.
            let stop = work.stop.token.clone();
            let downloaded = tokio::select! {
                biased;
                () = stop.cancelled() => Err(called_off()),
                downloaded = download(&services, &registry, &work) => downloaded,
            };
            let downloaded = downloaded?;
            blocking(move || unpack(&services, downloaded, (whose, &wish.name), &work)).await
        })
    }

    /// Takes an archive in, to be imported as `name` when it is whole.
    ///
    /// # Errors
    /// `QuotaExceeded`, `NoSpace`, and what else the disk says.
    pub async fn upload(&self, owner: &Owner, name: &ImageName) -> Result<Upload> {
        let places = self.place_for_image(owner, name).await?;
        self.inner.services.require_space(ROOM_FOR_AN_IMAGE, "an image")?;
        let store = self.inner.services.store.clone();
        let mut spool = blocking(move || Ok(store.spool()?)).await?;
        let (chunks, mut queue) = mpsc::channel::<bytes::Bytes>(16);
        let services = Arc::clone(&self.inner.services);
        let writer = tokio::task::spawn_blocking(move || {
            let mut since = 0;
            while let Some(chunk) = queue.blocking_recv() {
                since += chunk.len();
                if since > 64 << 20 {
                    since = 0;
                    services.require_space(Bytes(RESERVE), "an image")?;
                }
                spool.write(&chunk)?;
            }
            Ok(spool)
        });
        Ok(Upload { chunks, writer, places })
    }

    /// Makes an image of an archive that came in.
    ///
    /// # Errors
    /// What writing it said; what fails later is the task's.
    pub async fn image_import(&self, owner: &Owner, name: ImageName, upload: Upload) -> Result<TaskRecord> {
        let Upload { chunks, writer, places } = upload;
        drop(chunks);
        let whose = whose(owner);
        let lost = |error| Error::new(ErrorKind::Internal, "a worker thread failed").source(error);
        let spool = writer.await.map_err(lost)??;
        let services = Arc::clone(&self.inner.services);
        self.begin(owner, "image.import", name.to_string(), move |work| async move {
            let _places = places;
            blocking(move || {
                let progress = |progress| work.progress(progress);
                let build = Build { work_dir: spool.dir(), progress: &progress, cancel: &work.stop.flag };
                let staged = services.store.images().stage()?.owned_by(whose);
                let limits = limits(&services)?;
                let flat = image::import_archive(&build, spool.path(), limits, Arch::host(), staged.path())
                    .map_err(|error| of_room(limits, error))?;
                // What need not be written out any more should not be, when the image is.
                drop(spool);
                let record = commit(&work, staged, &name, "imported from an archive", &flat)?;
                Ok(json!({ "image": told(&record), "warnings": flat.warnings }))
            })
            .await
        })
    }

    /// Makes an image of a sandbox's root disk as it is now.
    ///
    /// # Errors
    /// `NotFound`; what fails later is the task's.
    pub async fn image_save(&self, owner: &Owner, which: &str, name: ImageName) -> Result<TaskRecord> {
        let entry = self.inner.registry.find(owner, which)?;
        let (places, whose) = (self.place_for_image(owner, &name).await?, whose(owner));
        let services = Arc::clone(&self.inner.services);
        self.begin(owner, "image.save", name.to_string(), move |work| async move {
            let _places = places;
            services.require_space(ROOM_FOR_AN_IMAGE, "an image")?;
            work.at("freezing the disk", 0, 0);
            let store = services.store.clone();
            let staged = blocking(move || Ok(store.snapshots().stage_fork()?)).await?;
            let capture =
                send(&entry, |reply| Command::Capture { staged, with_memory: false, reply }).await?;
            let pin = services.store.pin(&capture.manifest);
            crate::capture::seal_later(&services, capture.frozen.clone(), pin);
            blocking(move || {
                let manifest = &capture.manifest;
                let store = &services.store;
                let chain = chain(&services, &capture.staged, manifest);
                let out = store.images().stage()?.owned_by(whose);
                let scratch = store.scratch()?;
                let progress = |progress| work.progress(progress);
                let build = Build { work_dir: scratch.path(), progress: &progress, cancel: &work.stop.flag };
                image::qemu_img_flatten(&build, &chain, manifest.disk_size_mib.bytes(), out.path())?;
                // What its image wanted, its saved disk wants.
                let same =
                    |record: &ImageRecord| record.id == manifest.image.id && record.is_for(&manifest.owner);
                let config = store.images().list()?.into_iter().find(same).and_then(|record| record.config);
                let source = format!("saved from sandbox {}", manifest.name);
                work.at("making it last", 0, 0);
                still_wanted(&work)?;
                let record = out.commit_with(&name, Arch::host(), &source, config)?;
                Ok(json!({ "image": told(&record), "warnings": [] }))
            })
            .await
        })
    }

    /// Builds an image of a tier that is declared in the repository.
    ///
    /// # Errors
    /// `BadRequest` for a tier that is not; what fails later is the task's.
    pub async fn image_build(
        &self,
        owner: &Owner,
        tier: &str,
        name: Option<ImageName>,
    ) -> Result<TaskRecord> {
        let Some(known) = image::tiers().into_iter().find(|known| known.name == tier) else {
            let names: Vec<_> = image::tiers().iter().map(|tier| tier.name).collect();
            return Err(Error::new(ErrorKind::BadRequest, format!("there is no tier {tier:?}"))
                .hint(format!("use one of: {}", names.join(", "))));
        };
        let name = match name {
            Some(name) => name,
            None => tier
                .parse()
                .map_err(|error: types::NameError| Error::new(ErrorKind::BadRequest, error.to_string()))?,
        };
        let (places, whose) = (self.place_for_image(owner, &name).await?, whose(owner));
        let services = Arc::clone(&self.inner.services);
        self.begin(owner, "image.build", name.to_string(), move |work| async move {
            let _places = places;
            services.require_space(ROOM_FOR_AN_IMAGE, "an image")?;
            blocking(move || {
                let store = &services.store;
                let staged = store.images().stage()?.owned_by(whose);
                let scratch = store.scratch()?;
                let progress = |progress| work.step(progress);
                let build = Build { work_dir: scratch.path(), progress: &progress, cancel: &work.stop.flag };
                let built = image::build_tier(&build, known.name, Arch::host(), staged.path())?;
                work.at("making it last", 0, 0);
                still_wanted(&work)?;
                // What a tier runs is its guests' command, like that of an image from elsewhere.
                let config = (!built.init.is_empty())
                    .then(|| ImageConfig { cmd: built.init, ..ImageConfig::default() });
                let record = staged.commit_with(&name, Arch::host(), &built.source, config)?;
                Ok(json!({ "image": told(&record), "warnings": [] }))
            })
            .await
        })
    }

    /// Takes an image's name away, and with it the templates and the content that nothing else needs.
    ///
    /// # Errors
    /// `NotFound`; `InUse` while sandboxes or snapshots were made from it, naming them; `Forbidden` for one that is for
    /// all, except for the admin.
    pub async fn image_delete(&self, owner: &Owner, name: &ImageName) -> Result<()> {
        let whose = whose(owner);
        if whose.is_some() && self.image(owner, name).await?.owner.is_none() {
            return Err(Error::new(ErrorKind::Forbidden, format!("the image {name} is there for all"))
                .hint("only the admin may delete it"));
        }
        // They map the memory of templates, perhaps of this image's.
        self.inner.services.spares.drop_all().await;
        let (store, gone) = (self.inner.services.store.clone(), name.clone());
        self.to_the_end(blocking(move || {
            let record = match store.images().remove_name(whose.as_ref(), &gone, Arch::host())? {
                NameRemoval::Gone(record) => record,
                NameRemoval::InUse(users) => {
                    let text = format!("image {gone} is in use by {}", users.join(", "));
                    return Err(Error::new(ErrorKind::InUse, text).hint(
                        "destroy or delete these first; another image of that name may replace it meanwhile",
                    ));
                }
            };
            // What stays is for the next collection to try again.
            if let Err(error) = crate::upkeep::collect_image(&store, &record.id) {
                tracing::warn!(%error, image = %gone, "what it was made of stays; `bhatti gc` removes it");
            }
            Ok(())
        }))
        .await?;
        self.inner.services.events.host("image.deleted", owner, json!({ "image": name }));
        Ok(())
    }
}

/// What goes with an image's name.
pub(crate) const WITH_AN_IMAGE: [GcKind; 2] = [GcKind::Template, GcKind::Image];

/// Whose an image is that somebody makes: what the admin makes is for all.
fn whose(owner: &Owner) -> Option<Owner> {
    (*owner != Owner::admin()).then(|| owner.clone())
}

fn called_off() -> Error {
    Error::new(ErrorKind::Cancelled, "it was called off")
}

/// The last moment at which a task can be called off.
fn still_wanted(work: &Work) -> Result<()> {
    if work.stop.flag.is_cancelled() { Err(called_off()) } else { Ok(()) }
}

fn told(record: &ImageRecord) -> Value {
    json!({
        "name": record.name,
        "arch": record.arch,
        "id": record.id,
        "size_bytes": record.size,
        "allocated_bytes": record.allocated,
        "source": record.source,
    })
}

/// As much as fits twice, once unpacked and once as a filesystem, beside what is there.
fn limits(services: &Services) -> Result<Limits> {
    let free = services.store.space()?.free.0;
    let most = Limits::default();
    Ok(Limits { bytes: most.bytes.min(Bytes(free.saturating_sub(RESERVE) / 2)), ..most })
}

/// More than is allowed because there is no room is no room.
fn of_room(limits: Limits, error: image::Error) -> Error {
    if error.kind() != image::ErrorKind::TooLarge || limits.bytes >= Limits::default().bytes {
        return error.into();
    }
    let text = format!(
        "an image of more than {} does not fit twice, unpacked and as a disk: the disk is full",
        limits.bytes
    );
    Error::new(ErrorKind::NoSpace, text).hint("destroy what is not needed, `bhatti gc`, or make room there")
}

fn commit(
    work: &Work,
    staged: StagedImage,
    name: &ImageName,
    source: &str,
    flat: &FlatImage,
) -> Result<ImageRecord> {
    work.at("making it last", 0, 0);
    still_wanted(work)?;
    let config: ImageConfig = flat.config.clone();
    Ok(staged.commit_with(name, Arch::host(), source, Some(config))?)
}

/// What a pull has on the disk, kept from collection.
struct Downloaded {
    pull: image::Pull,
    source: String,
    layers: Vec<LayerFile>,
    moved: u64,
    reused: u64,
    _blobs: Vec<storage::Blob>,
}

async fn download(services: &Services, registry: &Registry, work: &Work) -> Result<Downloaded> {
    work.at(format!("asking for {}", registry.name()), 0, 0);
    let pull = registry.resolve(Arch::host()).await?;
    let total: u64 = pull.manifest.layers.iter().map(|layer| layer.size).sum();
    let (mut moved, mut reused, mut done) = (pull.moved, 0u64, 0u64);
    let (mut blobs, mut layers) = (Vec::new(), Vec::new());
    let count = pull.manifest.layers.len();
    for (number, layer) in pull.manifest.layers.iter().enumerate() {
        let hex = layer.digest.hex().to_owned();
        // Two pulls of one layer move it once: the second finds it.
        let _one_at_a_time = services.downloads.lock(&hex).await;
        let (store, wanted) = (services.store.clone(), hex.clone());
        let found = blocking(move || Ok(store.blobs().find(&wanted)?)).await?;
        let blob = match found {
            Some(blob) => {
                reused += 1;
                blob
            }
            None => {
                services.require_space(Bytes(layer.size.saturating_add(RESERVE)), "a layer")?;
                let (store, wanted) = (services.store.clone(), hex.clone());
                let partial = blocking(move || Ok(store.blobs().partial(&wanted)?)).await?;
                let so_far = std::sync::atomic::AtomicU64::new(done);
                let what = format!("downloading layer {} of {count}", number + 1);
                work.at(what.as_str(), done, total);
                let told = |bytes: u64| {
                    let now = so_far.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
                    work.at(what.as_str(), now, total);
                };
                match registry.fetch(layer, partial.path(), &told).await {
                    Ok(bytes) => {
                        moved += bytes;
                        blocking(move || Ok(partial.commit()?)).await?
                    }
                    Err(error) => {
                        if error.kind() == image::ErrorKind::Input {
                            blocking(move || Ok(partial.discard()?)).await?;
                        }
                        return Err(error.into());
                    }
                }
            }
        };
        done += layer.size;
        layers.push(LayerFile {
            path: blob.path().to_owned(),
            compression: layer.compression,
            size: layer.size,
        });
        blobs.push(blob);
    }
    let source = format!("{} at {}", registry.name(), pull.digest);
    Ok(Downloaded { pull, source, layers, moved, reused, _blobs: blobs })
}

fn unpack(
    services: &Services,
    downloaded: Downloaded,
    (whose, name): (Option<Owner>, &ImageName),
    work: &Work,
) -> Result<Value> {
    let Downloaded { pull, source, layers, moved, reused, _blobs } = downloaded;
    let store = &services.store;
    let (staged, scratch) = (store.images().stage()?.owned_by(whose), store.scratch()?);
    let progress = |progress| work.progress(progress);
    let build = Build { work_dir: scratch.path(), progress: &progress, cancel: &work.stop.flag };
    let limits = limits(services)?;
    let flat = image::flatten(&build, &pull.config, &layers, limits, staged.path())
        .map_err(|error| of_room(limits, error))?;
    let record = commit(work, staged, name, &source, &flat)?;
    Ok(json!({
        "image": told(&record),
        "digest": pull.digest.to_string(),
        "moved_bytes": moved,
        "layers": layers.len(),
        "reused_layers": reused,
        "warnings": flat.warnings,
    }))
}

/// A captured disk from its top down. The top itself is empty, or the only one there is.
fn chain(services: &Services, staged: &storage::StagedSnapshot, manifest: &storage::Manifest) -> RootChain {
    if manifest.layout == StorageLayout::Reflink {
        let only: PathBuf = staged.dir().join(storage::layout::root_disk(manifest.layout));
        return RootChain { files: vec![(only, BackingFormat::Raw)] };
    }
    let layers = services.store.layers();
    let mut files: Vec<(PathBuf, BackingFormat)> = manifest
        .layers
        .iter()
        .map(|layer| {
            let format = match layer.format {
                LayerFormat::Qcow2 => BackingFormat::Qcow2,
                LayerFormat::Raw => BackingFormat::Raw,
            };
            (layers.path(layer), format)
        })
        .collect();
    if files.last().is_none_or(|(_, format)| *format == BackingFormat::Qcow2) {
        files.push((services.store.images().object_path(&manifest.image.id), BackingFormat::Raw));
    }
    RootChain { files }
}
