//! What an image wants of the machine that starts from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Environment, directory, user and command, as the maker of an image declared them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// Environment of every command; a sandbox's own wins.
    pub env: BTreeMap<String, String>,
    /// Where commands begin; absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Whose commands are: a name or a number, perhaps with `:` and a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The beginning of the command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The rest of the command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
}

impl ImageConfig {
    /// What runs as the session `init` of a sandbox that was given no command of its own: entry point and command, unless
    /// that is a shell alone, which would wait for input that never comes.
    #[must_use]
    pub fn init(&self) -> Option<Vec<String>> {
        let whole: Vec<String> = self.entrypoint.iter().chain(&self.cmd).cloned().collect();
        let (program, rest) = whole.split_first()?;
        let is_shell =
            ["sh", "ash", "bash", "dash", "zsh"].contains(&program.rsplit('/').next().unwrap_or_default());
        let waits =
            is_shell && rest.iter().all(|word| matches!(word.as_str(), "-l" | "-i" | "-li" | "--login"));
        (!waits && !program.is_empty()).then_some(whole)
    }
}

/// What commands of a sandbox get that say nothing themselves, and what runs at its boots: how a guest is told of its
/// image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandDefaults {
    /// The working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Program and arguments of the session `init`, unless the sandbox has a command line for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub init: Vec<String>,
}

impl CommandDefaults {
    /// Those of an image.
    #[must_use]
    pub fn of(config: &ImageConfig) -> Self {
        Self {
            cwd: config.working_dir.clone(),
            user: config.user.clone(),
            init: config.init().unwrap_or_default(),
        }
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(entrypoint: &[&str], cmd: &[&str]) -> Option<Vec<String>> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        ImageConfig { entrypoint: words(entrypoint), cmd: words(cmd), ..Default::default() }.init()
    }

    #[test]
    fn a_shell_alone_is_no_command_to_run_and_everything_else_is() {
        for none in [&[][..], &["/bin/sh"], &["bash", "-l"], &[""]] {
            assert_eq!(init(&[], none), None, "{none:?}");
        }
        assert_eq!(init(&["/entry"], &["serve", "-p", "1"]).unwrap(), ["/entry", "serve", "-p", "1"]);
        assert_eq!(init(&["/bin/sh", "-c"], &["sleep 9"]).unwrap(), ["/bin/sh", "-c", "sleep 9"]);
    }
}
