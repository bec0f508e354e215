//! The file of a Unix socket: its mode, the protection of a server in use, and its removal.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails or is skipped"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use common::TIMEOUT;
use common::process::{
    TestProcess, block_process_starts, child_role, in_own_process, read_stdin_line,
};
use common::running::{Running, echo, echo_datagram};
use socketserver::{
    BindError, ThreadingUnixStreamServer, UnixAddress, UnixDatagramServer, UnixStreamServer,
};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn mode_is_private_by_default() {
    in_own_process("mode_is_private_by_default", || {
        // The umask belongs to the whole process.
        for umask in [0o022, 0o000, 0o077] {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
            let dir = tempfile::tempdir().unwrap();
            let (a, b) = (dir.path().join("a"), dir.path().join("b"));
            let _stream = UnixStreamServer::bind(&a, echo()).unwrap();
            let _packets = UnixDatagramServer::bind(&b, echo_datagram()).unwrap();
            assert_eq!((mode(&a), mode(&b)), (0o600, 0o600), "umask {umask:o}");

            let (c, d) = (dir.path().join("c"), dir.path().join("d"));
            let _stream = UnixStreamServer::builder()
                .mode(0o666)
                .bind(&c, echo())
                .unwrap();
            let packets = UnixDatagramServer::builder().mode(0o620);
            let _packets = packets.bind(&d, echo_datagram()).unwrap();
            assert_eq!((mode(&c), mode(&d)), (0o666, 0o620), "umask {umask:o}");
        }
    });
}

#[test]
fn stale_file_is_replaced() {
    let _no_starts = block_process_starts();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    let running = Running::start(ThreadingUnixStreamServer::bind(&path, echo()).unwrap());
    assert_eq!(running.client().ask("hello"), "hello");
    assert_eq!(mode(&path), 0o600);
    drop(running);
    assert!(!path.exists());

    drop(UnixDatagram::bind(&path).unwrap());
    let server = UnixDatagramServer::bind(&path, echo_datagram()).unwrap();
    assert_eq!(server.local_addr().as_path(), Some(&*path));
    drop(server);
    assert!(!path.exists());
}

#[test]
fn socket_in_use_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (stream, packet) = (dir.path().join("stream"), dir.path().join("packet"));
    let listener = UnixListener::bind(&stream).unwrap();
    let receiver = UnixDatagram::bind(&packet).unwrap();
    for path in [&stream, &packet] {
        let inode = fs::symlink_metadata(path).unwrap().ino();
        let as_stream = UnixStreamServer::bind(path, echo()).unwrap_err();
        assert!(
            matches!(as_stream, BindError::AddressInUse { .. }),
            "{as_stream}"
        );
        let as_packets = UnixDatagramServer::bind(path, echo_datagram()).unwrap_err();
        assert!(
            matches!(as_packets, BindError::AddressInUse { .. }),
            "{as_packets}"
        );
        assert_eq!(fs::symlink_metadata(path).unwrap().ino(), inode);
    }
    // Both still work.
    let _client = UnixStream::connect(&stream).unwrap();
    receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"x", &packet)
        .unwrap();
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
    drop(listener);
}

/// A full backlog rejects the probe as well, with another error.
#[test]
fn socket_with_a_full_backlog_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("busy");
    let server = UnixStreamServer::builder()
        .backlog(0)
        .bind(&path, echo())
        .unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let error = UnixStreamServer::bind(&path, echo()).unwrap_err();
    assert!(matches!(error, BindError::AddressInUse { .. }), "{error}");
    drop(server);
}

#[test]
fn file_that_is_not_a_socket_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "content").unwrap();
    let (directory, link) = (dir.path().join("directory"), dir.path().join("link"));
    fs::create_dir(&directory).unwrap();
    symlink(dir.path().join("nowhere"), &link).unwrap();
    for path in [&file, &directory, &link] {
        let error = UnixStreamServer::bind(path, echo()).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert!(!fs::symlink_metadata(path).unwrap().file_type().is_socket());
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "content");
}

#[test]
fn file_that_replaced_the_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = UnixStreamServer::bind(&path, echo()).unwrap();
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    let _client = UnixStream::connect(&path).unwrap();
    drop(other);

    let path = dir.path().join("moved");
    let server = UnixDatagramServer::bind(&path, echo_datagram()).unwrap();
    fs::remove_file(&path).unwrap();
    File::create(&path).unwrap();
    drop(server);
    assert!(path.is_file());
}

#[test]
fn relative_path_is_removed_after_a_change_of_directory() {
    in_own_process(
        "relative_path_is_removed_after_a_change_of_directory",
        || {
            let dir = tempfile::tempdir().unwrap();
            std::env::set_current_dir(dir.path()).unwrap();
            let server = UnixStreamServer::bind("socket", echo()).unwrap();
            assert!(dir.path().join("socket").exists());
            std::env::set_current_dir("/").unwrap();
            drop(server);
            assert!(!dir.path().join("socket").exists());
        },
    );
}

#[test]
fn one_of_several_processes_replaces_a_stale_file() {
    const NAME: &str = "one_of_several_processes_replaces_a_stale_file";
    if let Some(path) = child_role() {
        println!("ready");
        while read_stdin_line() == "bind" {
            let server = UnixStreamServer::bind(&*path, echo());
            let outcome = match &server {
                Ok(_) => "won".into(),
                Err(BindError::AddressInUse { .. }) => "lost".into(),
                Err(other) => format!("{other}"),
            };
            println!("outcome {outcome}");
            // The winner keeps the socket until all have tried.
            read_stdin_line();
            drop(server);
            println!("gone");
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let start = |_| TestProcess::start(NAME, path.to_str().unwrap());
    let mut processes: Vec<_> = (0..4).map(start).collect();
    processes
        .iter_mut()
        .for_each(|process| drop(process.expect_line("ready")));
    let _no_starts = block_process_starts();
    for round in 0..10 {
        drop(UnixListener::bind(&path).unwrap());
        processes
            .iter_mut()
            .for_each(|process| process.send_line("bind"));
        let outcomes: Vec<_> = processes
            .iter_mut()
            .map(|process| process.expect_line("outcome "))
            .collect();
        let won = outcomes.iter().filter(|outcome| *outcome == "won").count();
        let lost = outcomes.iter().filter(|outcome| *outcome == "lost").count();
        assert_eq!((won, lost), (1, 3), "round {round}: {outcomes:?}");
        let _client = UnixStream::connect(&path).unwrap();
        processes
            .iter_mut()
            .for_each(|process| process.send_line("leave"));
        processes
            .iter_mut()
            .for_each(|process| drop(process.expect_line("gone")));
        assert!(!path.exists());
    }
    for process in processes {
        process.assert_passed();
    }
}

#[test]
fn abstract_name_needs_no_file() {
    let _no_starts = block_process_starts();
    let name = format!("@socketserver-abstract-{}", std::process::id());
    let server = UnixStreamServer::bind(&*name, echo()).unwrap();
    assert_eq!(server.local_addr().to_string(), name);
    assert!(server.local_addr().as_path().is_none() && !Path::new(&name).exists());
    let error = UnixStreamServer::bind(&*name, echo()).unwrap_err();
    assert!(matches!(error, BindError::AddressInUse { .. }), "{error}");

    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..]).unwrap();
    let client = UnixStream::connect_addr(&address).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut server = server;
    client.shutdown(std::net::Shutdown::Write).unwrap();
    server.handle_request(Some(TIMEOUT)).unwrap();
    drop(server);
    assert!(UnixStream::connect_addr(&address).is_err());
    UnixStreamServer::bind(&*name, echo()).unwrap();
}

#[test]
fn invalid_paths_are_rejected() {
    let long = format!("/tmp/{}", "x".repeat(200));
    for path in ["", "@", "a\0b", &*long] {
        let error = UnixStreamServer::bind(path, echo()).unwrap_err();
        assert!(
            matches!(error, BindError::BadAddress { .. }),
            "{path:?}: {error}"
        );
    }
    let missing = UnixStreamServer::bind("/no/such/directory/socket", echo()).unwrap_err();
    assert!(
        missing.to_string().contains("/no/such/directory"),
        "{missing}"
    );
}

#[test]
fn longest_path_works() {
    let dir = tempfile::tempdir().unwrap();
    let longest = 107 - dir.path().as_os_str().len() - 1;
    let path = dir.path().join("x".repeat(longest));
    let running = Running::start(ThreadingUnixStreamServer::bind(&path, echo()).unwrap());
    assert_eq!(running.client().ask("hello"), "hello");
    let too_long = dir.path().join("x".repeat(longest + 1));
    let error = UnixStreamServer::bind(too_long, echo()).unwrap_err();
    assert!(matches!(error, BindError::BadAddress { .. }), "{error}");
    assert!(matches!(UnixAddress::parse(&path), UnixAddress::Path(_)));
    running.handle.drain(Duration::from_secs(5));
    running.wait_until_stopped().unwrap();
    assert!(!path.exists());
}

/// Returns the error of `bind` for a user without rights. Only the thread becomes that user.
fn bind_error_as_nobody(path: &Path) -> String {
    let bind = || {
        rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65534)).unwrap();
        UnixStreamServer::bind(path, echo())
            .unwrap_err()
            .to_string()
    };
    std::thread::scope(|scope| scope.spawn(bind).join().unwrap())
}

#[test]
fn stale_socket_of_another_user_is_reported() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: only root can create a socket of another user");
    }
    // A user who may neither connect to the socket nor remove it.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let path = dir.path().join("stale");
    drop(UnixListener::bind(&path).unwrap());
    std::os::unix::fs::chown(&path, Some(1001), None).unwrap();
    for (mode, state) in [(0o600, "may not connect"), (0o666, "may not remove it")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = bind_error_as_nobody(&path);
        assert!(error.contains("user with the number 1001"), "{error}");
        assert!(error.contains(state), "{error}");
        assert!(!error.contains("port"), "{error}");
        assert!(path.exists());
    }
}

#[test]
fn error_about_a_path_does_not_mention_ports() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = UnixStreamServer::bind(&path, echo())
        .unwrap_err()
        .to_string();
    assert!(error.contains("choose another path"), "{error}");
    assert!(!error.contains("port"), "{error}");
    let name = format!("@socketserver-{}-in-use", std::process::id());
    let _first = UnixStreamServer::bind(&name, echo()).unwrap();
    let error = UnixStreamServer::bind(&name, echo())
        .unwrap_err()
        .to_string();
    assert!(!error.contains("port"), "{error}");
}

#[test]
fn owner_of_the_file_is_set() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: only root can change the owner of a file");
    }
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let _stream = UnixStreamServer::builder()
        .owner(Some(1001), Some(1002))
        .mode(0o660)
        .bind(&a, echo())
        .unwrap();
    let _packets = UnixDatagramServer::builder()
        .owner(None, Some(1002))
        .bind(&b, echo_datagram())
        .unwrap();
    let owner = |path: &Path| {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o777)
    };
    assert_eq!(owner(&a), (1001, 1002, 0o660));
    assert_eq!(owner(&b), (0, 1002, 0o600));
}

/// The directory of the path may have changed when the file is removed.
#[test]
fn file_of_the_same_name_in_another_directory_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (link, first, second) = (
        dir.path().join("link"),
        dir.path().join("first"),
        dir.path().join("second"),
    );
    fs::create_dir(&first).unwrap();
    fs::create_dir(&second).unwrap();
    symlink(&first, &link).unwrap();
    let server = UnixStreamServer::bind(link.join("socket"), echo()).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(&second, &link).unwrap();
    fs::hard_link(first.join("socket"), second.join("socket")).unwrap();
    drop(server);
    assert!(!first.join("socket").exists());
    assert!(second.join("socket").exists());
}
