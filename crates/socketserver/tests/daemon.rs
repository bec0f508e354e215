//! A daemon binds, so as to fail where somebody sees it, and then forks and serves in the child.
//! In a program with a main function of its own, as only a process with one thread should fork.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unsafe_code,
    reason = "it forks, and says why it fails"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};
use socketserver::{Concurrency, Connection, Forking, Sequential, Server, Threading, handler_fn};

const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    served_by_a_fork(Sequential);
    served_by_a_fork(Threading::new());
    served_by_a_fork(Forking::new());
    #[cfg(feature = "green")]
    served_by_a_fork(socketserver::Green::new());
    println!("daemon: ok");
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
    let builder = Server::<socketserver::transport::UnixStream, C, ()>::builder();
    let mut server = builder.concurrency(model).bind(&path, echo).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();

    // SAFETY: this process has one thread, so the child is a complete copy of it.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(stop);
        let controller = server.controller();
        server.watch(stopped, move || {
            // The other end was closed.
            controller.drain(PATIENCE);
            Err(socketserver::Error::msg("not to be called again"))
        });
        let served = server.serve_forever().is_ok();
        drop(server);
        // SAFETY: it ends this process, and runs nothing that the parent has registered.
        unsafe { libc::_exit(i32::from(!served)) };
    }
    drop(stopped);
    let daemon = Pid::from_raw(pid).unwrap();
    // What is ours of the server must not take anything from the one who serves.
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    drop(client);

    drop(stop);
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some((_, status)) = waitpid(Some(daemon), WaitOptions::NOHANG).unwrap() {
            break status;
        }
        assert!(
            Instant::now() < end,
            "{}: the daemon does not stop",
            C::NAME
        );
        std::thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(status.exit_status(), Some(0), "{}", C::NAME);
    assert!(
        path.symlink_metadata().is_err(),
        "{}: the file is gone",
        C::NAME
    );
}
