//! Descriptors that a peer sends along with its bytes over a Unix stream (`SCM_RIGHTS`): the bytes are
//! served, and the descriptors are dropped.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use common::TIMEOUT;
use common::running::Running;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use socketserver::transport::UnixStream as Unix;
use socketserver::{Concurrency, Connection, Server, handler_fn};

fn send_with(stream: impl AsFd, bytes: &[u8], fd: BorrowedFd<'_>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes_of = [IoSlice::new(bytes)];
    let sent = sendmsg(stream, &bytes_of, &mut control, SendFlags::empty());
    assert_eq!(sent, Ok(bytes.len()));
}

/// Echoes what comes, with room for more than that. A byte `!` has the handler itself send for
/// another client, whose own handler waits meanwhile: under coroutines of one worker, that one meets
/// all at once.
fn all_bytes_are_served_and_no_descriptor_is_kept<C: Concurrency>(model: C) {
    let other: Arc<Mutex<Option<UnixStream>>> = Arc::default();
    let theirs = other.clone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (mut read_end, write_end) = std::io::pipe().unwrap();
    let write_end = Mutex::new(Some(write_end));
    let server = Server::<Unix, C>::builder()
        .concurrency(model)
        .bind(
            &path,
            handler_fn(move |conn: &mut Connection| {
                let mut buf = [0; 8];
                let mut all = Vec::new();
                loop {
                    let n = conn.read(&mut buf)?;
                    all.extend_from_slice(&buf[..n]);
                    if n == 0 {
                        return Ok(());
                    }
                    if buf[..n] == *b"!" {
                        let other = theirs.lock().unwrap();
                        let mut other = other.as_ref().unwrap();
                        let write_end = write_end.lock().unwrap().take().unwrap();
                        send_with(other, b"a", write_end.as_fd());
                        other.write_all(b"b").unwrap();
                    }
                    // An answer to the first of the two would have the client read, which is reported too.
                    if all != b"a" {
                        conn.write_all(&all)?;
                        all.clear();
                    }
                }
            }),
        )
        .unwrap();
    let _running = Running::start(server);
    let connect = || {
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client
    };
    let (mut client, mut second) = (connect(), connect());
    *other.lock().unwrap() = Some(client.try_clone().unwrap());
    let mut byte = [0];
    client.write_all(b"0").unwrap();
    client.read_exact(&mut byte).unwrap();
    second.write_all(b"!").unwrap();
    let mut both = [0; 2];
    client.read_exact(&mut both).unwrap();
    assert_eq!(both, *b"ab");
    // While the connection is open: whatever holds the other end of the pipe would keep it from its end.
    let patience = Timespec::try_from(TIMEOUT).unwrap();
    let mut fds = [PollFd::new(&read_end, PollFlags::IN)];
    assert_eq!(
        poll(&mut fds, Some(&patience)),
        Ok(1),
        "the descriptor is kept"
    );
    assert_eq!(read_end.read(&mut byte).unwrap(), 0);
}

mod threading {
    #[test]
    fn all_bytes_are_served_and_no_descriptor_is_kept() {
        super::all_bytes_are_served_and_no_descriptor_is_kept(socketserver::Threading::new());
    }
}

mod pooled {
    #[test]
    fn all_bytes_are_served_and_no_descriptor_is_kept() {
        super::all_bytes_are_served_and_no_descriptor_is_kept(socketserver::Pooled::new());
    }
}

#[cfg(feature = "green")]
mod green {
    #[test]
    fn all_bytes_are_served_and_no_descriptor_is_kept() {
        let one = socketserver::Green::new().workers(1);
        super::all_bytes_are_served_and_no_descriptor_is_kept(one);
    }
}
