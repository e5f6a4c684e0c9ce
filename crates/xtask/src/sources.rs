//! Rules for the text of the repository: sizes, names, where `unsafe` may be, no paths of the machine it is written on.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::step::output;

const LINES_AT_MOST: usize = 800;
/// Names that say nothing about what is in a file.
const BANNED: [&str; 8] = ["common", "helper", "helpers", "misc", "stuff", "types2", "util", "utils"];

/// The repository's files: what git tracks, and what it would track.
pub struct Sources {
    files: Vec<String>,
}

impl Sources {
    /// Asks git.
    pub fn read(root: &Path) -> Result<Self> {
        let listed = output(root, "git", &["ls-files", "--cached", "--others", "--exclude-standard"])?;
        let mut files: Vec<_> =
            listed.lines().filter(|file| root.join(file).is_file()).map(str::to_owned).collect();
        files.sort();
        files.dedup();
        Ok(Self { files })
    }

    /// The files with this extension.
    pub fn with_extension<'a>(&'a self, extension: &'a str) -> impl Iterator<Item = &'a str> {
        self.files
            .iter()
            .map(String::as_str)
            .filter(move |file| Path::new(file).extension().is_some_and(|found| found == extension))
    }

    /// All rules; the note tells the sizes.
    pub fn check(&self, root: &Path) -> Result<String> {
        let mut wrong = Vec::new();
        let mut sizes = Vec::new();
        let machine = machine_paths(root);
        for file in &self.files {
            let path = Path::new(file);
            if path.file_stem().is_some_and(|stem| BANNED.iter().any(|banned| stem == *banned)) {
                wrong.push(format!("{file}: name it after what is in it"));
            }
            let Ok(text) = fs::read_to_string(root.join(file)) else {
                continue; // not text
            };
            if let Some(found) = machine.iter().find(|path| text.contains(path.as_str())) {
                wrong.push(format!("{file}: {found} is a path of this machine"));
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let lines = text.lines().count();
            sizes.push(lines);
            if lines > LINES_AT_MOST {
                wrong.push(format!("{file}: {lines} lines, at most {LINES_AT_MOST}: it is two files"));
            }
            if !file.starts_with("crates/sys/")
                && let Some(line) = text.lines().position(is_unsafe)
            {
                wrong.push(format!("{file}:{}: unsafe belongs in crates/sys", line + 1));
            }
        }
        if !wrong.is_empty() {
            bail!("\n  {}", wrong.join("\n  "));
        }
        sizes.sort_unstable();
        let part =
            |tenths: usize| sizes.get(sizes.len().saturating_sub(1) * tenths / 10).copied().unwrap_or(0);
        Ok(format!(
            "{} Rust files, lines: median {}, p90 {}, most {}",
            sizes.len(),
            part(5),
            part(9),
            part(10)
        ))
    }
}

/// This checkout and its user's home, unless the home's name could as well be a guest's.
fn machine_paths(root: &Path) -> Vec<String> {
    let home = std::env::var("HOME").unwrap_or_default();
    let mut paths = vec![root.display().to_string()];
    if !["", "/", "/root", "/home/user"].contains(&home.trim_end_matches('/')) {
        paths.push(home);
    }
    paths.retain(|path| path.matches('/').count() > 1);
    paths
}

/// An unsafe block, function, trait or attribute, or leave for one; words in comments and texts do not count.
fn is_unsafe(line: &str) -> bool {
    // Put together, so that this file does not accuse itself.
    let word = concat!("un", "safe");
    let code = line.split("//").next().unwrap_or_default().trim();
    let goes_on = |rest: &str| {
        ["{", "fn ", "impl ", "extern ", "trait ", "("].iter().any(|next| rest.starts_with(next))
    };
    let leave = format!("allow({word}_code)");
    code.contains(&leave)
        || code.split(word).skip(1).zip(code.split(word)).any(|(after, before)| {
            let whole = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"' || c == '`');
            whole && goes_on(after.trim_start())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_is_told_from_words_about_it() {
        let word = concat!("un", "safe");
        for code in [
            "let x = W { y };",
            "W fn f() {}",
            "pub W impl A for B {}",
            "#[W(no_mangle)]",
            "#![allow(W_code)]",
        ] {
            assert!(is_unsafe(&code.replace('W', word)), "{code}");
        }
        for text in ["// W { }", "let a = \"W\";", "deny(W_code)", "undocumented_W_blocks", "the only W"] {
            assert!(!is_unsafe(&text.replace('W', word)), "{text}");
        }
    }
}
