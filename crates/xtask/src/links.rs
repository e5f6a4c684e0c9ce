//! Links between the pages of the repository lead somewhere.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};

use crate::sources::Sources;

/// Looks up every relative link of every Markdown file, with its heading.
pub fn check(root: &Path) -> Result<String> {
    let sources = Sources::read(root)?;
    let (mut wrong, mut looked_at) = (Vec::new(), 0);
    for page in sources.with_extension("md") {
        let text = std::fs::read_to_string(root.join(page))?;
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            looked_at += 1;
            let (file, heading) =
                link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
            let here = root.join(page);
            let target = if file.is_empty() { here } else { here.with_file_name(file) };
            let Ok(found) = std::fs::read(&target)
                .or_else(|error| if target.is_dir() { Ok(Vec::new()) } else { Err(error) })
            else {
                wrong.push(format!("{page}: {link} leads nowhere"));
                continue;
            };
            if let Some(heading) = heading
                && !headings(&String::from_utf8_lossy(&found)).contains(heading)
            {
                wrong.push(format!("{page}: {link} has no such heading"));
            }
        }
    }
    if wrong.is_empty() { Ok(format!("{looked_at} links")) } else { bail!("\n  {}", wrong.join("\n  ")) }
}

/// The targets of `[text](target)` outside of code.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if !code {
            found.extend(
                line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target),
            );
        }
    }
    found
}

/// What headings are called in links: lower case, words joined by dashes, signs left out.
fn headings(text: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        kept.chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_headings_are_read_as_pages_have_them() {
        let text = "# A btrfs, in a file\n[a](b.md#c), ![p](d.png)\n```\n[no](x)\n```\n## `du`\n";
        assert_eq!(links(text), ["b.md#c", "d.png"]);
        assert!(headings(text).contains("a-btrfs-in-a-file") && headings(text).contains("du"));
    }
}
