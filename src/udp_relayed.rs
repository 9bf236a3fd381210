//! The local applications of a session at a relay: whose datagrams go through which channel.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

use crate::clock::{OncePerSecond, now};
use crate::counters::DropReason;
use crate::datagrams::Received;
use crate::event::EventKind;
use crate::lane::{LinkId, UdpParty};
use crate::relay_paths::{ChannelPath, RelayPaths};
use crate::supervisor::Reporter;
use crate::udp::ApplicationRules;
use crate::udp::sources::Sources;
use crate::udp_io::UdpIo;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct RelayedApplications {
    sources: Sources<UdpParty, Arc<ChannelPath>>,
    rules: ApplicationRules,
    paths: Arc<RelayPaths>,
    io: Arc<UdpIo>,
    /// What events call it.
    link: LinkId,
    reporter: Reporter,
    refused: OncePerSecond,
    taken_over: OncePerSecond,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl RelayedApplications {
    /// Applications that an earlier life of the endpoint knew are known still.
    pub(crate) fn new(
        rules: ApplicationRules,
        paths: Arc<RelayPaths>,
        io: Arc<UdpIo>,
        link: LinkId,
        reporter: Reporter,
    ) -> Self {
        let mut sources = Sources::new(rules.max_sources, rules.source_idle);
        for (application, path) in paths.applications() {
            if sources.is_full() {
                paths.remove(now(), &path);
            } else {
                path.move_to(io.clone());
                sources.insert(now(), application, path);
            }
        }
        let mut this = Self {
            sources,
            rules,
            paths,
            io,
            link,
            reporter,
            refused: OncePerSecond::default(),
            taken_over: OncePerSecond::default(),
            alarm: None,
        };
        this.set_alarm();
        this
    }

    pub(crate) fn take(&mut self, now: Instant, source: UdpParty, received: Received<'_>) {
        let known = self.sources.get(&source).cloned();
        if let Some(path) = known.or_else(|| self.admit(now, source)) {
            if !path.is_open() {
                self.paths.open(now, &path);
            }
            path.send(now, received);
        } else {
            self.paths.counters.dropped(DropReason::TooManySources, received.count());
            if let Some(more) = self.refused.pass(now) {
                let places = self.sources.limit();
                self.reporter.report(EventKind::SourceRefused { source: source.to, places, more });
            }
        }
    }

    fn admit(&mut self, now: Instant, source: UdpParty) -> Option<Arc<ChannelPath>> {
        let path = if self.rules.max_sources == 1 {
            self.take_over(now, source)?
        } else if self.sources.is_full() {
            return None;
        } else {
            self.paths.add(now, self.io.clone(), source)
        };
        self.sources.insert(now, source, path.clone());
        if self.alarm.is_none() {
            self.set_alarm();
        }
        self.reporter.report(EventKind::SourceAppeared { link: self.link, source: source.to });
        Some(path)
    }

    /// The one flow goes to the application that is named, else to the newest: it may be the same as before, restarted
    /// on another port. But at most once a second: two that both send must not flood everybody with news.
    fn take_over(&mut self, now: Instant, source: UdpParty) -> Option<Arc<ChannelPath>> {
        if self.rules.app.is_some_and(|app| app != source.to) {
            return None;
        }
        let Some(old) = self.sources.any() else {
            return Some(self.paths.add(now, self.io.clone(), source));
        };
        self.taken_over.pass(now)?;
        let path = self.sources.remove(&old)?;
        self.paths.readdress(&path, source);
        self.reporter.report(EventKind::SourceForgotten { link: self.link, source: old.to });
        Some(path)
    }

    /// For the first application that will have been idle for too long. A single one is not forgotten: the next one
    /// takes its place.
    fn set_alarm(&mut self) {
        let due = self.sources.next_due(|path| path.last_activity());
        let due = due.filter(|_| self.rules.max_sources > 1);
        self.alarm = due.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
    }

    pub(crate) fn poll_idle(&mut self, cx: &mut Context<'_>) {
        while let Some(alarm) = &mut self.alarm {
            if alarm.as_mut().poll(cx) == Poll::Pending {
                return;
            }
            let now = now();
            for (source, path) in self.sources.expire(now, |path| path.last_activity()) {
                self.paths.remove(now, &path);
                self.reporter.report(EventKind::SourceForgotten { link: self.link, source: source.to });
            }
            self.set_alarm();
        }
    }
}
