//! Backups in a real S3 server on loopback: moto's, from PyPI, put into `target/test-tools/moto` by
//! `scripts/test-deps.sh`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bhatti_remote::{ErrorKind, Keep, Shelf, Store, StoreOptions, Watch};
use object_store::{ObjectStoreExt as _, PutPayload, aws::AmazonS3Builder, path::Path as ObjectPath};
use types::{Owner, Timestamp};

const MIB: u64 = 1 << 20;
const NOW: Timestamp = Timestamp(1_795_634_632_000);

/// The server, for as long as the value lives.
struct Server {
    child: Child,
    endpoint: String,
}

impl Server {
    fn start() -> Self {
        let tools = std::env::var_os("BHATTI_TEST_TOOLS").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/test-tools")),
            PathBuf::from,
        );
        let program = tools.join("moto/bin/moto_server");
        let mut child = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run scripts/test-deps.sh", program.display()));
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut endpoint = String::new();
        while endpoint.is_empty() {
            let mut line = String::new();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "the server ended before it said where it is");
            if let Some(at) = line.find("http://127.0.0.1:") {
                endpoint = line[at..].split_whitespace().next().unwrap().to_owned();
            }
        }
        // It goes on talking, a line a request.
        std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
        Self { child, endpoint }
    }

    fn options(&self) -> StoreOptions {
        StoreOptions {
            endpoint: Some(self.endpoint.clone()),
            region: Some("us-east-1".to_owned()),
            keys: Some(("tester".to_owned(), "secret".to_owned())),
        }
    }

    fn shelf(&self, url: &str) -> Shelf {
        Store::open(url, &self.options()).unwrap().shelf(&Owner::admin(), &"data".parse().unwrap())
    }

    /// The bucket, as somebody else sees it.
    fn bucket(&self) -> object_store::aws::AmazonS3 {
        AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_bucket_name("backups")
            .with_access_key_id("tester")
            .with_secret_access_key("secret")
            .build()
            .unwrap()
    }

    /// Makes the bucket with a plain request.
    fn make_bucket(&self) {
        let done = Command::new("curl")
            .args(["--silent", "--fail", "--request", "PUT", &format!("{}/backups", self.endpoint)])
            .status()
            .unwrap();
        assert!(done.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

#[test]
fn backups_go_to_s3_and_come_back_and_what_is_spoiled_there_is_refused() {
    let server = Server::start();
    server.make_bucket();
    run(async {
        let shelf = server.shelf("s3://backups/here/and-below");
        let volume = tempfile::tempfile().unwrap();
        volume.set_len(64 * MIB).unwrap();
        volume.write_all_at(&noise(1, 20 * MIB), 3 * MIB).unwrap();
        let open = |file: &File| file.try_clone().unwrap();
        let first = shelf.backup(open(&volume), NOW, Watch::nobody()).await.unwrap();
        let second = shelf.backup(open(&volume), Timestamp(NOW.0 + 1000), Watch::nobody()).await.unwrap();
        assert_eq!(second.new_chunks, 0);
        assert_eq!(shelf.list().await.unwrap().len(), 2);
        assert!(shelf.verify(&first.summary.id, Watch::nobody()).await.unwrap().is_whole());

        let back = tempfile::tempfile().unwrap();
        shelf.restore(&second.summary.id, open(&back), Watch::nobody()).await.unwrap();
        let read = |file: &File| {
            let mut all = vec![0; usize::try_from(64 * MIB).unwrap()];
            file.read_exact_at(&mut all, 0).unwrap();
            all
        };
        assert!(read(&back) == read(&volume));

        // More chunks than one page of a listing has, and all of them are found again and removed.
        let many = tempfile::tempfile().unwrap();
        many.set_len(1100 << 19).unwrap();
        for number in 0..1100u64 {
            many.write_all_at(&(number + 1).to_le_bytes(), number << 19).unwrap();
        }
        let third = shelf.backup(many, Timestamp(NOW.0 + 2000), Watch::nobody()).await.unwrap();
        assert_eq!(third.new_chunks, 1100);
        let gone = shelf.delete(&third.summary.id).await.unwrap();
        assert_eq!(gone.chunks, 1100);

        // A cut chunk, then a cut manifest.
        let bucket = server.bucket();
        let below = ObjectPath::from("here/and-below/admin/data");
        let chunk = first_below(&bucket, &below.clone().join("chunks")).await;
        let cut = bucket.get(&chunk).await.unwrap().bytes().await.unwrap().slice(..100);
        bucket.put(&chunk, PutPayload::from(cut)).await.unwrap();
        let error = shelf.restore(&first.summary.id, open(&back), Watch::nobody()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains(chunk.filename().unwrap()), "{error}");
        let manifest = below.join("backups").join(format!("{}.json", first.summary.id));
        bucket.put(&manifest, PutPayload::from_static(b"{\"format\":\"bhatti-backup\",")).await.unwrap();
        let error = shelf.restore(&first.summary.id, open(&back), Watch::nobody()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);

        let pruned = shelf.prune(Keep { last: 1, ..Keep::default() }).await.unwrap();
        assert_eq!((pruned.unreadable.len(), pruned.chunks), (1, 0));
    });
}

async fn first_below(bucket: &object_store::aws::AmazonS3, prefix: &ObjectPath) -> ObjectPath {
    use futures_util::TryStreamExt as _;
    use object_store::ObjectStore as _;
    bucket.list(Some(prefix)).try_next().await.unwrap().unwrap().location
}

#[test]
fn a_bucket_that_is_not_there_and_a_server_that_is_not_there_are_refused() {
    let server = Server::start();
    run(async {
        let volume = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(MIB).unwrap();
            file
        };
        let shelf = server.shelf("s3://nobodys");
        let error = shelf.backup(volume(), NOW, Watch::nobody()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Store), "{error:?}");

        let mut options = server.options();
        drop(server);
        options.endpoint = Some("http://127.0.0.1:9".to_owned());
        let shelf =
            Store::open("s3://backups", &options).unwrap().shelf(&Owner::admin(), &"data".parse().unwrap());
        let error = shelf.list().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(error.to_string().contains("can be reached"), "{error}");
    });
}
