//! The command: arguments or a file become a [`Plan`], the plan runs below a supervisor, events become lines.
//!
//! Everything that can end the program is an [`End`] in one channel; whatever came first decides the exit code.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use actix::prelude::*;
use actix_relay::config::{ChildId, RelayConfig, SessionConfig, TurnConfig};
use actix_relay::event::{Cause, Event, EventKind, RelayEvent, TurnEvent};
use actix_relay::relay::GetRelay;
use actix_relay::session::{GetSession, SessionState};
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{
    InRelay, InSession, InTurn, ReadCertificates, SetAccounts, Shutdown, StartError, StartRelay,
    StartSession, StartTurn, Subscribe, SupervisorActor,
};
use actix_relay::turn::GetAllocation;
use clap::Parser;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing_subscriber::EnvFilter;

use crate::passwords::{Here, Passwords};
use crate::signals::{Hangups, Signals};
use crate::stdout::{self, Line, Printer};
use args::{Cli, Command, Common};
pub(crate) use lines::Voice;
use plan::{Mistake, Plan, one_line};

mod args;
mod join_args;
mod lines;
mod passwords;
mod plan;
mod relay_args;
mod tls_args;
mod turn_args;
mod values;

const EXIT_TOLD: i32 = 0;
const EXIT_FAILED: i32 = 1;
const EXIT_USAGE: i32 = 2;
const EXIT_SUPERVISOR_DIED: i32 = 70;

/// From the signal to the exit; what has not ended by then is cut off.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1700);
/// Of that, for the sessions to say what they have carried, before they are told to stop …
const SUMMARY_TIMEOUT: Duration = Duration::from_millis(250);
/// … and at the end, for the last lines to be written.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(150);
const SUPERVISOR_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Why the program does not run, or does not run on.
struct Failure {
    code: i32,
    message: String,
}

/// What ends the program.
enum End {
    /// By a signal, or nobody reads stdout any more.
    Told,
    AllGaveUp,
    SupervisorDied,
}

/// Runs the command; the answer is the exit code.
pub(crate) fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return fail(&usage(&error)),
        Err(help_or_version) => {
            // Nobody left to be told that stdout is closed.
            let _ = help_or_version.print();
            return EXIT_TOLD;
        }
    };
    run(cli).unwrap_or_else(|failure| fail(&failure))
}

fn fail(failure: &Failure) -> i32 {
    to_stderr("error", &failure.message);
    failure.code
}

/// Unlike `eprintln!`, does not panic when stderr is closed.
pub(crate) fn to_stderr(kind: &str, message: &str) {
    let _ = writeln!(io::stderr(), "{kind}: {message}");
}

fn usage(error: &clap::Error) -> Failure {
    let with_user = std::env::args_os().any(|arg| arg.as_encoded_bytes().starts_with(b"--user"));
    wrong(args::complaint(error, with_user))
}

fn wrong(message: String) -> Failure {
    Failure { code: EXIT_USAGE, message }
}

fn run(cli: Cli) -> Result<i32, Failure> {
    cli.refuse_what_has_no_meaning().map_err(wrong)?;
    let Cli { common, command } = cli;
    start_logging(&common);
    if let Command::Check(args::File { file }) = &command {
        let plan = read(file, &common, Plan::checked)?;
        return Ok(say_fine(file, &plan, common.json));
    }
    let (plan, hint) = plan_of(command, &common)?;
    raise_descriptor_limit();
    let system = System::new();
    let end = system.block_on(serve(plan, voice(&common), hint));
    // Not dropped: it would wait for its threads, and one that hangs in the resolver hangs for long. The process
    // ends now.
    std::mem::forget(system);
    end
}

/// What is to be run, and the words that limit who may call.
fn plan_of(command: Command, common: &Common) -> Result<(Plan, &'static str), Failure> {
    let (plan, hint) = match command {
        Command::Listen(listen) => (listen.plan(common, &Here), "--allow CIDR"),
        Command::Connect(connect) => (connect.plan(common, &Here), ""),
        Command::Turn(turn) => (turn.plan(common, &Here), ""),
        Command::TurnTcp(turn) => (turn.plan(common, &Here), ""),
        Command::Join(join) => (join.plan(common, &Here), ""),
        Command::Relay(relay) => (relay.plan(common, &Here), ""),
        Command::Run(args::File { file }) | Command::Check(args::File { file }) => {
            return Ok((read(&file, common, Plan::from_toml)?, "allow = [\"CIDR\"]"));
        }
    };
    Ok((plan.map_err(wrong)?, hint))
}

/// Each peer and each application costs two descriptors, and the usual soft limit is 1,024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "raising the limit of open descriptors");
    }
}

/// What is to be said to somebody who lets everybody in.
fn open_to_anybody(plan: &Plan, hint: &str) -> Option<String> {
    let (session, addr) = plan.open_to_anybody()?;
    let open = format!("session '{}' listens on {addr} for anybody", session.name);
    Some(format!("{open}: whoever reaches the port reaches the service; limit it with {hint}"))
}

/// What is to be said to somebody whose relay is plain.
fn without_tls(plan: &Plan) -> Option<String> {
    let name = &plan.plain_relay()?.name;
    Some(format!(
        "relay '{name}' listens without TLS: passwords are safe, but whoever is in between sees and may forge \
         everything else"
    ))
}

fn read(
    file: &Path,
    common: &Common,
    plan_of: fn(&str, &dyn Passwords) -> Result<Plan, Mistake>,
) -> Result<Plan, Failure> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| wrong(format!("{name}: {error}")))?;
    let mut plan = plan_of(&text, &Here).map_err(|mistake| {
        wrong(match mistake.line {
            Some(line) => format!("{name}:{line}: {}", mistake.message),
            None => format!("{name}: {}", mistake.message),
        })
    })?;
    common.apply_to_supervisor(&mut plan.supervisor);
    Ok(plan)
}

fn say_fine(file: &Path, plan: &Plan, json: bool) -> i32 {
    let line = lines::fine(
        &file.display().to_string(),
        plan.sessions.len(),
        plan.turns.len(),
        plan.relays.len(),
        json,
    );
    let _ = writeln!(io::stdout(), "{line}");
    EXIT_TOLD
}

fn voice(common: &Common) -> Voice {
    match (common.json, common.quiet, common.verbose) {
        (true, ..) => Voice::Json,
        (_, true, _) => Voice::Quiet,
        (_, _, 0) => Voice::Normal,
        _ => Voice::Verbose,
    }
}

fn start_logging(common: &Common) {
    let level = match (common.quiet, common.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        (_, 2) => "debug",
        _ => "trace",
    };
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let filter =
        EnvFilter::try_new(if wanted.is_empty() { level } else { &wanted }).unwrap_or_else(|error| {
            to_stderr("warning", &format!("RUST_LOG is ignored: {}", one_line(&error.to_string())));
            EnvFilter::new(level)
        });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would report a closed stderr by a panicking `eprintln!`.
        .log_internal_errors(false)
        .init();
}

async fn serve(plan: Plan, voice: Voice, hint: &str) -> Result<i32, Failure> {
    let warnings = [open_to_anybody(&plan, hint), without_tls(&plan)];
    let (ends, mut end) = mpsc::channel(1);
    let (signals, hangups) =
        Signals::new(plan.reads_again()).map_err(|error| failed(format!("signal handlers: {error}")))?;
    actix_rt::spawn(stop_on_signal(signals, ends.clone()));
    let lines = start_stdout(&ends)?;

    let supervisor = SupervisorActor::new(plan.supervisor).start();
    let (tell_ended, ended) = mpsc::unbounded_channel();
    let printer = Printer { voice, lines: lines.clone(), ended: tell_ended }.start();
    let sessions = plan.sessions.iter().map(|session| &session.name);
    let turns = plan.turns.iter().map(|turn| &turn.name);
    let relays = plan.relays.iter().map(|relay| &relay.name);
    let running = sessions.chain(turns).chain(relays).cloned().collect();
    let watcher = Watcher { running, ends: ends.clone() }.start();
    for recipient in [printer.clone().recipient(), watcher.clone().recipient()] {
        let _ = supervisor.send(Subscribe { recipient, filter: Filter::All }).await;
    }
    let mut house = House { voice, supervisor, started: Vec::new(), lines, ended };
    if let Err(failure) = house.start_all(plan.sessions, plan.turns, plan.relays).await {
        house.close().await;
        return Err(failure);
    }
    warnings.iter().flatten().for_each(|warning| to_stderr("warning", warning));
    actix_rt::spawn(watch_supervisor(house.supervisor.clone(), ends));
    actix_rt::spawn(read_again(hangups, plan.accounts_in_file, house.supervisor.clone()));
    let end = end.recv().await;
    house.close().await;
    match end {
        Some(End::Told) => Ok(EXIT_TOLD),
        Some(End::AllGaveUp) => Err(failed("everything was given up".to_owned())),
        Some(End::SupervisorDied) | None => Err(supervisor_died()),
    }
}

fn start_stdout(ends: &mpsc::Sender<End>) -> Result<mpsc::Sender<Line>, Failure> {
    let lines = stdout::start().map_err(|error| failed(format!("starting a thread: {error}")))?;
    let (closed, ends) = (lines.clone(), ends.clone());
    actix_rt::spawn(async move {
        closed.closed().await;
        let _ = ends.try_send(End::Told);
    });
    Ok(lines)
}

fn failed(message: String) -> Failure {
    Failure { code: EXIT_FAILED, message }
}

fn supervisor_died() -> Failure {
    Failure { code: EXIT_SUPERVISOR_DIED, message: "the supervisor died, which is a bug".to_owned() }
}

/// The first signal closes in order, a second one at once.
async fn stop_on_signal(mut signals: Signals, ends: mpsc::Sender<End>) {
    signals.recv().await;
    let _ = ends.try_send(End::Told);
    signals.recv().await;
    std::process::exit(EXIT_TOLD);
}

/// With each SIGHUP: certificates, and who may join relays. All else stays as it was.
async fn read_again(mut hangups: Hangups, accounts_in_file: bool, supervisor: Addr<SupervisorActor>) {
    let mut reading: Option<actix_rt::task::JoinHandle<()>> = None;
    while hangups.recv().await.is_some() {
        let _ = supervisor.send(ReadCertificates).await;
        if reading.as_ref().is_some_and(|reading| !reading.is_finished()) {
            to_stderr(
                "warning",
                "who may join is still being read: what is in the file's place may be a pipe",
            );
        } else if accounts_in_file {
            reading = Some(actix_rt::spawn(read_accounts(supervisor.clone())));
        }
    }
}

async fn read_accounts(supervisor: Addr<SupervisorActor>) {
    let stays = |why: &dyn std::fmt::Display| {
        to_stderr("warning", &format!("{why}; who may join stays as it was"));
    };
    // Beside this thread: a file may be a pipe that nobody writes to.
    let relays = match tokio::task::spawn_blocking(plan_again).await {
        Ok(Ok(plan)) => plan.relays,
        Ok(Err(Failure { message, .. })) => return stays(&message),
        Err(error) => return stays(&error),
    };
    for RelayConfig { name: relay, users, shared_key, .. } in relays {
        if let Ok(Err(error)) = supervisor.send(SetAccounts { relay, users, shared_key }).await {
            stays(&error);
        }
    }
}

/// From the arguments that the program was started with, and the files that they name.
fn plan_again() -> Result<Plan, Failure> {
    let cli = Cli::try_parse().map_err(|error| usage(&error))?;
    plan_of(cli.command, &cli.common).map(|(plan, _)| plan)
}

async fn watch_supervisor(supervisor: Addr<SupervisorActor>, ends: mpsc::Sender<End>) {
    while supervisor.connected() {
        tokio::time::sleep(SUPERVISOR_CHECK_INTERVAL).await;
    }
    let _ = ends.try_send(End::SupervisorDied);
}

/// What runs.
struct House {
    voice: Voice,
    supervisor: Addr<SupervisorActor>,
    started: Vec<ChildId>,
    lines: mpsc::Sender<Line>,
    /// The sessions whose last event has been printed.
    ended: mpsc::UnboundedReceiver<ChildId>,
}

impl House {
    /// Relays first: sessions of the same file may call them.
    async fn start_all(
        &mut self,
        sessions: Vec<SessionConfig>,
        turns: Vec<TurnConfig>,
        relays: Vec<RelayConfig>,
    ) -> Result<(), Failure> {
        for config in relays {
            let name = config.name.clone();
            let started = self.supervisor.send(StartRelay { config }).await;
            self.note_started(name, started)?;
        }
        for config in sessions {
            let name = config.name.clone();
            let started = self.supervisor.send(StartSession { config }).await;
            self.note_started(name, started)?;
        }
        for config in turns {
            let name = config.name.clone();
            let started = self.supervisor.send(StartTurn { config }).await;
            self.note_started(name, started)?;
        }
        Ok(())
    }

    fn note_started<T>(
        &mut self,
        name: ChildId,
        started: Result<Result<T, StartError>, MailboxError>,
    ) -> Result<(), Failure> {
        match started {
            Ok(Ok(_)) => {
                self.started.push(name);
                Ok(())
            }
            Ok(Err(StartError::Config(error))) => Err(wrong(error.to_string())),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(supervisor_died()),
        }
    }

    /// Ends everything in order, with a last word on each session, within [`CLOSE_TIMEOUT`].
    async fn close(mut self) {
        let begin = Instant::now();
        let last_lines = begin + CLOSE_TIMEOUT - LAST_LINES_TIMEOUT;
        let sums = self.ask_all(begin + SUMMARY_TIMEOUT).await;
        if let Ok(Ok(())) = timeout_at(last_lines, self.supervisor.send(Shutdown)).await {
            let _ = timeout_at(last_lines, self.all_ended()).await;
        }
        let Self { voice, lines, .. } = self;
        let time = SystemTime::now();
        let write = async move {
            for line in sums.iter().filter_map(|(child, sums)| voice.summary(time, child, sums)) {
                let _ = lines.send(Line::Text(line)).await;
            }
            let (written, all_written) = oneshot::channel();
            let _ = lines.send(Line::Flush(written)).await;
            let _ = all_written.await;
        };
        let _ = timeout_at(begin + CLOSE_TIMEOUT, write).await;
    }

    async fn all_ended(&mut self) {
        let mut waiting: HashSet<_> = self.started.iter().cloned().collect();
        while !waiting.is_empty() {
            match self.ended.recv().await {
                Some(session) => waiting.remove(&session),
                None => return,
            };
        }
    }

    /// What each has carried. All are asked at once; one that hangs is left out.
    async fn ask_all(&self, deadline: Instant) -> Vec<(ChildId, EventKind)> {
        let ask = |child: &ChildId| {
            let (supervisor, child) = (self.supervisor.clone(), child.clone());
            actix_rt::spawn(async move {
                let sums = ask_session(&supervisor, &child).await;
                let sums = if sums.is_some() { sums } else { ask_turn(&supervisor, &child).await };
                let sums = if sums.is_some() { sums } else { ask_relay(&supervisor, &child).await };
                Some((child, sums?))
            })
        };
        let asked: Vec<_> = self.started.iter().map(ask).collect();
        let mut all = Vec::new();
        for answer in asked {
            if let Ok(Ok(Some(sums))) = timeout_at(deadline, answer).await {
                all.push(sums);
            }
        }
        all
    }
}

async fn ask_session(supervisor: &Addr<SupervisorActor>, child: &ChildId) -> Option<EventKind> {
    let question = InSession { session: child.clone(), message: GetSession };
    let info = supervisor.send(question).await.ok()?.ok()?;
    let connected = info.links.iter().filter(|link| link.state == SessionState::Connected).count();
    Some(EventKind::Stats { connected, counters: info.counters })
}

async fn ask_turn(supervisor: &Addr<SupervisorActor>, child: &ChildId) -> Option<EventKind> {
    let question = InTurn { turn: child.clone(), message: GetAllocation };
    let info = supervisor.send(question).await.ok()?.ok()?;
    Some(EventKind::Turn(TurnEvent::TurnStats { counters: info.counters }))
}

async fn ask_relay(supervisor: &Addr<SupervisorActor>, child: &ChildId) -> Option<EventKind> {
    let question = InRelay { relay: child.clone(), message: GetRelay };
    let info = supervisor.send(question).await.ok()?.ok()?;
    let (unjoined, sides, pairs, counters) = (info.unjoined, info.sides, info.pairs, info.counters);
    Some(EventKind::Relay(RelayEvent::RelayStats { unjoined, sides, pairs, counters }))
}

/// Says when every session has been given up. Apart from [`Printer`], which a slow stdout holds up.
struct Watcher {
    running: HashSet<ChildId>,
    ends: mpsc::Sender<End>,
}

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<Event> for Watcher {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        // Whose place another one has taken for good, carries nothing any more.
        let gave_up = matches!(
            event.kind,
            EventKind::GaveUp { .. }
                | EventKind::PeerDisconnected { cause: Cause::Superseded, retry_in: None, .. }
        );
        if gave_up && self.running.remove(&event.child) && self.running.is_empty() {
            let _ = self.ends.try_send(End::AllGaveUp);
        }
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
