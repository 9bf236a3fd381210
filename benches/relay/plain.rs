//! The baseline: a plain TCP proxy, which knows nothing of what it carries.

use std::net::SocketAddr;

use tokio::io;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::tunnel::LOOPBACK;
use crate::{Outcome, parent};

const BUFFER_LEN: usize = 64 << 10;

/// Calls `to` for each connection that it takes, a task each, on the default multi-threaded runtime.
pub(crate) fn proxy(to: SocketAddr) -> Outcome<()> {
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(LOOPBACK).await?;
        parent::announce(listener.local_addr()?)?;
        loop {
            let (near, peer) = listener.accept().await?;
            tokio::spawn(async move {
                if let Err(error) = carry(near, to).await {
                    eprintln!("{peer}: {error}");
                }
            });
        }
    })
}

async fn carry(mut near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    io::copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER_LEN, BUFFER_LEN).await?;
    Ok(())
}
