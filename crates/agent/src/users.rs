//! Users and groups, read from /etc/passwd and /etc/group: a static program has no name service.

use std::fs;

/// The user whose commands run when none is named.
const DEFAULT_UID: u32 = 1000;

/// One user, ready to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Number.
    pub uid: u32,
    /// Number of the primary group.
    pub gid: u32,
    /// All groups, the primary one among them.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Finds a user by name or number, perhaps with `:` and a group; `None` asks for the default. A number that has no name
/// is a user of its own.
pub fn find(wanted: Option<&str>) -> Option<User> {
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    find_in(&read("/etc/passwd"), &read("/etc/group"), wanted)
}

fn find_in(passwd: &str, group: &str, wanted: Option<&str>) -> Option<User> {
    let (wanted, wanted_group) = match wanted.and_then(|wanted| wanted.split_once(':')) {
        Some((user, group)) => (Some(user), Some(group)),
        None => (wanted, None),
    };
    let mut user = match wanted {
        None => by_uid(passwd, DEFAULT_UID).or_else(|| by_uid(passwd, 0)).unwrap_or_else(|| nameless(0)),
        Some(name) => match (entries(passwd).find(|user| user.name == name), name.parse()) {
            (Some(user), _) => user,
            (None, Ok(uid)) => by_uid(passwd, uid).unwrap_or_else(|| nameless(uid)),
            (None, Err(_)) if name == "root" => nameless(0),
            (None, Err(_)) => return None,
        },
    };
    if let Some(wanted) = wanted_group {
        // Who names a group wants that one and no others, as containers do it.
        user.gid = match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => gid_of(group, wanted)?,
        };
        user.groups = vec![user.gid];
        return Some(user);
    }
    user.groups = groups_of(group, &user.name, user.gid);
    Some(user)
}

fn gid_of(group: &str, name: &str) -> Option<u32> {
    let mut lines = group.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
}

fn nameless(uid: u32) -> User {
    let (name, home) = if uid == 0 { ("root".to_string(), "/root") } else { (uid.to_string(), "/") };
    User { name, uid, gid: uid, groups: vec![], home: home.to_string(), shell: "/bin/sh".to_string() }
}

fn by_uid(passwd: &str, uid: u32) -> Option<User> {
    entries(passwd).find(|user| user.uid == uid)
}

/// The users of `passwd`; lines that are none are passed over.
fn entries(passwd: &str) -> impl Iterator<Item = User> {
    passwd.lines().filter_map(|line| {
        let [name, _, uid, gid, _, home, shell] = line.split(':').collect::<Vec<_>>().try_into().ok()?;
        let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_string();
        Some(User {
            name: name.to_string(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            groups: vec![],
            home: or(home, "/"),
            shell: or(shell, "/bin/sh"),
        })
    })
}

fn groups_of(group: &str, name: &str, primary: u32) -> Vec<u32> {
    let mut groups = vec![primary];
    for line in group.lines() {
        let mut fields = line.split(':').skip(2);
        let (Some(gid), Some(members)) = (fields.next().and_then(|gid| gid.parse().ok()), fields.next())
        else {
            continue;
        };
        if members.split(',').any(|member| member == name) && !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# no user\nbroken:x:1\n\
                          user:x:1000:1000:,,,:/home/user:/bin/bash\nbare:x:7:8:::\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:alice,user\nuser:x:1000:user\nusers:x:100:users\n\nodd:x:\n";

    #[test]
    fn without_a_name_it_is_uid_1000_or_else_root() {
        let user = find_in(PASSWD, GROUP, None).expect("found");
        assert_eq!((user.uid, user.home.as_str(), user.groups), (1000, "/home/user", vec![1000, 27]));
        assert_eq!(find_in("root:x:0:0::/root:/bin/sh", "", None).expect("found").uid, 0);
        assert_eq!(find_in("", "", None).expect("found").home, "/root");
    }

    #[test]
    fn names_and_numbers_are_both_understood() {
        assert_eq!(find_in(PASSWD, GROUP, Some("root")).expect("found").shell, "/bin/bash");
        assert_eq!(find_in(PASSWD, GROUP, Some("0")).expect("found").name, "root");
        let stranger = find_in(PASSWD, GROUP, Some("4711")).expect("found");
        assert_eq!((stranger.uid, stranger.groups, stranger.home.as_str()), (4711, vec![4711], "/"));
        assert_eq!(find_in(PASSWD, GROUP, Some("nobody")), None);
        assert_eq!(find_in(PASSWD, GROUP, Some("broken")), None);
    }

    #[test]
    fn a_group_may_be_named_with_the_user() {
        let with =
            |wanted| find_in(PASSWD, GROUP, Some(wanted)).map(|user| (user.uid, user.gid, user.groups));
        assert_eq!(with("user:users"), Some((1000, 100, vec![100])));
        assert_eq!(with("7:42"), Some((7, 42, vec![42])));
        assert_eq!(with("root:0"), Some((0, 0, vec![0])));
        assert_eq!(with("user:nobody-knows"), None);
    }

    #[test]
    fn empty_fields_get_what_login_would_give_them() {
        let bare = find_in(PASSWD, GROUP, Some("bare")).expect("found");
        assert_eq!((bare.home.as_str(), bare.shell.as_str(), bare.gid), ("/", "/bin/sh", 8));
    }
}
