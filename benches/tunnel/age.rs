//! The age of what arrives when four times as much is offered as the path carries.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::proc::Memory;
use crate::proxy::{self, Proxy};
use crate::report::{Aim, Target, print_table};
use crate::rtt::is_timeout;
use crate::stats::{median, percentile};
use crate::tunnel::{BaselineBuffer, Kind, LARGE_BUFFER, LOOPBACK, Tunnel};
use crate::{Outcome, Plan};

const SIZE: usize = 1200;

/// 40 Mbit/s.
const OFFERED_PER_SECOND: f64 = 40e6 / 8.0 / SIZE as f64;

const BURST_INTERVAL: Duration = Duration::from_millis(1);

/// Not counted: the connection is made, queues fill.
const SETTLE: Duration = Duration::from_secs(2);

const MAX_AGE_P99_MILLIS: f64 = 150.0;
const MIN_SHARE_PERCENT: f64 = 95.0;

/// One round: ages in milliseconds, the share in percent of the path, memory in KiB.
struct Round {
    p50: f64,
    p99: f64,
    share: f64,
    peak: f64,
    growth: f64,
}

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    for number in 1..=plan.age_rounds {
        eprintln!("age: round {number} of {}", plan.age_rounds);
        ours.push(round(Kind::Ours, plan.age_round)?);
        baseline.push(round(Kind::Baseline, plan.age_round)?);
    }
    let note = format!(
        "40 Mbit/s of {SIZE}-byte datagrams offered to 10 Mbit/s with 20 ms each way; medians of {} × \
         {:?}, all but the memory's peak after the first {SETTLE:?}.",
        plan.age_rounds, plan.age_round,
    );
    let head = [
        "tunnel",
        "age p50 (ms)",
        "age p99 (ms)",
        "share of the path",
        "near peak RSS (MiB)",
        "near RSS growth (KiB)",
    ];
    print_table(
        "Age under overload",
        &note,
        &head,
        &[row(Kind::Ours, &ours), row(Kind::Baseline, &baseline)],
    );
    let aim = |what: &str, measured, target| Aim { what: what.into(), measured, target };
    Ok(vec![
        aim(
            "age p99 under overload, ms",
            median(ours.iter().map(|round| round.p99)),
            Target::AtMost(MAX_AGE_P99_MILLIS),
        ),
        aim(
            "share of the path used, %",
            median(ours.iter().map(|round| round.share)),
            Target::AtLeast(MIN_SHARE_PERCENT),
        ),
    ])
}

fn row(kind: Kind, rounds: &[Round]) -> Vec<String> {
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
    vec![
        kind.to_string(),
        format!("{:.0}", of(|round| round.p50)),
        format!("{:.0}", of(|round| round.p99)),
        format!("{:.1} %", of(|round| round.share)),
        format!("{:.1}", of(|round| round.peak) / 1024.0),
        format!("{:+.0}", of(|round| round.growth)),
    ]
}

fn round(kind: Kind, length: Duration) -> Outcome<Round> {
    // The sender writes its clock into each datagram, the receiver reads the same one.
    let epoch = Instant::now();
    let receiver = Receiver::start(epoch)?;
    let mut proxy = None;
    let mut tunnel = Tunnel::start_through(kind, receiver.addr, BaselineBuffer::System, |far| {
        let started = Proxy::start(far)?;
        let addr = started.addr();
        proxy = Some(started);
        Ok(addr)
    })?;
    let start = epoch.elapsed();
    let (settled, end) = offer(&tunnel, epoch, length)?;
    tunnel.check()?;
    // The receiver must outlive the tunnel.
    drop(tunnel);
    drop(proxy);
    let arrivals = receiver.finish()?;

    let counted = start + SETTLE..start + length;
    let mut ages: Vec<f64> = arrivals
        .iter()
        .filter(|arrival| counted.contains(&arrival.at))
        .map(|arrival| arrival.age.as_secs_f64() * 1e3)
        .collect();
    if ages.is_empty() {
        return Err(format!("{kind}: nothing arrived after the first {SETTLE:?}").into());
    }
    let frames = ages.len() as f64 * (SIZE + 2) as f64;
    let capacity = f64::from(proxy::RATE) * (length - SETTLE).as_secs_f64();
    Ok(Round {
        p50: percentile(&mut ages, 50),
        p99: percentile(&mut ages, 99),
        share: frames * 100.0 / capacity,
        peak: end.peak as f64,
        growth: end.now as f64 - settled.now as f64,
    })
}

/// Sends at a steady pace; answers with the near end's memory after `SETTLE` and at the end.
fn offer(tunnel: &Tunnel, epoch: Instant, length: Duration) -> Outcome<(Memory, Memory)> {
    let socket = UdpSocket::bind(LOOPBACK)?;
    socket.connect(tunnel.entry())?;
    let start = Instant::now();
    let mut datagram = [0x5a; SIZE];
    let mut settled = None;
    let mut sent = 0;
    while start.elapsed() < length {
        let due = (start.elapsed().as_secs_f64() * OFFERED_PER_SECOND) as u64;
        while sent < due {
            let now = u64::try_from(epoch.elapsed().as_nanos())?;
            datagram[..8].copy_from_slice(&now.to_be_bytes());
            socket.send(&datagram)?;
            sent += 1;
        }
        if settled.is_none() && start.elapsed() >= SETTLE {
            settled = Some(tunnel.near_memory()?);
        }
        thread::sleep(BURST_INTERVAL);
    }
    Ok((settled.unwrap_or_default(), tunnel.near_memory()?))
}

/// Since the epoch.
struct Arrival {
    at: Duration,
    age: Duration,
}

struct Receiver {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Outcome<Vec<Arrival>>>,
}

impl Receiver {
    fn start(epoch: Instant) -> Outcome<Self> {
        let socket = UdpSocket::bind(LOOPBACK)?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(LARGE_BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let addr = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || receive(&socket, epoch, &stopped));
        Ok(Self { addr, stop, thread })
    }

    fn finish(self) -> Outcome<Vec<Arrival>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the receiver of the bench panicked")?
    }
}

fn receive(socket: &UdpSocket, epoch: Instant, stop: &AtomicBool) -> Outcome<Vec<Arrival>> {
    let mut arrivals = Vec::new();
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let at = epoch.elapsed();
        match buffer[..len].first_chunk() {
            Some(sent) if len == SIZE => {
                let sent = Duration::from_nanos(u64::from_be_bytes(*sent));
                let age = at.checked_sub(sent).ok_or("a datagram came before it was sent: it is damaged")?;
                arrivals.push(Arrival { at, age });
            }
            _ => return Err(format!("a datagram of {len} bytes came, {SIZE} were sent").into()),
        }
    }
    Ok(arrivals)
}
