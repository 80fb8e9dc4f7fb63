//! HTTP/2 floods by hand: each is bounded, ends in a closed connection, and disturbs nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::smuggling::h2_by_hand::frame;
use crate::support::*;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

/// Writes what `more` makes until the gateway closes the connection, or too much was taken; the reason of its GOAWAY.
async fn flood(w: &World, limit: usize, mut more: impl FnMut(&mut Vec<u8>)) -> Option<u32> {
    let s = TcpStream::connect(w.address()).await.unwrap();
    let (mut reader, mut writer) = s.into_split();
    let reads = tokio::spawn(async move {
        let mut reason = None;
        loop {
            let mut head = [0; 9];
            if reader.read_exact(&mut head).await.is_err() {
                return reason;
            }
            let n = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; n];
            if reader.read_exact(&mut payload).await.is_err() {
                return reason;
            }
            if head[3] == GOAWAY {
                reason = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
    });
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, SETTINGS, 0, 0, &[]);
    let mut written = 0;
    loop {
        more(&mut out);
        let wrote = tokio::time::timeout(Duration::from_secs(10), writer.write_all(&out)).await;
        if !matches!(wrote, Ok(Ok(()))) || reads.is_finished() {
            break;
        }
        written += out.len();
        assert!(written < limit, "{written} bytes were taken and the connection is still open");
        out.clear();
    }
    let reason = tokio::time::timeout(Duration::from_secs(10), reads).await.expect("it is closed").unwrap();
    assert_eq!(w.get("/other").await.0, 200, "others are served");
    reason
}

fn head() -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http (RFC 7541 appendix A)
    for (name, value) in [(&b":path"[..], &b"/a"[..]), (b":authority", b"h")] {
        block.extend_from_slice(&[0, name.len() as u8]);
        block.extend_from_slice(name);
        block.push(value.len() as u8);
        block.extend_from_slice(value);
    }
    block
}

async fn world() -> (World, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let address = service(move |r| {
        if r.uri().path() != "/other" {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        async { answer(200, "ok") }
    })
    .await;
    (one(address, |_| {}).await, seen)
}

#[tokio::test]
async fn requests_that_are_reset_at_once_end_the_connection() {
    // CVE-2023-44487.
    let (w, seen) = world().await;
    let (block, mut stream) = (head(), 1);
    let reason = flood(&w, 64 << 20, |out| {
        for _ in 0..1000 {
            frame(out, HEADERS, 4, stream, &block);
            frame(out, RST_STREAM, 0, stream, &8u32.to_be_bytes());
            stream += 2;
        }
    })
    .await;
    // ENHANCE_YOUR_CALM, if it could still be told.
    assert!(matches!(reason, Some(11) | None), "{reason:?}");
    assert!(seen.load(Ordering::SeqCst) < 2_000, "{} requests reached the service", seen.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_head_that_never_ends_ends_the_connection() {
    // CONTINUATION flood (VU#421644): full frames, empty ones, and small ones.
    let (w, seen) = world().await;
    for field in [16_000usize, 100, 0] {
        let mut block = Vec::new();
        if field > 0 {
            block.extend_from_slice(&[0, 1, b'x']);
            // RFC 7541 5.1: a length of seven bits and more.
            let mut n = field;
            if n < 127 {
                block.push(n as u8);
            } else {
                block.push(127);
                n -= 127;
                while n >= 128 {
                    block.push((n % 128 + 128) as u8);
                    n /= 128;
                }
                block.push(n as u8);
            }
            block.extend(std::iter::repeat_n(b'a', field));
        }
        let mut begun = false;
        flood(&w, 64 << 20, |out| {
            if !std::mem::replace(&mut begun, true) {
                frame(out, HEADERS, 0, 1, &head());
            }
            for _ in 0..100 {
                frame(out, CONTINUATION, 0, 1, &block);
            }
        })
        .await;
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn settings_that_are_sent_without_reading_the_answers_are_bounded() {
    let (w, _) = world().await;
    // Answers to PING and SETTINGS that nobody reads: the gateway stops reading instead of holding them.
    let mut s = TcpStream::connect(w.address()).await.unwrap();
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for _ in 0..10_000 {
        frame(&mut out, SETTINGS, 0, 0, &[]);
        frame(&mut out, PING, 0, 0, b"weftweft");
    }
    let mut stuck = false;
    for _ in 0..200 {
        match tokio::time::timeout(Duration::from_millis(500), s.write_all(&out)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => {
                stuck = true;
                break;
            }
        }
    }
    assert!(stuck, "64 MiB of frames were taken while nobody read the answers");
    assert_eq!(w.get("/other").await.0, 200, "others are served");
}
