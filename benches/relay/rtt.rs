//! Round trips through an idle hop, one datagram at a time, and without it.

use std::net::{Shutdown, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::hop::{Hop, Kind};
use crate::report::{Aim, print_table};
use crate::side::{Side, put_datagram};
use crate::stats::{median, percentile};
use crate::{Outcome, Plan};

const CASES: [(Kind, usize); 3] = [(Kind::Relay, 1200), (Kind::Relay, 148), (Kind::RelayTls, 1200)];

/// So that every process has gone to sleep before the next datagram.
const PAUSE: Duration = Duration::from_micros(200);

const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Round trips not counted: caches fill.
const WARM_UP_TRIPS: usize = 200;

/// Where the scheduler has put the threads of a process makes 10 %, for as long as the process lives.
const ROUNDS_PER_START: usize = 3;

/// In microseconds.
struct Trips {
    p50: f64,
    p99: f64,
}

/// One after the other.
struct Round {
    relay: Trips,
    proxy: Trips,
    direct: Trips,
}

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    let mut rows = Vec::new();
    for (kind, size) in CASES {
        eprintln!("rtt: {kind}, {size} bytes");
        let rounds = measure(plan, kind, size)?;
        let micros = |of: fn(&Round) -> f64| format!("{:.0}", median(rounds.iter().map(of)));
        rows.push(vec![
            format!("{kind}, {size} bytes"),
            micros(|round| round.direct.p50),
            micros(|round| round.relay.p50 - round.direct.p50),
            micros(|round| round.proxy.p50 - round.direct.p50),
            micros(|round| round.direct.p99),
            micros(|round| round.relay.p99 - round.direct.p99),
            micros(|round| round.proxy.p99 - round.direct.p99),
        ]);
    }
    let note = format!(
        "What the hop adds to the round trip of a direct connection; one datagram at a time, {PAUSE:?} between; \
         medians of {} × {} round trips.",
        plan.rtt_rounds, plan.rtt_trips,
    );
    let head = [
        "datagrams",
        "p50 direct (µs)",
        "relay adds (µs)",
        "proxy adds (µs)",
        "p99 direct (µs)",
        "relay adds (µs)",
        "proxy adds (µs)",
    ];
    print_table("Added round trip", &note, &head, &rows);
    Ok(Vec::new())
}

/// Rounds of all three, taken in turn.
fn measure(plan: &Plan, kind: Kind, size: usize) -> Outcome<Vec<Round>> {
    let mut rounds = Vec::with_capacity(plan.rtt_rounds);
    while rounds.len() < plan.rtt_rounds {
        let mut relay = Lane::start(kind, size)?;
        let mut proxy = Lane::start(Kind::Proxy, size)?;
        let mut direct = Lane::start(Kind::Direct, size)?;
        for _ in 0..ROUNDS_PER_START.min(plan.rtt_rounds - rounds.len()) {
            rounds.push(Round {
                relay: relay.round(size, plan.rtt_trips)?,
                proxy: proxy.round(size, plan.rtt_trips)?,
                direct: direct.round(size, plan.rtt_trips)?,
            });
        }
    }
    Ok(rounds)
}

/// A hop with a side that asks and one that echoes.
struct Lane {
    hop: Hop,
    side: Side,
    next: u64,
    _echo: Echo,
}

impl Lane {
    fn start(kind: Kind, size: usize) -> Outcome<Self> {
        let mut hop = Hop::start(kind)?;
        let (near, far) = hop.pair()?;
        let mut lane = Self { hop, side: near, next: 0, _echo: Echo::start(far)? };
        lane.round(size, WARM_UP_TRIPS)?;
        Ok(lane)
    }

    fn round(&mut self, size: usize, trips: usize) -> Outcome<Trips> {
        let mut micros = Vec::with_capacity(trips);
        for _ in 0..trips {
            micros.push(self.trip(size)?.as_secs_f64() * 1e6);
            thread::sleep(PAUSE);
        }
        self.hop.check()?;
        Ok(Trips { p50: percentile(&mut micros, 50), p99: percentile(&mut micros, 99) })
    }

    fn trip(&mut self, size: usize) -> Outcome<Duration> {
        let number = self.next;
        self.next += 1;
        let mut bytes = Vec::new();
        put_datagram(&mut bytes, size, number)?;
        let start = Instant::now();
        self.side.send(&bytes)?;
        let mut is_it = false;
        let number = number.to_be_bytes();
        let take = |datagram: &[u8]| is_it = datagram.len() == size && datagram.starts_with(&number);
        if !self.side.take_datagrams(ANSWER_TIMEOUT, take)? || !is_it {
            return Err("a round trip through an idle hop was lost".into());
        }
        Ok(start.elapsed())
    }
}

/// Sends back what it gets, from a thread of its own.
struct Echo {
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(mut side: Side) -> Outcome<Self> {
        let stream = side.stream()?;
        // An error is the end of the connection, and what is not answered shows as a lost round trip.
        let thread = Some(thread::spawn(move || _ = echo(&mut side)));
        Ok(Self { stream, thread })
    }
}

fn echo(side: &mut Side) -> Outcome<()> {
    let mut back = Vec::new();
    loop {
        back.clear();
        let mut failed = Ok(());
        let take = |datagram: &[u8]| {
            let stamp = datagram.first_chunk().map_or(0, |stamp| u64::from_be_bytes(*stamp));
            failed = put_datagram(&mut back, datagram.len(), stamp);
        };
        if !side.take_datagrams(ANSWER_TIMEOUT * 60, take)? {
            return Ok(());
        }
        failed?;
        side.send(&back)?;
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}
