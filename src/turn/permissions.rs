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
/// With one that is due all are asked for that are within this time.
const TOGETHER_INTERVAL: Duration = Duration::from_secs(5);
/// Addresses that may be permitted at a time: as many as there may be channels, each of which needs one.
pub(crate) const MAX_PERMISSIONS: usize = 1024;
/// Addresses in one CreatePermission.
pub(crate) const MAX_PEERS_PER_REQUEST: usize = 16;

/// After a refusal, nothing that was refused before is asked for again for this long.
pub(crate) const REFUSED_INTERVAL: Duration = Duration::from_secs(4);

/// The addresses that are permitted, or are to be.
#[derive(Debug, Default)]
pub(crate) struct Permissions {
    all: BTreeMap<IpAddr, Permission>,
    retries: Retries<IpAddr>,
}

#[derive(Debug)]
struct Permission {
    /// When the server forgets it; `None` before it has been installed.
    until: Option<Instant>,
    /// When to ask; `None` while a request is under way.
    due: Option<Instant>,
    /// Asked for alone, because a request for it was refused.
    alone: bool,
}

/// What was refused before is asked for one at a time: the next at once if the server accepts, else after a pause.
/// So a server that refuses everything hears little, however much there is to ask for, and one bad address does
/// not keep the others waiting for long.
#[derive(Debug)]
pub(crate) struct Retries<T> {
    asking: Option<T>,
    not_before: Option<Instant>,
}

impl<T> Default for Retries<T> {
    fn default() -> Self {
        Self { asking: None, not_before: None }
    }
}

impl<T: PartialEq> Retries<T> {
    /// Whether this one may be asked for now. Then it counts as asked for.
    pub(crate) fn ask(&mut self, now: Instant, who: T) -> bool {
        let may = self.asking.is_none() && self.not_before.is_none_or(|at| at <= now);
        if may {
            self.asking = Some(who);
        }
        may
    }

    /// When one that is due may be asked for; `None` while another is.
    pub(crate) fn at(&self, due: Instant) -> Option<Instant> {
        self.asking.is_none().then(|| self.not_before.map_or(due, |at| at.max(due)))
    }

    /// The server has accepted it, or nobody wants it any more.
    pub(crate) fn done(&mut self, who: &T) {
        self.asking.take_if(|asking| asking == who);
    }

    pub(crate) fn refused(&mut self, now: Instant, who: &T) {
        self.done(who);
        self.not_before = Some(now + REFUSED_INTERVAL);
    }
}

impl Permissions {
    /// Wishes for a permission. `false` if there are too many.
    pub(crate) fn want(&mut self, now: Instant, peer: IpAddr) -> bool {
        if self.all.len() >= MAX_PERMISSIONS && !self.all.contains_key(&peer) {
            return false;
        }
        self.all.entry(peer).or_insert(Permission { until: None, due: Some(now), alone: false });
        true
    }

    /// Lets it run out.
    pub(crate) fn forbid(&mut self, peer: IpAddr) {
        self.all.remove(&peer);
        self.retries.done(&peer);
    }

    /// The addresses to ask for now, in groups of one request each. They count as asked for.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Vec<IpAddr>> {
        let mut requests: Vec<Vec<IpAddr>> = Vec::new();
        let mut together: Vec<IpAddr> = Vec::new();
        let is_due = |it: &Permission| !it.alone && it.due.is_some_and(|due| due <= now);
        let until = if self.all.values().any(is_due) { now + TOGETHER_INTERVAL } else { now };
        for (peer, permission) in &mut self.all {
            if !permission.alone && permission.due.is_some_and(|due| due <= until) {
                permission.due = None;
                together.push(*peer);
            } else if permission.due.is_some_and(|due| due <= now) && self.retries.ask(now, *peer) {
                permission.due = None;
                requests.push(vec![*peer]);
            }
        }
        requests.extend(together.chunks(MAX_PEERS_PER_REQUEST).map(<[IpAddr]>::to_vec));
        requests
    }

    /// The server installed them. Says which are new.
    pub(crate) fn granted(&mut self, now: Instant, peers: &[IpAddr]) -> Vec<IpAddr> {
        let mut new = Vec::new();
        for peer in peers {
            self.retries.done(peer);
            if let Some(permission) = self.all.get_mut(peer) {
                permission.alone = false;
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
                permission.due = Some(if again { now } else { now + RETRY_INTERVAL });
            }
            if again || !is_refusal {
                self.retries.done(peer);
            } else {
                self.retries.refused(now, peer);
            }
        }
        if again { Vec::new() } else { peers.to_vec() }
    }

    /// Whether the server lets this address send to us, as far as is known.
    pub(crate) fn is_granted(&self, now: Instant, peer: IpAddr) -> bool {
        self.all.get(&peer).and_then(|permission| permission.until).is_some_and(|until| until > now)
    }

    /// Those that the server has installed.
    pub(crate) fn all_granted(&self, now: Instant) -> Vec<IpAddr> {
        self.all.keys().filter(|peer| self.is_granted(now, **peer)).copied().collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let at = |it: &Permission| if it.alone { self.retries.at(it.due?) } else { it.due };
        self.all.values().filter_map(at).min()
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
        assert!(permissions.failed(start, &asked[0], true, true).is_empty());
        assert_eq!(permissions.take_due(start), [[peer(1)]]);
        assert_eq!((permissions.poll_timeout(), permissions.take_due(start)), (None, vec![]));
        assert_eq!(permissions.granted(start, &[peer(1)]), [peer(1)]);
        assert_eq!(permissions.take_due(start), [[peer(2)]]);
        assert_eq!(permissions.failed(start, &[peer(2)], true, true), [peer(2)]);
        assert_eq!(permissions.poll_timeout(), Some(start + REFUSED_INTERVAL));
        assert!(permissions.take_due(start).is_empty(), "after a refusal there is a pause");
        assert_eq!(permissions.take_due(start + REFUSED_INTERVAL), [[peer(3)]]);
        permissions.granted(start + REFUSED_INTERVAL, &[peer(3)]);
        assert_eq!(permissions.poll_timeout(), Some(start + RETRY_INTERVAL));
        permissions.forbid(peer(2));
        assert!(permissions.take_due(start + RETRY_INTERVAL).is_empty());
    }

    #[test]
    fn those_that_nobody_answered_for_stay_together() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        (1..=3).for_each(|last| assert!(permissions.want(start, peer(last))));
        let asked = permissions.take_due(start);
        assert_eq!(permissions.failed(start, &asked[0], false, false), asked[0]);
        assert_eq!(permissions.take_due(start + RETRY_INTERVAL), asked);
    }

    #[test]
    fn a_refused_one_that_is_forbidden_makes_room_for_the_next() {
        let (start, mut permissions) = (any_instant(), Permissions::default());
        (1..=2).for_each(|last| assert!(permissions.want(start, peer(last))));
        let asked = permissions.take_due(start);
        permissions.failed(start, &asked[0], true, true);
        assert_eq!(permissions.take_due(start), [[peer(1)]]);
        permissions.forbid(peer(1));
        assert_eq!(permissions.take_due(start), [[peer(2)]]);
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
