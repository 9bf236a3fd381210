//! The child's side: which of the two hops this process is.

use actix_relay::config::ServerTls;

use crate::{Outcome, ours, parent, plain};

/// Plays the role named by the hidden first argument; `None` if there is none, so this is the bench itself.
pub(crate) fn run(args: &[String]) -> Option<Outcome<()>> {
    let (role, args) = args.split_first()?;
    match (role.as_str(), args) {
        ("relay", []) => Some(ours::relay(None)),
        ("relay", [cert, key]) => Some(ours::relay(Some(ServerTls::files(cert, key)))),
        ("proxy", [to]) => Some(play_proxy(to)),
        _ => None,
    }
}

fn play_proxy(to: &str) -> Outcome<()> {
    parent::exit_with_it();
    plain::proxy(to.parse()?)
}
