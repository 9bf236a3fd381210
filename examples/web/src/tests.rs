//! The whole application, asked over TCP as a browser asks.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

async fn ask(site: SocketAddr, path: &str) -> TcpStream {
    let mut browser = TcpStream::connect(site).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {site}\r\nConnection: close\r\n\r\n");
    browser.write_all(request.as_bytes()).await.unwrap();
    browser
}

/// Status and body of a whole answer.
async fn get(site: SocketAddr, path: &str) -> (String, String) {
    let mut answer = String::new();
    let mut browser = ask(site, path).await;
    timeout(PATIENCE, browser.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// The next event of a stream.
async fn event(stream: &mut TcpStream, read: &mut String) -> Value {
    loop {
        if let Some((before, rest)) = read.split_once("data: ")
            && let Some((json, rest)) = rest.split_once("\n\n")
        {
            assert!(!before.contains("data"), "{before}");
            let (event, rest) = (serde_json::from_str(json).unwrap(), rest.to_owned());
            *read = rest;
            return event;
        }
        let mut buffer = [0; 4096];
        let len = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(len > 0, "the stream ended: {read}");
        read.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
    }
}

#[actix_web::test]
async fn a_browser_sees_the_sessions_meet_and_their_counters_move_and_hears_of_the_end() {
    let (house, site) = open(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (addr, handle) = (site.addr, site.handle.clone());
    let serving = actix_web::rt::spawn(site.server);

    let mut stream = ask(addr, "/events").await;
    let mut read = String::new();
    let first = event(&mut stream, &mut read).await;
    assert!(first["event"].is_string() && first["text"].is_string(), "{first}");
    loop {
        let stats = event(&mut stream, &mut read).await;
        if stats["event"] == "stats" && stats["counters"]["to_udp"]["datagrams"].as_u64().unwrap() > 0 {
            break;
        }
    }
    assert!(read.is_empty() || !read.contains("HTTP/1.1"), "{read}");

    let (status, health) = get(addr, "/health").await;
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!((status.as_str(), &health["status"]), ("HTTP/1.1 200 OK", &"ok".into()));
    let (_, overview) = get(addr, "/sessions").await;
    assert!(!overview.contains("secret"), "{overview}");
    let overview: Value = serde_json::from_str(&overview).unwrap();
    let names: Vec<_> = overview["sessions"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["laptop", "office"]);
    assert_eq!(overview["sessions"][0]["state"], "connected");
    assert_eq!(overview["pairs"][0]["sides"][1]["side"], "office");
    assert!(overview["relay"]["counters"]["forwarded"]["datagrams"].as_u64().unwrap() > 0, "{overview}");
    let (_, page) = get(addr, "/").await;
    assert!(page.starts_with("<!doctype html>") && page.contains("/events"));

    house.stop().await;
    while event(&mut stream, &mut read).await["event"] != "session_stopped" {}
    handle.stop(true).await;
    serving.await.unwrap().unwrap();
}
