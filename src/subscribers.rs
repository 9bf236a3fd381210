//! Fan-out of events: each subscriber has a short queue of its own, so a slow one slows nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use actix::WeakRecipient;
use actix::prelude::*;
use tokio::sync::mpsc;

use crate::config::{ChildId, SUPERVISOR_NAME};
use crate::event::{Event, EventKind};

/// Events that may wait for one subscriber; what comes then is lost, and counted.
pub const SUBSCRIBER_QUEUE: usize = 1024;

/// Subscribers that have not taken their last events by then are left without.
const FLUSH_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(200);

/// Which events a subscriber wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filter {
    /// All of them.
    #[default]
    All,
    /// Those of one session or TURN client.
    Session(ChildId),
}

impl Filter {
    fn wants(&self, event: &Event) -> bool {
        match self {
            Self::All => true,
            Self::Session(session) => event.child == *session,
        }
    }
}

#[derive(Debug)]
struct Subscriber {
    /// Weak: to subscribe keeps nobody alive.
    recipient: WeakRecipient<Event>,
    filter: Filter,
    queue: mpsc::Sender<Event>,
    missed: Arc<AtomicU64>,
    delivery: tokio::task::JoinHandle<()>,
}

/// All subscribers of a supervisor.
#[derive(Debug, Default)]
pub(crate) struct Subscribers(Vec<Subscriber>);

impl Subscribers {
    /// To be called within an actix arbiter: the deliveries run on it.
    pub(crate) fn add(&mut self, recipient: &Recipient<Event>, filter: Filter) {
        let (queue, events) = mpsc::channel(SUBSCRIBER_QUEUE);
        let missed = Arc::new(AtomicU64::new(0));
        let recipient = recipient.downgrade();
        let delivery = actix_rt::spawn(deliver(recipient.clone(), events, missed.clone()));
        self.0.push(Subscriber { recipient, filter, queue, missed, delivery });
    }

    pub(crate) fn remove(&mut self, recipient: &Recipient<Event>) {
        self.0.retain(|subscriber| subscriber.recipient.upgrade().as_ref() != Some(recipient));
    }

    /// Waits until all have what was published, but not for long.
    pub(crate) async fn flush(self) {
        let deadline = tokio::time::Instant::now() + FLUSH_TIMEOUT;
        for Subscriber { queue, delivery, .. } in self.0 {
            drop(queue);
            // A subscriber that panicked needs no events.
            let _ = tokio::time::timeout_at(deadline, delivery).await;
        }
    }

    pub(crate) fn publish(&mut self, event: &Event) {
        tracing::debug!(child = %event.child, kind = %event.kind, "event");
        self.0.retain(|subscriber| !subscriber.queue.is_closed());
        for subscriber in self.0.iter().filter(|subscriber| subscriber.filter.wants(event)) {
            if subscriber.queue.try_send(event.clone()).is_err() {
                subscriber.missed.fetch_add(1, Relaxed);
            }
        }
    }
}

/// One event at a time, the next when this one has been handled: `try_send` on a fresh handle would never be
/// refused (each actix handle has a slot of its own), and so never bounded.
async fn deliver(to: WeakRecipient<Event>, mut events: mpsc::Receiver<Event>, missed: Arc<AtomicU64>) {
    let mut since_told = 0;
    while let Some(event) = events.recv().await {
        let Some(recipient) = to.upgrade() else { return };
        if recipient.send(event).await.is_err() {
            return;
        }
        since_told += 1;
        // After what came before the loss, as far as can be told.
        if events.is_empty() || since_told >= SUBSCRIBER_QUEUE {
            since_told = 0;
            let count = missed.swap(0, Relaxed);
            let report = Event::now(SUPERVISOR_NAME.into(), EventKind::Missed { count });
            if count > 0 && recipient.send(report).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slow {
        events: mpsc::UnboundedSender<Event>,
        gate: Option<tokio::sync::oneshot::Receiver<()>>,
    }

    impl Actor for Slow {
        type Context = Context<Self>;
    }

    impl Handler<Event> for Slow {
        type Result = ();

        fn handle(&mut self, event: Event, ctx: &mut Self::Context) {
            let _ = self.events.send(event);
            if let Some(gate) = self.gate.take() {
                ctx.wait(async { drop(gate.await) }.into_actor(self));
            }
        }
    }

    fn event(child: &str) -> Event {
        Event::now(child.into(), EventKind::SessionStopped)
    }

    #[actix::test]
    async fn a_slow_subscriber_is_told_what_it_missed() {
        let (events, mut got) = mpsc::unbounded_channel();
        let (open, gate) = tokio::sync::oneshot::channel();
        let slow = Slow { events, gate: Some(gate) }.start();
        let mut subscribers = Subscribers::default();
        subscribers.add(&slow.clone().recipient(), Filter::All);
        subscribers.publish(&event("a"));
        got.recv().await.unwrap();
        // The first is handled; a second is on its way to the closed gate once the queue has room for all.
        for _ in 0..SUBSCRIBER_QUEUE + 50 {
            subscribers.publish(&event("a"));
        }
        open.send(()).unwrap();
        let (mut delivered, mut missed) = (0, 0);
        while delivered + missed < SUBSCRIBER_QUEUE as u64 + 50 {
            match got.recv().await.unwrap().kind {
                EventKind::Missed { count } => missed += count,
                _ => delivered += 1,
            }
        }
        assert_eq!(delivered, SUBSCRIBER_QUEUE as u64);
        assert_eq!(missed, 50);
    }

    #[actix::test]
    async fn a_subscription_keeps_nobody_alive_and_is_filtered() {
        let (events, mut got) = mpsc::unbounded_channel();
        let actor = Slow { events, gate: None }.start();
        let mut subscribers = Subscribers::default();
        subscribers.add(&actor.clone().recipient(), Filter::Session("a".into()));
        subscribers.publish(&event("b"));
        subscribers.publish(&event("a"));
        assert_eq!(got.recv().await.unwrap().child, "a".into());
        drop(actor);
        assert_eq!(got.recv().await, None);
        subscribers.publish(&event("a"));
        tokio::task::yield_now().await;
        subscribers.publish(&event("a"));
        assert!(subscribers.0.is_empty());
    }
}
