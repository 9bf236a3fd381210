//! The child's side of its parent, the bench: it tells it where it listens, and ends with it.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::{process, thread};

/// Tells the bench where this process listens.
pub(crate) fn announce(addr: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "ready {addr}")?;
    stdout.flush()
}

/// However the bench ends, its end of our stdin is closed then.
pub(crate) fn exit_with_it() {
    thread::spawn(|| {
        let mut byte = [0];
        while let Ok(1) = io::stdin().read(&mut byte) {}
        process::exit(0);
    });
}
