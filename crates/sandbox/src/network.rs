//! The way of a sandbox to the world: which it has, what its guest is told of it, and the line from its VMM.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use net::{Address, FarEnd, Lanes, Line, Orders, User};
use storage::{MachineRecord, Manifest, NetRecord, layout};
use tokio::sync::mpsc;
use types::{Egress, NetMode, Owner, SandboxId, SandboxSpec};

use crate::actor::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Inner, send};
use crate::services::Services;

/// The network card's id among a machine's devices. One that was made before there were any has none.
pub(crate) const CARD: &str = "nic";
/// What it is, in the VMM's words; that of a machine from before this was said announces itself.
pub(crate) const QUIET_CARD: &str = "virtio-net,guest_announce=off";
/// Guests send packets as large as passt takes: it opens connections in their place, so no wire is in the way.
const MTU: u32 = 65_520;

/// How many addresses are tried before there is none free for one more sibling.
const TRIES: usize = 1000;
/// How many sandboxes that siblings ask for wait to be looked at.
const ASKED: usize = 256;

/// What sandboxes are given that do not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetDefault {
    /// `bridge` for root and `user` for others where the host has what it takes, else nothing.
    Auto,
    /// By passt.
    User,
    /// So, and to siblings.
    Bridge,
    /// Nothing, also to those who ask.
    #[default]
    None,
}

/// The network that this host gives.
#[derive(Debug)]
pub(crate) struct Network {
    given: Option<Given>,
    /// Why there is none.
    why_not: Option<String>,
}

#[derive(Debug)]
struct Given {
    user: User,
    lanes: Lanes,
    default: NetMode,
    /// Who is wanted by siblings, until the host takes it.
    asked: Mutex<Option<mpsc::Receiver<SandboxId>>>,
}

/// The id and address of a sandbox that is being made; free again when it does not come to be.
#[derive(Debug)]
pub(crate) struct Seat<'a> {
    network: &'a Network,
    owner: Owner,
    pub(crate) id: SandboxId,
    net: Option<NetRecord>,
    kept: bool,
}

impl Seat<'_> {
    /// There is the sandbox: destroying it makes them free.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.network.leave(&self.owner, &self.id, self.net.as_ref());
        }
    }
}

impl Network {
    /// Looks for what `default` takes; `relay` is the command of the process before passt, and `lanes` the directory in
    /// which siblings find each other.
    pub(crate) fn open(default: NetDefault, relay: &[String], lanes: PathBuf) -> Result<Self> {
        let mode = match default {
            NetDefault::None => {
                let why = "this daemon gives sandboxes no network (`serve --net none`)".to_owned();
                return Ok(Self { given: None, why_not: Some(why) });
            }
            NetDefault::Auto => net::default_mode(),
            NetDefault::User => NetMode::User,
            NetDefault::Bridge => NetMode::Bridge,
        };
        let user = match User::find(relay.to_vec()) {
            Ok(user) => user,
            Err(error) if default == NetDefault::Auto => {
                return Ok(Self { given: None, why_not: Some(error.to_string()) });
            }
            Err(error) => return Err(missing(&error.to_string())),
        };
        let (tell, asked) = mpsc::channel(ASKED);
        let lanes = Lanes::open(lanes, tell).map_err(|error| failed("no lanes for siblings", error))?;
        let given = Given { user, lanes, default: mode, asked: Mutex::new(Some(asked)) };
        Ok(Self { given: Some(given), why_not: None })
    }

    /// Who is wanted by siblings; for the first who asks.
    pub(crate) fn asked(&self) -> Option<mpsc::Receiver<SandboxId>> {
        self.given.as_ref()?.asked.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// An id for a new sandbox, whose address no sibling has.
    pub(crate) fn draw(&self, owner: &Owner, net: Option<&NetRecord>) -> Result<Seat<'_>> {
        let mut tries = (0..TRIES).map(|_| SandboxId::random());
        tries.find_map(|id| self.claim(owner, id, net)).ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "no address is free for one more of your sandboxes")
                .hint("destroy some that are not needed, or create it with `--net user`")
        })
    }

    /// Keeps the address that goes with an id for a new sandbox, unless a sibling has it.
    pub(crate) fn claim(&self, owner: &Owner, id: SandboxId, net: Option<&NetRecord>) -> Option<Seat<'_>> {
        let lanes = self.lanes_of(net);
        let free = lanes.is_none_or(|lanes| lanes.claim(owner, &id, &address(&id)));
        free.then(|| Seat { network: self, owner: owner.clone(), id, net: net.cloned(), kept: false })
    }

    fn lanes_of(&self, net: Option<&NetRecord>) -> Option<&Lanes> {
        net.filter(|net| net.mode == NetMode::Bridge).and(self.given.as_ref()).map(|given| &given.lanes)
    }

    /// Publishes, among its siblings, that there is such a sandbox and what it is called now. That it cannot be is no
    /// reason for any verb to fail.
    pub(crate) fn seat(&self, manifest: &Manifest) {
        let Some(lanes) = self.lanes_of(manifest.net.as_ref()) else { return };
        let id = &manifest.id;
        if let Err(error) = lanes.seat(&manifest.owner, id, &manifest.name, &address(id)) {
            let error = failed("lanes", error).with_causes();
            tracing::warn!(%error, sandbox = %manifest.name, "its siblings do not know it");
        }
    }

    /// Takes a sandbox that is no more, or never came to be, from among its siblings.
    pub(crate) fn leave(&self, owner: &Owner, id: &SandboxId, net: Option<&NetRecord>) {
        let Some(lanes) = self.lanes_of(net) else { return };
        if let Err(error) = lanes.leave(owner, id, &address(id)) {
            tracing::warn!(error = %failed("lanes", error).with_causes(), %id, "its siblings still know it");
        }
    }

    /// Removes what sandboxes left among siblings that are not there any more; all that are there are seated.
    pub(crate) fn tidy(&self) {
        let Some(given) = &self.given else { return };
        if let Err(error) = given.lanes.tidy() {
            tracing::warn!(error = %failed("lanes", error).with_causes(), "what sandboxes left among their siblings stays");
        }
    }

    /// The mode of sandboxes that do not say.
    pub(crate) fn default_mode(&self) -> NetMode {
        self.given.as_ref().map_or(NetMode::None, |given| given.default)
    }

    /// Why sandboxes get none, if they do not.
    pub(crate) fn why_not(&self) -> Option<&str> {
        self.why_not.as_deref()
    }

    /// What a sandbox is to have.
    pub(crate) fn plan(&self, spec: &SandboxSpec) -> Result<Option<NetRecord>> {
        let mode = spec.net.unwrap_or_else(|| self.default_mode());
        match mode {
            NetMode::User | NetMode::Bridge if self.given.is_some() => {
                Ok(Some(NetRecord { mode, egress: spec.egress.clone().unwrap_or_else(Egress::public) }))
            }
            NetMode::User | NetMode::Bridge => Err(missing(self.why_not.as_deref().unwrap_or("unknown"))),
            // Rules without a network would be forgotten silently, and asking for them is asking for one.
            NetMode::None if spec.egress.as_ref().is_some_and(|egress| !egress.is_none()) => {
                Err(missing(self.why_not.as_deref().unwrap_or("there is no network")))
            }
            NetMode::None => Ok(None),
        }
    }
}

fn failed(what: &'static str, error: net::Error) -> Error {
    Error::new(ErrorKind::Internal, what).source(error)
}

fn missing(why: &str) -> Error {
    Error::new(ErrorKind::NotReady, format!("there is no network for a sandbox: {why}"))
        .hint("mend that (`bhatti doctor` looks again), or create it with `--net none`")
}

/// Whether a machine has a network card.
pub(crate) fn has_card(machine: &MachineRecord) -> bool {
    machine.devices.iter().any(|device| device.id == CARD)
}

/// Whether a machine's guest announces itself when its state was loaded.
pub(crate) fn announces(machine: &MachineRecord) -> bool {
    machine.devices.iter().any(|device| device.id == CARD && device.kind != QUIET_CARD)
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

/// What a template's guest is told, on a line that leads nowhere, so that every copy begins with a card that is on and
/// leads to the gateways that all have, and without addresses, which the copy would take away again.
pub(crate) fn told_to_template() -> wire::Net {
    wire::Net { addresses: Vec::new(), ..told_of(&Address::of(&[0; 32])) }
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
        if self.network.given.is_some() && has_card(machine) { self.line().map(Some) } else { Ok(None) }
    }

    /// Puts the sandbox's processes at the far end of a line.
    pub(crate) fn connect(&self, manifest: &Manifest, far: FarEnd, dir: &Path) -> Wired {
        let Some(record) = &manifest.net else { return Wired::default() };
        let Some(given) = &self.network.given else {
            return Wired { line: None, failed: self.network.why_not.clone() };
        };
        let own = address(&manifest.id);
        let connected = || {
            let lanes = self.network.lanes_of(Some(record));
            let among = lanes.map(|lanes| lanes.seat(&manifest.owner, &manifest.id, &manifest.name, &own));
            let among = among.transpose()?;
            let orders = Orders {
                rate: self.config.rates.of_net(manifest),
                own,
                v6: net::host_has_v6(),
                among: among.is_some(),
                egress: record.egress.clone(),
            };
            given.user.connect(far, &orders, among.as_ref(), &dir.join(layout::NET_LOG))
        };
        match connected() {
            Ok(line) => Wired { line: Some(line), failed: None },
            Err(error) => {
                let why = Error::new(ErrorKind::Internal, "passt").source(error).with_causes();
                tracing::warn!(error = %why, sandbox = %manifest.name, "it has no network");
                Wired { line: None, failed: Some(why) }
            }
        }
    }
}

/// Makes, and keeps, hot whom siblings want, for as long as there is a host: their packets are requests like others.
pub(crate) async fn wake_for_siblings(host: Weak<Inner>, mut asked: mpsc::Receiver<SandboxId>) {
    let busy: Arc<Mutex<HashSet<SandboxId>>> = Arc::default();
    while let Some(id) = asked.recv().await {
        let Some(inner) = host.upgrade() else { return };
        let Some(entry) = inner.registry.by_id(&id) else { continue };
        if !busy.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone()) {
            continue;
        }
        let busy = Arc::clone(&busy);
        inner.services.background.spawn(async move {
            let asked = tokio::time::Instant::now();
            // The lease is given back at once: while packets come, it is asked for again and again.
            if let Err(error) = send(&entry, |reply| Command::Lease(asked, reply)).await {
                tracing::info!(error = %error.with_causes(), sandbox = %entry.name, "a sibling's packets wait for it, and it did not wake");
            }
            busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
    }
}
