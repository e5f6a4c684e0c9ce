//! Users and what is theirs, where no guest is needed: every route as a stranger, keys, quotas.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use bhatti_server::{AdminKey, Door, UserPace, openapi_json, router};
use http_body_util::BodyExt as _;
use sandbox::{Host, HostConfig, Pace};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;

const ADMIN: &str = "bht_admin";

struct House {
    _dir: TempDir,
    router: Router,
}

impl House {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let router = Self::again(dir.path()).await;
        Self { _dir: dir, router }
    }

    async fn paced(pace: UserPace) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::open(HostConfig::new(dir.path())).await.unwrap();
        Self {
            router: router(host, Door::Tcp { key: AdminKey::new(ADMIN), loopback: true }, pace),
            _dir: dir,
        }
    }

    async fn again(dir: &Path) -> Router {
        let host = Host::open(HostConfig::new(dir)).await.unwrap();
        router(host, Door::Tcp { key: AdminKey::new(ADMIN), loopback: true }, UserPace::NONE)
    }

    async fn ask(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = Request::builder()
            .method(method.parse::<Method>().unwrap())
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| text()))
    }

    async fn get(&self, key: &str, path: &str) -> Value {
        let (status, value) = self.ask(key, "GET", path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    /// Makes a user; gives the key.
    async fn user(&self, request: Value) -> String {
        let (status, made) = self.ask(ADMIN, "POST", "/users", Some(request)).await;
        assert_eq!(status, 201, "{made}");
        made["key"].as_str().unwrap().to_owned()
    }

    async fn made(&self, key: &str, path: &str, body: Value) -> Value {
        let (status, value) = self.ask(key, "POST", path, Some(body)).await;
        assert!(status == 201 || status == 200, "{path}: {status} {value}");
        value
    }

    async fn refused(&self, key: &str, method: &str, path: &str, body: Value) -> (u16, String, String) {
        let (status, value) = self.ask(key, method, path, Some(body)).await;
        assert!(status >= 400, "{method} {path}: {status} {value}");
        let word = |field: &str| value["error"][field].as_str().unwrap().to_owned();
        (status, word("code"), word("message"))
    }
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_user_has_a_key_that_is_told_once_and_stored_nowhere() {
    let house = House::open().await;
    let (status, made) =
        house.ask(ADMIN, "POST", "/users", Some(json!({ "name": "alice", "max_volumes": 3 }))).await;
    assert_eq!((status, made["name"].as_str(), made["max_volumes"].as_u64()), (201, Some("alice"), Some(3)));
    let key = made["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with("bht_") && key.len() == 4 + 64, "{key}");
    for path in ["/users", "/users/alice", "/events?since=0&follow=false"] {
        assert!(!house.get(ADMIN, path).await.to_string().contains(&key), "{path}");
    }
    for entry in std::fs::read_dir(house._dir.path()).unwrap().flatten() {
        let Ok(bytes) = std::fs::read(entry.path()) else { continue };
        assert!(!bytes.windows(key.len()).any(|part| part == key.as_bytes()), "{entry:?}");
    }
    assert_eq!(house.get(&key, "/sandboxes").await, json!([]));
    for (request, status, code) in [
        (json!({ "name": "alice" }), 409, "conflict"),
        (json!({ "name": "admin" }), 409, "conflict"),
        (json!({ "name": "Not Ok" }), 400, "bad_request"),
        (json!({ "name": "x", "max_toes": 1 }), 400, "bad_request"),
        (json!({ "name": "x", "max_volumes": -1 }), 400, "bad_request"),
    ] {
        let refused = house.refused(ADMIN, "POST", "/users", request.clone()).await;
        assert_eq!((refused.0, refused.1.as_str()), (status, code), "{request}");
    }
    for (method, path) in [
        ("GET", "/users/bob"),
        ("PATCH", "/users/bob"),
        ("POST", "/users/bob/rotate-key"),
        ("DELETE", "/users/bob"),
    ] {
        assert_eq!(house.refused(ADMIN, method, path, json!({})).await.0, 404, "{method} {path}");
    }
}

#[tokio::test]
async fn a_rotated_key_opens_nothing_more_and_a_deleted_user_is_gone_with_their_past() {
    let house = House::open().await;
    let old = house.user(json!({ "name": "alice" })).await;
    let (_, rotated) = house.ask(ADMIN, "POST", "/users/alice/rotate-key", None).await;
    let new = rotated["key"].as_str().unwrap().to_owned();
    assert_ne!(old, new);
    assert_eq!(house.refused(&old, "GET", "/sandboxes", Value::Null).await.1, "unauthorized");
    house.made(&new, "/volumes", json!({ "name": "data", "size_mb": 16 })).await;
    house.made(&new, "/secrets", json!({ "name": "KEY", "value": "x" })).await;
    let (status, code, message) = house.refused(ADMIN, "DELETE", "/users/alice", Value::Null).await;
    assert_eq!((status, code.as_str()), (409, "in_use"));
    assert!(message.contains("1 volume (data), 1 secret (KEY)"), "{message}");
    assert_eq!(house.get(&new, "/volumes").await.as_array().unwrap().len(), 1, "nothing was changed");
    assert_eq!(house.ask(ADMIN, "DELETE", "/users/alice?purge=true", None).await.0, 204);
    assert_eq!(house.refused(&new, "GET", "/sandboxes", Value::Null).await.0, 401);
    assert_eq!(house.get(ADMIN, "/volumes").await, json!([]));
    let again = house.user(json!({ "name": "alice" })).await;
    for path in ["/volumes", "/secrets", "/tasks"] {
        assert_eq!(house.get(&again, path).await, json!([]), "{path}");
    }
    assert_eq!(house.get(&again, "/events?since=0&follow=false").await, json!(""));
}

#[tokio::test]
async fn users_and_their_keys_outlive_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let key = {
        let host = Host::open(HostConfig::new(dir.path())).await.unwrap();
        let made = host.user_create(&"alice".parse().unwrap(), Default::default()).await.unwrap();
        host.shutdown(false).await.unwrap();
        made.1.0
    };
    let house = House { router: House::again(dir.path()).await, _dir: dir };
    assert_eq!(house.get(&key, "/sandboxes").await, json!([]));
}

#[tokio::test]
async fn names_are_unique_per_owner_and_the_admin_sees_all() {
    let house = House::open().await;
    let alice = house.user(json!({ "name": "alice" })).await;
    let bob = house.user(json!({ "name": "bob" })).await;
    for (key, size) in [(&alice, 16), (&bob, 32)] {
        house.made(key, "/volumes", json!({ "name": "data", "size_mb": size })).await;
        house.made(key, "/secrets", json!({ "name": "KEY", "value": "x" })).await;
    }
    let seen = house.get(&alice, "/volumes").await;
    assert_eq!((names(&seen), &seen[0]["owner"]), (vec!["data"], &json!("alice")));
    assert_eq!(house.get(&bob, "/volumes/data").await["size_mb"], 32);
    for path in ["/volumes", "/secrets"] {
        assert_eq!(names(&house.get(ADMIN, path).await).len(), 2, "{path}");
        let one = house.get(ADMIN, &format!("{path}?owner=bob")).await;
        assert_eq!((one.as_array().unwrap().len(), &one[0]["owner"]), (1, &json!("bob")), "{path}");
    }
    assert_eq!(house.get(ADMIN, "/volumes/data?owner=alice").await["size_mb"], 16);
    assert_eq!(
        house.ask(ADMIN, "GET", "/volumes/data", None).await.0,
        404,
        "the admin has none of that name"
    );
    let events = |text: Value| text.as_str().unwrap().matches("volume.created").count();
    let path = "/events?since=0&follow=false";
    assert_eq!(events(house.get(ADMIN, path).await), 2);
    assert_eq!(events(house.get(ADMIN, &format!("{path}&owner=bob")).await), 1);
    assert_eq!(events(house.get(&bob, path).await), 1);
    let usage = house.get(&bob, "/usage").await;
    let owners: BTreeSet<_> =
        usage["objects"].as_array().unwrap().iter().map(|it| it["owner"].as_str()).collect();
    assert_eq!(owners, BTreeSet::from([Some("bob")]), "{usage}");
    assert_eq!(house.ask(&alice, "GET", "/volumes?owner=alice", None).await.0, 200);
    for method in ["GET", "DELETE"] {
        assert_eq!(house.refused(&alice, method, "/volumes/data?owner=bob", Value::Null).await.0, 403);
    }
    assert_eq!(house.ask(ADMIN, "DELETE", "/volumes/data?owner=bob", None).await.0, 204);
    assert_eq!(house.get(&alice, "/volumes").await.as_array().unwrap().len(), 1);
}

/// What is in every place that a stranger could change.
async fn state(house: &House) -> Value {
    let mut state = json!({});
    for path in ["/sandboxes", "/volumes", "/snapshots", "/secrets", "/tasks", "/published", "/users"] {
        state[path] = house.get(ADMIN, path).await;
    }
    // The filesystem may settle late what a file takes.
    for volume in state["/volumes"].as_array_mut().unwrap() {
        volume.as_object_mut().unwrap().remove("allocated_bytes");
    }
    state
}

#[tokio::test]
async fn every_route_is_closed_to_strangers_or_shows_them_nothing() {
    let house = House::open().await;
    let alice = house.user(json!({ "name": "alice" })).await;
    let stranger = house.user(json!({ "name": "stranger" })).await;
    house.made(&alice, "/volumes", json!({ "name": "thing", "size_mb": 16 })).await;
    house.made(&alice, "/secrets", json!({ "name": "thing", "value": "x" })).await;
    let (status, task) = house
        .ask(&alice, "POST", "/images/pull", Some(json!({ "ref": "127.0.0.1:1/x", "name": "thing" })))
        .await;
    assert_eq!(status, 202, "{task}");
    let task = task["id"].as_str().unwrap().to_owned();
    // It has ended before the state is looked at.
    let (status, _) = house.ask(&alice, "DELETE", &format!("/tasks/{task}"), None).await;
    assert_eq!(status, 200);
    let before = state(&house).await;

    // What makes or shows something of one's own, and so has no object of others in its path.
    let own: BTreeSet<&str> = [
        "/health",
        "/version",
        "/events",
        "/images",
        "/images/pull",
        "/images/import",
        "/images/build",
        "/tasks",
        "/sandboxes",
        "/usage",
        "/snapshots",
        "/volumes",
        "/secrets",
        "/published",
    ]
    .into();
    let admins: BTreeSet<&str> =
        ["/metrics", "/fsck", "/gc", "/users", "/users/{name}", "/users/{name}/rotate-key"].into();
    // Bodies that are right, so that nothing but the owner stands in the way.
    let body = |path: &str| match path {
        "/images/save" => json!({ "sandbox": "thing", "name": "copy" }),
        "/sandboxes/{id}/exec" => json!({ "cmd": ["true"] }),
        "/sandboxes/{id}/snapshots" | "/volumes/{name}/clone" => json!({ "name": "copy" }),
        "/sandboxes/{id}/publish" => json!({ "port": 80 }),
        "/volumes/{name}/attach" => json!({ "sandbox": "thing", "mount": "/data" }),
        "/volumes/{name}/detach" => json!({ "sandbox": "thing" }),
        "/volumes/{name}/resize" => json!({ "size_mb": 32 }),
        "/volumes/{name}/restore" => json!({ "backup": "20260101T000000Z-00000000" }),
        "/volumes/{name}/schedule" => json!({ "cron": "0 0 * * *", "keep": 1 }),
        "/volumes/{name}/backups/prune" => json!({ "last": 1 }),
        _ => json!({}),
    };
    let description: Value = serde_json::from_str(&openapi_json()).unwrap();
    let mut walked = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|method| *method != "parameters") {
            let method = method.to_uppercase();
            let id = if path.starts_with("/tasks/") { &task } else { "thing" };
            let asked = path.replace("{name}", "thing").replace("{port}", "80").replace("{path}", "x");
            let asked =
                asked.replace("/backups/{id}", "/backups/20260101T000000Z-00000000").replace("{id}", id);
            let asked = match path.as_str() {
                "/events" => format!("{asked}?follow=false"),
                path if path.ends_with("/files") => format!("{asked}?path=/x"),
                _ => asked,
            };
            let (status, said) = house.ask(&stranger, &method, &asked, Some(body(path))).await;
            walked += 1;
            if admins.contains(path.as_str()) {
                assert_eq!((status, &said["error"]["code"]), (403, &json!("forbidden")), "{method} {path}");
            } else if own.contains(path.as_str()) {
                assert!(!said.to_string().contains("thing"), "{method} {path}: {said}");
            } else if path.ends_with("/shell")
                || path.ends_with("/tunnel/{port}")
                || (path.ends_with("/exec") && method == "GET")
            {
                // Without an upgrade they say so before they look at anything.
                assert_eq!(status, 400, "{method} {path}: {said}");
            } else if path == "/volumes/{name}/backups/prune"
                || path == "/volumes/{name}/backups" && method == "GET"
            {
                // Backups belong to an owner's name for a volume; the stranger's has none.
                assert!(status == 404 || said["removed"] == json!([]), "{method} {path}: {status} {said}");
            } else if path == "/volumes/{name}/restore" || path.ends_with("/backups/{id}") {
                assert!([400, 404].contains(&status), "{method} {path}: {status} {said}");
            } else {
                assert_eq!(status, 404, "{method} {path}: {said}");
                // As if it were not there: the same as for a name that nobody has.
                if method != "HEAD" && !path.starts_with("/tasks/") {
                    let absent = asked.replace("thing", "nobodys");
                    let absent_body: Value =
                        serde_json::from_str(&body(path).to_string().replace("thing", "nobodys")).unwrap();
                    let (_, of_absent) = house.ask(&stranger, &method, &absent, Some(absent_body)).await;
                    let of_absent = of_absent.to_string().replace("nobodys", "thing");
                    assert_eq!(said.to_string(), of_absent, "{method} {path}");
                }
            }
        }
    }
    assert!(walked > 55, "{walked} routes");
    assert_eq!(state(&house).await, before, "nothing has changed");
}

#[tokio::test]
async fn a_quota_says_what_is_reached_and_counts_what_is_under_way() {
    let house = House::open().await;
    let alice = house.user(json!({ "name": "alice", "max_volumes": 2, "max_images": 0 })).await;
    let volume = |name: &str| json!({ "name": name, "size_mb": 16 });
    house.made(&alice, "/volumes", volume("one")).await;
    // Of several that want the last place at the same time, one gets it.
    let house = std::sync::Arc::new(house);
    let racing: Vec<_> = (0..6)
        .map(|number| {
            let (house, alice) = (std::sync::Arc::clone(&house), alice.clone());
            let body = volume(&format!("race-{number}"));
            tokio::spawn(async move { house.ask(&alice, "POST", "/volumes", Some(body)).await.0 })
        })
        .collect();
    let mut statuses = Vec::new();
    for one in racing {
        statuses.push(one.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 403, 403, 403, 403, 403]);
    for (method, path, body, field) in [
        ("POST", "/volumes", volume("more"), "max_volumes"),
        ("POST", "/volumes/one/clone", json!({ "name": "more" }), "max_volumes"),
        ("POST", "/sandboxes", json!({ "volumes": [{ "name": "more", "mount": "/a" }] }), "max_volumes"),
        ("POST", "/images/pull", json!({ "ref": "127.0.0.1:1/x", "name": "x" }), "max_images"),
        ("POST", "/images/import?name=x", Value::Null, "max_images"),
        ("POST", "/images/build", json!({ "tier": "minimal", "name": "x" }), "max_images"),
    ] {
        let (status, code, message) = house.refused(&alice, method, path, body).await;
        assert_eq!((status, code.as_str()), (403, "quota_exceeded"), "{path}: {message}");
        assert!(message.contains(field) && message.contains("alice has "), "{path}: {message}");
    }
    // What is there already is no more than there was.
    assert_eq!(house.ask(&alice, "POST", "/volumes", Some(volume("one"))).await.0, 200);
    let edited = json!({ "max_volumes": null, "max_disk_mb": 0, "max_sandboxes": 0 });
    let (status, user) = house.ask(ADMIN, "PATCH", "/users/alice", Some(edited)).await;
    assert_eq!((status, &user["max_volumes"], &user["used"]["volumes"]), (200, &Value::Null, &json!(2)));
    for (path, body, field) in [
        ("/volumes", volume("more"), "max_disk_mb"),
        ("/volumes/one/clone", json!({ "name": "more" }), "max_disk_mb"),
        ("/volumes/one/resize", json!({ "size_mb": 64 }), "max_disk_mb"),
        ("/sandboxes", json!({}), "max_sandboxes"),
    ] {
        let (status, _, message) = house.refused(&alice, "POST", path, body).await;
        assert!(status == 403 && message.contains(field), "{path}: {message}");
    }
    let left = house.get(&alice, "/volumes").await;
    assert_eq!(left.as_array().unwrap().len(), 2, "what was refused left nothing: {left}");
    assert_eq!(house.ask(&alice, "DELETE", "/volumes/one", None).await.0, StatusCode::NO_CONTENT.as_u16());
}

#[tokio::test]
async fn a_user_who_asks_too_fast_waits_and_nobody_else_does() {
    let slow = |burst| Pace { rate: 1, burst };
    let house = House::paced(UserPace { requests: slow(1000), changes: slow(5), connections: 1 }).await;
    let (alice, bob) =
        (house.user(json!({ "name": "alice" })).await, house.user(json!({ "name": "bob" })).await);
    let delete = ("DELETE", "/volumes/none");
    let mut statuses = Vec::new();
    while statuses.last() != Some(&429) {
        let (status, said) = house.ask(&alice, delete.0, delete.1, None).await;
        assert!(status == 404 || said["error"]["code"] == "rate_limited", "{said}");
        statuses.push(status);
        assert!(statuses.len() < 500, "nothing is refused");
    }
    assert!(statuses.len() > 5, "the burst is let through: {statuses:?}");
    // Looking is another class, others are others, and the admin is not held back.
    assert_eq!(house.get(&alice, "/volumes").await, json!([]));
    assert_eq!(house.ask(&bob, delete.0, delete.1, None).await.0, 404);
    for _ in 0..50 {
        assert_eq!(house.ask(ADMIN, delete.0, delete.1, None).await.0, 404);
    }
}
