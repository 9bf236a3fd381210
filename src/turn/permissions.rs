//! Who may send to the relayed address: permissions (RFC 8656 §9), installed and kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A permission's life (RFC 8656 §9).
pub(crate) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// It is asked for again this long before it ends: time for a request that is lost several times.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// One that was refused is asked for again after this.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Addresses that may be permitted at a time: as many as there may be channels, each of which needs one.
pub(crate) const MAX_PERMISSIONS: usize = 1024;
/// Addresses in one CreatePermission.
pub(crate) const MAX_PEERS_PER_REQUEST: usize = 16;

/// The addresses that are permitted, or are to be.
#[derive(Debug, Default)]
pub(crate) struct Permissions(BTreeMap<IpAddr, Permission>);

#[derive(Debug)]
struct Permission {
    /// When the server forgets it; `None` before it has been installed.
    until: Option<Instant>,
    /// When to ask; `None` while a request is under way.
    due: Option<Instant>,
    /// Asked for alone, because a request for several was refused.
    alone: bool,
}

impl Permissions {
    /// Wishes for a permission. `false` if there are too many.
    pub(crate) fn want(&mut self, now: Instant, peer: IpAddr) -> bool {
        if self.0.len() >= MAX_PERMISSIONS && !self.0.contains_key(&peer) {
            return false;
        }
        self.0.entry(peer).or_insert(Permission { until: None, due: Some(now), alone: false });
        true
    }

    /// Lets it run out.
    pub(crate) fn forbid(&mut self, peer: IpAddr) {
        self.0.remove(&peer);
    }

    /// The addresses to ask for now, in groups of one request each. They count as asked for.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Vec<IpAddr>> {
        let mut requests: Vec<Vec<IpAddr>> = Vec::new();
        let mut together: Vec<IpAddr> = Vec::new();
        for (peer, permission) in &mut self.0 {
            if permission.due.is_none_or(|due| due > now) {
                continue;
            }
            permission.due = None;
            if permission.alone {
                requests.push(vec![*peer]);
            } else {
                together.push(*peer);
            }
        }
        requests.extend(together.chunks(MAX_PEERS_PER_REQUEST).map(<[IpAddr]>::to_vec));
        requests
    }

    /// The server installed them. Says which are new.
    pub(crate) fn granted(&mut self, now: Instant, peers: &[IpAddr]) -> Vec<IpAddr> {
        let mut new = Vec::new();
        for peer in peers {
            if let Some(permission) = self.0.get_mut(peer) {
                if permission.until.is_none_or(|until| until <= now) {
                    new.push(*peer);
                }
                permission.until = Some(now + PERMISSION_LIFETIME);
                permission.due = Some(now + PERMISSION_LIFETIME - REFRESH_BEFORE);
            }
        }
        new
    }

    /// A channel's peer is permitted with it (RFC 8656 §12.2), and its permission kept like any other: the channel
    /// is asked for again more seldom.
    pub(crate) fn granted_by_channel(&mut self, now: Instant, peer: IpAddr) {
        if self.want(now, peer) {
            self.granted(now, &[peer]);
        }
    }

    /// The server refused, or did not answer. Says for whom that is final for now: several in one request are
    /// asked for one by one instead, for one bad address spoils the others' chance.
    pub(crate) fn failed(&mut self, now: Instant, peers: &[IpAddr]) -> Vec<IpAddr> {
        let several = peers.len() > 1;
        for peer in peers {
            if let Some(permission) = self.0.get_mut(peer) {
                permission.alone = true;
                permission.due = Some(if several { now } else { now + RETRY_INTERVAL });
            }
        }
        if several { Vec::new() } else { peers.to_vec() }
    }

    /// Whether the server lets this address send to us, as far as is known.
    pub(crate) fn is_granted(&self, now: Instant, peer: IpAddr) -> bool {
        self.0.get(&peer).and_then(|permission| permission.until).is_some_and(|until| until > now)
    }

    /// Those that the server has installed.
    pub(crate) fn all_granted(&self, now: Instant) -> Vec<IpAddr> {
        self.0.keys().filter(|peer| self.is_granted(now, **peer)).copied().collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().filter_map(|permission| permission.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::any_instant;

    fn peer(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_permission_is_asked_for_once_and_again_a_minute_before_its_end() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        assert!(permissions.want(start, peer(1)) && permissions.want(start, peer(2)));
        assert_eq!(permissions.take_due(start), [[peer(1), peer(2)]]);
        assert!(permissions.take_due(start).is_empty(), "a request is under way");
        assert_eq!(permissions.granted(start, &[peer(1), peer(2)]), [peer(1), peer(2)]);
        assert!(permissions.is_granted(start, peer(1)));
        let due = start + Duration::from_secs(240);
        assert_eq!(permissions.poll_timeout(), Some(due));
        assert_eq!(permissions.take_due(due), [[peer(1), peer(2)]]);
        assert!(permissions.granted(due, &[peer(1)]).is_empty(), "it is not new");
        assert!(!permissions.is_granted(start + PERMISSION_LIFETIME, peer(2)));
        assert_eq!(permissions.all_granted(start + PERMISSION_LIFETIME), [peer(1)]);
    }

    #[test]
    fn one_refused_address_does_not_spoil_the_others_chance() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        (1..=3).for_each(|last| assert!(permissions.want(start, peer(last))));
        let asked = permissions.take_due(start);
        assert!(permissions.failed(start, &asked[0]).is_empty());
        assert_eq!(permissions.take_due(start), [[peer(1)], [peer(2)], [peer(3)]]);
        assert_eq!(permissions.failed(start, &[peer(2)]), [peer(2)]);
        assert_eq!(permissions.granted(start, &[peer(1)]), [peer(1)]);
        assert_eq!(permissions.poll_timeout(), Some(start + RETRY_INTERVAL));
        permissions.forbid(peer(2));
        assert!(permissions.take_due(start + RETRY_INTERVAL).is_empty());
    }

    #[test]
    fn there_is_a_limit_and_requests_are_of_bounded_size() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        for number in 0..MAX_PERMISSIONS {
            assert!(permissions.want(start, [10, 0, (number >> 8) as u8, number as u8].into()));
        }
        assert!(!permissions.want(start, peer(1)));
        let requests = permissions.take_due(start);
        assert_eq!(requests.iter().map(Vec::len).sum::<usize>(), MAX_PERMISSIONS);
        assert!(requests.iter().all(|request| request.len() <= MAX_PEERS_PER_REQUEST));
    }
}
