use super::*;
use actix_relay::config::SupervisorConfig;

#[actix::test]
async fn a_dead_supervisor_is_noticed() {
    let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
    let (ends, mut end) = mpsc::channel(1);
    let watch = actix_rt::spawn(watch_supervisor(supervisor.clone(), ends));
    supervisor.send(Shutdown).await.expect("it lives until then");
    watch.await.expect("watching does not panic");
    assert!(matches!(end.recv().await, Some(End::SupervisorDied)));
}

#[actix::test]
async fn only_when_the_last_session_is_given_up_is_it_over() {
    let (ends, mut end) = mpsc::channel(1);
    let running = ["a", "b"].map(ChildId::from).into();
    let watcher = Watcher { running, ends }.start();
    let gave_up = |child: &str| Event {
        time: SystemTime::now(),
        child: child.into(),
        kind: EventKind::GaveUp { reason: "why".into() },
    };
    for child in ["a", "a"] {
        watcher.send(gave_up(child)).await.expect("it lives");
    }
    assert!(end.try_recv().is_err());
    watcher.send(gave_up("b")).await.expect("it lives");
    assert!(matches!(end.try_recv(), Ok(End::AllGaveUp)));
}
