//! What browsers and programs may ask for.

use std::convert::Infallible;

use actix::prelude::*;
use actix_relay::relay::{GetPairs, GetRelay, PairInfo, RelayInfo};
use actix_relay::session::{SessionInfo, SessionState};
use actix_relay::supervisor::{GetSessions, InRelay, SupervisorActor};
use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER};
use actix_web::{HttpResponse, get, web};
use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::feed::{Feed, TurnedAway, Watch};
use crate::house::RELAY;

/// Pairs that `/sessions` shows at most.
const MAX_PAIRS: usize = 16;
/// The page needs nothing but itself and this server.
const POLICY: &str = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; \
                      style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'";

/// Whom the routes ask.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) supervisor: Addr<SupervisorActor>,
    pub(crate) feed: Addr<Feed>,
}

/// The answer of `/sessions`.
#[derive(Serialize)]
struct Overview {
    relay: Option<RelayInfo>,
    pairs: Vec<PairInfo>,
    sessions: Vec<SessionInfo>,
}

/// The answer of `/health`.
#[derive(Serialize)]
struct Health {
    status: &'static str,
    sessions: usize,
    connected: usize,
}

pub(crate) fn configure(app: &mut web::ServiceConfig) {
    app.service(show_page).service(tell_health).service(list_sessions).service(stream_events);
}

#[get("/")]
async fn show_page() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .body(include_str!("page.html"))
}

/// 200 while every session has its peer, else 503.
#[get("/health")]
async fn tell_health(hub: web::Data<Hub>) -> HttpResponse {
    let Ok(sessions) = hub.supervisor.send(GetSessions).await else { return gone() };
    let is_connected = |session: &&SessionInfo| session.state == SessionState::Connected;
    let connected = sessions.iter().filter(is_connected).count();
    let is_well = connected == sessions.len() && connected > 0;
    let status = if is_well { "ok" } else { "degraded" };
    let health = Health { status, sessions: sessions.len(), connected };
    let mut answer = if is_well { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    answer.insert_header((CACHE_CONTROL, "no-store")).json(health)
}

#[get("/sessions")]
async fn list_sessions(hub: web::Data<Hub>) -> HttpResponse {
    let Ok(mut sessions) = hub.supervisor.send(GetSessions).await else { return gone() };
    sessions.sort_by(|a, b| a.name.cmp(&b.name));
    // A relay between two lives is left out.
    let relay = hub.supervisor.send(InRelay { relay: RELAY.into(), message: GetRelay }).await;
    let pairs = GetPairs { max: MAX_PAIRS };
    let pairs = hub.supervisor.send(InRelay { relay: RELAY.into(), message: pairs }).await;
    let overview = Overview {
        relay: relay.ok().and_then(Result::ok),
        pairs: pairs.ok().and_then(Result::ok).unwrap_or_default(),
        sessions,
    };
    HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(overview)
}

/// A stream of server-sent events, until the browser or the program ends.
#[get("/events")]
async fn stream_events(hub: web::Data<Hub>) -> HttpResponse {
    match hub.feed.send(Watch).await {
        Ok(Ok(mut events)) => {
            let messages = stream::poll_fn(move |cx| events.poll_recv(cx));
            HttpResponse::Ok()
                .insert_header((CONTENT_TYPE, "text/event-stream"))
                .insert_header((CACHE_CONTROL, "no-store"))
                .streaming(messages.map(Ok::<_, Infallible>))
        }
        Ok(Err(TurnedAway::TooMany)) => HttpResponse::ServiceUnavailable()
            .insert_header((RETRY_AFTER, "5"))
            .body("as many browsers as may watch are watching\n"),
        Ok(Err(TurnedAway::Closed)) | Err(_) => gone(),
    }
}

fn gone() -> HttpResponse {
    HttpResponse::ServiceUnavailable().body("the program ends\n")
}
