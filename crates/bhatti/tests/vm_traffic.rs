//! Ports of real guests: what listens, the proxy, tunnels, and what is published.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const SERVICE: &[u8] = include_bytes!("guest/traffic.pl");

/// A host with a sandbox `web` in which the service listens on port 8000.
fn host_with_service(serve_args: &[&str]) -> TestHost {
    let host = TestHost::start_with(BHATTI, serve_args);
    host.ok(&["create", "--name", "web"]);
    let placed = host.run_with_input(&["file", "write", "web", "/tmp/service.pl"], SERVICE);
    assert_eq!(placed.code, 0, "{}", placed.stderr);
    host.ok(&["exec", "web", "--detach", "--", "perl", "/tmp/service.pl", "8000"]);
    let listens = "until : < /dev/tcp/127.0.0.1/8000; do sleep 0.05; done 2> /dev/null";
    host.ok(&["exec", "web", "--", "bash", "-c", listens]);
    host
}

fn address(url: &str) -> &str {
    url.strip_prefix("http://").unwrap()
}

/// Sends the head of a request and gives the connection.
fn send(at: &str, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.write_all(head.replace('\n', "\r\n").as_bytes()).unwrap();
    stream
}

/// Asks and reads the answer to its end.
fn ask(at: &str, head: &str) -> String {
    let mut answer = Vec::new();
    // An answer that breaks off is part of what is looked at.
    let _broken = send(at, head).read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A GET through the proxy, as text.
fn get(host: &TestHost, path: &str) -> String {
    let head = format!(
        "GET /sandboxes/web/proxy/{path} HTTP/1.1\nHost: localhost\nAuthorization: Bearer {}\nConnection: close\n\n",
        host.key()
    );
    ask(address(&host.daemon().url), &head)
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn get_alias(at: &str, alias: &str, path: &str) -> String {
    ask(at, &format!("GET {path} HTTP/1.1\nHost: {alias}.localhost\nConnection: close\n\n"))
}

#[test]
fn a_service_in_a_guest_is_seen_and_reached_by_proxy_and_tunnel() {
    let host = host_with_service(&[]);
    let ports = host.json(&["ports", "web"]);
    let listed = ports.as_array().unwrap().iter().find(|port| port["port"] == 8000).expect("it is listed");
    assert_eq!((listed["process"].as_str(), listed["address"].as_str()), (Some("perl"), Some("127.0.0.1")));

    // The proxy: what is sent goes on, what is the daemon's does not.
    let at = address(&host.daemon().url).to_owned();
    let answer = ask(
        &at,
        &format!(
            "POST /sandboxes/web/proxy/8000/a%2Fb?c=d HTTP/1.1\nHost: localhost\nAuthorization: Bearer {}\nX-Own: 1\n\
             Connection: close\nContent-Length: 5\n\nhello",
            host.key()
        ),
    );
    assert_eq!(status(&answer), "200", "{answer}");
    let seen = answer.to_lowercase();
    for part in [
        "post /a%2fb?c=d\n",
        "x-own: 1\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-proto: http\n",
        "x-forwarded-host: localhost\n",
        "x-forwarded-prefix: /sandboxes/web/proxy/8000\n",
        "x-service: yes",
        "hello",
    ] {
        assert!(seen.contains(part), "no {part:?} in {answer}");
    }
    assert!(!seen.contains("authorization") && !seen.contains(&host.key().to_lowercase()), "{answer}");

    // Refusals say what is wrong.
    let closed = get(&host, "8001/");
    assert_eq!(status(&closed), "502", "{closed}");
    assert!(closed.contains("not_listening") && closed.contains("bhatti ports"), "{closed}");
    assert_eq!(status(&get(&host, "8000/reset")), "502");
    assert_eq!(status(&get(&host, "0/")), "400");
    let nobody = ask(&at, "GET /sandboxes/web/proxy/8000/ HTTP/1.1\nHost: localhost\nConnection: close\n\n");
    assert_eq!(status(&nobody), "401");

    // A WebSocket, byte for byte.
    let mut socket = send(
        &at,
        &format!(
            "GET /sandboxes/web/proxy/8000/ws HTTP/1.1\nHost: localhost\nAuthorization: Bearer {}\nConnection: Upgrade\n\
             Upgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n",
            host.key()
        ),
    );
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    let frame = [0x81, 0x85, 1, 2, 3, 4, b'h' ^ 1, b'e' ^ 2, b'l' ^ 3, b'l' ^ 4, b'o' ^ 1];
    socket.write_all(&frame).unwrap();
    let mut echoed = [0; 11];
    reader.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, frame);
    socket.shutdown(Shutdown::Both).unwrap();

    // A tunnel: asleep when the connection comes, and each direction ends by itself.
    host.ok(&["stop", "web"]);
    let mut forward = host.command(&["forward", "web", "8000", "0"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let near = line.split(' ').nth(1).unwrap().to_owned();
    assert_eq!(host.json(&["inspect", "web"])["thermal"], "cold", "listening wakes nobody");
    let mut stream = send(&near, "GET /through HTTP/1.1\nHost: x\n\n");
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("GET /through"), "{answer}");
    forward.kill().unwrap();
    forward.wait().unwrap();
    host.refused(&["forward", "nosuch", "80"], 1, &["nosuch"]);
}

#[test]
fn events_come_one_by_one_and_a_hundred_requests_wake_a_sleeper_once() {
    let host = host_with_service(&[]);
    let at = address(&host.daemon().url).to_owned();
    let key = host.key();
    let mut stream = BufReader::new(send(
        &at,
        &format!(
            "GET /sandboxes/web/proxy/8000/sse/5 HTTP/1.1\nHost: localhost\nAuthorization: Bearer {key}\nConnection: close\n\n"
        ),
    ));
    let mut at_times = Vec::new();
    let mut line = String::new();
    while stream.read_line(&mut line).unwrap() > 0 {
        if line.starts_with("data: ") {
            at_times.push(Instant::now());
        }
        line.clear();
    }
    assert_eq!(at_times.len(), 5);
    let apart = at_times[4] - at_times[0];
    assert!(apart > Duration::from_secs(3), "each event as it happens, not all at the end: {apart:?}");

    host.ok(&["stop", "web"]);
    let generation = host.json(&["inspect", "web"])["generation"].as_u64().unwrap();
    let workers: Vec<_> = (0..100)
        .map(|_| {
            let (at, key) = (at.clone(), key.clone());
            std::thread::spawn(move || {
                ask(
                    &at,
                    &format!(
                        "GET /sandboxes/web/proxy/8000/x HTTP/1.1\nHost: localhost\nAuthorization: Bearer {key}\nConnection: close\n\n"
                    ),
                )
            })
        })
        .collect();
    for worker in workers {
        let answer = worker.join().unwrap();
        assert_eq!(status(&answer), "200", "{answer}");
    }
    assert_eq!(
        host.json(&["inspect", "web"])["generation"].as_u64().unwrap(),
        generation + 1,
        "one wake for all"
    );
    assert_eq!(host.vmm_pids().len(), 1);
}

#[test]
fn what_is_published_is_served_by_its_alias_until_it_is_taken_back() {
    let mut host = host_with_service(&["--publish-listen", "127.0.0.1:0", "--publish-wakes", "1"]);
    let site = |host: &TestHost| address(host.daemon().published.as_ref().unwrap()).to_owned();
    let made = host.json(&["publish", "web", "-p", "8000"]);
    let secret = made["alias"].as_str().unwrap().to_owned();
    assert_eq!(secret.len(), 32, "128 bits: {made}");
    assert!(made["url"].as_str().unwrap().starts_with(&format!("http://{secret}.localhost:")), "{made}");
    assert_eq!(
        host.json(&["publish", "web", "-p", "8000"])["alias"],
        secret.as_str(),
        "asked twice, published once"
    );
    host.ok(&["publish", "web", "-p", "8000", "-a", "blog"]);
    host.refused(&["publish", "web", "-p", "8001", "-a", "blog"], 1, &["taken"]);
    host.refused(&["publish", "web", "-p", "80", "-a", "www"], 1, &["reserved"]);
    host.refused(&["publish", "nosuch", "-p", "80"], 1, &["nosuch"]);
    let (code, body) = host.post("/sandboxes/web/publish", &json!({ "port": 0 }));
    assert_eq!((code, body["error"]["code"].as_str()), (400, Some("bad_request")));

    // By alias, with the application's own key; asleep or not.
    host.ok(&["stop", "web"]);
    let answer = ask(
        &site(&host),
        "GET /hi HTTP/1.1\nHost: blog.localhost\nAuthorization: Basic abc\nConnection: close\n\n",
    );
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(answer.contains("Basic abc") && answer.contains("GET /hi"), "{answer}");
    for unknown in ["nosuch", "www", ".."] {
        assert_eq!(status(&get_alias(&site(&host), unknown, "/")), "404", "{unknown}");
    }

    // A new daemon serves the same.
    host.end_daemon();
    host.start_daemon();
    assert_eq!(status(&get_alias(&site(&host), &secret, "/again")), "200");

    // Taken back: what is open is cut, what comes is refused; the other alias stays.
    let mut open = BufReader::new(send(&site(&host), "GET /hang HTTP/1.1\nHost: blog\n\n"));
    let mut line = String::new();
    while line != "begun\n" {
        line.clear();
        assert!(open.read_line(&mut line).unwrap() > 0);
    }
    host.ok(&["unpublish", "web", "-a", "blog"]);
    let mut rest = Vec::new();
    // Reset or ended: the answer is not complete either way.
    let _cut = open.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{} bytes came after it", rest.len());
    assert_eq!(status(&get_alias(&site(&host), "blog", "/")), "404");
    host.refused(&["unpublish", "web", "-a", "blog"], 1, &["nothing of the kind"]);
    assert_eq!(host.json(&["publish"]).as_array().map(Vec::len), Some(1));

    // Destroyed: at once, and for ever.
    host.ok(&["destroy", "web", "-y"]);
    assert_eq!(status(&get_alias(&site(&host), &secret, "/")), "404");
    assert_eq!(host.json(&["publish"]), Value::Array(vec![]));
    host.end_daemon();
    host.start_daemon();
    assert_eq!(host.json(&["publish"]), Value::Array(vec![]));
}
