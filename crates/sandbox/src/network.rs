//! The way of a sandbox to the world: which it has, what its guest is told of it, and the line from its VMM.

use std::os::fd::OwnedFd;
use std::path::Path;

use net::{Address, FarEnd, Line, User};
use storage::{MachineRecord, Manifest, NetRecord, layout};
use types::{Egress, NetMode, SandboxId, SandboxSpec};

use crate::error::{Error, ErrorKind, Result};
use crate::services::Services;

/// The network card's id among a machine's devices. One that was made before there were any has none.
pub(crate) const CARD: &str = "nic";
/// Guests send packets as large as passt takes: it opens connections in their place, so no wire is in the way.
const MTU: u32 = 65_520;

/// What sandboxes are given that do not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetDefault {
    /// `user` where the host has what it takes, else nothing.
    Auto,
    /// By passt.
    User,
    /// Nothing, also to those who ask.
    #[default]
    None,
}

/// The network that this host gives.
#[derive(Debug)]
pub(crate) struct Network {
    user: Option<User>,
    /// Why there is none.
    why_not: Option<String>,
}

impl Network {
    /// Looks for what `default` takes; `relay` is the command of the process before passt.
    pub(crate) fn open(default: NetDefault, relay: &[String]) -> Result<Self> {
        if default == NetDefault::None {
            let why = "this daemon gives sandboxes no network (`serve --net none`)".to_owned();
            return Ok(Self { user: None, why_not: Some(why) });
        }
        match User::find(relay.to_vec()) {
            Ok(user) => Ok(Self { user: Some(user), why_not: None }),
            Err(error) if default == NetDefault::Auto => {
                Ok(Self { user: None, why_not: Some(error.to_string()) })
            }
            Err(error) => Err(missing(&error.to_string())),
        }
    }

    /// The mode of sandboxes that do not say.
    pub(crate) fn default_mode(&self) -> NetMode {
        if self.user.is_some() { NetMode::User } else { NetMode::None }
    }

    /// Why sandboxes get none, if they do not.
    pub(crate) fn why_not(&self) -> Option<&str> {
        self.why_not.as_deref()
    }

    /// What a sandbox is to have.
    pub(crate) fn plan(&self, spec: &SandboxSpec) -> Result<Option<NetRecord>> {
        let mode = spec.net.unwrap_or_else(|| self.default_mode());
        match mode {
            NetMode::User if self.user.is_some() => {
                Ok(Some(NetRecord { mode, egress: spec.egress.clone().unwrap_or_else(Egress::public) }))
            }
            NetMode::User => Err(missing(self.why_not.as_deref().unwrap_or("unknown"))),
            // Rules without a network would be forgotten silently, and asking for them is asking for one.
            NetMode::None if spec.egress.as_ref().is_some_and(|egress| !egress.is_none()) => {
                Err(missing(self.why_not.as_deref().unwrap_or("there is no network")))
            }
            NetMode::None => Ok(None),
        }
    }
}

fn missing(why: &str) -> Error {
    Error::new(ErrorKind::NotReady, format!("there is no network for a sandbox: {why}"))
        .hint("mend that (`bhatti doctor` looks again), or create it with `--net none`")
}

/// Whether a machine has a network card.
pub(crate) fn has_card(machine: &MachineRecord) -> bool {
    machine.devices.iter().any(|device| device.id == CARD)
}

/// The address of a sandbox: made from its id, so that it has the same as long as it is there, and each copy its own.
pub(crate) fn address(id: &SandboxId) -> Address {
    Address::of(blake3::hash(id.as_str().as_bytes()).as_bytes())
}

/// What the guest is told; nothing where it reaches nothing.
pub(crate) fn told(manifest: &Manifest) -> Option<wire::Net> {
    let reaches = manifest.net.is_some() && has_card(&manifest.machine);
    reaches.then(|| told_of(&address(&manifest.id)))
}

/// What a template's guest is told: an address on a line that leads nowhere, so that every copy begins with a card
/// that is on, and has less of its own.
pub(crate) fn told_to_template() -> wire::Net {
    told_of(&Address::of(&[0; 32]))
}

fn told_of(address: &Address) -> wire::Net {
    let v6 = net::host_has_v6();
    let addresses = [Some(address.v4.into()), v6.then_some(address.v6.into())];
    let gateways = [Some(net::GATEWAY_V4.into()), v6.then_some(net::GATEWAY_V6.into())];
    wire::Net {
        mac: wire::Hex(address.mac),
        mtu: MTU,
        addresses: addresses.into_iter().flatten().collect(),
        gateways: gateways.into_iter().flatten().collect(),
        dns: vec![net::DNS.into()],
    }
}

/// Who a machine that is about to start is connected for.
#[derive(Debug)]
pub(crate) enum Plug {
    /// The sandbox whose it is, as its manifest says.
    Itself,
    /// Nobody yet: the VMM's end of a line, if it has one.
    Nobodys(Option<OwnedFd>),
}

impl Plug {
    /// Whether the VMM has a line.
    pub(crate) fn has_line(&self, manifest: &Manifest) -> bool {
        match self {
            Self::Itself => manifest.net.is_some() && has_card(&manifest.machine),
            Self::Nobodys(line) => line.is_some(),
        }
    }
}

/// The line of a machine that is about to start: the VMM's end, and who is at the other one.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    /// For the VMM; it must be handed over even where nobody is at the other end.
    pub(crate) vmm: Option<OwnedFd>,
    pub(crate) line: Wired,
}

/// Who is at the far end of a line, for the time until the guest goes on.
#[derive(Debug, Default)]
pub(crate) struct Wired {
    line: Option<Line>,
    failed: Option<String>,
}

impl Wired {
    /// What its owner should know: that there is no network after all.
    pub(crate) fn warning(mut self) -> Option<String> {
        let why = self.failed.take().or_else(|| self.line.as_mut().and_then(Line::trouble))?;
        Some(format!("there is no network in this run of the sandbox: {why}"))
    }
}

impl Services {
    /// A line for the sandbox, with the processes of its mode at the far end, which start while the VMM does. That they
    /// could not be started is no reason not to wake a sandbox, and is told.
    pub(crate) fn wire(&self, manifest: &Manifest, dir: &Path) -> Result<Wiring> {
        if !Plug::Itself.has_line(manifest) {
            return Ok(Wiring::default());
        }
        let (vmm, far) = self.line()?;
        Ok(Wiring { vmm: Some(vmm), line: self.connect(manifest, far, dir) })
    }

    /// A line with nobody at its far end yet.
    pub(crate) fn line(&self) -> Result<(OwnedFd, FarEnd)> {
        net::line().map_err(|error| Error::new(ErrorKind::Internal, "no line for a machine").source(error))
    }

    /// A line for a machine that stands by, where the host has a network.
    pub(crate) fn line_to_stand_by(&self, machine: &MachineRecord) -> Result<Option<(OwnedFd, FarEnd)>> {
        if self.network.user.is_some() && has_card(machine) { self.line().map(Some) } else { Ok(None) }
    }

    /// Puts the sandbox's processes at the far end of a line.
    pub(crate) fn connect(&self, manifest: &Manifest, far: FarEnd, dir: &Path) -> Wired {
        let Some(record) = &manifest.net else { return Wired::default() };
        let Some(user) = &self.network.user else {
            return Wired { line: None, failed: self.network.why_not.clone() };
        };
        match user.connect(
            far,
            &address(&manifest.id),
            &record.egress,
            self.config.rates.of_net(manifest),
            &dir.join(layout::NET_LOG),
        ) {
            Ok(line) => Wired { line: Some(line), failed: None },
            Err(error) => {
                let why = Error::new(ErrorKind::Internal, "passt").source(error).with_causes();
                tracing::warn!(error = %why, sandbox = %manifest.name, "it has no network");
                Wired { line: None, failed: Some(why) }
            }
        }
    }
}
