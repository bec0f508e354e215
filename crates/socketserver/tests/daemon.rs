//! Processes: a daemon binds, so that errors are reported to the terminal, and then forks and
//! serves in the child. Also: resources that the children of a forking server inherit. The program
//! has its own main function, because only a process with one thread should fork.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unsafe_code,
    reason = "the test forks, and prints why it fails"
)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::client::{Client, Endpoint};
use common::{TIMEOUT, eventually};
use rustix::process::{Pid, WaitOptions, waitpid};
use socketserver::{
    Concurrency, Connection, Forking, ForkingUnixStreamServer, Sequential, Server, Threading,
    Watched, handler_fn,
};

fn main() {
    forked_daemon_serves(Sequential);
    forked_daemon_serves(Threading::new());
    forked_daemon_serves(Forking::new());
    #[cfg(feature = "green")]
    forked_daemon_serves(socketserver::Green::new());
    watch_callback_is_dropped_by_the_parent_only();
    child_is_cancelled_although_its_parent_blocks_signals();
    println!("daemon: ok");
}

/// Connects, possibly before the server accepts, and sends a byte.
fn connect_and_send(path: &Path) -> Client {
    let mut client = Client::connect(&Endpoint::Unix(path.to_owned())).unwrap();
    client.send(b"x").unwrap();
    client
}

fn watch_callback_is_dropped_by_the_parent_only() {
    /// Creates a file when it is dropped.
    struct Mark(PathBuf);
    impl Drop for Mark {
        fn drop(&mut self) {
            std::fs::write(&self.0, "dropped").unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (path, mark) = (directory.path().join("s"), directory.path().join("mark"));
    let handler = handler_fn(|conn: &mut Connection| Ok(conn.write_all(b"y")?));
    let mut server = ForkingUnixStreamServer::bind(&path, handler).unwrap();
    let (_other, watched) = UnixStream::pair().unwrap();
    let owned = Mark(mark.clone());
    server.watch(watched, move || {
        let _ = &owned;
        Ok(())
    });
    let client = connect_and_send(&path);
    server.handle_request(Some(TIMEOUT)).unwrap();
    // The client reads the end of input when the child ends.
    client.read_rest().unwrap();
    assert!(
        !mark.exists(),
        "a child has dropped the callback of its parent"
    );
    drop(server);
    assert!(mark.exists());
}

fn child_is_cancelled_although_its_parent_blocks_signals() {
    // As an application does that reads signals from a descriptor.
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by the call, which cannot fail for a valid pointer.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: the set was initialised; a null pointer discards the old mask.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let handler = handler_fn(|conn: &mut Connection| {
        conn.write_all(b"y")?;
        std::thread::sleep(2 * TIMEOUT);
        Ok(())
    });
    let mut server = ForkingUnixStreamServer::bind(&path, handler).unwrap();
    let mut client = connect_and_send(&path);
    server.handle_request(Some(TIMEOUT)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
    server.handle().drain(Duration::from_millis(50));
    server.serve_forever().unwrap();
    let report = server.handle().drain_report().unwrap();
    assert_eq!((report.cancelled, report.abandoned), (1, 0), "{report:?}");
    // The child reacts to the first signal, and not to SIGKILL one second later.
    assert_eq!(server.handle().counters().killed, 1);
    assert!(report.elapsed < Duration::from_millis(900), "{report:?}");
}

fn forked_daemon_serves<C: Concurrency>(model: C) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let echo = handler_fn(|conn: &mut Connection| {
        let mut byte = [0];
        while conn.read(&mut byte)? > 0 {
            conn.write_all(&byte)?;
        }
        Ok(())
    });
    let builder = Server::<socketserver::transport::UnixStream, C>::builder();
    let mut server = builder.concurrency(model).bind(&path, echo).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();

    // SAFETY: this process has one thread, so the child is a complete copy of it.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(stop);
        let handle = server.handle();
        server.watch(stopped, move || {
            // The other end was closed.
            handle.drain(TIMEOUT);
            Ok(Watched::Done)
        });
        let served = server.serve_forever().is_ok();
        drop(server);
        // SAFETY: it ends this process, and runs nothing that the parent has registered.
        unsafe { libc::_exit(i32::from(!served)) };
    }
    drop(stopped);
    let daemon = Pid::from_raw(pid).unwrap();
    // The parent's copies of the server's descriptors must not take events from the child.
    let mut client = connect_and_send(&path);
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
    drop(client);

    drop(stop);
    let mut ended = None;
    eventually(TIMEOUT, &format!("the {} daemon to stop", C::NAME), || {
        ended = waitpid(Some(daemon), WaitOptions::NOHANG).unwrap();
        ended.is_some()
    });
    let (_, status) = ended.unwrap();
    assert_eq!(status.exit_status(), Some(0), "{}", C::NAME);
    assert!(
        path.symlink_metadata().is_err(),
        "{}: the file is gone",
        C::NAME
    );
}
