//! Events become lines on stdout.

use std::io::{self, Write};

use actix::prelude::*;
use actix_relay::config::ChildId;
use actix_relay::event::{Event, EventKind};
use tokio::sync::{mpsc, oneshot};

use crate::cli::Voice;

/// Lines that may wait for stdout; then the supervisor's fan-out counts what is missed.
const LINES_CAPACITY: usize = 16;

/// Prints events.
pub(crate) struct Printer {
    pub(crate) voice: Voice,
    pub(crate) lines: mpsc::Sender<Line>,
    /// Hears of each child whose last line has been written.
    pub(crate) ended: mpsc::UnboundedSender<ChildId>,
}

impl Actor for Printer {
    type Context = Context<Self>;
}

impl Handler<Event> for Printer {
    /// Ready when stdout has room for more: until then the supervisor's fan-out keeps or counts what comes.
    type Result = ResponseFuture<()>;

    fn handle(&mut self, event: Event, _: &mut Self::Context) -> Self::Result {
        let line = self.voice.line(&event);
        let (lines, ended) = (self.lines.clone(), self.ended.clone());
        Box::pin(async move {
            if let Some(line) = line {
                let _ = lines.send(Line::Text(line)).await;
            }
            if matches!(event.kind, EventKind::SessionStopped | EventKind::GaveUp { .. }) {
                let _ = ended.send(event.child);
            }
        })
    }
}

/// For the thread that writes to stdout, where a write may block for as long as nobody reads.
pub(crate) enum Line {
    Text(String),
    /// To be answered when everything before it has been written.
    Flush(oneshot::Sender<()>),
}

/// Starts that thread. It takes no more lines when nobody can read what it writes.
pub(crate) fn start() -> io::Result<mpsc::Sender<Line>> {
    let (lines, to_write) = mpsc::channel(LINES_CAPACITY);
    std::thread::Builder::new().name("stdout".into()).spawn(move || write_lines(to_write))?;
    Ok(lines)
}

/// Ends when nobody can read what it writes; a full disk is another matter.
fn write_lines(mut lines: mpsc::Receiver<Line>) {
    let mut stdout = io::stdout().lock();
    let mut failing = false;
    while let Some(line) = lines.blocking_recv() {
        match line {
            Line::Text(text) => {
                let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
                match &written {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
                    Err(error) if !failing => {
                        tracing::warn!(%error, "lines are lost: stdout takes none");
                    }
                    _ => {}
                }
                failing = written.is_err();
            }
            Line::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}
