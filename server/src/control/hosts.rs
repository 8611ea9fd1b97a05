//! Which node a host name or address means. Pure: names are resolved by the caller.

use std::net::{IpAddr, SocketAddr};

use mortar_protocol::ids::NodeId;

use super::machine::State;

/// The port nodes listen on unless told otherwise.
pub const PORT: u16 = 24_007;

/// Splits `HOST`, `HOST:PORT`, `V6` and `[V6]:PORT`.
///
/// # Errors
/// What a person is told.
pub fn split(host: &str) -> Result<(String, u16), String> {
    let wrong = || format!("'{host}' is no host: HOST, HOST:PORT or [V6]:PORT");
    if let Ok(addr) = host.parse::<SocketAddr>() {
        return Ok((addr.ip().to_string(), addr.port()));
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return Ok((bare.to_owned(), PORT));
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, port.parse().map_err(|_| wrong())?),
        None => (host, PORT),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if name.is_empty() || !name.chars().all(fits) || port == 0 {
        return Err(wrong());
    }
    Ok((name.to_owned(), port))
}

/// The addresses other machines reach a node by: loopback ones only if it has no others.
pub fn outside(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let other = |addr: &&SocketAddr| !addr.ip().is_loopback();
    let others: Vec<SocketAddr> = addrs.iter().filter(other).copied().collect();
    if others.is_empty() {
        addrs.to_vec()
    } else {
        others
    }
}

/// The node that is known by a name, or reached at one of its addresses. A port counts only where several nodes share
/// an address.
pub fn known(state: &State, name: &str, resolved: &[IpAddr], port: u16) -> Option<NodeId> {
    let named = state.nodes.iter().find(|(_, record)| {
        record.host == name || record.other_names.iter().any(|other| other == name)
    });
    let at = |with_port: bool| {
        let reached = |addr: &SocketAddr| {
            resolved.contains(&addr.ip()) && (!with_port || addr.port() == port)
        };
        let mut found = state
            .nodes
            .iter()
            .filter(|(_, record)| outside(&record.addrs).iter().any(reached));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    };
    // A name that is the host name of several nodes says nothing.
    let named = named.filter(|(_, record)| {
        let same = state
            .nodes
            .values()
            .filter(|other| other.host == record.host);
        same.count() == 1
    });
    named
        .or_else(|| at(true))
        .or_else(|| at(false))
        .map(|(node, _)| *node)
}
