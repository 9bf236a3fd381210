//! Round trips through an idle tunnel, one datagram at a time.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::report::{Aim, Target, print_table};
use crate::stats::{median, percentile};
use crate::tunnel::{BaselineBuffer, Kind, LOOPBACK, Tunnel};
use crate::{Outcome, Plan};

const SIZES: [usize; 2] = [1200, 148];

/// So that every process has gone to sleep before the next datagram.
const PAUSE: Duration = Duration::from_micros(200);

const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Round trips not counted: the connection is made, caches fill.
const WARM_UP_TRIPS: usize = 200;

/// An idle tunnel that loses more than this per round is broken.
const LOST_MAX: usize = 5;

/// Where the scheduler has put the threads of a process makes 10 %, for as long as the process lives.
const ROUNDS_PER_START: usize = 3;

const MAX_RATIO: f64 = 0.85;

/// A tunnel with an application and an echo service; the tunnel goes first when dropped.
struct Lane {
    tunnel: Tunnel,
    socket: UdpSocket,
    next: u64,
    _echo: Echo,
}

/// One round, in microseconds.
struct Round {
    p50: f64,
    p99: f64,
}

impl Lane {
    fn start(kind: Kind, size: usize) -> Outcome<Self> {
        let echo = Echo::start()?;
        let tunnel = Tunnel::start(kind, echo.addr, BaselineBuffer::Large)?;
        let socket = UdpSocket::bind(LOOPBACK)?;
        socket.connect(tunnel.entry())?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut lane = Self { tunnel, socket, next: 0, _echo: echo };
        lane.round(size, WARM_UP_TRIPS)?;
        Ok(lane)
    }

    fn round(&mut self, size: usize, trips: usize) -> Outcome<Round> {
        let mut micros = Vec::with_capacity(trips);
        let mut lost = 0;
        while micros.len() < trips {
            match self.trip(size)? {
                Some(time) => micros.push(time.as_secs_f64() * 1e6),
                None => lost += 1,
            }
            if lost > LOST_MAX {
                self.tunnel.check()?;
                return Err(format!("{lost} round trips were lost").into());
            }
            thread::sleep(PAUSE);
        }
        self.tunnel.check()?;
        Ok(Round { p50: percentile(&mut micros, 50), p99: percentile(&mut micros, 99) })
    }

    /// `None` when no answer came. A late answer to an earlier datagram is passed over.
    fn trip(&mut self, size: usize) -> Outcome<Option<Duration>> {
        let number = self.next.to_be_bytes();
        self.next += 1;
        let mut datagram = vec![0; size];
        datagram[..number.len()].copy_from_slice(&number);
        let mut answer = [0; 2048];
        let start = Instant::now();
        self.socket.send(&datagram)?;
        loop {
            match self.socket.recv(&mut answer) {
                Ok(len) if answer[..len] == datagram => return Ok(Some(start.elapsed())),
                Ok(_) if start.elapsed() < ANSWER_TIMEOUT => {}
                Ok(_) => return Ok(None),
                Err(error) if is_timeout(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    let mut rows = Vec::new();
    let mut aims = Vec::new();
    for size in SIZES {
        eprintln!("rtt: {size} bytes");
        let pairs = measure(plan, size)?;
        let ratio = median(pairs.iter().map(|(ours, baseline)| ours.p50 / baseline.p50));
        let micros = |value: f64| format!("{value:.0}");
        rows.push(vec![
            format!("{size} bytes"),
            micros(median(pairs.iter().map(|(ours, _)| ours.p50))),
            micros(median(pairs.iter().map(|(_, baseline)| baseline.p50))),
            format!("{ratio:.3}"),
            micros(median(pairs.iter().map(|(ours, _)| ours.p99))),
            micros(median(pairs.iter().map(|(_, baseline)| baseline.p99))),
        ]);
        let what = format!("idle round trip, {size} bytes, of the baseline's");
        aims.push(Aim { what, measured: ratio, target: Target::AtMost(MAX_RATIO) });
    }
    let note = format!(
        "One datagram at a time, {PAUSE:?} between; medians of {} × {} round trips.",
        plan.rtt_rounds, plan.rtt_trips,
    );
    let head = [
        "datagrams",
        "p50 ours (µs)",
        "p50 baseline (µs)",
        "p50 ratio",
        "p99 ours (µs)",
        "p99 baseline (µs)",
    ];
    print_table("Idle round trip", &note, &head, &rows);
    Ok(aims)
}

/// Pairs of rounds, ours and the baseline's, taken in turn.
fn measure(plan: &Plan, size: usize) -> Outcome<Vec<(Round, Round)>> {
    let mut pairs = Vec::with_capacity(plan.rtt_rounds);
    while pairs.len() < plan.rtt_rounds {
        let mut ours = Lane::start(Kind::Ours, size)?;
        let mut baseline = Lane::start(Kind::Baseline, size)?;
        for _ in 0..ROUNDS_PER_START.min(plan.rtt_rounds - pairs.len()) {
            pairs.push((ours.round(size, plan.rtt_trips)?, baseline.round(size, plan.rtt_trips)?));
        }
    }
    Ok(pairs)
}

/// Sends back what it gets, from a thread of its own.
struct Echo {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start() -> Outcome<Self> {
        let socket = UdpSocket::bind(LOOPBACK)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let addr = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = Some(thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                // Silence is normal, and what cannot be answered shows as a lost round trip.
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                let _ = socket.send_to(&buffer[..len], from);
            }
        }));
        Ok(Self { addr, stop, thread })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// What a blocking socket says when its read timeout has passed.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
