//! Who may send to the relayed address: permissions (RFC 8656 §9), installed and kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::pace::Rank;

/// A permission's life (RFC 8656 §9).
pub(crate) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// It is asked for again this long before it ends: time for a request that is lost several times.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// One that was refused is asked for again after this.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// With one that is due all are asked for that are within this time.
const TOGETHER_INTERVAL: Duration = Duration::from_secs(5);
/// Addresses that may be permitted at a time: as many as there may be channels, each of which needs one.
pub(crate) const MAX_PERMISSIONS: usize = 1024;
/// Addresses in one CreatePermission.
pub(crate) const MAX_PEERS_PER_REQUEST: usize = 16;

/// The addresses that are permitted, or are to be.
#[derive(Debug, Default)]
pub(crate) struct Permissions {
    all: BTreeMap<IpAddr, Permission>,
}

#[derive(Debug)]
struct Permission {
    /// When the server forgets it; `None` before it has been installed.
    until: Option<Instant>,
    /// When to ask; `None` while a request is under way.
    due: Option<Instant>,
    /// Asked for alone, because a request for it and others was refused.
    alone: bool,
    /// The server refused it by itself, and has not granted it since.
    refused: bool,
}

impl Permission {
    fn is_granted(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

/// One CreatePermission to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) peers: Vec<IpAddr>,
    pub(crate) rank: Rank,
}

impl Permissions {
    /// Wishes for a permission; one that is not there is asked for at once. `false` if there are too many.
    pub(crate) fn want(&mut self, now: Instant, peer: IpAddr) -> bool {
        if self.all.len() >= MAX_PERMISSIONS && !self.all.contains_key(&peer) {
            return false;
        }
        let new = Permission { until: None, due: Some(now), alone: false, refused: false };
        let permission = self.all.entry(peer).or_insert(new);
        if !permission.is_granted(now) {
            permission.due = permission.due.map(|due| due.min(now));
        }
        true
    }

    /// Lets it run out.
    pub(crate) fn forbid(&mut self, peer: IpAddr) {
        self.all.remove(&peer);
    }

    /// What to ask for now. It counts as asked for.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut requests: Vec<Due> = Vec::new();
        let mut together: Vec<IpAddr> = Vec::new();
        let is_due = |it: &Permission| !it.alone && it.due.is_some_and(|due| due <= now);
        let until = if self.all.values().any(is_due) { now + TOGETHER_INTERVAL } else { now };
        for (peer, permission) in &mut self.all {
            let until = if permission.alone { now } else { until };
            if permission.due.is_some_and(|due| due <= until) {
                permission.due = None;
                if permission.alone {
                    let rank = if permission.is_granted(now) {
                        Rank::Kept
                    } else if permission.refused {
                        Rank::Refused
                    } else {
                        Rank::Single
                    };
                    requests.push(Due { peers: vec![*peer], rank });
                } else {
                    together.push(*peer);
                }
            }
        }
        let together = together.chunks(MAX_PEERS_PER_REQUEST);
        requests.extend(together.map(|peers| {
            let is_kept = peers.iter().any(|peer| self.is_granted(now, *peer));
            Due { peers: peers.to_vec(), rank: if is_kept { Rank::Kept } else { Rank::New } }
        }));
        requests
    }

    /// The server installed them. Says which are new.
    pub(crate) fn granted(&mut self, now: Instant, peers: &[IpAddr]) -> Vec<IpAddr> {
        let mut new = Vec::new();
        for peer in peers {
            if let Some(permission) = self.all.get_mut(peer) {
                (permission.alone, permission.refused) = (false, false);
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
    /// is asked for again more seldom. Says whether it is new.
    pub(crate) fn granted_by_channel(&mut self, now: Instant, peer: IpAddr) -> bool {
        self.want(now, peer) && !self.granted(now, &[peer]).is_empty()
    }

    /// The server refused, or did not answer. Says for whom that is final for now: where a refusal may be about
    /// some of several peers they are asked for one by one instead, for one bad address spoils the others' chance.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        peers: &[IpAddr],
        is_refusal: bool,
        is_about_peers: bool,
    ) -> Vec<IpAddr> {
        let again = is_about_peers && peers.len() > 1;
        for peer in peers {
            if let Some(permission) = self.all.get_mut(peer) {
                permission.alone |= is_refusal;
                permission.refused |= is_refusal && !again;
                permission.due = Some(if again { now } else { now + RETRY_INTERVAL });
            }
        }
        if again { Vec::new() } else { peers.to_vec() }
    }

    /// Whether the server lets this address send to us, as far as is known.
    pub(crate) fn is_granted(&self, now: Instant, peer: IpAddr) -> bool {
        self.all.get(&peer).is_some_and(|permission| permission.is_granted(now))
    }

    /// Whether it is to be kept.
    pub(crate) fn is_wanted(&self, peer: IpAddr) -> bool {
        self.all.contains_key(&peer)
    }

    /// Those that the server has installed.
    pub(crate) fn all_granted(&self, now: Instant) -> Vec<IpAddr> {
        self.all.keys().filter(|peer| self.is_granted(now, **peer)).copied().collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.all.values().filter_map(|permission| permission.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::any_instant;

    fn peer(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn due(permissions: &mut Permissions, now: Instant) -> Vec<(Vec<u8>, Rank)> {
        let last = |ip: &IpAddr| if let IpAddr::V4(ip) = ip { ip.octets()[3] } else { 0 };
        let due = permissions.take_due(now).into_iter();
        due.map(|due| (due.peers.iter().map(last).collect(), due.rank)).collect()
    }

    #[test]
    fn a_permission_is_asked_for_once_and_again_a_minute_before_its_end() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        assert!(permissions.want(start, peer(1)) && permissions.want(start, peer(2)));
        assert_eq!(due(&mut permissions, start), [(vec![1, 2], Rank::New)]);
        assert!(permissions.take_due(start).is_empty(), "a request is under way");
        assert_eq!(permissions.granted(start, &[peer(1), peer(2)]), [peer(1), peer(2)]);
        assert!(permissions.is_granted(start, peer(1)));
        let later = start + Duration::from_secs(240);
        assert_eq!(permissions.poll_timeout(), Some(later));
        assert_eq!(due(&mut permissions, later), [(vec![1, 2], Rank::Kept)]);
        assert!(permissions.granted(later, &[peer(1)]).is_empty(), "it is not new");
        assert!(!permissions.is_granted(start + PERMISSION_LIFETIME, peer(2)));
        assert_eq!(permissions.all_granted(start + PERMISSION_LIFETIME), [peer(1)]);
    }

    #[test]
    fn one_refused_address_does_not_spoil_the_others_chance() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        (1..=3).for_each(|last| assert!(permissions.want(start, peer(last))));
        let asked = permissions.take_due(start);
        assert!(permissions.failed(start, &asked[0].peers, true, true).is_empty());
        assert_eq!(permissions.poll_timeout(), Some(start));
        assert_eq!(due(&mut permissions, start), [1, 2, 3].map(|last| (vec![last], Rank::Single)));
        assert_eq!(permissions.granted(start, &[peer(1)]), [peer(1)]);
        assert_eq!(permissions.failed(start, &[peer(2)], true, true), [peer(2)]);
        permissions.granted(start, &[peer(3)]);
        let retry = start + RETRY_INTERVAL;
        assert_eq!(permissions.poll_timeout(), Some(retry));
        assert_eq!(due(&mut permissions, retry), [(vec![2], Rank::Refused)]);
        assert_eq!(permissions.failed(retry, &[peer(2)], true, true), [peer(2)]);
        permissions.forbid(peer(2));
        assert!(permissions.take_due(retry + RETRY_INTERVAL).is_empty());
    }

    #[test]
    fn one_that_came_to_nothing_is_asked_for_at_once_when_it_is_wished_for_again() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        permissions.want(start, peer(1));
        assert_eq!(due(&mut permissions, start), [(vec![1], Rank::New)]);
        permissions.want(start, peer(1));
        assert!(permissions.take_due(start).is_empty(), "a request is under way");
        permissions.failed(start, &[peer(1)], true, true);
        assert!(permissions.take_due(start).is_empty());
        permissions.want(start, peer(1));
        assert_eq!(due(&mut permissions, start), [(vec![1], Rank::Refused)]);
        permissions.failed(start, &[peer(1)], false, false);
        assert_eq!(due(&mut permissions, start + RETRY_INTERVAL), [(vec![1], Rank::Refused)]);
        permissions.granted(start, &[peer(1)]);
        permissions.want(start, peer(1));
        assert!(permissions.take_due(start).is_empty());
    }

    #[test]
    fn those_that_nobody_answered_for_stay_together() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        (1..=3).for_each(|last| assert!(permissions.want(start, peer(last))));
        let asked = permissions.take_due(start);
        assert_eq!(permissions.failed(start, &asked[0].peers, false, false), asked[0].peers);
        assert_eq!(permissions.take_due(start + RETRY_INTERVAL), asked);
    }

    #[test]
    fn there_is_a_limit_and_requests_are_of_bounded_size() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        for number in 0..MAX_PERMISSIONS {
            assert!(permissions.want(start, [10, 0, (number >> 8) as u8, number as u8].into()));
        }
        assert!(!permissions.want(start, peer(1)));
        let requests = permissions.take_due(start);
        assert_eq!(requests.iter().map(|due| due.peers.len()).sum::<usize>(), MAX_PERMISSIONS);
        assert!(requests.iter().all(|due| due.peers.len() <= MAX_PEERS_PER_REQUEST));
    }
}
