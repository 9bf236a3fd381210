//! The command `actix-relay`: carries UDP where only TCP gets through. `actix-relay --help` says the rest.

mod cli;
mod passwords;
mod signals;
mod stdout;

fn main() {
    // Not by returning: a thread that hangs in the resolver would hold the process.
    std::process::exit(cli::main());
}
