//! Names that people give: safe as host names, as file names and in URLs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name is refused; the text tells what a good one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No character at all.
    #[error("a {what} must not be empty")]
    Empty {
        /// What was to be named.
        what: &'static str,
    },
    /// More than 63 characters.
    #[error("{what} {name:?} is longer than 63 characters")]
    TooLong {
        /// What was to be named.
        what: &'static str,
        /// The name, cut.
        name: String,
    },
    /// A character that does not belong there.
    #[error("{what} {name:?} may have only a-z, 0-9 and '-', and must begin and end with a letter or digit")]
    BadCharacter {
        /// What was to be named.
        what: &'static str,
        /// The name, cut.
        name: String,
    },
    /// It could not be that of an environment variable.
    #[error(
        "secret name {name:?} must be that of a variable: letters, digits and '_', not beginning with a digit, at most 128"
    )]
    NoVariable {
        /// The name, cut.
        name: String,
    },
    /// It would be taken for an id.
    #[error("{what} {name:?} looks like an id (16 hex digits); choose another")]
    LooksLikeId {
        /// What was to be named.
        what: &'static str,
        /// The name.
        name: String,
    },
}

/// A DNS label: 1 to 63 of `a-z`, `0-9`, `-`, not at the ends (RFC 1123, section 2.1).
fn check_label(what: &'static str, name: &str) -> Result<(), NameError> {
    let cut = || name.chars().take(80).collect::<String>();
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    let ok = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !ok || name.starts_with('-') || name.ends_with('-') {
        return Err(NameError::BadCharacter { what, name: cut() });
    }
    if name.len() > 63 {
        return Err(NameError::TooLong { what, name: cut() });
    }
    Ok(())
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label!(
    /// A sandbox's name, which is its host name too.
    SandboxName,
    "sandbox name"
);
label!(
    /// An image's name.
    ImageName,
    "image name"
);
label!(
    /// A named snapshot's name.
    SnapshotName,
    "snapshot name"
);
label!(
    /// A volume's name.
    VolumeName,
    "volume name"
);
label!(
    /// A name under which a port of a sandbox is published.
    Alias,
    "alias"
);
label!(
    /// A secret's name, which is that of its variable in a guest.
    SecretName,
    "secret name"
);
label!(
    /// Whose a thing is.
    Owner,
    "owner"
);

impl FromStr for SandboxName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("sandbox name", text)?;
        if text.parse::<crate::SandboxId>().is_ok() {
            return Err(NameError::LooksLikeId { what: "sandbox name", name: text.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for ImageName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("image name", text).map(|()| Self(text.to_owned()))
    }
}

impl FromStr for SnapshotName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("snapshot name", text).map(|()| Self(text.to_owned()))
    }
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("volume name", text).map(|()| Self(text.to_owned()))
    }
}

/// Aliases that nobody gets: what people take for the site itself.
const RESERVED: [&str; 16] = [
    "admin",
    "api",
    "app",
    "auth",
    "bhatti",
    "dashboard",
    "ftp",
    "health",
    "localhost",
    "login",
    "mail",
    "metrics",
    "ns",
    "root",
    "status",
    "www",
];

impl Alias {
    /// One that cannot be guessed: 128 random bits in hex.
    #[must_use]
    pub fn random() -> Self {
        Self(crate::Nonce::random().as_str().to_owned())
    }

    /// Whether nobody may have it.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        RESERVED.contains(&self.0.as_str())
    }
}

impl FromStr for Alias {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("alias", text).map(|()| Self(text.to_owned()))
    }
}

impl FromStr for SecretName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let first = text.bytes().next();
        if text.len() > 128 || first.is_none_or(|byte| byte.is_ascii_digit()) || !text.bytes().all(allowed) {
            return Err(NameError::NoVariable { name: text.chars().take(128).collect() });
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for Owner {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("owner", text).map(|()| Self(text.to_owned()))
    }
}

impl Owner {
    /// Whoever holds the admin key or the unix socket.
    #[must_use]
    pub fn admin() -> Self {
        Self("admin".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secrets_name_is_that_of_a_variable() {
        for good in ["A", "api_key", "_x9", &"X".repeat(128)] {
            assert!(good.parse::<SecretName>().is_ok(), "{good:?}");
        }
        for bad in ["", "9a", "a-b", "a b", "A=", "ä", &"X".repeat(129)] {
            assert!(bad.parse::<SecretName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(good.parse::<SandboxName>().is_ok(), "{good:?}");
        }
        for bad in
            ["", "-a", "a-", "A", "a b", "a/b", "..", "a_b", "a.b", "ä", &"x".repeat(64), "0123456789abcdef"]
        {
            assert!(bad.parse::<SandboxName>().is_err(), "{bad:?}");
        }
    }
}
