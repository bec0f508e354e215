//! Changes from root to another user once everything that needs root is bound.
//!
//! A server has the rights of an ordinary user, so that a client that gains control of it gets only
//! these rights.

use anyhow::{Context, bail};
use clap::Args;
use nix::unistd::{Gid, Group, Uid, User, geteuid, getgid, initgroups, setgid, setgroups, setuid};

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Serving")]
pub(crate) struct Privileges {
    /// Change to this user (a name or a number) once the endpoints are bound; needs root
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// Serve with the rights of this group only [default: all groups of --user]
    #[arg(long, value_name = "GROUP", requires = "user")]
    group: Option<String>,
}

/// The user and the group that the server changes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    user: Uid,
    group: Gid,
    /// The name whose groups the process gets; `None` if `--group` is given or the user has no
    /// name.
    name: Option<String>,
}

impl Privileges {
    /// Returns true if the process changes to another user before it serves.
    pub(crate) fn are_given_up(&self) -> bool {
        self.user.is_some()
    }

    /// Returns the identity to change to, or `None` without `--user`.
    ///
    /// # Errors
    /// Returns the identity to change to, or `None` without `--user`.
    ///
    /// # Errors
    /// Returns an error if the user or the group does not exist.
    pub(crate) fn look_up(&self) -> anyhow::Result<Option<Identity>> {
        let Some(user) = &self.user else {
            return Ok(None);
        };
        let mut identity = find_user(user)?;
        if let Some(group) = &self.group {
            identity.group = find_group(group)?;
            identity.name = None;
        }
        Ok(Some(identity))
    }

    /// Returns the identity to change to.
    ///
    /// # Errors
    /// Returns an error if the user does not exist or this process must not change to it.
    pub(crate) fn identity(&self) -> anyhow::Result<Option<Identity>> {
        let Some(identity) = self.look_up()? else {
            return Ok(None);
        };
        if !geteuid().is_root() {
            bail!("only root can become another user: start it as root, or leave --user out");
        }
        Ok(Some(identity))
    }
}

impl Identity {
    /// Returns the numbers of the user and the group.
    pub(crate) fn numbers(&self) -> (u32, u32) {
        (self.user.as_raw(), self.group.as_raw())
    }

    /// Changes all threads to this user, permanently.
    pub(crate) fn assume(&self) -> anyhow::Result<()> {
        // The order matters: after the last step, no other step would be allowed.
        let groups = match &self.name {
            Some(name) => {
                let name = std::ffi::CString::new(name.as_bytes()).context("bad user name")?;
                initgroups(&name, self.group)
            }
            None => setgroups(&[self.group]),
        };
        groups.context("cannot give up root's groups")?;
        setgid(self.group).context("cannot change the group")?;
        setuid(self.user).context("cannot change the user")?;
        // setuid(2) by root also sets the saved user ID. Without that, a later fault could regain
        // root.
        if !self.user.is_root() && setuid(Uid::from_raw(0)).is_ok() {
            bail!("root was given up and could be regained: refusing to serve");
        }
        if getgid() != self.group {
            bail!("the group differs from the one that was set: refusing to serve");
        }
        Ok(())
    }
}

fn find_user(text: &str) -> anyhow::Result<Identity> {
    let by_number = text.parse().ok().map(Uid::from_raw);
    let found = match by_number {
        Some(uid) => User::from_uid(uid),
        None => User::from_name(text),
    };
    let found = found.with_context(|| format!("cannot look up the user {text}"))?;
    match (found, by_number) {
        (Some(user), _) => Ok(Identity {
            user: user.uid,
            group: user.gid,
            name: Some(user.name),
        }),
        // Numbers need no entry in the database. The group has the same number, as in containers.
        (None, Some(user)) => Ok(Identity {
            user,
            group: Gid::from_raw(user.as_raw()),
            name: None,
        }),
        (None, None) => bail!("user {text} does not exist: `getent passwd` lists them"),
    }
}

fn find_group(text: &str) -> anyhow::Result<Gid> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found =
        Group::from_name(text).with_context(|| format!("cannot look up the group {text}"))?;
    match found {
        Some(group) => Ok(group.gid),
        None => bail!("group {text} does not exist: `getent group` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_user_accepts_names_and_numbers() {
        let root = find_user("root").unwrap();
        assert_eq!(root, find_user("0").unwrap());
        assert_eq!(root.name.as_deref(), Some("root"));
        let unnamed = find_user("3999999999").unwrap();
        assert_eq!(unnamed.group.as_raw(), 3_999_999_999);
        assert_eq!(unnamed.name, None);
        assert!(
            find_user("no such user")
                .unwrap_err()
                .to_string()
                .contains("getent")
        );
        assert_eq!(find_group("17").unwrap().as_raw(), 17);
        assert!(find_group("no such group").is_err());
    }
}
