//! Events on their way to browsers: each browser has a short queue of its own, so a slow one slows nobody.

use std::collections::VecDeque;

use actix::prelude::*;
use actix_relay::event::{Event, EventKind, RelayEvent};
use actix_web::web::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;

/// Browsers that may watch at once; the next is turned away.
pub(crate) const MAX_BROWSERS: usize = 16;
/// Events that may wait for one browser; what comes then is lost, and counted.
const BROWSER_QUEUE: usize = 256;
/// A browser that comes is told so many of the last events first, those about counters left out.
const HISTORY: usize = 50;
/// The name under which a browser is told what it missed.
const OWN_NAME: &str = "browser";
/// The first thing that a browser hears: when the stream breaks, it comes back after so many milliseconds.
const RETRY: &[u8] = b"retry: 1000\n\n";

/// The subscriber: whatever it hears it tells to all browsers.
#[derive(Default)]
pub(crate) struct Feed {
    browsers: Vec<Browser>,
    /// At most `HISTORY`.
    history: VecDeque<Bytes>,
    closed: bool,
}

/// Asks for the last events and all from now on, as server-sent events. The place is free again when the receiver is dropped.
#[derive(Message)]
#[rtype(result = "Result<mpsc::Receiver<Bytes>, TurnedAway>")]
pub(crate) struct Watch;

/// Why a browser may not watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    /// `MAX_BROWSERS` watch already.
    TooMany,
    /// The program ends.
    Closed,
}

/// Ends all streams, once they have said what is queued.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Close;

struct Browser {
    queue: mpsc::Sender<Bytes>,
    missed: u64,
}

/// What a browser is told: the event's fields, and the line for a person.
#[derive(Serialize)]
struct Told<'a> {
    text: String,
    #[serde(flatten)]
    event: &'a Event,
}

impl Actor for Feed {
    type Context = Context<Self>;
}

impl Handler<Watch> for Feed {
    type Result = Result<mpsc::Receiver<Bytes>, TurnedAway>;

    fn handle(&mut self, _: Watch, _: &mut Self::Context) -> Self::Result {
        self.forget_those_gone();
        if self.closed {
            return Err(TurnedAway::Closed);
        }
        if self.browsers.len() >= MAX_BROWSERS {
            return Err(TurnedAway::TooMany);
        }
        let (queue, events) = mpsc::channel(BROWSER_QUEUE);
        let mut browser = Browser { queue, missed: 0 };
        browser.tell(&Bytes::from_static(RETRY));
        self.history.iter().for_each(|message| browser.tell(message));
        self.browsers.push(browser);
        Ok(events)
    }
}

impl Handler<Event> for Feed {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        self.forget_those_gone();
        let is_news =
            !matches!(event.kind, EventKind::Stats { .. } | EventKind::Relay(RelayEvent::RelayStats { .. }));
        if !is_news && self.browsers.is_empty() {
            return;
        }
        let message = message(&event);
        self.browsers.iter_mut().for_each(|browser| browser.tell(&message));
        if is_news {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(message);
        }
    }
}

impl Handler<Close> for Feed {
    type Result = ();

    fn handle(&mut self, _: Close, _: &mut Self::Context) {
        self.closed = true;
        self.browsers.clear();
    }
}

impl Feed {
    fn forget_those_gone(&mut self) {
        self.browsers.retain(|browser| !browser.queue.is_closed());
    }
}

impl Browser {
    /// In order: what was missed is told before what came after it.
    fn tell(&mut self, message: &Bytes) {
        if self.missed > 0 && self.queue.try_send(missed(self.missed)).is_ok() {
            self.missed = 0;
        }
        if self.missed > 0 || self.queue.try_send(message.clone()).is_err() {
            self.missed += 1;
        }
    }
}

fn missed(count: u64) -> Bytes {
    let (time, kind) = (std::time::SystemTime::now(), EventKind::Missed { count });
    message(&Event { time, child: OWN_NAME.into(), kind })
}

/// One message of the stream. JSON has no line breaks of its own.
fn message(event: &Event) -> Bytes {
    let told = Told { text: event.kind.to_string(), event };
    let json = serde_json::to_string(&told).expect("events hold nothing that JSON lacks");
    Bytes::from(format!("data: {json}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn stopped() -> Event {
        let (time, child) = (std::time::SystemTime::UNIX_EPOCH, "office".into());
        Event { time, child, kind: EventKind::SessionStopped }
    }

    fn json(message: &Bytes) -> Value {
        let text = std::str::from_utf8(message).unwrap();
        serde_json::from_str(text.strip_prefix("data: ").unwrap()).unwrap()
    }

    #[actix::test]
    async fn a_slow_browser_loses_events_and_is_told_how_many() {
        let feed = Feed::default().start();
        let mut slow = feed.send(Watch).await.unwrap().unwrap();
        let mut quick = feed.send(Watch).await.unwrap().unwrap();
        assert_eq!(quick.recv().await.unwrap(), RETRY);
        // The first place is taken by when to come back.
        for _ in 0..BROWSER_QUEUE + 6 {
            feed.send(stopped()).await.unwrap();
            assert_eq!(json(&quick.recv().await.unwrap())["event"], "session_stopped");
        }
        assert_eq!(slow.recv().await.unwrap(), RETRY);
        for _ in 0..BROWSER_QUEUE - 1 {
            let told = json(&slow.recv().await.unwrap());
            assert_eq!((&told["child"], &told["text"]), (&"office".into(), &"stopped".into()));
        }
        feed.send(stopped()).await.unwrap();
        let told = json(&slow.recv().await.unwrap());
        assert_eq!((&told["event"], &told["count"]), (&"missed".into(), &7.into()));
        assert_eq!(json(&slow.recv().await.unwrap())["event"], "session_stopped");
    }

    #[actix::test]
    async fn places_are_counted_and_free_again() {
        let feed = Feed::default().start();
        let mut browsers = Vec::new();
        for _ in 0..MAX_BROWSERS {
            browsers.push(feed.send(Watch).await.unwrap().unwrap());
        }
        assert_eq!(feed.send(Watch).await.unwrap().unwrap_err(), TurnedAway::TooMany);
        browsers.pop();
        let mut last = feed.send(Watch).await.unwrap().unwrap();
        feed.send(Close).await.unwrap();
        assert_eq!(last.recv().await.unwrap(), RETRY);
        assert_eq!(last.recv().await, None);
        assert_eq!(feed.send(Watch).await.unwrap().unwrap_err(), TurnedAway::Closed);
    }

    #[actix::test]
    async fn who_comes_late_is_told_the_last_events_without_those_about_counters() {
        let feed = Feed::default().start();
        let counters = Default::default();
        for number in 0..HISTORY + 10 {
            feed.send(Event { child: number.to_string().into(), ..stopped() }).await.unwrap();
            let kind = EventKind::Stats { connected: 1, counters };
            feed.send(Event { kind, ..stopped() }).await.unwrap();
        }
        let mut late = feed.send(Watch).await.unwrap().unwrap();
        assert_eq!(late.recv().await.unwrap(), RETRY);
        for number in 10..HISTORY + 10 {
            assert_eq!(json(&late.recv().await.unwrap())["child"], number.to_string());
        }
        assert!(late.is_empty());
    }
}
