//! What an idle peer costs the listening side.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::proc;
use crate::report::{Aim, Target, print_table};
use crate::rtt::is_timeout;
use crate::tunnel::{Kind, LARGE_BUFFER, LOOPBACK, start_far};
use crate::{Outcome, Plan};

/// Peers that arrive together: fewer than a listener's backlog, or its limit before the first frame.
const GROUP: usize = 20;

const GROUP_TIMEOUT: Duration = Duration::from_secs(5);

/// For allocators and timers to come to rest.
const REST: Duration = Duration::from_secs(1);

const PAYLOAD: usize = 32;

const MAX_KIB: f64 = 64.0;

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    // The far process has two for each peer, this one has one.
    let needed = plan.peers as u64 * 2 + 200;
    let limit = proc::descriptor_limit()?;
    if limit < needed {
        return Err(
            format!("needs {needed} descriptors, only {limit} are allowed: `ulimit -n {needed}`").into()
        );
    }
    eprintln!("memory: {} peers", plan.peers);
    let mut service = Service::bind()?;
    let mut far = start_far(Kind::Ours, service.addr)?;
    thread::sleep(REST);
    let before = far.memory()?.now;
    let peers = connect(far.addr(), plan.peers, &mut service)?;
    thread::sleep(REST);
    far.check()?;
    let after = far.memory()?.now;
    let closed = peers.iter().filter(|peer| !is_open(peer)).count();
    if closed > 0 {
        return Err(format!("{closed} of {} idle peers were disconnected", plan.peers).into());
    }

    let each = after.saturating_sub(before) as f64 / plan.peers as f64;
    let row = vec![
        plan.peers.to_string(),
        format!("{:.1}", before as f64 / 1024.0),
        format!("{:.1}", after as f64 / 1024.0),
        format!("{each:.1}"),
    ];
    let note = "RSS of the far process, before and after each peer sent one datagram; ours only.";
    let head = ["idle peers", "before (MiB)", "after (MiB)", "per peer (KiB)"];
    print_table("Memory per idle peer", note, &head, &[row]);
    Ok(vec![Aim { what: "memory per idle peer, KiB".into(), measured: each, target: Target::Below(MAX_KIB) }])
}

/// Connects `count` peers, a group at a time, each proven by a datagram that reached the service.
fn connect(far: SocketAddr, count: usize, service: &mut Service) -> Outcome<Vec<TcpStream>> {
    let mut frame = [0; 2 + PAYLOAD];
    frame[..2].copy_from_slice(&(PAYLOAD as u16).to_be_bytes());
    let mut peers = Vec::with_capacity(count);
    while peers.len() < count {
        for _ in peers.len()..count.min(peers.len() + GROUP) {
            let mut peer = TcpStream::connect_timeout(&far, GROUP_TIMEOUT)?;
            peer.write_all(&frame)?;
            peers.push(peer);
        }
        service.wait_for(peers.len())?;
    }
    Ok(peers)
}

fn is_open(mut peer: &TcpStream) -> bool {
    let open = peer.set_nonblocking(true).and_then(|()| peer.read(&mut [0]));
    matches!(open, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Knows the peers by the UDP sockets they were given.
struct Service {
    socket: UdpSocket,
    addr: SocketAddr,
    sources: HashSet<SocketAddr>,
}

impl Service {
    fn bind() -> Outcome<Self> {
        let socket = UdpSocket::bind(LOOPBACK)?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(LARGE_BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let addr = socket.local_addr()?;
        Ok(Self { socket, addr, sources: HashSet::new() })
    }

    fn wait_for(&mut self, count: usize) -> Outcome<()> {
        let start = Instant::now();
        while self.sources.len() < count {
            match self.socket.recv_from(&mut [0; PAYLOAD]) {
                Ok((_, from)) => _ = self.sources.insert(from),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error.into()),
            }
            if start.elapsed() > GROUP_TIMEOUT {
                return Err(
                    format!("of {count} peers only {} reached the service", self.sources.len()).into()
                );
            }
        }
        Ok(())
    }
}
