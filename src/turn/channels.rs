//! Channels (RFC 8656 §12): a number for each peer, kept, and not given to another too soon.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::pace::Rank;
use super::permissions::RETRY_INTERVAL;

/// A channel binding's life (RFC 8656 §12).
pub(crate) const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
/// It is asked for again this long before it ends.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// A number is not bound to another peer for this long after its binding ended (RFC 8656 §12.2).
pub(crate) const GUARD_TIME: Duration = Duration::from_secs(300);
/// The numbers there are (RFC 8656 §12).
const FIRST: u16 = 0x4000;
const LAST: u16 = 0x4fff;
/// Peers that may have a channel at a time.
pub(crate) const MAX_CHANNELS: usize = 1024;

/// The channels of one allocation. A peer keeps its number for as long as the server may remember it, for the
/// answer to a ChannelBind may be lost: then another number for the same peer would be refused.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    all: BTreeMap<SocketAddr, Channel>,
}

#[derive(Debug)]
struct Channel {
    number: u16,
    /// It is to be kept.
    wanted: bool,
    /// When the server forgets it, as far as is known; `None` before the server has confirmed it, and when it is
    /// not wanted.
    until: Option<Instant>,
    /// When the server has forgotten it for certain, whatever answers were lost.
    perhaps_until: Option<Instant>,
    /// When to ask; `None` while a request is under way, or when it is not wanted.
    due: Option<Instant>,
    /// The server refused it, and has not granted it since.
    refused: bool,
}

impl Channel {
    fn is_bound(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

/// One ChannelBind to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) channel: u16,
    pub(crate) peer: SocketAddr,
    pub(crate) rank: Rank,
}

impl Channels {
    /// Wishes for a channel; one that is not there is asked for at once. `None` if there are too many.
    pub(crate) fn want(&mut self, now: Instant, peer: SocketAddr) -> Option<u16> {
        if let Some(channel) = self.all.get_mut(&peer) {
            if !channel.wanted {
                channel.wanted = true;
                channel.due = Some(now);
            } else if !channel.is_bound(now) {
                channel.due = channel.due.map(|due| due.min(now));
            }
            return Some(channel.number);
        }
        if self.all.values().filter(|channel| channel.wanted).count() >= MAX_CHANNELS {
            return None;
        }
        self.all.retain(|_, channel| {
            channel.wanted || channel.perhaps_until.is_some_and(|at| at + GUARD_TIME > now)
        });
        let taken: std::collections::BTreeSet<u16> =
            self.all.values().map(|channel| channel.number).collect();
        let number = (FIRST..=LAST).find(|number| !taken.contains(number))?;
        let channel = Channel {
            number,
            wanted: true,
            until: None,
            perhaps_until: None,
            due: Some(now),
            refused: false,
        };
        self.all.insert(peer, channel);
        Some(number)
    }

    /// The channels to ask for now. They count as asked for.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        for (peer, channel) in &mut self.all {
            if channel.wanted && channel.due.is_some_and(|due| due <= now) {
                channel.due = None;
                let rank = if channel.is_bound(now) {
                    Rank::Kept
                } else if channel.refused {
                    Rank::Refused
                } else {
                    Rank::New
                };
                due.push(Due { channel: channel.number, peer: *peer, rank });
            }
        }
        due
    }

    /// The server bound it. Says whether that is new.
    pub(crate) fn bound(&mut self, now: Instant, peer: SocketAddr) -> bool {
        let Some(channel) = self.all.get_mut(&peer) else { return false };
        channel.refused = false;
        channel.perhaps_until = Some(now + CHANNEL_LIFETIME);
        if !channel.wanted {
            return false;
        }
        let is_new = channel.until.is_none_or(|until| until <= now);
        channel.until = Some(now + CHANNEL_LIFETIME);
        channel.due = Some(now + CHANNEL_LIFETIME - REFRESH_BEFORE);
        is_new
    }

    /// Whether it is to be kept.
    pub(crate) fn is_wanted(&self, peer: SocketAddr) -> bool {
        self.all.get(&peer).is_some_and(|channel| channel.wanted)
    }

    /// The server refused, or its answers were lost: then it may remember the binding all the same.
    pub(crate) fn failed(&mut self, now: Instant, peer: SocketAddr, is_refusal: bool) {
        if let Some(channel) = self.all.get_mut(&peer) {
            channel.refused |= is_refusal;
            channel.perhaps_until = Some(now + CHANNEL_LIFETIME);
            channel.due = channel.wanted.then(|| now + RETRY_INTERVAL);
        }
    }

    /// Lets the channels of an address run out; says whose are no longer to be used.
    pub(crate) fn forbid(&mut self, now: Instant, ip: IpAddr) -> Vec<SocketAddr> {
        let mut given_up = Vec::new();
        for (peer, channel) in self.all.iter_mut().filter(|(peer, channel)| peer.ip() == ip && channel.wanted)
        {
            channel.wanted = false;
            // Whoever wishes for it again waits for the server's answer, for the permission may be gone by then.
            channel.until = None;
            channel.due = None;
            channel.perhaps_until = channel.perhaps_until.max(Some(now + CHANNEL_LIFETIME));
            given_up.push(*peer);
        }
        given_up
    }

    /// Those whose binding has just run out, although they were to be kept. Each is told once.
    pub(crate) fn take_lapsed(&mut self, now: Instant) -> Vec<SocketAddr> {
        let mut lapsed = Vec::new();
        for (peer, channel) in &mut self.all {
            if channel.until.is_some_and(|until| until <= now) {
                channel.until = None;
                lapsed.push(*peer);
            }
        }
        lapsed
    }

    /// The channels in use.
    pub(crate) fn all_bound(&self, now: Instant) -> Vec<(u16, SocketAddr)> {
        let bound = self.all.iter().filter(|(_, channel)| channel.is_bound(now));
        bound.map(|(peer, channel)| (channel.number, *peer)).collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.all.values().flat_map(|channel| [channel.due, channel.until]).flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::any_instant;

    fn peer(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    /// What is asked for: number, the peer's port, and which goes first.
    fn due(channels: &mut Channels, now: Instant) -> Vec<(u16, u16, Rank)> {
        let due = channels.take_due(now).into_iter();
        due.map(|due| (due.channel, due.peer.port(), due.rank)).collect()
    }

    #[test]
    fn a_channel_is_bound_once_and_again_a_minute_before_its_end() {
        let (start, mut channels) = (any_instant(), Channels::default());
        assert_eq!(channels.want(start, peer(1)), Some(0x4000));
        assert_eq!(channels.want(start, peer(1)), Some(0x4000));
        assert_eq!(channels.want(start, peer(2)), Some(0x4001));
        assert_eq!(due(&mut channels, start), [(0x4000, 1, Rank::New), (0x4001, 2, Rank::New)]);
        assert!(channels.take_due(start).is_empty());
        assert!(channels.bound(start, peer(1)));
        let later = start + Duration::from_secs(540);
        assert_eq!(channels.poll_timeout(), Some(later));
        assert_eq!(due(&mut channels, later), [(0x4000, 1, Rank::Kept)]);
        assert!(!channels.bound(later, peer(1)), "it is not new");
        assert_eq!(channels.all_bound(later), [(0x4000, peer(1))]);
        assert_eq!(channels.take_lapsed(later + CHANNEL_LIFETIME), [peer(1)]);
        assert!(channels.take_lapsed(later + CHANNEL_LIFETIME).is_empty());
    }

    #[test]
    fn a_peer_whose_bind_was_lost_keeps_its_number() {
        let (start, mut channels) = (any_instant(), Channels::default());
        channels.want(start, peer(1));
        channels.take_due(start);
        channels.failed(start, peer(1), false);
        assert_eq!(due(&mut channels, start + RETRY_INTERVAL), [(0x4000, 1, Rank::New)]);
    }

    #[test]
    fn a_refused_one_is_asked_for_again_later_or_when_it_is_wished_for_again() {
        let (start, mut channels) = (any_instant(), Channels::default());
        channels.want(start, peer(1));
        channels.take_due(start);
        channels.failed(start, peer(1), true);
        let retry = start + RETRY_INTERVAL;
        assert_eq!(channels.poll_timeout(), Some(retry));
        assert_eq!(due(&mut channels, retry), [(0x4000, 1, Rank::Refused)]);
        channels.want(retry, peer(1));
        assert!(channels.take_due(retry).is_empty(), "a request is under way");
        channels.failed(retry, peer(1), true);
        assert!(channels.take_due(retry).is_empty());
        channels.want(retry, peer(1));
        assert_eq!(due(&mut channels, retry), [(0x4000, 1, Rank::Refused)]);
        assert!(channels.bound(retry, peer(1)));
        // From then on it is like others.
        assert_eq!(due(&mut channels, retry + CHANNEL_LIFETIME - REFRESH_BEFORE), [(0x4000, 1, Rank::Kept)]);
    }

    #[test]
    fn a_number_goes_to_another_peer_only_after_the_guard_time() {
        let (start, mut channels) = (any_instant(), Channels::default());
        channels.want(start, peer(1));
        channels.take_due(start);
        channels.bound(start, peer(1));
        assert_eq!(channels.forbid(start, peer(1).ip()), [peer(1)]);
        assert_eq!((channels.poll_timeout(), channels.all_bound(start)), (None, vec![]));
        let guarded = start + CHANNEL_LIFETIME + GUARD_TIME - Duration::from_millis(1);
        assert_eq!(channels.want(guarded, peer(2)), Some(0x4001));
        assert_eq!(channels.want(start + CHANNEL_LIFETIME + GUARD_TIME, peer(3)), Some(0x4000));
        assert_eq!(channels.want(start, peer(2)), Some(0x4001));
    }

    #[test]
    fn there_is_a_limit() {
        let (start, mut channels) = (any_instant(), Channels::default());
        (1..=MAX_CHANNELS as u16).for_each(|port| assert!(channels.want(start, peer(port)).is_some()));
        assert_eq!(channels.want(start, peer(60_000)), None);
    }
}
