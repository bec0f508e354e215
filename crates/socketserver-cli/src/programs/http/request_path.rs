//! Translation of the path of a request to names of files, and back. This module opens no files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

/// The target of a path, below the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    names: Vec<Vec<u8>>,
    /// True if the path ends in a slash, so that only a directory matches.
    pub is_directory: bool,
    /// True if the path has no empty names, `.` or `..`, as in
    /// [`as_directory`](Self::as_directory).
    pub is_normal: bool,
}

/// An error for a path that is malformed or forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad(pub &'static str);

impl Target {
    /// Splits a path before it is decoded, so that an encoded slash is no separator. Each name is
    /// decoded once.
    pub fn of(path: &str) -> Result<Self, Bad> {
        let mut target = Self {
            is_normal: true,
            ..Self::default()
        };
        let last = path.split('/').count() - 1;
        for (n, part) in path.split('/').enumerate() {
            let name = decode(part)?;
            target.is_directory = matches!(&*name, b"" | b"." | b"..");
            // The slashes at the beginning and at the end have an empty name beside them.
            let is_slash = name.is_empty() && (n == 0 || n == last);
            target.is_normal &= !target.is_directory || is_slash;
            match &*name {
                b"" | b"." => {}
                // RFC 3986, 5.2.4, except that a path above the root is an error.
                b".." => {
                    if target.names.pop().is_none() {
                        return Err(Bad("the path leads out of what is served here"));
                    }
                }
                _ => target.names.push(name),
            }
        }
        Ok(target)
    }

    /// Returns true if a name begins with a dot, except `.well-known` (RFC 8615) as the first name.
    pub fn is_hidden(&self) -> bool {
        let mut names = self.names.iter().map(Vec::as_slice);
        let first = names.next().filter(|name| *name != b".well-known");
        first.into_iter().chain(names).any(is_hidden)
    }

    /// Returns the path relative to the root.
    pub fn file(&self) -> Vec<u8> {
        match self.names.join(&b'/') {
            root if root.is_empty() => b".".to_vec(),
            file => file,
        }
    }

    /// Returns the name of the target, or `None` for the root.
    pub fn name(&self) -> Option<&OsStr> {
        self.names.last().map(|name| OsStr::from_bytes(name))
    }

    pub fn names(&self) -> &[Vec<u8>] {
        &self.names
    }

    /// Returns the target for a name below this one.
    pub fn below(&self, name: &str) -> Self {
        let mut target = self.clone();
        target.names.push(name.into());
        target
    }

    /// Returns the reference with a slash at its end. The reference begins with exactly one slash,
    /// because two would begin a host name. A backslash is escaped because browsers treat it as a
    /// slash.
    pub fn as_directory(&self) -> String {
        let mut path = String::from("/");
        for name in &self.names {
            path += &encode(name);
            path.push('/');
        }
        path
    }
}

pub(super) fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(b".")
}

/// The characters to escape: all except the unreserved ones of RFC 3986, 2.3.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) fn encode(name: &[u8]) -> String {
    percent_encode(name, ESCAPED).to_string()
}

fn decode(part: &str) -> Result<Vec<u8>, Bad> {
    let is_escape =
        |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    if !part.split('%').skip(1).all(is_escape) {
        return Err(Bad("the path has a % that begins no escape"));
    }
    let name: Vec<u8> = percent_decode(part.as_bytes()).collect();
    if name.contains(&0) || name.contains(&b'/') {
        return Err(Bad("no name has such a character"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Result<String, Bad> {
        Target::of(path).map(|target| String::from_utf8_lossy(&target.file()).into_owned())
    }

    #[test]
    fn paths_are_decoded_once_and_stay_below_the_root() {
        for (path, expected) in [
            ("/", "."),
            ("", "."),
            ("*", "*"),
            ("/a/b", "a/b"),
            ("//a///b/", "a/b"),
            ("/a/./b", "a/b"),
            ("/a/../b", "b"),
            ("/a/%2e%2E/b", "b"),
            ("/a/..", "."),
            ("/%61%20b", "a b"),
            ("/%2561", "%61"),
            ("/%252e%252e/x", "%2e%2e/x"),
            ("/...", "..."),
            ("/..%5cx", "..\\x"),
            ("/\\..\\x", "\\..\\x"),
            ("/a+b", "a+b"),
        ] {
            assert_eq!(file(path).as_deref(), Ok(expected), "{path}");
        }
        for path in [
            "/..",
            "/../",
            "/a/../..",
            "/%2e%2e",
            "/.%2E/x",
            "/%2e./x",
            "/./../x",
            "/a/..//../x",
            "/%2f",
            "/a%2fb",
            "/..%2f..%2fx",
            "/%00",
            "/a%00.html",
            "/%",
            "/%4",
            "/%zz",
            "/%%61",
            "/%\u{e4}",
        ] {
            assert!(file(path).is_err(), "{path}");
        }
    }

    #[test]
    fn trailing_slash_means_a_directory() {
        for (path, is_directory) in [
            ("/", true),
            ("/a", false),
            ("/a/", true),
            ("/a/.", true),
            ("/a/b/..", true),
        ] {
            assert_eq!(
                Target::of(path).unwrap().is_directory,
                is_directory,
                "{path}"
            );
        }
    }

    #[test]
    fn paths_with_dots_and_empty_names_are_not_normal() {
        for (path, is_normal) in [
            ("/", true),
            ("/a", true),
            ("/a/b/", true),
            ("/a%20b/", true),
            ("/...", true),
            ("//", false),
            ("/a//", false),
            ("//a", false),
            ("/.", false),
            ("/a/./b/", false),
            ("/a/..", false),
            ("/a/../b/", false),
            ("/a/%2e%2e/", false),
        ] {
            assert_eq!(Target::of(path).unwrap().is_normal, is_normal, "{path}");
            // The target of a redirect is not redirected again.
            let target = Target::of(path).unwrap().as_directory();
            assert!(Target::of(&target).unwrap().is_normal, "{path}");
        }
    }

    #[test]
    fn names_with_a_leading_dot_are_hidden() {
        for (path, expected) in [
            ("/a", false),
            ("/.a", true),
            ("/a/.b/c", true),
            ("/%2egit", true),
            ("/.well-known/acme", false),
            ("/.well-known/.a", true),
            ("/a/.well-known", true),
        ] {
            assert_eq!(Target::of(path).unwrap().is_hidden(), expected, "{path}");
        }
    }

    #[test]
    fn references_stay_on_the_same_host() {
        for (path, expected) in [
            ("/", "/"),
            ("//example.org/..%5c", "/example.org/..%5C/"),
            ("/\\example.org", "/%5Cexample.org/"),
            ("/%0d%0aX:%20y", "/%0D%0AX%3A%20y/"),
            ("/javascript:x", "/javascript%3Ax/"),
            ("/%ff", "/%FF/"),
        ] {
            assert_eq!(Target::of(path).unwrap().as_directory(), expected, "{path}");
        }
    }
}
