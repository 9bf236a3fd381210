//! Requests on their way: sealed, sent, sent again, answered or given up (RFC 8489 §6.2).
//!
//! A request is kept as a prototype without a transaction id; only sealing it gives bytes, so that it can be
//! sealed anew when the server wants other credentials.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connections::Key;
use super::error::TurnError;
use super::pace::{Pace, Rank};
use crate::stun::{self, Attribute, Class, Family, Method, Relayed, Seal, TransactionId};

/// The first retransmission over UDP, doubled for each further one (RFC 8489 §6.2.1).
pub(crate) const RTO: Duration = Duration::from_millis(500);
/// Requests over UDP are sent this often (Rc).
pub(crate) const MAX_TRIES: u32 = 7;
/// After the last try this many RTO are waited (Rm).
const LAST_WAIT: u32 = 16;
/// Over TCP nothing is repeated and this is waited (Ti, RFC 8489 §6.2.2): as long as over UDP.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_millis(39_500);
/// A request waits for its turn for so long at the most: 1,024 permissions and channels need 91 s where an answer
/// takes 0.5 s.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// A server says 447 only after 30 s of a silent peer.
pub(crate) const CONNECT_ANSWER_TIMEOUT: Duration = Duration::from_secs(45);
/// Answers to one request that want it to be sealed anew, 438 above all.
const MAX_CHALLENGES: u8 = 2;

/// Where transaction ids come from: random ones, or in tests a sequence.
pub(crate) struct Ids(Box<dyn FnMut() -> TransactionId + Send>);

impl Ids {
    pub(crate) fn new(next: impl FnMut() -> TransactionId + Send + 'static) -> Self {
        Self(Box::new(next))
    }

    pub(crate) fn next(&mut self) -> TransactionId {
        (self.0)()
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ids")
    }
}

/// A request's prototype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Allocate {
        relayed: Relayed,
        family: Option<Family>,
        /// Seconds; `None` leaves it to the server.
        lifetime: Option<u32>,
    },
    /// Lifetime in seconds; 0 deletes the allocation.
    Refresh {
        lifetime: u32,
    },
    CreatePermission {
        peers: Vec<IpAddr>,
    },
    ChannelBind {
        channel: u16,
        peer: SocketAddr,
    },
    Connect {
        key: Key,
        peer: SocketAddr,
    },
    ConnectionBind {
        key: Key,
        connection: u32,
    },
}

impl Request {
    pub(crate) fn method(&self) -> Method {
        match self {
            Self::Allocate { .. } => Method::ALLOCATE,
            Self::Refresh { .. } => Method::REFRESH,
            Self::CreatePermission { .. } => Method::CREATE_PERMISSION,
            Self::ChannelBind { .. } => Method::CHANNEL_BIND,
            Self::Connect { .. } => Method::CONNECT,
            Self::ConnectionBind { .. } => Method::CONNECTION_BIND,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.method().name()
    }

    fn attributes(&self) -> Vec<Attribute> {
        match self {
            Self::Allocate { relayed, family, lifetime } => {
                let mut attributes = vec![Attribute::RequestedTransport(*relayed)];
                attributes.extend(family.map(Attribute::RequestedAddressFamily));
                attributes.extend(lifetime.map(Attribute::Lifetime));
                attributes
            }
            Self::Refresh { lifetime } => vec![Attribute::Lifetime(*lifetime)],
            // The port of a permission's peer does not count (RFC 8656 §10).
            Self::CreatePermission { peers } => {
                peers.iter().map(|ip| Attribute::XorPeerAddress(SocketAddr::new(*ip, 0))).collect()
            }
            Self::ChannelBind { channel, peer } => {
                vec![Attribute::ChannelNumber(*channel), Attribute::XorPeerAddress(*peer)]
            }
            Self::Connect { peer, .. } => vec![Attribute::XorPeerAddress(*peer)],
            Self::ConnectionBind { connection, .. } => vec![Attribute::ConnectionId(*connection)],
        }
    }

    /// There may be many of these at once. Refresh and Connect do not wait for them: of the one there is one at a
    /// time, the other has a limit of its own.
    fn is_bulk(&self) -> bool {
        matches!(self, Self::CreatePermission { .. } | Self::ChannelBind { .. })
    }

    fn answer_timeout(&self) -> Duration {
        if matches!(self, Self::Connect { .. }) { CONNECT_ANSWER_TIMEOUT } else { ANSWER_TIMEOUT }
    }
}

/// A request with its history.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) request: Request,
    pub(crate) id: TransactionId,
    /// What it was sealed with; an answer must be sealed alike.
    pub(crate) seal: Option<Arc<Seal>>,
    /// When it was last sent.
    pub(crate) sent: Instant,
    /// When it was first asked for, its time in line and challenges included.
    pub(crate) began: Instant,
    /// An answer that could not be believed: its error code, 0 for a success.
    pub(crate) unbelieved: Option<u16>,
    /// 401 was answered although it was sealed, and it was tried again with what the server then said.
    pub(crate) refused_once: bool,
    /// It is sent without a seal, once, so that the server says what it wants now: a server that was replaced may
    /// answer 400, which cannot be believed, to a nonce of the one before.
    pub(crate) bare: Option<bool>,
    /// Other credentials were asked for.
    pub(crate) asked: bool,
    rank: Rank,
    challenges: u8,
    bytes: Vec<u8>,
    tries: u32,
    /// When to repeat it or give it up.
    next: Instant,
}

impl Pending {
    fn new(request: Request, now: Instant, rank: Rank) -> Self {
        Self {
            request,
            id: TransactionId([0; 12]),
            seal: None,
            sent: now,
            began: now,
            unbelieved: None,
            refused_once: false,
            bare: None,
            asked: false,
            rank,
            challenges: 0,
            bytes: Vec::new(),
            tries: 0,
            next: now,
        }
    }

    /// Counts an answer that wants the request to be sealed anew.
    ///
    /// # Errors
    /// It is one too many.
    pub(crate) fn count_challenge(&mut self, code: u16) -> Result<(), TurnError> {
        self.challenges += 1;
        if self.challenges <= MAX_CHALLENGES {
            return Ok(());
        }
        let why = format!("{code} {} times in a row", self.challenges);
        Err(TurnError::BadAnswer { request: self.request.name(), why })
    }

    /// Why it is given up for want of an answer, or of a turn.
    pub(crate) fn given_up(&self, now: Instant) -> TurnError {
        let after = now.saturating_duration_since(self.began);
        let after = Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        let request = self.request.name();
        if self.tries == 0 {
            TurnError::NotSent { request, after }
        } else {
            TurnError::NoAnswer { request, after, unbelieved: self.unbelieved }
        }
    }
}

/// Seals a request with a new transaction id.
pub(crate) fn seal_request(
    request: &Request,
    id: TransactionId,
    seal: Option<&Seal>,
) -> Result<Vec<u8>, TurnError> {
    tracing::debug!(request = request.name(), sealed = seal.is_some(), "asking the TURN server");
    stun::encode(request.method(), Class::Request, id, &request.attributes(), seal)
        .map_err(|error| TurnError::UnusableCredentials(error.to_string()))
}

/// All requests of one control connection, under way or in line.
#[derive(Debug)]
pub(crate) struct Transactions {
    /// TCP: nothing is repeated.
    reliable: bool,
    in_flight: Vec<Pending>,
    /// Bounded by what there is to ask for: permissions, channels and connections have limits of their own.
    waiting: VecDeque<Pending>,
    pace: Pace,
    /// When the server last granted one of many.
    last_granted: Option<Instant>,
}

impl Transactions {
    pub(crate) fn new(reliable: bool) -> Self {
        Self {
            reliable,
            in_flight: Vec::new(),
            waiting: VecDeque::new(),
            pace: Pace::default(),
            last_granted: None,
        }
    }

    /// A new request, to be sent by [`poll_send`](Self::poll_send).
    pub(crate) fn ask(&mut self, now: Instant, request: Request) {
        self.ask_ranked(now, request, Rank::Again);
    }

    /// The same for one of many.
    pub(crate) fn ask_ranked(&mut self, now: Instant, request: Request, rank: Rank) {
        self.waiting.push_back(Pending::new(request, now, rank));
    }

    /// The same request once more, before all others.
    pub(crate) fn ask_again(&mut self, pending: Pending) {
        self.waiting.push_front(Pending { tries: 0, rank: Rank::Again, ..pending });
    }

    /// The same, for the server wants it to be sealed anew.
    pub(crate) fn challenged(&mut self, now: Instant, pending: Pending) {
        if pending.request.is_bulk() {
            self.pace.challenged(now, pending.challenges + u8::from(pending.refused_once) <= 1);
        }
        self.ask_again(pending);
    }

    /// The server has accepted a nonce, whatever else it answered.
    pub(crate) fn nonce_is_good(&mut self) {
        self.pace.nonce_is_good();
    }

    /// The server granted a request.
    pub(crate) fn granted(&mut self, now: Instant, request: &Request) {
        if request.is_bulk() {
            self.pace.granted();
            self.last_granted = Some(now);
        }
    }

    /// The server refused a request.
    pub(crate) fn refused(&mut self, now: Instant, request: &Request) {
        if request.is_bulk() {
            self.pace.refused(now);
        }
    }

    fn bulk_in_flight(&self) -> usize {
        self.in_flight.iter().filter(|pending| pending.request.is_bulk()).count()
    }

    /// The next request that may go out now, with its bytes.
    ///
    /// # Errors
    /// It cannot be written; the request comes with the reason.
    pub(crate) fn poll_send(
        &mut self,
        now: Instant,
        ids: &mut Ids,
        seal: Option<&Arc<Seal>>,
    ) -> Option<Result<Vec<u8>, (Pending, TurnError)>> {
        let has_room = self.pace.has_room(now, self.bulk_in_flight());
        let may_go = |it: &Pending| has_room || !it.request.is_bulk();
        let waiting = self.waiting.iter().enumerate().filter(|(_, pending)| may_go(pending));
        let next = waiting.min_by_key(|(_, pending)| pending.rank).map(|(index, _)| index)?;
        let mut pending = self.waiting.remove(next)?;
        pending.id = ids.next();
        pending.seal = seal.filter(|_| pending.bare != Some(true)).cloned();
        match seal_request(&pending.request, pending.id, pending.seal.as_deref()) {
            Ok(bytes) => pending.bytes = bytes,
            Err(error) => return Some(Err((pending, error))),
        }
        pending.sent = now;
        pending.tries = 1;
        pending.next = now + if self.reliable { pending.request.answer_timeout() } else { RTO };
        let bytes = pending.bytes.clone();
        self.in_flight.push(pending);
        Some(Ok(bytes))
    }

    /// The request that a response answers, if there is one.
    pub(crate) fn find(&mut self, id: TransactionId, method: Method) -> Option<&mut Pending> {
        self.in_flight.iter_mut().find(|pending| pending.id == id && pending.request.method() == method)
    }

    /// Takes out a request that has been answered.
    pub(crate) fn take(&mut self, id: TransactionId) -> Option<Pending> {
        let index = self.in_flight.iter().position(|pending| pending.id == id)?;
        Some(self.in_flight.swap_remove(index))
    }

    /// Whether a request like this is under way or waiting.
    pub(crate) fn has(&self, is_it: impl Fn(&Request) -> bool) -> bool {
        self.in_flight.iter().chain(&self.waiting).any(|pending| is_it(&pending.request))
    }

    /// Forgets requests that nobody waits for any more.
    pub(crate) fn forget(&mut self, is_it: impl Fn(&Request) -> bool) {
        self.in_flight.retain(|pending| !is_it(&pending.request));
        self.waiting.retain(|pending| !is_it(&pending.request));
    }

    /// Takes an address that is forbidden now out of what has not been sent.
    pub(crate) fn withdraw(&mut self, ip: IpAddr) {
        self.waiting.retain_mut(|pending| match &mut pending.request {
            Request::CreatePermission { peers } => {
                peers.retain(|peer| *peer != ip);
                !peers.is_empty()
            }
            Request::ChannelBind { peer, .. } => peer.ip() != ip,
            _ => true,
        });
    }

    /// Whether something that was first sent after this is being sent again and again.
    pub(crate) fn is_repeating(&self, since: Instant) -> bool {
        self.in_flight.iter().any(|pending| pending.began > since && pending.tries > MAX_TRIES / 2)
    }

    /// When what waits may be sent, if no answer comes before.
    pub(crate) fn poll_room(&self) -> Option<Instant> {
        let waits = self.waiting.iter().any(|pending| pending.request.is_bulk());
        waits.then(|| self.pace.room_at(self.bulk_in_flight())).flatten()
    }

    /// When this one has waited for its turn for too long: as long as an answer may take, since the last grant; but
    /// for what is there, which nobody waits for, as long as may be waited in all.
    fn late_at(&self, pending: &Pending) -> Instant {
        let last = pending.began + MAX_WAIT;
        let since = self.last_granted.map_or(pending.began, |at| at.max(pending.began));
        if pending.rank == Rank::Kept { last } else { last.min(since + ANSWER_TIMEOUT) }
    }

    /// When something is to be repeated or given up.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let late = self.waiting.iter().filter(|it| it.request.is_bulk()).map(|it| self.late_at(it));
        self.in_flight.iter().map(|pending| pending.next).chain(late).min()
    }

    /// What is to be sent again; what is given up, or has waited for too long, goes to `given_up`.
    pub(crate) fn handle_timeout(&mut self, now: Instant, given_up: &mut Vec<Pending>) -> Vec<Vec<u8>> {
        let mut again = Vec::new();
        let mut index = 0;
        while let Some(pending) = self.in_flight.get_mut(index) {
            if pending.next > now {
                index += 1;
            } else if self.reliable || pending.tries >= MAX_TRIES {
                given_up.push(self.in_flight.swap_remove(index));
            } else {
                again.push(pending.bytes.clone());
                pending.tries += 1;
                pending.sent = now;
                let wait =
                    if pending.tries == MAX_TRIES { LAST_WAIT } else { 1 << (pending.tries - 1).min(16) };
                pending.next = now + RTO * wait;
                index += 1;
            }
        }
        while let Some(late) =
            self.waiting.iter().position(|it| it.request.is_bulk() && self.late_at(it) <= now)
        {
            given_up.extend(self.waiting.remove(late));
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::any_instant;
    use crate::turn::pace::MAX_IN_FLIGHT;

    const REFRESH: Request = Request::Refresh { lifetime: 600 };

    pub(crate) fn ids() -> Ids {
        let mut next = 0u64;
        Ids::new(move || {
            next += 1;
            let mut id = [0; 12];
            id[4..].copy_from_slice(&next.to_be_bytes());
            TransactionId(id)
        })
    }

    #[test]
    fn over_udp_a_request_is_sent_seven_times_and_given_up_after_39_5_s() {
        let (start, mut ids) = (any_instant(), ids());
        let mut transactions = Transactions::new(false);
        transactions.ask(start, REFRESH);
        let first = transactions.poll_send(start, &mut ids, None).unwrap().unwrap();
        let (mut sent, mut given_up) = (vec![0], Vec::new());
        while let Some(at) = transactions.poll_timeout() {
            for bytes in transactions.handle_timeout(at, &mut given_up) {
                assert_eq!(bytes, first, "repeated to the letter");
                sent.push((at - start).as_millis());
            }
        }
        assert_eq!(sent, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
        let error = given_up[0].given_up(start + ANSWER_TIMEOUT);
        assert_eq!(error.to_string(), "Refresh: no answer within 39.5s");
    }

    #[test]
    fn over_tcp_nothing_is_repeated_and_connect_waits_longer_than_30_s() {
        let (start, mut ids) = (any_instant(), ids());
        let mut transactions = Transactions::new(true);
        transactions.ask(start, REFRESH);
        transactions.ask(start, Request::Connect { key: Key(1), peer: "192.0.2.1:1".parse().unwrap() });
        while transactions.poll_send(start, &mut ids, None).is_some() {}
        let mut given_up = Vec::new();
        assert_eq!(transactions.poll_timeout(), Some(start + ANSWER_TIMEOUT));
        assert!(transactions.handle_timeout(start + ANSWER_TIMEOUT, &mut given_up).is_empty());
        assert_eq!(given_up.len(), 1);
        assert_eq!(transactions.poll_timeout(), Some(start + CONNECT_ANSWER_TIMEOUT));
    }

    #[test]
    fn what_is_there_goes_first_and_what_was_refused_before_goes_last() {
        let (start, mut ids) = (any_instant(), ids());
        let mut transactions = Transactions::new(false);
        let bind = |port| Request::ChannelBind { channel: port, peer: ([192, 0, 2, 1], port).into() };
        transactions.ask_ranked(start, bind(3), Rank::Refused);
        transactions.ask_ranked(start, bind(2), Rank::New);
        transactions.ask_ranked(start, bind(1), Rank::Kept);
        let mut sent = || {
            transactions.poll_send(start, &mut ids, None).unwrap().unwrap();
            transactions.in_flight.last().unwrap().request.clone()
        };
        assert_eq!([sent(), sent(), sent()], [1, 2, 3].map(bind));
    }

    #[test]
    fn only_so_many_are_under_way_and_a_challenged_one_goes_first() {
        let (start, mut ids) = (any_instant(), ids());
        let mut transactions = Transactions::new(false);
        let bind = |port| Request::ChannelBind { channel: port, peer: ([192, 0, 2, 1], port).into() };
        (0..MAX_IN_FLIGHT as u16 + 2).for_each(|port| transactions.ask(start, bind(port)));
        let mut sent = 0;
        while transactions.poll_send(start, &mut ids, None).is_some() {
            sent += 1;
        }
        assert_eq!(sent, MAX_IN_FLIGHT);
        transactions.ask(start, REFRESH);
        assert!(transactions.poll_send(start, &mut ids, None).is_some(), "not behind the others");
        assert!(transactions.poll_send(start, &mut ids, None).is_none());
        let id = transactions.in_flight[3].id;
        assert!(transactions.find(id, Method::ALLOCATE).is_none(), "of another method");
        let mut challenged = transactions.take(id).unwrap();
        challenged.refused_once = true;
        transactions.ask_again(challenged);
        transactions.poll_send(start, &mut ids, None).unwrap().unwrap();
        assert!(transactions.in_flight.last().unwrap().refused_once);
        assert_ne!(transactions.in_flight.last().unwrap().id, id);
    }

    #[test]
    fn a_nonce_may_be_stale_only_so_often() {
        let mut pending = Pending::new(REFRESH, any_instant(), Rank::Again);
        (0..MAX_CHALLENGES).for_each(|_| pending.count_challenge(438).unwrap());
        assert!(pending.count_challenge(438).unwrap_err().is_refusal());
    }
}
