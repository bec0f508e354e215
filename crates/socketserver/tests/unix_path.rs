//! The file of a Unix socket: private, never stolen from a live server, and gone in the end.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use common::PATIENCE;
use common::process::{Companion, alone, errand, nobody_starts, told};
use common::running::{Running, echo, echo_datagram};
use socketserver::{
    BindError, ThreadingUnixStreamServer, UnixAddress, UnixDatagramServer, UnixStreamServer,
};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_mode_is_private_unless_told_otherwise() {
    alone("the_mode_is_private_unless_told_otherwise", || {
        // The umask is the whole process's.
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
fn a_stale_file_is_replaced() {
    let _quiet = nobody_starts();
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
fn a_live_socket_is_not_stolen() {
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
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"x", &packet)
        .unwrap();
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
    drop(listener);
}

/// A queue that is full refuses a probe as well, with another error.
#[test]
fn a_live_socket_that_is_busy_is_not_stolen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("busy");
    let server = UnixStreamServer::builder()
        .backlog(0)
        .bind(&path, echo())
        .unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let refused = UnixStreamServer::bind(&path, echo()).unwrap_err();
    assert!(
        matches!(refused, BindError::AddressInUse { .. }),
        "{refused}"
    );
    drop(server);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let (directory, link) = (dir.path().join("directory"), dir.path().join("link"));
    fs::create_dir(&directory).unwrap();
    symlink(dir.path().join("nowhere"), &link).unwrap();
    for path in [&file, &directory, &link] {
        let refused = UnixStreamServer::bind(path, echo()).unwrap_err();
        assert!(matches!(refused, BindError::NotASocket { .. }), "{refused}");
        assert!(!fs::symlink_metadata(path).unwrap().file_type().is_socket());
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn what_somebody_else_put_there_meanwhile_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = UnixStreamServer::bind(&path, echo()).unwrap();
    fs::remove_file(&path).unwrap();
    let theirs = UnixListener::bind(&path).unwrap();
    drop(server);
    let _client = UnixStream::connect(&path).unwrap();
    drop(theirs);

    let path = dir.path().join("moved");
    let server = UnixDatagramServer::bind(&path, echo_datagram()).unwrap();
    fs::remove_file(&path).unwrap();
    File::create(&path).unwrap();
    drop(server);
    assert!(path.is_file());
}

#[test]
fn a_relative_path_is_removed_from_wherever_the_process_is() {
    alone(
        "a_relative_path_is_removed_from_wherever_the_process_is",
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
fn of_several_that_find_a_stale_file_one_wins() {
    const NAME: &str = "of_several_that_find_a_stale_file_one_wins";
    if let Some(path) = errand() {
        println!("ready");
        while told() == "bind" {
            let server = UnixStreamServer::bind(&*path, echo());
            let outcome = match &server {
                Ok(_) => "won".into(),
                Err(BindError::AddressInUse { .. }) => "lost".into(),
                Err(other) => format!("{other}"),
            };
            println!("outcome {outcome}");
            // The winner keeps it until all have tried.
            told();
            drop(server);
            println!("gone");
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let start = |_| Companion::start(NAME, path.to_str().unwrap());
    let mut racers: Vec<_> = (0..4).map(start).collect();
    racers
        .iter_mut()
        .for_each(|racer| drop(racer.hears("ready")));
    let _quiet = nobody_starts();
    for round in 0..10 {
        drop(UnixListener::bind(&path).unwrap());
        racers.iter_mut().for_each(|racer| racer.tell("bind"));
        let outcomes: Vec<_> = racers
            .iter_mut()
            .map(|racer| racer.hears("outcome "))
            .collect();
        let won = outcomes.iter().filter(|outcome| *outcome == "won").count();
        let lost = outcomes.iter().filter(|outcome| *outcome == "lost").count();
        assert_eq!((won, lost), (1, 3), "round {round}: {outcomes:?}");
        let _client = UnixStream::connect(&path).unwrap();
        racers.iter_mut().for_each(|racer| racer.tell("leave"));
        racers
            .iter_mut()
            .for_each(|racer| drop(racer.hears("gone")));
        assert!(!path.exists());
    }
    for racer in racers {
        racer.passes();
    }
}

#[test]
fn an_abstract_name_needs_no_file() {
    let _quiet = nobody_starts();
    let name = format!("@socketserver-abstract-{}", std::process::id());
    let server = UnixStreamServer::bind(&*name, echo()).unwrap();
    assert_eq!(server.local_addr().to_string(), name);
    assert!(server.local_addr().as_path().is_none() && !Path::new(&name).exists());
    let refused = UnixStreamServer::bind(&*name, echo()).unwrap_err();
    assert!(
        matches!(refused, BindError::AddressInUse { .. }),
        "{refused}"
    );

    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..]).unwrap();
    let client = UnixStream::connect_addr(&address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut server = server;
    client.shutdown(std::net::Shutdown::Write).unwrap();
    server.handle_request(Some(PATIENCE)).unwrap();
    drop(server);
    assert!(UnixStream::connect_addr(&address).is_err());
    UnixStreamServer::bind(&*name, echo()).unwrap();
}

#[test]
fn bad_paths_are_refused_before_anything_is_made() {
    let long = format!("/tmp/{}", "x".repeat(200));
    for path in ["", "@", "a\0b", &*long] {
        let refused = UnixStreamServer::bind(path, echo()).unwrap_err();
        assert!(
            matches!(refused, BindError::BadAddress { .. }),
            "{path:?}: {refused}"
        );
    }
    let missing = UnixStreamServer::bind("/no/such/directory/socket", echo()).unwrap_err();
    assert!(
        missing.to_string().contains("/no/such/directory"),
        "{missing}"
    );
}

#[test]
fn the_longest_path_works() {
    let dir = tempfile::tempdir().unwrap();
    let longest = 107 - dir.path().as_os_str().len() - 1;
    let path = dir.path().join("x".repeat(longest));
    let running = Running::start(ThreadingUnixStreamServer::bind(&path, echo()).unwrap());
    assert_eq!(running.client().ask("hello"), "hello");
    let too_long = dir.path().join("x".repeat(longest + 1));
    let refused = UnixStreamServer::bind(too_long, echo()).unwrap_err();
    assert!(matches!(refused, BindError::BadAddress { .. }), "{refused}");
    assert!(matches!(UnixAddress::parse(&path), UnixAddress::Path(_)));
    running.handle.drain(Duration::from_secs(5));
    running.ends().unwrap();
    assert!(!path.exists());
}

/// What `bind` says to a user without rights; only the thread becomes that user.
fn refused_as_nobody(path: &Path) -> String {
    let bind = || {
        rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65534)).unwrap();
        UnixStreamServer::bind(path, echo())
            .unwrap_err()
            .to_string()
    };
    std::thread::scope(|scope| scope.spawn(bind).join().unwrap())
}

#[test]
fn a_stale_socket_of_another_user_is_called_so() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: only root can make a socket of another user");
    }
    // A user who may neither connect to the socket nor remove it.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let path = dir.path().join("stale");
    drop(UnixListener::bind(&path).unwrap());
    std::os::unix::fs::chown(&path, Some(1001), None).unwrap();
    for (mode, state) in [(0o600, "may not connect"), (0o666, "may not remove it")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let told = refused_as_nobody(&path);
        assert!(told.contains("user with the number 1001"), "{told}");
        assert!(told.contains(state), "{told}");
        assert!(!told.contains("port"), "{told}");
        assert!(path.exists());
    }
}

#[test]
fn an_error_about_a_path_does_not_speak_of_ports() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let refused = UnixStreamServer::bind(&path, echo())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("choose another path"), "{refused}");
    assert!(!refused.contains("port"), "{refused}");
    let name = format!("@socketserver-{}-in-use", std::process::id());
    let _first = UnixStreamServer::bind(&name, echo()).unwrap();
    let refused = UnixStreamServer::bind(&name, echo())
        .unwrap_err()
        .to_string();
    assert!(!refused.contains("port"), "{refused}");
}

#[test]
fn the_file_is_given_to_its_owner() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: only root can give a file away");
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

/// A directory may be another one by the time that the file is to be removed.
#[test]
fn a_file_of_the_same_name_elsewhere_stays() {
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
