//! Giving up root once everything is bound that needs it.
//!
//! Who serves the network should be nobody in particular: whatever a client could make it do, it
//! does with the rights of that user.

use anyhow::{Context, bail};
use clap::Args;
use nix::unistd::{Gid, Group, Uid, User, geteuid, getgid, initgroups, setgid, setgroups, setuid};

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Serving")]
pub(crate) struct Privileges {
    /// Serve as this user (a name or a number), once the endpoints are bound; needs root
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// Serve with the rights of this group only [default: all groups of --user]
    #[arg(long, value_name = "GROUP", requires = "user")]
    group: Option<String>,
}

/// Whoever the server is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    user: Uid,
    group: Gid,
    /// Whose groups it is to have; none if these were left out, or if it has no name.
    name: Option<String>,
}

impl Privileges {
    /// `None` to stay who we are.
    ///
    /// # Errors
    /// Whether the process becomes another user before it serves.
    pub(crate) fn are_given_up(&self) -> bool {
        self.user.is_some()
    }

    /// There is no such user or group.
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

    /// The same for who is about to become it.
    ///
    /// # Errors
    /// This process may not, as well.
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
    /// The numbers of its user and its group.
    pub(crate) fn numbers(&self) -> (u32, u32) {
        (self.user.as_raw(), self.group.as_raw())
    }

    /// Becomes this user, for good, on all threads.
    pub(crate) fn assume(&self) -> anyhow::Result<()> {
        // In this order: after the last step none of the others would be allowed.
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
        // setuid(2) by root sets the saved identity, too. If that were not so, anything that went
        // wrong later could undo it.
        if !self.user.is_root() && setuid(Uid::from_raw(0)).is_ok() {
            bail!("root was given up, and could be had back: refusing to serve");
        }
        if getgid() != self.group {
            bail!("the group is not what it was changed to: refusing to serve");
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
        // Numbers need no entry; the group is the one of the same number, as in containers.
        (None, Some(user)) => Ok(Identity {
            user,
            group: Gid::from_raw(user.as_raw()),
            name: None,
        }),
        (None, None) => bail!("there is no user {text}: `getent passwd` lists them"),
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
        None => bail!("there is no group {text}: `getent group` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let root = find_user("root").unwrap();
        assert_eq!(root, find_user("0").unwrap());
        assert_eq!(root.name.as_deref(), Some("root"));
        let nameless = find_user("3999999999").unwrap();
        assert_eq!(nameless.group.as_raw(), 3_999_999_999);
        assert_eq!(nameless.name, None);
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
