//! The control socket: where it is, and who may do what over it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::address::{Access, find_group, find_user, is_key, parse_mode};

/// The rights of a client of the control socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Everything.
    #[default]
    Everything,
    /// Only requests that change nothing.
    Looking,
}

impl Right {
    /// Whether this is the usual one.
    pub fn is_usual(&self) -> bool {
        *self == Right::default()
    }
}

/// Who may connect to the control socket besides panzer's own user and root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlAccess {
    /// Mode, owner and group of the file, as they were given.
    pub access: Access,
    /// Members of this group may look.
    pub group_read: Option<u32>,
}

impl ControlAccess {
    /// Whether nobody else may.
    pub fn is_usual(&self) -> bool {
        *self == ControlAccess::default()
    }

    /// Mode, owner and group of the file. Everybody who may look must be able to connect; main refuses the others.
    pub fn of_file(&self) -> Access {
        let mode = match (self.access.group, self.group_read) {
            (None, None) => 0o600,
            (Some(_), Some(_)) => 0o666,
            _ => 0o660,
        };
        Access {
            mode: Some(self.access.mode.unwrap_or(mode)),
            owner: self.access.owner,
            group: self.access.group.or(self.group_read),
        }
    }

    /// The right of a client that is neither root nor panzer's own user; none if it may do nothing.
    pub fn right_of(&self, user: u32, groups: &[u32]) -> Option<Right> {
        let mode = self.of_file().mode.unwrap_or(0);
        let is_member = |group: Option<u32>| group.is_some_and(|group| groups.contains(&group));
        let may_all = self.access.owner == Some(user)
            || (is_member(self.access.group) && mode & 0o020 != 0)
            || (self.group_read.is_none() && mode & 0o002 != 0);
        match may_all {
            true => Some(Right::Everything),
            false => is_member(self.group_read).then_some(Right::Looking),
        }
    }
}

/// The value of `--control`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Control {
    /// Path of the socket. None: beside the pid file.
    pub path: Option<PathBuf>,
    /// The access rights of the socket.
    pub access: ControlAccess,
}

const OPTIONS: [&str; 4] = ["mode", "owner", "group", "group-read"];

impl Control {
    /// Reads `PATH[,OPT…]`. What stands behind a comma and is nothing like an option belongs to the path.
    pub fn parse(text: OsString) -> Result<Control, String> {
        let (mut control, mut rest) = (Control::default(), text.as_bytes());
        let mut known = Vec::new();
        while let Some(comma) = rest.iter().rposition(|&byte| byte == b',') {
            let Ok(option) = std::str::from_utf8(&rest[comma + 1..]) else { break };
            let Some((key, value)) = option.split_once('=').filter(|(key, _)| is_key(key)) else { break };
            if !OPTIONS.contains(&key) {
                return Err(format!("unknown option '{key}'; there are {}", OPTIONS.join(", ")));
            }
            if known.contains(&key) {
                return Err(format!("{key} is given twice"));
            }
            known.push(key);
            let access = &mut control.access.access;
            match key {
                "mode" => access.mode = Some(parse_mode(value)?),
                "owner" => access.owner = Some(find_user(value)?),
                "group" => access.group = Some(find_group(value)?),
                _ => control.access.group_read = Some(find_group(value)?),
            }
            rest = &rest[..comma];
        }
        control.path = (!rest.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(rest)));
        if control.path.is_none() && known.is_empty() {
            return Err("it is empty; give a path, or an option behind a comma, as in ,group=deploy".to_owned());
        }
        control.check()?;
        Ok(control)
    }

    fn check(&self) -> Result<(), String> {
        let ControlAccess { access: Access { mode, group, .. }, group_read } = &self.access;
        let needed = if group.is_some() { 0o002 } else { 0o020 };
        match (mode, group_read) {
            (Some(mode), Some(_)) if mode & needed == 0 => Err(format!(
                "mode={mode:04o} lets nobody of group-read connect: leave mode out, panzer refuses the others itself"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Control, String> {
        Control::parse(text.into())
    }

    #[test]
    fn options_stand_behind_the_path() {
        let control = parsed("/run/a,b.sock,mode=0660,group=7").unwrap();
        assert_eq!(control.path, Some("/run/a,b.sock".into()));
        assert_eq!(control.access.of_file(), Access { mode: Some(0o660), owner: None, group: Some(7) });
        assert_eq!(parsed(",group=7").unwrap().path, None);
        assert_eq!(parsed("/a").unwrap().access.of_file().mode, Some(0o600));
        for wrong in
            ["", "/a,mode=9", "/a,group=no-such-group", "/a,mode=0,mode=0", "/a,mode=0660,group=1,group-read=2"]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        assert!(parsed("/a,groups=7").unwrap_err().contains("unknown option 'groups'"));
        assert_eq!(parsed("/a,B=7").unwrap().path, Some("/a,B=7".into()));
    }

    #[test]
    fn who_may_look_may_do_nothing_else() {
        let right = |text: &str, user, groups: &[u32]| parsed(text).unwrap().access.right_of(user, groups);
        let both = ",group=7,group-read=8";
        assert_eq!(right(both, 1, &[1, 7, 8]), Some(Right::Everything));
        assert_eq!(right(both, 1, &[8]), Some(Right::Looking));
        assert_eq!(right(both, 1, &[9]), None);
        assert_eq!(right("/a,group-read=8", 1, &[8]), Some(Right::Looking));
        assert_eq!(right("/a,group=7,mode=0600", 1, &[7]), None);
        assert_eq!(right("/a,owner=5", 5, &[]), Some(Right::Everything));
        assert_eq!(right("/a,mode=0666", 1, &[]), Some(Right::Everything));
        assert_eq!(right("/a", 1, &[1]), None);
    }
}
