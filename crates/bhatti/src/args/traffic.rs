//! `ports`, `forward`, `publish`, `unpublish`: what can be typed of ports.

use clap::Args;
use types::Alias;

#[derive(Debug, Args)]
pub struct Forward {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: String,
    /// Port on the sandbox's loopback
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Port on this host's loopback; 0 for any that is free [default: PORT]
    #[arg(value_name = "HOSTPORT")]
    pub host_port: Option<u16>,
}

#[derive(Debug, Args)]
pub struct Publish {
    /// Name or id
    #[arg(value_name = "SB")]
    pub sandbox: Option<String>,
    /// Port on the sandbox's loopback; without one, what is published is listed
    #[arg(short, long, value_name = "PORT", requires = "sandbox", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Alias, a DNS label [default: one that cannot be guessed]
    #[arg(short, long, value_name = "ALIAS", requires = "port")]
    pub alias: Option<Alias>,
}

#[derive(Debug, Args)]
pub struct Unpublish {
    /// Sandbox, by name or id, or an alias
    #[arg(value_name = "SB|ALIAS")]
    pub which: String,
    /// Only what is published of this port
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Only this alias
    #[arg(short, long, value_name = "ALIAS")]
    pub alias: Option<Alias>,
}
