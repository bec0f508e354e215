//! What goes with processes: a daemon binds, so as to fail where somebody sees it, and then forks and
//! serves in the child; and what a forking server's children inherit, and what they do not. In a
//! program with a main function of its own, as only a process with one thread should fork.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unsafe_code,
    reason = "it forks, and says why it fails"
)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::client::{Client, Endpoint};
use common::{PATIENCE, eventually};
use rustix::process::{Pid, WaitOptions, waitpid};
use socketserver::{
    Concurrency, Connection, Forking, ForkingUnixStreamServer, Sequential, Server, Threading,
    Watched, handler_fn,
};

fn main() {
    served_by_a_fork(Sequential);
    served_by_a_fork(Threading::new());
    served_by_a_fork(Forking::new());
    #[cfg(feature = "green")]
    served_by_a_fork(socketserver::Green::new());
    what_a_watch_owns_is_the_parents();
    a_child_is_cut_whatever_its_parent_blocks();
    println!("daemon: ok");
}

/// Connects, perhaps before anybody serves, and sends a byte.
fn knock(path: &Path) -> Client {
    let mut client = Client::connect(&Endpoint::Unix(path.to_owned())).unwrap();
    client.send(b"x").unwrap();
    client
}

fn what_a_watch_owns_is_the_parents() {
    /// Leaves a mark when it is dropped.
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
    let client = knock(&path);
    server.handle_request(Some(PATIENCE)).unwrap();
    // The end of input is the end of the child.
    client.rest().unwrap();
    assert!(
        !mark.exists(),
        "a child has dropped what the parent still needs"
    );
    drop(server);
    assert!(mark.exists());
}

fn a_child_is_cut_whatever_its_parent_blocks() {
    // As for a descriptor that signals are read from.
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by the call, which cannot fail for a valid pointer.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: the set was initialised; a null pointer says that the old mask is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let handler = handler_fn(|conn: &mut Connection| {
        conn.write_all(b"y")?;
        std::thread::sleep(2 * PATIENCE);
        Ok(())
    });
    let mut server = ForkingUnixStreamServer::bind(&path, handler).unwrap();
    let mut client = knock(&path);
    server.handle_request(Some(PATIENCE)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
    server.handle().drain(Duration::from_millis(50));
    server.serve_forever().unwrap();
    let report = server.handle().drain_report().unwrap();
    assert_eq!((report.cancelled, report.abandoned), (1, 0), "{report:?}");
    // It took the first signal, and not the one that nothing can block, a second later.
    assert_eq!(server.handle().counters().killed, 1);
    assert!(report.elapsed < Duration::from_millis(900), "{report:?}");
}

fn served_by_a_fork<C: Concurrency>(model: C) {
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
            handle.drain(PATIENCE);
            Ok(Watched::Done)
        });
        let served = server.serve_forever().is_ok();
        drop(server);
        // SAFETY: it ends this process, and runs nothing that the parent has registered.
        unsafe { libc::_exit(i32::from(!served)) };
    }
    drop(stopped);
    let daemon = Pid::from_raw(pid).unwrap();
    // What is ours of the server must not take anything from the one who serves.
    let mut client = knock(&path);
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
    drop(client);

    drop(stop);
    let mut ended = None;
    eventually(PATIENCE, &format!("the {} daemon to stop", C::NAME), || {
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
