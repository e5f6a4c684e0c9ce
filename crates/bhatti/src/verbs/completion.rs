//! `completion`.

use clap::CommandFactory as _;

use crate::args::{Cli, Completion};
use crate::failure::Result;
use crate::output;

pub fn completion(asked: Completion) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(asked.shell, &mut Cli::command(), "bhatti", &mut script);
    output::bytes(&script);
    Ok(0)
}
