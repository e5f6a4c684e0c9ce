//! A way to a registry that lets so many bytes of answers through, and then breaks off or stands still.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// What happens when the bytes are used up.
#[derive(Clone, Copy)]
pub enum Then {
    BreaksOff,
    StandsStill,
}

pub struct Cut {
    pub address: String,
    left: Arc<AtomicI64>,
}

impl Cut {
    /// Lets `bytes` of answers through, then ends every connection.
    pub fn off(to: &str, bytes: i64) -> Self {
        Self::new(to, bytes, Then::BreaksOff)
    }

    /// Lets `bytes` of answers through, then nothing more.
    pub fn still(to: &str, bytes: i64) -> Self {
        Self::new(to, bytes, Then::StandsStill)
    }

    /// Everything may pass from now on.
    pub fn mend(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    fn new(to: &str, bytes: i64, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let left = Arc::new(AtomicI64::new(bytes));
        let (allowed, to) = (Arc::clone(&left), to.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&to) else { continue };
                let (mut up, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ended = std::io::copy(&mut up, &mut up_to);
                });
                let allowed = Arc::clone(&allowed);
                std::thread::spawn(move || answers(server, client, &allowed, then));
            }
        });
        Self { address, left }
    }
}

fn answers(mut from: TcpStream, mut to: TcpStream, left: &AtomicI64, then: Then) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        let length = i64::try_from(read).unwrap();
        if read == 0 {
            break;
        }
        if left.load(Ordering::SeqCst) != i64::MAX && left.fetch_sub(length, Ordering::SeqCst) < length {
            if let Then::StandsStill = then {
                // Until the other side has had enough of it.
                let _ended = to.read(&mut buffer);
                std::thread::park();
            }
            break;
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(std::net::Shutdown::Both);
    let _closed = from.shutdown(std::net::Shutdown::Both);
}
