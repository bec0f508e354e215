//! Property tests with random paths, as names and on a real file system.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::document_root::{Found, Rights, Root, Symlinks};
use super::http_path;
use super::random::{Rng, try_all};
use super::request_path::Target;

#[test]
fn twenty_thousand_paths() {
    try_all(&[("http_path", http_path::http_path)], 20_000);
}

#[test]
#[ignore = "takes ten seconds, in release: see CONTRIBUTING.md"]
fn a_million_paths() {
    try_all(&[("http_path", http_path::http_path)], 1_000_000);
}

/// Random combinations of names, `..`, links and escapes never open a file outside of the root.
#[test]
fn files_outside_of_the_root_are_not_opened() {
    const PARTS: [&str; 24] = [
        "..", "%2e%2e", ".%2E", ".", "", "a", "b", "file", "up", "far", "to_b", "absolute", "loop",
        "proc", "secret", "%2f", "..%2f", "%5c", "..\\", "%00", "...", "self", "root", "cwd",
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root");
    fs::create_dir_all(path.join("a/b")).unwrap();
    for secret in [dir.path().join("secret"), dir.path().join("file")] {
        fs::write(secret, "").unwrap();
    }
    for file in ["file", "a/file", "a/b/file"] {
        fs::write(path.join(file), "").unwrap();
    }
    for (link, to) in [
        ("up", Path::new("..")),
        ("a/up", Path::new("..")),
        ("a/b/far", Path::new("../../..")),
        ("to_b", Path::new("a/b")),
        ("absolute", dir.path()),
        ("loop", Path::new("loop")),
        ("proc", Path::new("/proc/self")),
    ] {
        symlink(to, path.join(link)).unwrap();
    }
    let root = Root::open(&path, Symlinks::Confined, Rights::Kept).unwrap();
    let real = path.canonicalize().unwrap();
    let mut dice = Rng::new(0x5eed);
    let mut found = 0;
    for _ in 0..20_000 {
        let mut request = String::new();
        for _ in 0..=dice.below(6) {
            request.push('/');
            request += PARTS[dice.below(PARTS.len())];
        }
        let Ok(target) = Target::of(&request) else {
            continue;
        };
        let opened = match root.visit().unwrap().find(&target.file()) {
            Ok(Found::File(file)) => whereabouts(file),
            Ok(Found::Directory(directory)) => whereabouts(directory),
            Ok(Found::Other) | Err(_) => continue,
        };
        assert!(opened.starts_with(&real), "{request}: {}", opened.display());
        found += 1;
    }
    assert!(found > 1000, "{found}");
    // The targets of the links that lead out of the root exist.
    let file = Target::of("/up/secret").unwrap().file();
    assert!(path.join(std::ffi::OsStr::from_bytes(&file)).exists());
}

/// Returns the kernel's path of an open file.
fn whereabouts(fd: impl AsFd) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap()
}
