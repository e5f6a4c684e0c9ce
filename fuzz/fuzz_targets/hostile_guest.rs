//! What a guest may send, against the host's whole side of the channel: a verb of each kind is under way, and however it
//! is answered, all end when the guest is gone.
#![no_main]

use guest::{AttachOptions, Guest};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::{Duration, Instant};
use wire::{Decoder, Exec, FileList, FileRead, Frame, Message, PROTOCOL, Scanner, WELCOME_MAGIC, Welcome};

/// Reads the greeting, welcomes the host, says what it was given, and leaves.
async fn lie(mut io: DuplexStream, said: &[u8]) {
    let (mut scanner, mut decoder, mut found) = (Scanner::for_attach(), Decoder::new(), false);
    let mut buffer = vec![0; 64 << 10];
    let nonce = loop {
        let len = io.read(&mut buffer).await.expect("a greeting");
        if found {
            decoder.push(&buffer[..len]);
        } else if let Some(rest) = scanner.push(&buffer[..len]) {
            found = true;
            decoder.push(rest);
        }
        if let Some(Frame { message: Message::Attach(attach), .. }) = decoder.next().expect("the host's frames") {
            break attach.nonce;
        }
    };
    let welcome = Welcome {
        protocol: PROTOCOL,
        agent_version: "0".to_owned(),
        boot_nonce: wire::Hex([9; 16]),
        configured: true,
        sandbox_id: None,
        warnings: Vec::new(),
        unmounted: Vec::new(),
        secrets: false,
    };
    let mut bytes = WELCOME_MAGIC.to_vec();
    bytes.extend_from_slice(&nonce.0);
    wire::encode(0, &Message::Welcome(Box::new(welcome)), &mut bytes).expect("a welcome");
    io.write_all(&bytes).await.expect("the host reads");
    // So that the answers meet questions.
    let _asked = io.read(&mut buffer).await;
    let _cut_off = io.write_all(said).await;
}

async fn ask(io: DuplexStream) {
    let options = AttachOptions::plain(Instant::now() + Duration::from_secs(60));
    let (guest, _) = Guest::attach(io, options).await.expect("a welcome");
    let command = async {
        let asked = Exec { argv: vec!["true".to_owned()], stdin: true, ..Exec::default() };
        let Ok(mut stream) = guest.exec(asked).await else { return };
        while stream.next().await.is_some() {}
    };
    let read = async {
        let asked = FileRead { path: "/f".to_owned(), ..FileRead::default() };
        let Ok(mut reader) = guest.file_read(asked).await else { return };
        while let Ok(Some(_)) = reader.next().await {}
    };
    let list = async { drop(guest.file_list(FileList { path: "/".to_owned(), ..FileList::default() }).await) };
    let connect = async { drop(guest.connect(80).await) };
    let small = async {
        let _told = (guest.info().await, guest.ports().await, guest.sessions().await, guest.sync().await);
    };
    let all = async { tokio::join!(command, read, list, connect, small) };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("every verb ends with its guest");
    guest.closed().await;
}

fuzz_target!(|said: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let (host, there) = tokio::io::duplex(64 << 10);
    runtime.block_on(async { tokio::join!(ask(host), lie(there, said)) });
});
