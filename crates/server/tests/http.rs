//! What HTTP answers where no guest is needed: shapes of refusals, the doors, the description of the interface.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use bhatti_server::{AdminKey, Door, UserPace, openapi_json, router};
use http_body_util::BodyExt as _;
use sandbox::{Host, HostConfig};
use tempfile::TempDir;
use tower::ServiceExt as _;

const KEY: &str = "bht_test";

async fn host() -> (TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::open(HostConfig::new(dir.path())).await.unwrap();
    (dir, host)
}

async fn unix() -> (TempDir, Router) {
    let (dir, host) = host().await;
    (dir, router(host, Door::Unix, UserPace::NONE))
}

async fn tcp(loopback: bool) -> (TempDir, Router) {
    let (dir, host) = host().await;
    (dir, router(host, Door::Tcp { key: AdminKey::new(KEY), loopback }, UserPace::NONE))
}

fn request(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:1").body(body.into()).unwrap()
}

async fn answer(router: &Router, request: Request<Body>) -> Response<Body> {
    router.clone().oneshot(request).await.unwrap()
}

async fn json(response: Response<Body>) -> serde_json::Value {
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

/// Asks and checks that the refusal has the shape of the contract.
async fn refused(router: &Router, request: Request<Body>, status: u16, code: &str) -> String {
    let what = format!("{} {}", request.method(), request.uri());
    let response = answer(router, request).await;
    assert_eq!(response.status().as_u16(), status, "{what}");
    let body = json(response).await;
    assert_eq!(body["error"]["code"], code, "{what}: {body}");
    assert!(body["error"]["hint"].is_string(), "{what}: {body}");
    body["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn tcp_wants_the_key_for_everything_but_health() {
    let (_dir, router) = tcp(true).await;
    for path in ["/sandboxes", "/version", "/metrics", "/events", "/openapi.json", "/no/such/path"] {
        refused(&router, request(Method::GET, path, ""), 401, "unauthorized").await;
        let mut wrong = request(Method::GET, path, "");
        wrong.headers_mut().insert(header::AUTHORIZATION, "Bearer bht_other".parse().unwrap());
        refused(&router, wrong, 401, "unauthorized").await;
    }
    assert_eq!(answer(&router, request(Method::GET, "/health", "")).await.status(), StatusCode::OK);
    let mut right = request(Method::GET, "/sandboxes", "");
    right.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {KEY}").parse().unwrap());
    assert_eq!(json(answer(&router, right).await).await, serde_json::json!([]));
}

#[tokio::test]
async fn a_web_page_that_rebound_its_name_is_refused_on_loopback_only() {
    let foreign = || {
        let mut request = request(Method::GET, "/health", "");
        request.headers_mut().insert(header::HOST, "evil.example".parse().unwrap());
        request
    };
    let (_dir, local) = tcp(true).await;
    refused(&local, foreign(), 400, "bad_request").await;
    let (_dir, open) = tcp(false).await;
    assert_eq!(answer(&open, foreign()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn browsers_are_told_that_answers_are_data_and_no_other_origin_may_read_them() {
    let (_dir, router) = tcp(true).await;
    for path in ["/health", "/sandboxes", "/nope"] {
        let mut request = request(Method::GET, path, "");
        request.headers_mut().insert(header::ORIGIN, "https://evil.example".parse().unwrap());
        request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {KEY}").parse().unwrap());
        let response = answer(&router, request).await;
        let headers = response.headers();
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
        assert_eq!(headers[header::X_FRAME_OPTIONS], "DENY", "{path}");
        assert_eq!(headers[header::CACHE_CONTROL], "no-store", "{path}");
        assert!(headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("default-src 'none'"));
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN), "{path}");
    }
}

#[tokio::test]
async fn unknown_paths_methods_and_sandboxes_are_told_in_json() {
    let (_dir, router) = unix().await;
    refused(&router, request(Method::GET, "/nope", ""), 404, "not_found").await;
    refused(&router, request(Method::PUT, "/sandboxes", ""), 405, "method_not_allowed").await;
    for (method, path) in [
        (Method::GET, "/sandboxes/nope"),
        (Method::DELETE, "/sandboxes/nope"),
        (Method::PATCH, "/sandboxes/nope"),
        (Method::POST, "/sandboxes/nope/stop"),
        (Method::POST, "/sandboxes/nope/start"),
        (Method::GET, "/sandboxes/nope/sessions"),
        (Method::GET, "/sandboxes/nope/files?path=/x"),
        (Method::PUT, "/sandboxes/nope/files?path=/x"),
    ] {
        let message = refused(&router, request(method, path, ""), 404, "not_found").await;
        assert!(message.contains("nope"), "{path}: {message}");
    }
    let exec = request(Method::POST, "/sandboxes/nope/exec", r#"{"cmd":["true"]}"#);
    refused(&router, exec, 404, "not_found").await;
}

#[tokio::test]
async fn a_body_that_makes_no_sense_is_told_what_is_wrong_with_it() {
    let (_dir, router) = unix().await;
    let post = |body: &str| request(Method::POST, "/sandboxes", body.to_owned());
    let cases = [
        ("{", "EOF"),
        ("[]", "request body"),
        (r#"{"cpu":1}"#, "unknown field `cpu`"),
        (r#"{"cpus":"1"}"#, "invalid type"),
        (r#"{"name":"Bad Name"}"#, "sandbox name"),
        (r#"{"image":"../x"}"#, "image name"),
        (r#"{"cpus":0}"#, "cpus 0"),
        (r#"{"memory_mb":1}"#, "memory of 1 MiB"),
        (r#"{"files":[{"path":"/a","content_base64":"%"}]}"#, "not base64"),
        (r#"{"files":[{"path":"/a","content_base64":"","mode":"9"}]}"#, "octal"),
        (r#"{"files":[{"path":"a","content_base64":""}]}"#, "not absolute"),
        (r#"{"env":{"1":""}}"#, "environment name"),
    ];
    for (body, expected) in cases {
        let message = refused(&router, post(body), 400, "bad_request").await;
        assert!(message.contains(expected), "{body}: {message}");
    }
    refused(&router, post(r#"{"secrets":["a-b"]}"#), 400, "bad_request").await;
    refused(&router, post(r#"{"secrets":["A"],"env":{"A":"x"}}"#), 400, "bad_request").await;
    let message = refused(&router, post(r#"{"secrets":["NO"]}"#), 404, "not_found").await;
    assert!(message.contains("there is no secret NO"), "{message}");
    // What was made for a sandbox that could not be is gone again.
    refused(&router, post(r#"{"volumes":[{"name":"a","mount":"/a"}]}"#), 503, "not_ready").await;
    refused(&router, request(Method::GET, "/volumes/a", ""), 404, "not_found").await;
}

#[tokio::test]
async fn a_snapshot_that_makes_no_sense_is_told_what_is_wrong_with_it() {
    let (_dir, router) = unix().await;
    for (path, body, expected) in [
        ("/sandboxes/nope/snapshots", "", "missing field `name`"),
        ("/sandboxes/nope/snapshots", "{}", "missing field `name`"),
        ("/sandboxes/nope/snapshots", "null", "request body"),
        ("/sandboxes/nope/snapshots", r#"["a"]"#, "is a list"),
        ("/sandboxes/nope/snapshots", r#"{"name":null}"#, "invalid type"),
        ("/sandboxes/nope/snapshots", r#"{"name":1}"#, "invalid type"),
        ("/sandboxes/nope/snapshots", r#"{"name":""}"#, "must not be empty"),
        ("/sandboxes/nope/snapshots", r#"{"name":".."}"#, "snapshot name \"..\""),
        ("/sandboxes/nope/snapshots", r#"{"name":"a/b"}"#, "snapshot name \"a/b\""),
        ("/sandboxes/nope/snapshots", r#"{"name":"../../etc"}"#, "snapshot name"),
        ("/sandboxes/nope/snapshots", r#"{"name":"A"}"#, "snapshot name \"A\""),
        ("/sandboxes/nope/snapshots", r#"{"name":"a","disk-only":true}"#, "unknown field `disk-only`"),
        ("/sandboxes/nope/snapshots", r#"{"name":"a","disk_only":"yes"}"#, "invalid type"),
        ("/sandboxes/nope/fork", "{", "EOF"),
        ("/sandboxes/nope/fork", r#"{"count":0}"#, "a count of 0"),
        ("/sandboxes/nope/fork", r#"{"count":-1}"#, "`-1`"),
        ("/sandboxes/nope/fork", r#"{"count":65}"#, "a count of 65"),
        ("/sandboxes/nope/fork", r#"{"count":1000000000}"#, "a count of 1000000000"),
        ("/sandboxes/nope/fork", r#"{"count":1000000000000}"#, "1000000000000"),
        ("/sandboxes/nope/fork", r#"{"count":1.5}"#, "1.5"),
        ("/sandboxes/nope/fork", r#"{"count":"2"}"#, "invalid type"),
        ("/sandboxes/nope/fork", r#"{"name":"a/b"}"#, "sandbox name \"a/b\""),
        ("/sandboxes/nope/fork", r#"{"name":"..","count":2}"#, "sandbox name \"..\""),
        ("/sandboxes/nope/fork", r#"{"name":"a-","count":2}"#, "sandbox name \"a-\""),
        ("/sandboxes/nope/fork", r#"{"names":["a"]}"#, "unknown field `names`"),
        ("/sandboxes/nope/fork", r#"{"disk_size_mb":0}"#, "disk size of 0"),
        ("/sandboxes/nope/fork", r#"{"labels":{"a=b":""}}"#, "label \"a=b\""),
        ("/snapshots/nope/resume", r#"{"name":"Not_Ok"}"#, "sandbox name"),
        ("/snapshots/nope/resume", r#"{"name":"0123456789abcdef"}"#, "looks like an id"),
        ("/snapshots/nope/resume", r#"{"disk_size_mb":-1}"#, "`-1`"),
        ("/snapshots/nope/resume", r#"{"labels":{"":""}}"#, "label"),
        ("/snapshots/nope/resume", r#"{"image":"minimal"}"#, "unknown field `image`"),
        ("/snapshots/%2e%2e/resume", "", "snapshot name \"..\""),
        ("/snapshots/a%2Fb/resume", "", "snapshot name \"a/b\""),
    ] {
        let message = refused(&router, request(Method::POST, path, body), 400, "bad_request").await;
        assert!(message.contains(expected), "{path} {body}: {message}");
    }
    for (method, path) in [
        (Method::GET, "/snapshots/%2e%2e"),
        (Method::DELETE, "/snapshots/%2e%2e%2Fsandboxes"),
        (Method::DELETE, "/snapshots/UPPER"),
    ] {
        let message = refused(&router, request(method, path, ""), 400, "bad_request").await;
        assert!(message.contains("snapshot name"), "{path}: {message}");
    }
}

#[tokio::test]
async fn a_create_from_something_takes_only_what_a_copy_has_of_its_own() {
    let (_dir, router) = unix().await;
    let post = |body: &str| request(Method::POST, "/sandboxes", body.to_owned());
    for (field, given) in [
        ("image", r#""image":"other""#),
        ("cpus", r#""cpus":2"#),
        ("memory_mb", r#""memory_mb":1024"#),
        ("env", r#""env":{"A":"b"}"#),
        ("secrets", r#""secrets":["a"]"#),
        ("files", r#""files":[{"path":"/a","content_base64":""}]"#),
        ("volumes", r#""volumes":[{"name":"a","mount":"/a"}]"#),
        ("init", r#""init":"true""#),
    ] {
        let body = format!(r#"{{"from":"nope",{given}}}"#);
        let message = refused(&router, post(&body), 400, "bad_request").await;
        assert!(message.contains(&format!("`{field}`")) && message.contains("`from`"), "{message}");
    }
    for (body, expected) in [
        (r#"{"from":"nope","name":"../x"}"#, "sandbox name"),
        (r#"{"from":"nope","disk_size_mb":0}"#, "disk size"),
        (r#"{"from":"nope","labels":{"a,b":""}}"#, "label"),
        (r#"{"from":1}"#, "invalid type"),
    ] {
        let message = refused(&router, post(body), 400, "bad_request").await;
        assert!(message.contains(expected), "{body}: {message}");
    }
}

#[tokio::test]
async fn what_is_made_of_nothing_is_not_found_by_its_name() {
    let (_dir, router) = unix().await;
    let none = answer(&router, request(Method::GET, "/snapshots", "")).await;
    assert_eq!(json(none).await, serde_json::json!([]));
    for (method, path, body) in [
        (Method::GET, "/snapshots/nope", ""),
        (Method::DELETE, "/snapshots/nope", ""),
        (Method::POST, "/snapshots/nope/resume", ""),
        (Method::POST, "/snapshots/nope/resume", r#"{"name":"a","labels":{"k":"v"},"disk_size_mb":4096}"#),
        (Method::POST, "/sandboxes/nope/snapshots", r#"{"name":"a"}"#),
        (Method::POST, "/sandboxes/nope/fork", ""),
        (Method::POST, "/sandboxes/nope/fork", r#"{"name":"a","count":64}"#),
        (Method::POST, "/sandboxes", r#"{"from":"nope"}"#),
        // Whatever it looks like, it is only the name of nothing.
        (Method::POST, "/sandboxes", r#"{"from":"../nope"}"#),
        (Method::POST, "/sandboxes", r#"{"from":""}"#),
    ] {
        let message = refused(&router, request(method, path, body), 404, "not_found").await;
        assert!(message.contains("nope") || body.contains(r#""""#), "{path} {body}: {message}");
    }
    for (method, path) in [
        (Method::PUT, "/snapshots"),
        (Method::POST, "/snapshots"),
        (Method::POST, "/snapshots/a"),
        (Method::GET, "/snapshots/a/resume"),
        (Method::GET, "/sandboxes/a/fork"),
        (Method::GET, "/sandboxes/a/snapshots"),
    ] {
        refused(&router, request(method, path, ""), 405, "method_not_allowed").await;
    }
}

#[tokio::test]
async fn json_bodies_are_bounded() {
    let (_dir, router) = unix().await;
    let long = vec![b' '; 4 * 1024 * 1024 + 1];
    refused(&router, request(Method::POST, "/sandboxes", long.clone()), 413, "too_large").await;
    // Without a length told first, too.
    let chunks = futures_util::stream::iter(
        long.chunks(65536).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect::<Vec<_>>(),
    );
    refused(&router, request(Method::POST, "/sandboxes", Body::from_stream(chunks)), 413, "too_large").await;
}

#[tokio::test]
async fn queries_are_read_strictly() {
    let (_dir, router) = unix().await;
    for (path, expected) in [
        ("/sandboxes?lable=a=b", "lable"),
        ("/sandboxes?label=a", "KEY=VALUE"),
        ("/events?since=x", "since"),
        ("/sandboxes/nope/files", "`path` is missing"),
        ("/sandboxes/nope/files?path=rel", "rel"),
        ("/sandboxes/nope/files?path=/x&offset=1&line_offset=2", "either of bytes or of lines"),
        ("/sandboxes/nope/shell?session=a&new=true", "exclude"),
    ] {
        let message = refused(&router, request(Method::GET, path, ""), 400, "bad_request").await;
        assert!(message.contains(expected), "{path}: {message}");
    }
    let filtered = answer(&router, request(Method::GET, "/sandboxes?label=a=b&label=c=d", "")).await;
    assert_eq!(json(filtered).await, serde_json::json!([]));
}

#[tokio::test]
async fn a_websocket_path_asked_without_an_upgrade_says_so() {
    let (_dir, router) = unix().await;
    for path in ["/sandboxes/nope/shell", "/sandboxes/nope/exec"] {
        let message = refused(&router, request(Method::GET, path, ""), 400, "bad_request").await;
        assert!(message.contains("WebSocket"), "{message}");
    }
}

#[tokio::test]
async fn events_that_are_not_followed_come_to_an_end() {
    let (_dir, router) = unix().await;
    let response = answer(&router, request(Method::GET, "/events?since=0&follow=false", "")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.is_empty());
}

#[tokio::test]
async fn events_are_told_from_a_number_or_a_time_on_and_after_the_last_that_was_heard() {
    let (_dir, router) = unix().await;
    for name in ["A", "B", "C"] {
        let body = format!(r#"{{"name":"{name}","value":"x"}}"#);
        answer(&router, request(Method::POST, "/secrets", body)).await;
    }
    let ask = async |since: &str, heard: Option<&str>| -> Vec<(u64, String)> {
        let mut request = request(Method::GET, &format!("/events?follow=false{since}"), "");
        if let Some(heard) = heard {
            request.headers_mut().insert("last-event-id", heard.parse().unwrap());
        }
        let bytes = answer(&router, request).await.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let ids =
            text.lines().filter_map(|line| line.strip_prefix("id: ")).map(|id| id.parse::<u64>().unwrap());
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let events = data.map(|json| serde_json::from_str::<serde_json::Value>(json).unwrap());
        let events: Vec<_> = events
            .map(|event| (event["seq"].as_u64().unwrap(), event["at"].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(ids.collect::<Vec<_>>(), events.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
        events
    };
    let all = ask("", None).await;
    assert_eq!(all.len(), 3);
    let (second, at_second) = all[1].clone();
    assert_eq!(ask(&format!("&since={second}"), None).await, all[2..]);
    // Events of the same millisecond belong to a time together.
    let from_second: Vec<_> = all.iter().filter(|(_, at)| *at >= at_second).cloned().collect();
    assert_eq!(ask(&format!("&since={at_second}"), None).await, from_second);
    assert_eq!(ask("&since=2000-01-01T00:00:00Z", None).await, all);
    assert_eq!(ask("&since=2999-01-01T00:00:00Z", None).await, []);
    // A client that comes back says what it heard last, whatever the address says that it was given.
    assert_eq!(ask("&since=0", Some(&second.to_string())).await, all[2..]);
    assert_eq!(ask("&since=2999-01-01T00:00:00Z", Some(&second.to_string())).await, all[2..]);
    let message = refused(&router, request(Method::GET, "/events?since=soon", ""), 400, "bad_request").await;
    assert!(message.contains("soon") && message.contains("2026-11-25T19:00:00Z"), "{message}");
}

#[tokio::test]
async fn a_host_that_is_not_set_up_says_what_to_do() {
    let (_dir, router) = unix().await;
    let response = answer(&router, request(Method::POST, "/sandboxes", "")).await;
    let status = response.status().as_u16();
    let body = json(response).await;
    assert!(status == 503 || status == 404, "{status}: {body}");
    assert!(body["error"]["hint"].as_str().unwrap().contains("bhatti setup"), "{body}");
}

#[tokio::test]
async fn the_description_served_is_the_one_that_is_kept() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let text = openapi_json();
    if std::env::var_os("BHATTI_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/openapi.json is out of date; BHATTI_BLESS=1 cargo test -p bhatti-server writes it anew"
    );
    let described: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(described["openapi"].as_str().unwrap().starts_with("3.1"));
    let (_dir, router) = unix().await;
    assert_eq!(json(answer(&router, request(Method::GET, "/openapi.json", "")).await).await, described);
}

#[tokio::test]
async fn a_new_data_directory_is_clean_and_has_nothing_to_collect() {
    let (_dir, router) = unix().await;
    let post = |path: &str, body: &str| request(Method::POST, path, body.to_owned());
    let report = json(answer(&router, post("/fsck", "")).await).await;
    assert_eq!(
        (&report["clean"], &report["complete"], &report["findings"]),
        (&true.into(), &true.into(), &serde_json::json!([])),
        "{report}"
    );
    let gone = json(answer(&router, post("/gc", r#"{"dry_run":true}"#)).await).await;
    assert_eq!((&gone["dry_run"], &gone["removed"]), (&true.into(), &serde_json::json!([])), "{gone}");
    refused(&router, post("/fsck", r#"{"fix":true}"#), 400, "bad_request").await;
    refused(&router, post("/gc", r#"{"dry_run":1}"#), 400, "bad_request").await;
    refused(&router, request(Method::GET, "/gc", ""), 405, "method_not_allowed").await;

    // As lines the report is the last one.
    let mut lines = post("/fsck", r#"{"repair":true}"#);
    lines.headers_mut().insert(header::ACCEPT, "application/x-ndjson".parse().unwrap());
    let bytes = answer(&router, lines).await.into_body().collect().await.unwrap().to_bytes();
    let last = bytes.split(|&byte| byte == b'\n').rfind(|line| !line.is_empty()).unwrap();
    let last: serde_json::Value = serde_json::from_slice(last).unwrap();
    assert_eq!(last["report"]["clean"], true, "{last}");
}

#[tokio::test]
async fn volumes_are_made_listed_grown_cloned_and_deleted_without_a_guest() {
    let (_dir, router) = unix().await;
    let post = |path: &str, body: &str| request(Method::POST, path, body.to_owned());
    let made = answer(&router, post("/volumes", r#"{"name":"data","size_mb":16}"#)).await;
    assert_eq!(made.status(), StatusCode::CREATED);
    let made = json(made).await;
    assert_eq!((&made["changed"], &made["size_mb"]), (&true.into(), &16.into()), "{made}");
    assert!(made["allocated_bytes"].as_u64().unwrap() < 4 << 20, "{made}");
    let again = answer(&router, post("/volumes", r#"{"name":"data","size_mb":16}"#)).await;
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(json(again).await["changed"], false);
    let message =
        refused(&router, post("/volumes", r#"{"name":"data","size_mb":32}"#), 409, "conflict").await;
    assert!(message.contains("data") && message.contains("16 MiB"), "{message}");

    let grown = answer(&router, post("/volumes/data/resize", r#"{"size_mb":24}"#)).await;
    assert_eq!(json(grown).await["size_mb"], 24);
    refused(&router, post("/volumes/data/resize", r#"{"size_mb":23}"#), 400, "bad_request").await;
    let clone = answer(&router, post("/volumes/data/clone", r#"{"name":"copy"}"#)).await;
    assert_eq!(clone.status(), StatusCode::CREATED);
    let clone = json(clone).await;
    assert!(clone["clone"].is_string() && clone["stall_ms"].is_null(), "{clone}");
    refused(&router, post("/volumes/data/clone", r#"{"name":"copy"}"#), 409, "conflict").await;
    refused(&router, post("/volumes/data/clone", r#"{"name":"data"}"#), 409, "conflict").await;
    let list = json(answer(&router, request(Method::GET, "/volumes", "")).await).await;
    let names: Vec<_> = list.as_array().unwrap().iter().map(|volume| volume["name"].clone()).collect();
    assert_eq!(names, ["copy", "data"]);
    assert_eq!(list[1]["attached_to"], serde_json::json!([]));
    let gone = answer(&router, request(Method::DELETE, "/volumes/copy", "")).await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    refused(&router, request(Method::GET, "/volumes/copy", ""), 404, "not_found").await;
}

#[tokio::test]
async fn orders_for_volumes_that_make_no_sense_are_refused_before_anything_is_made() {
    let (_dir, router) = unix().await;
    let post = |path: &str, body: &str| request(Method::POST, path, body.to_owned());
    for body in [
        r#"{"name":"data","size_mb":0}"#,
        r#"{"name":"data","size_mb":7}"#,
        r#"{"name":"data","size_mb":-5}"#,
        r#"{"name":"data","size_mb":18446744073709551615}"#,
        r#"{"name":"data","size_mb":16000000}"#,
        r#"{"name":"data"}"#,
        r#"{"name":"../data","size_mb":16}"#,
        r#"{"name":"Data","size_mb":16}"#,
        r#"{"name":"","size_mb":16}"#,
        r#"{"name":"data","size_mb":16,"colour":"red"}"#,
    ] {
        refused(&router, post("/volumes", body), 400, "bad_request").await;
    }
    assert_eq!(
        json(answer(&router, request(Method::GET, "/volumes", "")).await).await,
        serde_json::json!([])
    );
    for (method, path, body) in [
        (Method::GET, "/volumes/nope", ""),
        (Method::DELETE, "/volumes/nope", ""),
        (Method::POST, "/volumes/nope/resize", r#"{"size_mb":16}"#),
        (Method::POST, "/volumes/nope/clone", r#"{"name":"copy"}"#),
    ] {
        let message = refused(&router, request(method, path, body), 404, "not_found").await;
        assert!(message.contains("nope"), "{path}: {message}");
    }
    assert_eq!(
        answer(&router, post("/volumes", r#"{"name":"data","size_mb":16}"#)).await.status(),
        StatusCode::CREATED
    );
    for mount in ["data", "", "/", "/proc/x", "/etc", "/a/../../etc", "/usr/bin", "/var", "/run/x"] {
        let body = serde_json::json!({ "sandbox": "nope", "mount": mount }).to_string();
        refused(&router, post("/volumes/data/attach", &body), 400, "bad_request").await;
        let body = serde_json::json!({ "volumes": [{ "name": "data", "mount": mount }] }).to_string();
        refused(&router, post("/sandboxes", &body), 400, "bad_request").await;
    }
    let five: Vec<_> = (0..5)
        .map(|number| serde_json::json!({ "name": format!("v{number}"), "mount": format!("/v{number}") }))
        .collect();
    let message = refused(
        &router,
        post("/sandboxes", &serde_json::json!({ "volumes": five }).to_string()),
        400,
        "bad_request",
    )
    .await;
    assert!(message.contains("more than a sandbox can have"), "{message}");
    for (first, second) in [("/a", "/a"), ("/a", "/a/b"), ("/a/b", "/a")] {
        let volumes = serde_json::json!([{ "name": "v", "mount": first }, { "name": "w", "mount": second }]);
        let body = serde_json::json!({ "volumes": volumes }).to_string();
        let message = refused(&router, post("/sandboxes", &body), 400, "bad_request").await;
        assert!(message.contains("cover each other"), "{message}");
    }
    let attach = post("/volumes/data/attach", r#"{"sandbox":"nope","mount":"/data"}"#);
    let message = refused(&router, attach, 404, "not_found").await;
    assert!(message.contains("nope"), "{message}");
    let detach = post("/volumes/data/detach", r#"{"sandbox":"nope"}"#);
    refused(&router, detach, 404, "not_found").await;
}

#[tokio::test]
async fn secrets_are_set_listed_and_deleted_and_their_values_never_told() {
    let (_dir, router) = unix().await;
    let set =
        |value: &str| request(Method::POST, "/secrets", format!(r#"{{"name":"KEY","value":"{value}"}}"#));
    let made = answer(&router, set("marker-1")).await;
    assert_eq!(made.status(), StatusCode::CREATED);
    let made = json(made).await;
    let again = answer(&router, set("marker-2")).await;
    assert_eq!(again.status(), StatusCode::OK);
    let listed = json(answer(&router, request(Method::GET, "/secrets", "")).await).await;
    assert_eq!(listed[0], json(again).await);
    assert_eq!((&listed[0]["name"], &listed[0]["created_at"]), (&"KEY".into(), &made["created_at"]));
    let events = answer(&router, request(Method::GET, "/events?since=0&follow=false", "")).await;
    let events = String::from_utf8(events.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(events.contains("secret.set") && !events.contains("marker"), "{events}");
    assert!(!listed.to_string().contains("marker") && !made.to_string().contains("marker"));
    refused(&router, request(Method::POST, "/secrets", r#"{"name":"9","value":""}"#), 400, "bad_request")
        .await;
    refused(
        &router,
        request(Method::POST, "/secrets", r#"{"name":"N","value":"\u0000"}"#),
        400,
        "bad_request",
    )
    .await;
    refused(&router, request(Method::DELETE, "/secrets/NO", ""), 404, "not_found").await;
    let gone = answer(&router, request(Method::DELETE, "/secrets/KEY", "")).await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        json(answer(&router, request(Method::GET, "/secrets", "")).await).await,
        serde_json::json!([])
    );
}
