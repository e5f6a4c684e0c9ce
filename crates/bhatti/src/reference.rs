//! `docs/cli.md` and the manual pages, from the same definitions that parse and that `--help` prints.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use crate::args::{Cli, Reference};
use crate::failure::{Failure, Result};
use crate::output;

const HEAD: &str = "\
# Command line

<!-- Generated from the program: `BHATTI_BLESS=1 cargo test -p bhatti the_reference` writes it anew. -->

Exit status: 0 done; 1 refused or failed, with one line on stderr `error: <what>: <why>; <what to do>`; 2 wrong usage.
`exec` gives the guest's own: 128+n for a signal, 124 for `--timeout`, 126 and 127 as a shell does; a stream that broke
off is 1, never 0. With `--json` stdout is one JSON document, an error being `{\"error\":{\"code\",\"message\",\"hint\"}}`.
`BHATTI_LOG` sets what `serve` logs, such as `debug` or `bhatti_sandbox=debug`.
";

/// Prints or writes one of the references.
pub fn write(which: Reference) -> Result<u8> {
    match which {
        Reference::Cli => output::bytes(cli().as_bytes()),
        Reference::Man { dir } => clap_mangen::generate_to(Cli::command(), &dir)
            .map_err(|error| Failure::io(format!("manual pages in {}", dir.display()), &error))?,
    }
    Ok(0)
}

/// The whole reference as Markdown.
pub fn cli() -> String {
    let mut program = Cli::command();
    program.build();
    let mut text = HEAD.to_owned();
    text.push_str("\n## Flags of every verb\n\n");
    flags(&mut text, program.get_arguments().filter(|arg| arg.is_global_set()));
    for verb in program.get_subcommands() {
        command(&mut text, verb, "bhatti", 2);
    }
    text
}

fn command(text: &mut String, command: &Command, parent: &str, level: usize) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let _ = write!(text, "\n{} `{name}`\n\n", "#".repeat(level));
    if let Some(about) = command.get_about() {
        let _ = writeln!(text, "{about}.");
    }
    let aliases: Vec<_> = command.get_visible_aliases().collect();
    if !aliases.is_empty() {
        let _ = writeln!(text, "Also: `{}`.", aliases.join("`, `"));
    }
    let subcommands: Vec<_> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
    if subcommands.is_empty() {
        let usage = command.clone().render_usage().to_string();
        let _ = write!(text, "\n```\n{}\n```\n", usage.trim_start_matches("Usage: "));
        let own: Vec<_> = command.get_arguments().filter(|arg| !arg.is_global_set()).collect();
        if own.iter().any(|arg| is_shown(arg)) {
            text.push('\n');
            flags(text, own.into_iter());
        }
    }
    for sub in subcommands {
        self::command(text, sub, &name, level + 1);
    }
}

fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version")
}

fn flags<'a>(text: &mut String, args: impl Iterator<Item = &'a Arg>) {
    text.push_str("| | | default |\n|---|---|---|\n");
    for arg in args.filter(|arg| is_shown(arg)) {
        let mut shown = String::new();
        if let Some(short) = arg.get_short() {
            let _ = write!(shown, "-{short}, ");
        }
        let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let value = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
        match (arg.get_long(), value.filter(|_| takes_value)) {
            (Some(long), Some(value)) => {
                let _ = write!(shown, "--{long} {value}");
            }
            (Some(long), None) => {
                let _ = write!(shown, "--{long}");
            }
            (None, value) => shown.push_str(&value.unwrap_or_else(|| arg.get_id().to_string())),
        }
        if matches!(arg.get_action(), ArgAction::Append) {
            shown.push_str(" ...");
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let choices: Vec<_> = arg
            .get_possible_values()
            .iter()
            .filter(|_| takes_value)
            .map(|choice| format!("`{}`", choice.get_name()))
            .collect();
        let choices = if choices.is_empty() { String::new() } else { format!(": {}", choices.join(", ")) };
        let defaults: Vec<_> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        let default = if takes_value { defaults.join(" ") } else { String::new() };
        let env = arg.get_env().map(|env| format!(" (`{}`)", env.to_string_lossy())).unwrap_or_default();
        let line = format!("| `{shown}` | {help}{choices}{env} | {default} |");
        text.push_str(&line.replace('\n', " ").replace("SANDBOX|SNAPSHOT", "SANDBOX\\|SNAPSHOT"));
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use crate::args::Reference;

    #[test]
    fn each_verb_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        super::write(Reference::Man { dir: dir.path().to_owned() }).unwrap();
        for (page, word) in
            [("bhatti.1", "SUBCOMMANDS"), ("bhatti-create.1", "memory"), ("bhatti-volume-attach.1", "ro")]
        {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains(word), "{page}: {text}");
        }
        assert!(super::write(Reference::Man { dir: dir.path().join("none") }).is_err());
    }

    #[test]
    fn the_reference_is_what_the_program_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        let text = super::cli();
        if std::env::var_os("BHATTI_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == text,
            "docs/cli.md is out of date; BHATTI_BLESS=1 cargo test -p bhatti writes it anew"
        );
    }
}
