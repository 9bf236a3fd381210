//! What is asked of values wherever they stand. Each answer continues a sentence that begins with a field's name.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::SUPERVISOR_NAME;

type Checked = Result<(), &'static str>;

pub(super) fn name(name: &str) -> Checked {
    if name.is_empty() || name.chars().count() > 64 || name.contains(char::is_control) {
        return Err("must have 1 to 64 characters, none of them a control character");
    }
    if name == SUPERVISOR_NAME {
        return Err("must not be 'supervisor': so it calls itself in events");
    }
    Ok(())
}

/// Something that datagrams or connections go to.
pub(super) fn destination(to: SocketAddr) -> Checked {
    if to.port() == 0 || to.ip().is_unspecified() {
        return Err("must name an address and a port to send to");
    }
    Ok(())
}

/// The address of a peer as a TURN server is told it.
pub(super) fn peer_ip(ip: IpAddr) -> Checked {
    if ip.is_unspecified() {
        return Err("must name an address, not all of them");
    }
    if ip.to_canonical() != ip {
        return Err("must not have an IPv4 address written as IPv6");
    }
    Ok(())
}

/// A peer of a TURN client, whose address is one of the server's network: a zone means nothing there.
pub(super) fn peer(peer: SocketAddr) -> Checked {
    destination(peer)?;
    peer_ip(peer.ip())?;
    if matches!(peer, SocketAddr::V6(addr) if addr.scope_id() != 0) {
        return Err("must not have a zone: the server would not know it");
    }
    Ok(())
}

/// The local address of connections to a host, where that is an address itself.
pub(super) fn bind(bind: Option<IpAddr>, host: &str) -> bool {
    match (bind, host.parse::<IpAddr>()) {
        (Some(bind), Ok(to)) => bind.is_ipv4() == to.is_ipv4(),
        _ => true,
    }
}

pub(super) fn queue_bytes(bytes: usize) -> Checked {
    if (64 << 10..=1 << 30).contains(&bytes) {
        Ok(())
    } else {
        Err("must be 65536 (64 KiB) to 1073741824 (1 GiB)")
    }
}

pub(super) fn congestion(name: Option<&str>) -> Checked {
    if name.is_some_and(|name| name.is_empty() || name.len() > 15) {
        return Err("must have 1 to 15 characters");
    }
    Ok(())
}

pub(super) fn duration(value: Duration) -> Checked {
    if value < Duration::from_millis(1) || value > Duration::from_secs(86_400) {
        return Err("must be 1ms to 1day");
    }
    Ok(())
}
