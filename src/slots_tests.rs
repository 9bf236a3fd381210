use super::*;
use crate::config::TurnServer;
use crate::session::GetSession;
use crate::subscribers::Filter;
use crate::supervisor::Subscribe;
use crate::supervisor::{GetSessions, InSession, InTurn, Shutdown, StartSession, StartTurn, StopSession};
use tokio::sync::mpsc;

/// To the TURN client: which life is this? Or: panic.
#[derive(Message)]
#[rtype(result = "Addr<TurnClientActor>")]
struct WhoAreYou {
    panic: bool,
}

impl Handler<WhoAreYou> for TurnClientActor {
    type Result = Addr<Self>;

    fn handle(&mut self, message: WhoAreYou, ctx: &mut Self::Context) -> Self::Result {
        assert!(!message.panic, "told to panic");
        ctx.address()
    }
}

pub(crate) struct Observer(mpsc::UnboundedSender<Event>);

impl Actor for Observer {
    type Context = Context<Self>;
}

impl Handler<Event> for Observer {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        let _ = self.0.send(event);
    }
}

/// All that the supervisor reports from now on, for as long as the observer is held.
pub(crate) async fn observe(
    supervisor: &Addr<SupervisorActor>,
) -> (Addr<Observer>, mpsc::UnboundedReceiver<Event>) {
    let (tell, events) = mpsc::unbounded_channel();
    let observer = Observer(tell).start();
    let recipient = observer.clone().recipient();
    supervisor.send(Subscribe { recipient, filter: Filter::All }).await.unwrap();
    (observer, events)
}

fn any() -> std::net::SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn session(name: &str) -> StartSession {
    StartSession { config: SessionConfig::new(name).local_udp(any()) }
}

fn turn(name: &str) -> StartTurn {
    let uri = "turn:127.0.0.1:1".parse().unwrap();
    let mut config = TurnConfig::new(name, TurnServer::new(uri));
    config.allocate = false;
    StartTurn { config }
}

fn ask(name: &str) -> InTurn<WhoAreYou> {
    InTurn { turn: name.into(), message: WhoAreYou { panic: false } }
}

fn stop(name: &str) -> StopSession {
    StopSession { session: name.into() }
}

#[actix::test]
async fn a_turn_client_is_started_reached_and_stopped_by_its_name() {
    let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
    let addr = supervisor.send(turn("turn")).await.unwrap().unwrap();
    assert_eq!(supervisor.send(ask("turn")).await.unwrap().unwrap(), addr);
    supervisor.send(stop("turn")).await.unwrap().unwrap();
    assert!(addr.send(WhoAreYou { panic: false }).await.is_err());
    let nobody = Err(NoSession("turn".into()));
    assert_eq!(supervisor.send(ask("turn")).await.unwrap(), nobody);
    assert_eq!(supervisor.send(stop("turn")).await.unwrap(), nobody.map(|_: Addr<TurnClientActor>| ()));
}

#[actix::test]
async fn a_name_is_one_childs_only_and_each_is_spoken_to_in_its_own_way() {
    let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
    let turn_client = supervisor.send(turn("a")).await.unwrap().unwrap();
    let relay = supervisor.send(session("b")).await.unwrap().unwrap();
    let refused = supervisor.send(session("a")).await.unwrap().unwrap_err();
    assert!(matches!(refused, StartError::NameTaken(name) if name == "a".into()));
    let refused = supervisor.send(turn("b")).await.unwrap().unwrap_err();
    assert!(matches!(refused, StartError::NameTaken(name) if name == "b".into()));
    assert_eq!(supervisor.send(ask("b")).await.unwrap(), Err(NoSession("b".into())));
    let question = InSession { session: "a".into(), message: GetSession };
    assert_eq!(supervisor.send(question).await.unwrap(), Err(NoSession("a".into())));
    let names: Vec<_> = supervisor.send(GetSessions).await.unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["b".into()]);
    supervisor.send(Shutdown).await.unwrap();
    assert!(turn_client.send(WhoAreYou { panic: false }).await.is_err());
    assert!(relay.send(GetSession).await.is_err());
}

#[actix::test]
async fn a_turn_client_that_panicked_is_replaced_and_one_that_stopped_is_heard_of() {
    let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
    let (_observer, mut heard) = observe(&supervisor).await;
    let first = supervisor.send(turn("turn")).await.unwrap().unwrap();
    assert!(first.send(WhoAreYou { panic: true }).await.is_err());
    // Not what the client tells of itself.
    let mut event = async || loop {
        let kind = heard.recv().await.unwrap().kind;
        if !matches!(kind, EventKind::Turn(_)) {
            return kind;
        }
    };
    let actor = "TurnClientActor".to_owned();
    assert_eq!(event().await, EventKind::ActorPanicked { actor });
    let second = loop {
        if let Ok(addr) = supervisor.send(ask("turn")).await.unwrap() {
            break addr;
        }
    };
    assert!(second != first);
    supervisor.send(stop("turn")).await.unwrap().unwrap();
    assert_eq!(event().await, EventKind::SessionStopped);
}

#[test]
fn what_a_server_refuses_is_asked_for_again_but_not_what_was_told_to_end() {
    let mut who = Mortal { child: "turn".into(), life: 1, part: Part::Allocation, round: 1, again: true };
    let refused = Ending { proven: true, ..Ending::new(Cause::Refused, "401 Unauthorized") };
    assert_eq!(outcome(&who, &refused), Some(Outcome::Refused { proven: true }));
    assert_eq!(outcome(&who, &Ending::new(Cause::Told, "deallocated")), None);
    // Full, and it says when there may be room.
    let full = Ending { wait: Wait::AtLeast(Duration::from_secs(9)), ..refused.clone() };
    assert_eq!(outcome(&who, &full), Some(Outcome::Failed { proven: true }));
    let superseded = Ending { proven: true, ..Ending::new(Cause::Superseded, "by another") };
    assert_eq!(outcome(&who, &superseded), Some(Outcome::Refused { proven: false }));
    assert_eq!(outcome(&who, &Ending { wait: Wait::ForEver, ..superseded }), None);
    who.again = false;
    assert_eq!(outcome(&who, &refused), None);
}
