//! How single values are written.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use actix_relay::config::{AddressFamily, ConfigError};
use actix_relay::credentials::Secret;
use ipnet::IpNet;

/// The longest of all durations, as in `SessionConfig`.
const DAY: Duration = Duration::from_secs(86_400);

/// A value that may be complained about later: clap would repeat it, and it may hold a password.
pub(super) type Later<T> = Result<T, ConfigError>;

pub(super) fn later<T: FromStr<Err = ConfigError>>(text: &str) -> Result<Later<T>, Infallible> {
    Ok(text.parse())
}

pub(super) fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(text.into())
}

pub(super) fn addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected IP:PORT, such as 127.0.0.1:51820 or [::1]:51820".to_owned())
}

/// A network, or one address.
pub(super) fn allowed(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| "expected a network such as 192.0.2.0/24 or 2001:db8::/32".to_owned())
}

pub(super) fn delay(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("expected a duration such as 50ms or 5s: {error}"))
}

/// Seconds, or a duration with its unit; zero says never.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let duration = seconds(text)?;
    if duration.is_zero() || (Duration::from_millis(100)..=DAY).contains(&duration) {
        Ok(duration)
    } else {
        Err("must be 100ms to 1day, or 0 for never".to_owned())
    }
}

pub(super) fn family(text: &str) -> Result<AddressFamily, String> {
    match text {
        "ipv4" => Ok(AddressFamily::Ipv4),
        "ipv6" => Ok(AddressFamily::Ipv6),
        _ => Err("must be ipv4 or ipv6".to_owned()),
    }
}

/// Seconds, or a duration with its unit.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).or_else(|_| delay(text))
}

pub(super) fn fwmark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected a number up to 4294967295, decimal or 0x…".to_owned())
}

pub(super) fn workers(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n <= MAX_WORKERS).ok_or_else(|| WORKERS_EXPECTED.to_owned())
}

pub(super) const MAX_WORKERS: usize = 256;
pub(super) const WORKERS_EXPECTED: &str = "must be 0 to 256";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_decimal_or_hexadecimal() {
        assert_eq!(fwmark("51820"), Ok(51_820));
        assert_eq!(fwmark("0xCa6c"), Ok(0xca6c));
        for text in ["", "0x", "-1", "4294967296", "ca6c"] {
            assert!(fwmark(text).is_err(), "{text}");
        }
    }

    #[test]
    fn intervals_are_seconds_unless_they_say_otherwise() {
        assert_eq!(interval("5"), Ok(Duration::from_secs(5)));
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("0"), Ok(Duration::ZERO));
        for text in ["", "1ms", "2days", "x", "-1", "99999999999999999999"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_single_address_is_a_network_of_one() {
        assert_eq!(allowed("::1"), Ok("::1/128".parse().unwrap()));
        assert!(allowed("10.0.0.0/33").is_err());
        assert!(addr("localhost:1").is_err());
        assert_eq!(workers("256"), Ok(256));
        assert!(workers("257").is_err());
    }
}
