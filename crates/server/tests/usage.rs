//! What `GET /usage` answers where no guest is needed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use bhatti_server::{Door, UserPace, router};
use http_body_util::BodyExt as _;
use sandbox::{Host, HostConfig};
use serde_json::Value;
use tower::ServiceExt as _;

async fn get(router: &Router, path: &str) -> (StatusCode, Value) {
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

#[tokio::test]
async fn usage_has_all_figures_of_everything_in_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let router = router(Host::open(HostConfig::new(dir.path())).await.unwrap(), Door::Unix, UserPace::NONE);
    std::fs::create_dir(dir.path().join("volumes/admin")).unwrap();
    std::fs::write(dir.path().join("volumes/admin/data.ext4"), vec![7; 300_000]).unwrap();

    let (status, usage) = get(&router, "/usage").await;
    assert_eq!(status, StatusCode::OK);
    // It is an answer of this shape and no other.
    let read: api::Usage = serde_json::from_value(usage.clone()).unwrap();
    assert!(["btrfs_extents", "fiemap", "blocks"].contains(&read.method.as_str()), "{}", read.method);
    let volume = read.objects.iter().find(|object| object.kind == "volume").unwrap();
    assert_eq!((volume.name.as_str(), volume.path.as_str()), ("data", "volumes/admin/data.ext4"));
    assert_eq!(volume.owner.as_deref(), Some("admin"));
    assert_eq!(volume.figures.apparent_bytes, 300_000);
    assert!(volume.figures.exclusive_bytes <= volume.figures.physical_bytes);
    assert!(read.total.apparent_bytes > 300_000, "the index is counted, too");
    for figure in [
        "apparent_bytes",
        "referenced_bytes",
        "unique_bytes",
        "physical_bytes",
        "exclusive_bytes",
        "dedup_ratio",
        "compression_ratio",
    ] {
        assert!(
            usage["total"][figure].is_number() && usage["owners"][0][figure].is_number(),
            "{figure}: {usage}"
        );
    }

    let (status, refused) = get(&router, "/usage?sort=name").await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::BAD_REQUEST, &Value::from("bad_request")));
    let (status, refused) = get(&router, "/sandboxes/nope/usage").await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::NOT_FOUND, &Value::from("not_found")));
}
