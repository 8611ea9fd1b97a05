//! `mortar peer ...` and `mortar pool list`, with gluster's outputs.

use std::fmt::Write as _;

use mortar_protocol::admin::{AdminReply, AdminRequest, PeerInfo, PeerState};
use serde_json::{Value, json};

use super::flags::Form;
use super::said::{self, ERRNO_NOT_CONNECTED, Failed, Said};
use super::words::pick;
use super::world::World;
use super::xml::{self, Xml};
use super::{Context, help};

const PROBE: &str = "peer probe { <HOSTNAME> | <IP-address> }";
const DETACH: &str = "peer detach { <HOSTNAME> | <IP-address> } [force]";
const STATUS: &str = "peer status";
const POOL: &str = "pool list";
const VERBS: &[&str] = &["probe", "detach", "status", "help"];

const QUESTION: &str = "All clients mounted through the peer which is getting detached need to be remounted using one \
    of the other active peers in the trusted storage pool to ensure client gets notification on any changes done on the \
    gluster configuration and if the same has been done do you want to proceed?";

/// What `peer` and `pool` can be asked.
#[derive(PartialEq, Eq, Debug)]
enum Command {
    Help,
    Probe(String),
    Detach { host: String, force: bool },
    Status,
    Pool,
}

/// Lines of `help`: usage and what it does.
pub(crate) fn help_lines() -> Vec<(&'static str, &'static str)> {
    vec![
        (DETACH, "detach peer specified by <HOSTNAME>"),
        ("peer help", "display help for peer commands"),
        (PROBE, "probe peer specified by <HOSTNAME>"),
        (STATUS, "list status of peers"),
        (POOL, "list all the nodes in the pool (including localhost)"),
    ]
}

fn parse(words: &[String]) -> Result<Command, Failed> {
    let Some((verb, rest)) = words.split_first() else {
        return Ok(Command::Help);
    };
    match (pick(verb, VERBS, 1)?, rest) {
        ("help", _) => Ok(Command::Help),
        ("probe", [host]) => Ok(Command::Probe(valid(host)?)),
        ("probe", _) => Err(Failed::Usage(PROBE)),
        ("detach", [host]) => Ok(Command::Detach {
            host: valid(host)?,
            force: false,
        }),
        ("detach", [host, force]) if force == "force" => Ok(Command::Detach {
            host: valid(host)?,
            force: true,
        }),
        ("detach", _) => Err(Failed::Usage(DETACH)),
        ("status", []) => Ok(Command::Status),
        _ => Err(Failed::Usage(STATUS)),
    }
}

/// A host name or address, with an optional port.
fn valid(host: &str) -> Result<String, Failed> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:[]%".contains(c);
    if host.is_empty() || host.len() > 300 || host.starts_with('-') || !host.chars().all(fits) {
        return Err(Failed::Wrong(format!("{host} is an invalid address")));
    }
    Ok(host.to_owned())
}

/// Runs `mortar peer WORDS`.
///
/// # Errors
/// Why it was not done.
pub(crate) fn peer(context: &mut Context<'_>, words: &[String]) -> Result<Said, Failed> {
    let command = parse(words)?;
    run(context, command)
}

/// Runs `mortar pool WORDS`.
///
/// # Errors
/// As [`peer`].
pub(crate) fn pool(context: &mut Context<'_>, words: &[String]) -> Result<Said, Failed> {
    match words {
        [verb] => pick(verb, &["list"], 1)?,
        _ => return Err(Failed::Usage(POOL)),
    };
    run(context, Command::Pool)
}

fn run(context: &mut Context<'_>, command: Command) -> Result<Said, Failed> {
    let Context {
        form,
        world,
        program,
        ..
    } = context;
    match command {
        Command::Help => Ok(Said::out(help::family(*program, "peer", &help_lines()))),
        Command::Probe(host) => {
            let request = AdminRequest::Probe { host: host.clone() };
            done("probe", host, world.ask(request)?, *form)
        }
        Command::Detach { host, force } => {
            world.confirm(QUESTION)?;
            let request = AdminRequest::Detach {
                host: host.clone(),
                force,
            };
            done("detach", host, world.ask(request)?, *form)
        }
        Command::Status => {
            let others = peers(*world)?.into_iter().filter(|peer| !peer.is_self);
            let others: Vec<PeerInfo> = others.collect();
            Ok(Said::out(match form {
                Form::Text => status_text(&others),
                Form::Xml => xml::done(|xml| peers_xml(xml, &others)),
                Form::Json => said::json(&peers_json(&others)),
            }))
        }
        Command::Pool => {
            // gluster shows the node that was asked last.
            let mut all = peers(*world)?;
            all.sort_by_key(|peer| peer.is_self);
            Ok(Said::out(match form {
                Form::Text => pool_text(&all),
                Form::Xml => xml::done(|xml| peers_xml(xml, &all)),
                Form::Json => said::json(&peers_json(&all)),
            }))
        }
    }
}

fn peers(world: &mut dyn World) -> Result<Vec<PeerInfo>, Failed> {
    match world.ask(AdminRequest::Peers)? {
        AdminReply::Peers(peers) => Ok(peers),
        AdminReply::Refused { message } => Err(Failed::refused("peer status: failed: ", message)),
        _ => Err(Failed::confused()),
    }
}

/// The outcome of `probe` and `detach`.
fn done(verb: &str, host: String, reply: AdminReply, form: Form) -> Result<Said, Failed> {
    let notes = match reply {
        AdminReply::Done => Vec::new(),
        AdminReply::Notes(notes) => notes,
        AdminReply::Refused { message } => {
            return Err(Failed::Refused {
                prefix: format!("peer {verb}: failed: "),
                message,
                errno: ERRNO_NOT_CONNECTED,
                // As recorded.
                code: if verb == "detach" { 255 } else { 1 },
            });
        }
        _ => return Err(Failed::confused()),
    };
    Ok(Said::out(match form {
        Form::Text if notes.is_empty() => format!("peer {verb}: success\n"),
        Form::Text => notes.iter().fold(String::new(), |mut text, note| {
            let _ = writeln!(text, "peer {verb}: {note}");
            text
        }),
        Form::Xml => xml::cli_output(0, note_number(&notes), "", |xml| {
            xml.element("output", notes.join("\n"));
        }),
        Form::Json => said::json(&json!({ "host": host, "done": true, "notes": notes })),
    }))
}

/// gluster's number of what made a probe needless.
fn note_number(notes: &[String]) -> i32 {
    match notes.first() {
        Some(note) if note.contains("localhost") => 1,
        Some(note) if note.contains("already in peer list") => 2,
        _ => 0,
    }
}

fn state(peer: &PeerInfo) -> (u8, &'static str) {
    match peer.state {
        PeerState::Joining => (1, "Probe Sent to Peer"),
        PeerState::Joined => (3, "Peer in Cluster"),
        PeerState::Leaving => (7, "Peer detach in progress"),
    }
}

fn connected(peer: &PeerInfo) -> bool {
    peer.connected || peer.is_self
}

fn connection(peer: &PeerInfo) -> &'static str {
    if connected(peer) {
        "Connected"
    } else {
        "Disconnected"
    }
}

fn status_text(peers: &[PeerInfo]) -> String {
    let mut text = format!("Number of Peers: {}\n", peers.len());
    for peer in peers {
        let _ = writeln!(
            text,
            "\nHostname: {}\nUuid: {}\nState: {} ({})",
            peer.host,
            peer.id,
            state(peer).1,
            connection(peer)
        );
        if !peer.other_names.is_empty() {
            text.push_str("Other names:\n");
            for name in &peer.other_names {
                let _ = writeln!(text, "{name}");
            }
        }
    }
    text
}

fn host(peer: &PeerInfo) -> &str {
    if peer.is_self {
        "localhost"
    } else {
        &peer.host
    }
}

fn pool_text(peers: &[PeerInfo]) -> String {
    let hosts = peers.iter().map(|peer| host(peer).chars().count());
    let width = hosts.max().unwrap_or_default().max(8);
    let mut text = format!("UUID\t\t\t\t\t{:<width$}\tState\n", "Hostname");
    for peer in peers {
        let _ = writeln!(
            text,
            "{}\t{:<width$}\t{} ",
            peer.id,
            host(peer),
            connection(peer)
        );
    }
    text
}

fn peers_xml(xml: &mut Xml, peers: &[PeerInfo]) {
    xml.within("peerStatus", |xml| {
        for peer in peers {
            xml.within("peer", |xml| {
                xml.element("uuid", peer.id);
                xml.element("hostname", host(peer));
                if !peer.is_self {
                    xml.within("hostnames", |xml| {
                        for name in std::iter::once(&peer.host).chain(&peer.other_names) {
                            xml.element("hostname", name);
                        }
                    });
                }
                xml.element("connected", u8::from(connected(peer)));
                if !peer.is_self {
                    let (number, text) = state(peer);
                    xml.element("state", number);
                    xml.element("stateStr", text);
                }
            });
        }
    });
}

/// A node as JSON.
pub(crate) fn peer_json(peer: &PeerInfo) -> Value {
    let addrs: Vec<String> = peer.addrs.iter().map(ToString::to_string).collect();
    json!({
        "id": peer.id.to_string(),
        "host": peer.host,
        "other_names": peer.other_names,
        "addresses": addrs,
        "state": match peer.state {
            PeerState::Joining => "joining",
            PeerState::Joined => "joined",
            PeerState::Leaving => "leaving",
        },
        "connected": connected(peer),
        "self": peer.is_self,
    })
}

fn peers_json(peers: &[PeerInfo]) -> Value {
    json!({ "peers": peers.iter().map(peer_json).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests;
