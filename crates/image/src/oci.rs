//! The JSON of images: manifests, indexes and configurations, of OCI and of Docker (they differ in names only).
//!
//! Read from bytes whose digest was compared already; what is said in them is checked here.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use types::{Arch, ImageConfig};

use crate::digest::Sha256Digest;
use crate::layer::Compression;
use crate::{Error, Result};

const OP: &str = "use";
/// As much environment as a config drive is sure to hold.
const ENV_MAX: usize = 64 << 10;
const LAYERS_MAX: usize = 512;

fn refused(why: impl Into<String>) -> Error {
    Error::input(OP, Path::new("the image"), why)
}

/// A blob, by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Of the bytes as they are stored.
    pub digest: Sha256Digest,
    /// How many bytes.
    pub size: u64,
    /// How they are compressed.
    pub compression: Compression,
}

/// An image's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Its configuration.
    pub config: Blob,
    /// Its layers, lowest first.
    pub layers: Vec<Blob>,
}

/// What an image's configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciConfig {
    /// For the guest.
    pub config: ImageConfig,
    /// Digests of the layers without their compression, lowest first.
    pub diff_ids: Vec<Sha256Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

/// A manifest, or where the one for this architecture is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manifest {
    Image(ImageManifest),
    /// The manifest of this digest is meant.
    Index(Sha256Digest),
}

impl Manifest {
    /// # Errors
    /// `Input`: what is missing, what media type is not known, or which architectures there are instead.
    pub(crate) fn parse(bytes: &[u8], arch: Arch) -> Result<Self> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| refused(format!("its manifest makes no sense: {error}")))?;
        if let Some(manifests) = document.manifests {
            return choose(&manifests, arch).map(Self::Index);
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(refused(match document.schema_version {
                1 => "its manifest is of Docker's first schema, which has no digests to check; push it anew"
                    .to_owned(),
                _ => format!("its manifest (media type {:?}) names no layers", document.media_type),
            }));
        };
        if layers.len() > LAYERS_MAX {
            return Err(refused(format!("it has more than {LAYERS_MAX} layers")));
        }
        let known =
            ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
        if !known.contains(&config.media_type.as_str()) {
            return Err(refused(format!(
                "it is no machine image: its configuration has the media type {:?}",
                config.media_type
            )));
        }
        let config =
            Blob { digest: config.digest.parse()?, size: config.size, compression: Compression::None };
        let layers = layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self::Image(ImageManifest { config, layers }))
    }
}

fn layer(descriptor: &Descriptor) -> Result<Blob> {
    let compression = match descriptor.media_type.as_str() {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Compression::None
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd" => Compression::Zstd,
        other => {
            return Err(refused(format!(
                "a layer has the media type {other:?}; tar layers as they are, with gzip or with zstd are read"
            )));
        }
    };
    Ok(Blob { digest: descriptor.digest.parse()?, size: descriptor.size, compression })
}

fn choose(manifests: &[Descriptor], arch: Arch) -> Result<Sha256Digest> {
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == arch.as_str();
    let found = manifests.iter().find(|manifest| match &manifest.platform {
        Some(platform) => fits(platform),
        // A layout of one image often does not say; its configuration does.
        None => manifests.len() == 1,
    });
    if let Some(found) = found {
        return found.digest.parse();
    }
    let mut there: Vec<String> = manifests
        .iter()
        .filter_map(|manifest| manifest.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(|platform| {
            let variant = platform.variant.as_ref().map_or(String::new(), |variant| format!("/{variant}"));
            format!("{}/{}{variant}", platform.os, platform.architecture)
        })
        .collect();
    there.sort();
    there.dedup();
    let there = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
    Err(refused(format!("there is none of it for linux/{arch}: it is made for {there}")))
}

#[derive(Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<RunDocument>,
    rootfs: RootfsDocument,
}

#[derive(Deserialize)]
struct RootfsDocument {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RunDocument {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
}

impl OciConfig {
    /// # Errors
    /// `Input`: it is for another machine, or what it says cannot be used.
    pub(crate) fn parse(bytes: &[u8], arch: Arch) -> Result<Self> {
        let document: ConfigDocument = serde_json::from_slice(bytes)
            .map_err(|error| refused(format!("its configuration makes no sense: {error}")))?;
        if document.os != "linux" || document.architecture != arch.as_str() {
            return Err(refused(format!(
                "it is made for {}/{}, and this host runs linux/{arch}",
                document.os, document.architecture
            )));
        }
        let run = document.config.unwrap_or_default();
        let mut env = BTreeMap::new();
        for pair in run.env.unwrap_or_default() {
            if let Some((key, value)) = pair.split_once('=')
                && !key.is_empty()
            {
                env.insert(key.to_owned(), value.to_owned());
            }
        }
        let user = run.user.filter(|user| !user.is_empty());
        let config = ImageConfig {
            env,
            working_dir: run
                .working_dir
                .filter(|dir| !dir.is_empty())
                .map(|dir| format!("/{}", dir.trim_start_matches('/'))),
            // An image of others that names nobody means root, whoever else is in it.
            user: Some(user.unwrap_or_else(|| "0".to_owned())),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
        };
        check(&config)?;
        let diff_ids = document.rootfs.diff_ids.iter().map(|id| id.parse()).collect::<Result<_>>()?;
        Ok(Self { config, diff_ids })
    }
}

fn check(config: &ImageConfig) -> Result<()> {
    let texts = config.env.iter().flat_map(|(key, value)| [key, value]);
    let texts =
        texts.chain(&config.entrypoint).chain(&config.cmd).chain(&config.user).chain(&config.working_dir);
    let mut length = 0;
    for text in texts {
        if text.contains('\0') {
            return Err(refused("its configuration has a zero in a text"));
        }
        length += text.len();
    }
    if length > ENV_MAX {
        return Err(refused("its configuration has more than 64 KiB of environment and command"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(media_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{DIGEST}","size":2}},
               "layers":[{{"mediaType":"{media_type}","digest":"{DIGEST}","size":3}}]}}"#
        )
    }

    #[test]
    fn media_types_of_oci_and_docker_are_layers_and_others_are_named() {
        for (kind, compression) in [
            ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
            ("application/vnd.oci.image.layer.v1.tar", Compression::None),
        ] {
            let parsed = Manifest::parse(manifest(kind).as_bytes(), Arch::Amd64).unwrap();
            let Manifest::Image(image) = parsed else { panic!("an image") };
            assert_eq!(image.layers[0].compression, compression);
        }
        let error = Manifest::parse(manifest("application/x-fancy").as_bytes(), Arch::Amd64).unwrap_err();
        assert!(error.to_string().contains("application/x-fancy"), "{error}");
        let schema_1 = Manifest::parse(br#"{"schemaVersion":1,"fsLayers":[]}"#, Arch::Amd64).unwrap_err();
        assert!(schema_1.to_string().contains("first schema"), "{schema_1}");
    }

    #[test]
    fn of_an_index_the_right_architecture_is_taken_or_the_others_are_named() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[
              {{"digest":"{DIGEST}","platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
              {{"digest":"{DIGEST}","platform":{{"os":"unknown","architecture":"unknown"}}}}]}}"#
        );
        let found = Manifest::parse(index.as_bytes(), Arch::Arm64).unwrap();
        assert_eq!(found, Manifest::Index(DIGEST.parse().unwrap()));
        let error = Manifest::parse(index.as_bytes(), Arch::Amd64).unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64/v8"), "{error}");
        assert!(!error.contains("unknown"), "{error}");
    }

    #[test]
    fn a_configuration_says_what_commands_get_and_one_of_another_machine_is_refused() {
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}},
               "config":{{"Env":["PATH=/bin","A=b=c","bad"],"Cmd":["x"],"WorkingDir":"srv","Entrypoint":null}}}}"#
        );
        let parsed = OciConfig::parse(json.as_bytes(), Arch::Amd64).unwrap();
        assert_eq!(parsed.config.env["A"], "b=c");
        assert_eq!(parsed.config.working_dir.as_deref(), Some("/srv"));
        assert_eq!(parsed.config.user.as_deref(), Some("0"), "nobody named is root");
        assert_eq!((parsed.config.cmd.len(), parsed.diff_ids.len()), (1, 1));
        let error = OciConfig::parse(json.as_bytes(), Arch::Arm64).unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
    }
}
