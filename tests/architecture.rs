//! The rules of the house that a compiler does not hold: purity of the deeper files, and their size.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // The packages among the benches build beside their sources.
            if !path.ends_with("target") {
                found.extend(sources(&path));
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What a deeper file may not have: it takes `now` and bytes, and gives back bytes, deadlines and events.
fn impurity(text: &str) -> Option<&'static str> {
    let forbidden =
        ["tokio::", "actix::", "actix_rt::", "std::net::Tcp", "std::net::Udp", "::now(", "thread::sleep"];
    let grouped = text.split("std::net::{").skip(1).any(|names| {
        names.split('}').next().is_some_and(|names| names.contains("Tcp") || names.contains("Udp"))
    });
    forbidden.into_iter().find(|word| text.contains(word)).or(grouped.then_some("std::net::{Tcp*, Udp*}"))
}

#[test]
fn depth_means_purity() {
    let src = root().join("src");
    let mut checked = 0;
    for path in sources(&src) {
        let is_deep = path.strip_prefix(&src).unwrap().components().count() > 1;
        // A room's tests at its side may use the world that the room itself uses.
        if is_deep && !path.ends_with("stream/tests.rs") {
            let found = impurity(&fs::read_to_string(&path).unwrap());
            assert_eq!(found, None, "{}", path.display());
            checked += 1;
        }
    }
    assert!(checked >= 7, "only {checked} pure files found");
}

#[test]
fn impurity_is_seen_in_every_spelling() {
    for text in ["use tokio::net;", "std::net::{IpAddr, TcpStream}", "std::net::UdpSocket", "Instant::now()"]
    {
        assert!(impurity(text).is_some(), "{text}");
    }
    assert_eq!(impurity("use std::net::{IpAddr, SocketAddr};"), None);
}

#[test]
fn no_file_is_over_500_lines() {
    for dir in ["src", "tests", "examples", "benches"] {
        for path in sources(&root().join(dir)) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= 500, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn no_function_is_over_70_lines() {
    for path in sources(&root().join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        let mut begun: Option<(usize, usize)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_fn = line.trim_start().split(' ').take(4).any(|word| word == "fn");
            if is_fn && begun.is_none() {
                begun = Some((number, indent));
            }
            if let Some((start, outer)) = begun
                && indent == outer
                && (line.trim_end() == format!("{}}}", " ".repeat(outer)) || line.trim_end().ends_with(';'))
            {
                assert!(number - start < 70, "{}:{}", path.display(), start + 1);
                begun = None;
            }
        }
    }
}

#[test]
fn architecture_md_is_short_and_names_every_file() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 120, "{} lines", text.lines().count());
    let src = root().join("src");
    for path in sources(&src) {
        let name = path.strip_prefix(&src).unwrap().to_string_lossy().replace('\\', "/");
        if !name.ends_with("tests.rs") {
            assert!(text.contains(&name), "{name} is not in ARCHITECTURE.md");
        }
    }
}
